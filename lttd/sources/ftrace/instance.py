"""Make or find a tracefs instance, lock it, and remove or restore it at the end.

Rule: lttd writes a record before it makes an instance of its own (``lttd-<number>``), sets it up
freely, and removes it.  In another instance it writes only the requested settings, and undoes them.
Rule: lttd removes only directories whose inode is in its record, which are those that it made.
Invariant: the process that holds the flock on the ``trace_pipe_raw`` of an instance's first CPU may
use the instance.  CPUs are locked in ascending order, so two processes cannot share one.
"""

import errno
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from lttd.errors import LockedError, LttdError, NothingToRecordError, SourceError, UsageError
from lttd.plausible import is_name
from lttd.runtime import RuntimeDirectory
from lttd.sources.base import NO_OWNER, Owner
from lttd.sources.ftrace.raw import lock_raw, refuse_locked
from lttd.sources.ftrace.record import (
    TOP_LEVEL,
    InstanceRecord,
    Left,
    Progress,
    open_left,
    record_name,
)
from lttd.sources.ftrace.undo import Undo
from lttd.sources.processes import holders_below
from lttd.sources.tracefs import (
    event_file,
    explained,
    parse_stats,
    read_bytes,
    read_text,
    write_text,
)

OWN_PREFIX = "lttd-"
# Process ids stay below 2^22 (PID_MAX_LIMIT), so a name made by adding it is not a process id.
_NEXT_NAME: Final = 1 << 22
_NAMES: Final = 16
# Another lttd that examines a stale instance has it open for a moment.
_ATTEMPTS: Final = 20
_PAUSE_S: Final = 0.01
# Another process removed it, or removes it at this moment.
_GONE: Final = (errno.ENOENT, errno.ENODEV)


@dataclass
class Instance:
    """An instance directory, with the locked ``trace_pipe_raw`` of each of its CPUs."""

    root: str
    """The mount point of tracefs."""
    path: str
    name: str
    own: bool
    raw_fds: dict[int, int]
    """The descriptors by CPU."""
    undo: Undo
    owner: Owner = NO_OWNER
    """The trace into which it is recorded."""
    record: InstanceRecord | None = None
    """None: the user has no runtime directory, and records an instance that is not lttd's."""
    progress: Progress | None = None
    """The progress of a killed lttd with this instance; None once its losses are in a segment."""
    events: list[str] = field(default_factory=list)
    """The enabled globs and names."""
    earlier_events: list[str] = field(default_factory=list)
    """Those that were enabled before a reload: a ring may still hold such events."""
    filters: dict[str, str] = field(default_factory=dict)
    """The filters that lttd has set, by event."""
    triggers: dict[str, list[str]] = field(default_factory=dict)
    """The triggers that lttd has set, by event."""
    triggered: set[str] = field(default_factory=set)
    """Events that have, or had, a trigger: set_event names them even if they are off."""
    switched: set[str] = field(default_factory=set)
    """Events that a trigger of lttd's turns on or off."""
    mark_symbols: bytes = b""
    """The content of the segment's file, see mark_symbol.py."""
    notes: list[str] = field(default_factory=list)
    began_empty: bool = False
    """The rings held nothing when lttd came: what they hold since is of events that lttd knows."""

    @property
    def ring_bytes(self) -> int:
        """The present size of one CPU's ring."""
        # "7 (expanded: 1408)" before anything was recorded.
        return int(read_text(self.file("per_cpu/cpu0/buffer_size_kb")).split()[0]) << 10

    def file(self, name: str) -> str:
        """Return the path of a file of the instance."""
        return f"{self.path}/{name}"

    def enabled(self) -> frozenset[str]:
        """Return the single events that are on.

        Raises:
            LttdError: the kernel does not tell.
        """
        names = frozenset(read_text(self.file("set_event")).splitlines())
        return frozenset(
            name
            for name in names
            if name not in self.triggered
            or read_text(self.file(event_file(name, "enable")))[:1] != "0"
        )

    def unlock(self) -> None:
        """Close the descriptors of raw_fds."""
        while self.raw_fds:
            os.close(self.raw_fds.popitem()[1])

    @contextmanager
    def rings_closed(self) -> Iterator[None]:
        """Let the block run while lttd has no ring open; lock the instance again afterwards.

        Raises:
            LockedError: another recorder came meanwhile.
        """
        self.unlock()
        yield
        self.raw_fds = lock_all(self.path)

    def leave(self) -> None:
        """Unlock the instance, and leave it unchanged to the next lttd."""
        self.unlock()
        if self.record is not None:
            self.record.release()

    def close(self, *, drained: bool = True) -> None:
        """Unlock the instance; then undo the changes, or remove it.

        If it was not *drained*, changes that would empty its ring wait for the next lttd.
        """
        self.unlock()
        record, self.record = self.record, None
        if self.own:
            self.notes += remove_own(self.path, record, self.undo)
            return
        self.notes += self.undo.run(keep_rings=not drained and bool(unread_events(self.path)))
        if record is None:
            return
        if self.undo.changed or self.progress is not None:
            record.release()
        else:
            record.remove()


def make_own(root: str, owner: Owner = NO_OWNER) -> Instance:
    """Create and lock a new instance, to be recorded into *owner*.

    Raises:
        NothingToRecordError: there is no tracefs or no runtime directory, or this user may not use
            it.
    """
    directory = RuntimeDirectory()
    try:
        number = os.getpid()
        for _ in range(_NAMES):
            instance = _try_to_make(root, f"{OWN_PREFIX}{number}", directory, owner)
            if instance is not None:
                return instance
            number += _NEXT_NAME
    except BaseException:
        directory.close()
        raise
    directory.close()
    raise SourceError(f"{root}/instances: all names from {OWN_PREFIX}{os.getpid()} on are taken")


def _try_to_make(
    root: str, name: str, directory: RuntimeDirectory, owner: Owner
) -> Instance | None:
    """Make the instance *name*; return None if it, or a record of it, exists."""
    path = f"{root}/instances/{name}"
    if os.path.lexists(path):
        return None
    try:
        record = InstanceRecord.create(directory, name, owner, own=True)
    except FileExistsError:
        return None
    made = False
    try:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            record.forget()
            return None
        except OSError as error:
            raise explained(path, error, "creating it: ") from error
        made = True
        record.write_down({"made": os.stat(path).st_ino})
        undo = Undo(path, record.write_down, root=root, own=True)
        return Instance(root, path, name, True, _lock(_raw_paths(path)), undo, owner, record)
    except BaseException:
        if made:
            with suppress(OSError):
                os.rmdir(path)
        record.forget()
        raise


def open_named(root: str, name: str, owner: Owner = NO_OWNER) -> Instance:
    """Lock an existing instance, or the top level; take over the changes of a killed lttd in it.

    Raises:
        LockedError: another recorder has it.
        NothingToRecordError: there is no such instance.
    """
    if name == TOP_LEVEL:
        path, shown = root, "top"
    elif not name or "/" in name or name in {".", ".."}:
        raise UsageError(f"{name!r} is not a valid name of a tracefs instance")
    else:
        path, shown = f"{root}/instances/{name}", name
    if not is_name(shown):
        raise UsageError(f"{name!a:.80}: this name of an instance is not UTF-8, or too long")
    if not os.path.isdir(path):
        raise NothingToRecordError(
            f"tracefs has no instance {name!r}",
            f"make it with mkdir {path}, or leave NAME out for an instance of lttd's own",
        )
    instance = Instance(root, path, shown, False, lock_all(path), Undo(path, root=root), owner)
    try:
        _hold_record(instance, name, owner)
    except BaseException:
        instance.leave()
        raise
    return instance


def _hold_record(instance: Instance, name: str, owner: Owner) -> None:
    try:
        directory = RuntimeDirectory()
    except NothingToRecordError as error:
        if os.geteuid() == 0:
            raise
        what = "after a kill, lttd's changes in this instance would stay"
        instance.notes.append(f"{error.reason}: {what}; {error.remedy}")
        return
    # Hold the old record until the new one has replaced it: otherwise another lttd would undo
    # settings that are needed again.
    old = hold_left(record_name(name))
    try:
        left = _left_by(old, instance, owner) if old is not None else None
    except BaseException:
        if old is not None:
            old.release()
        raise
    instance.record = InstanceRecord.replace(directory, name, owner)
    instance.undo = Undo(instance.path, instance.record.write_down, root=instance.root)
    if old is not None:
        old.release()
    if left is not None:
        instance.notes += instance.undo.inherit(left.changes.values(), left.added.values())


def _left_by(record: InstanceRecord, instance: Instance, owner: Owner) -> Left | None:
    """Return the changes of a killed lttd in an instance that this process has locked."""
    try:
        left = record.left()
    except ValueError:
        return None
    if not left.of_this_boot:
        return None
    if left.own:
        if left.made == os.stat(instance.path).st_ino:
            what = f"{instance.name} holds data that a killed lttd recorded into {left.owner.path}"
            remedy = f"lttd --append -t {left.owner.path} keeps it, and needs no --source for that"
            raise UsageError(f"{what}: {remedy}")
        return left  # another instance had this name; its probes may be there
    if owner.is_trace(left.owner):
        instance.progress = record.progress()
    return left


def hold_left(name: str) -> InstanceRecord | None:
    """Hold the record of a dead recorder, which another lttd may be reading just now.

    Raises:
        LockedError: its recorder lives.
    """
    for _ in range(_ATTEMPTS):
        try:
            return open_left(name)
        except LockedError as error:
            failure = error
            time.sleep(_PAUSE_S)
    raise failure


def lock_all(path: str) -> dict[int, int]:
    """Open and lock the ``trace_pipe_raw`` of each CPU of the instance at *path*.

    Raises:
        LockedError: another recorder has it.
        LttdError: a file cannot be opened.
    """
    paths = _raw_paths(path)
    refuse_locked(paths.values())
    return _lock(paths)


def _raw_paths(path: str) -> dict[int, str]:
    return {cpu: f"{path}/per_cpu/cpu{cpu}/trace_pipe_raw" for cpu in cpus_of(path)}


def _lock(paths: Mapping[int, str]) -> dict[int, int]:
    fds: dict[int, int] = {}
    try:
        for cpu, path in paths.items():
            fds[cpu] = lock_raw(path)
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise
    return fds


def cpus_of(path: str) -> Sequence[int]:
    """Return the CPUs of the instance at *path*, in ascending order.

    Raises:
        LttdError: it has none, or was removed.
    """
    try:
        names = os.listdir(f"{path}/per_cpu")
    except OSError as error:
        raise explained(f"{path}/per_cpu", error) from error
    cpus = sorted(int(name[3:]) for name in names if re.fullmatch(r"cpu\d+", name))
    if not cpus:
        raise SourceError(f"{path}/per_cpu: no CPU in it")
    return cpus


def unread_events(path: str) -> int:
    """Return the number of events in the rings of the instance at *path*."""
    return sum(
        parse_stats(read_bytes(f"{path}/per_cpu/cpu{cpu}/stats")).get("entries", 0)
        for cpu in cpus_of(path)
    )


def remove_own(path: str, record: InstanceRecord | None, undo: Undo) -> list[str]:
    """Remove an instance that lttd made, undo the changes outside of it, and remove its record.

    An instance that is held open stays, with its events off; by its record the next lttd removes
    it.  Return lines on what is not possible.
    """
    if record is not None and undo.changed:
        record.write_down({"finished": True})  # a kill may come between the two steps
    failure = _remove(path)
    if failure is None:
        lines = []
    elif not os.path.isdir(os.path.dirname(path)):
        lines = [f"{path} stays, because tracefs was unmounted: mount it; the next lttd removes it"]
    else:
        line = f"{_why_it_stays(path, failure)}{_switched_off(path, record)}"
        lines = [f"{line}: end that, then rmdir {path}"]
    lines += undo.run()
    if record is not None:
        if failure is not None or undo.changed:
            record.release()
        else:
            record.remove()
    return lines


def _why_it_stays(path: str, failure: OSError) -> str:
    if failure.errno != errno.EBUSY:
        return f"{path} stays: {os.strerror(failure.errno or 0)}"
    who = ", ".join(holders_below(path)) or "somebody"
    return f"{path} stays, because {who} has a file of it open"


def _switched_off(path: str, record: InstanceRecord | None) -> str:
    try:
        write_text(f"{path}/tracing_on", "0")
        write_text(f"{path}/events/enable", "0")
        if record is not None:
            record.write_down({"finished": True})
    except LttdError as error:
        return f"; switching it off failed, too: {error}"
    return "; its events are off"


def _remove(path: str) -> OSError | None:
    """Remove an instance; return the error if it fails."""
    failure: OSError | None = None
    for _ in range(_ATTEMPTS):
        try:
            os.rmdir(path)
        except OSError as error:
            failure = error
            if error.errno in _GONE:
                # Without tracefs the instance cannot be reached, but it still exists.
                return None if os.path.isdir(os.path.dirname(path)) else failure
            if error.errno != errno.EBUSY:
                return failure
            time.sleep(_PAUSE_S)
        else:
            return None
    return failure
