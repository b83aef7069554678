"""A tracefs instance: made, locked, configured, put back or removed.

Rule: an own instance (``lttd-<number>``) is configured freely and removed; anywhere else only what
was asked for is written, and undone.
Invariant: whoever holds the flock on the ``trace_pipe_raw`` of an instance's first CPU may use the
instance.  CPUs are locked in ascending order, so two who want the same one cannot share it.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from lttd.abi.ftrace import PageLayout, parse_header_page
from lttd.errors import LockedError, LttdError, NothingToRecordError, SourceError, UsageError
from lttd.sources.ftrace_stream import lock_raw
from lttd.sources.tracefs import (
    Undo,
    events_of,
    explained,
    find_events,
    read_bytes,
    read_text,
    systems,
    write_text,
)

TOP_LEVEL: Final = "/"
OWN_EVENTS: Final = ("sched:*",)
OWN_CLOCK: Final = "mono"
OWN_BUFFER_BYTES: Final = 4 << 20
# Wake up for the smaller of these: a quarter of the ring leaves time, a take has no room for more.
WAKE_PERCENT: Final = 25
WAKE_BYTES: Final = 4 << 20

OWN_PREFIX = "lttd-"
# Process ids stay below 2^22 (PID_MAX_LIMIT): names made by adding it are nobody's process id.
_NEXT_NAME: Final = 1 << 22
_NAMES: Final = 16
# A stale instance that another lttd just looks at is open for a moment.
_REMOVE_ATTEMPTS: Final = 20
_REMOVE_PAUSE_S: Final = 0.01
# Somebody else removed it, or does so at this moment.
_GONE: Final = (errno.ENOENT, errno.ENODEV)


@dataclass(frozen=True)
class FtraceSettings:
    """What to record and how; None leaves a foreign instance as it is, and an own one's default."""

    instance: str | None = None
    """None: one of lttd's own; ``/``: the top level; else a name below ``instances``."""
    events: tuple[str, ...] = ()
    buffer_bytes: int | None = None
    """Per CPU."""
    subbuffer_bytes: int | None = None
    clock: str | None = None
    overwrite: bool | None = None
    trace_self: bool = False
    kallsyms: bool = False


@dataclass
class Instance:
    """An instance directory, with the locked ``trace_pipe_raw`` of each of its CPUs."""

    root: str
    """Where tracefs is mounted."""
    path: str
    name: str
    own: bool
    raw_fds: dict[int, int]
    """By CPU."""
    events: list[str] = field(default_factory=list)
    """Globs and names that are enabled."""
    notes: list[str] = field(default_factory=list)
    undo: Undo = field(default_factory=Undo)
    producers: Undo = field(default_factory=Undo)
    """Undone when recording stops; *undo*, when the source is closed."""

    @property
    def ring_bytes(self) -> int:
        """Size of one CPU's ring, as it is now."""
        # "7 (expanded: 1408)" as long as nothing was recorded.
        return int(read_text(self.file("per_cpu/cpu0/buffer_size_kb")).split()[0]) << 10

    def file(self, name: str) -> str:
        """Return the path of one of its files."""
        return f"{self.path}/{name}"

    def unlock(self) -> None:
        """Close what is in raw_fds."""
        while self.raw_fds:
            os.close(self.raw_fds.popitem()[1])

    def close(self) -> None:
        """Unlock; then put back what was changed, or remove the instance."""
        self.unlock()
        if self.own:
            self.notes += _remove(self.path)
        else:
            self.notes += self.producers.run() + self.undo.run()


def make_own(root: str) -> Instance:
    """Create and lock an instance that nobody else has."""
    number = os.getpid()
    for _ in range(_NAMES):
        name = f"{OWN_PREFIX}{number}"
        path = f"{root}/instances/{name}"
        number += _NEXT_NAME
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue  # left behind by a killed lttd that had our process id
        except OSError as error:
            raise explained(path, error, "creating it: ") from error
        try:
            return Instance(root, path, name, True, _lock_all(path))
        except LockedError:
            continue  # another lttd, looking for what killed ones left, was quicker
        except BaseException as error:
            if isinstance(error, SourceError) and not os.path.isdir(path):
                continue  # ... and has removed it
            _remove(path)
            raise
    raise SourceError(f"{root}/instances: all names from {OWN_PREFIX}{os.getpid()} on are taken")


def open_named(root: str, name: str) -> Instance:
    """Lock an instance that exists, or the top level.

    Raises:
        LockedError: another recorder has it.
        NothingToRecordError: there is no such instance.
    """
    if name == TOP_LEVEL:
        return Instance(root, root, "top", False, _lock_all(root))
    if not name or "/" in name or name in {".", ".."}:
        raise UsageError(f"{name!r} cannot be the name of a tracefs instance")
    path = f"{root}/instances/{name}"
    if not os.path.isdir(path):
        raise NothingToRecordError(
            f"tracefs has no instance {name!r}",
            f"make it with mkdir {path}, or name none for one of lttd's own",
        )
    return Instance(root, path, name, False, _lock_all(path))


def lock_stale(root: str) -> Iterator[Instance]:
    """Lock, stop and return, one by one, the own instances that killed lttds left behind.

    One that cannot be locked whole is in use, or being made or removed at this moment.
    """
    for name in sorted(os.listdir(f"{root}/instances")):
        path = f"{root}/instances/{name}"
        if not re.fullmatch(rf"{re.escape(OWN_PREFIX)}\d+", name):
            continue
        try:
            instance = Instance(root, path, name, True, _lock_all(path))
        except (LockedError, SourceError):
            continue
        try:
            # Ours now, yet not to be removed before it is drained: its data is the last run's.
            write_text(instance.file("tracing_on"), "0")
        except LttdError:
            instance.unlock()
        else:
            yield instance


def _lock_all(path: str) -> dict[int, int]:
    fds: dict[int, int] = {}
    try:
        for cpu in _cpus(path):
            fds[cpu] = lock_raw(f"{path}/per_cpu/cpu{cpu}/trace_pipe_raw")
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise
    return fds


def _cpus(path: str) -> list[int]:
    try:
        names = os.listdir(f"{path}/per_cpu")
    except OSError as error:
        raise explained(f"{path}/per_cpu", error) from error
    cpus = sorted(int(name[3:]) for name in names if re.fullmatch(r"cpu\d+", name))
    if not cpus:
        raise SourceError(f"{path}/per_cpu: no CPU in it")
    return cpus


def _remove(path: str) -> list[str]:
    for _ in range(_REMOVE_ATTEMPTS):
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno in _GONE:
                return []
            failure = error
            if error.errno != errno.EBUSY:
                break
            time.sleep(_REMOVE_PAUSE_S)
        else:
            return []
    return [str(explained(path, failure, "removing it: "))]


def configure_own(instance: Instance, settings: FtraceSettings) -> None:
    """Set up an instance that has just been made; it records nothing before tracing_on is 1."""
    write_text(instance.file("tracing_on"), "0")
    _set_clock(instance, settings.clock or OWN_CLOCK)
    if settings.subbuffer_bytes is not None:
        _set_subbuffer_bytes(instance, settings.subbuffer_bytes)
    _set_buffer_bytes(
        instance, settings.buffer_bytes if settings.buffer_bytes is not None else OWN_BUFFER_BYTES
    )
    if settings.overwrite is not None:
        _set(instance, "options/overwrite", str(int(settings.overwrite)))
    _try_to_set(instance, "options/record-tgid", "1")
    _try_to_set(instance, "buffer_percent", str(wake_percent(instance.ring_bytes)))
    _enable(instance, settings.events or OWN_EVENTS)
    _tell_differences(instance, settings)


def configure_foreign(instance: Instance, settings: FtraceSettings) -> None:
    """Write what was asked for, and what keeps poll from spinning; remember how it was."""
    if settings.clock is not None:
        _set_clock(instance, settings.clock)
    if settings.subbuffer_bytes is not None:
        _set_subbuffer_bytes(instance, settings.subbuffer_bytes)
    if settings.buffer_bytes is not None:
        _set_buffer_bytes(instance, settings.buffer_bytes)
    if settings.overwrite is not None:
        _set(instance, "options/overwrite", str(int(settings.overwrite)))
    if _read_or(instance, "buffer_percent", "50") == "0":
        _try_to_set(instance, "buffer_percent", str(wake_percent(instance.ring_bytes)))
    _enable(instance, settings.events)
    _tell_differences(instance, settings)
    instance.events = enabled_events(instance.path)


def wake_percent(ring_size_bytes: int) -> int:
    """Return the buffer_percent to set; 0 would make poll report readable for ever."""
    return max(1, min(WAKE_PERCENT, 100 * WAKE_BYTES // max(ring_size_bytes, 1)))


def wakes_sensibly(instance: Instance) -> bool:
    """Tell whether poll waits for some fill; before Linux 5.0, or with 0, it would spin."""
    return _read_or(instance, "buffer_percent", "0") != "0"


def page_layout(instance: Instance) -> PageLayout:
    """Ask the instance how its sub-buffers look."""
    order = "<" if sys.byteorder == "little" else ">"
    try:
        return parse_header_page(read_bytes(instance.file("events/header_page")), order)
    except (LttdError, ValueError):
        size_kb = int(_read_or(instance, "buffer_subbuf_size_kb", "0"))
        return PageLayout((size_kb << 10) or os.sysconf("SC_PAGESIZE"), byteorder=order)


def overwrites(instance: Instance) -> bool:
    """Tell whether a full ring loses its oldest events rather than the newest."""
    return read_text(instance.file("options/overwrite")) == "1"


def clock_of(instance: Instance) -> str:
    """Return the name of the instance's trace clock."""
    text = read_text(instance.file("trace_clock"))
    chosen = re.search(r"\[(\S+)\]", text)
    return chosen[1] if chosen else text


def enabled_events(path: str) -> list[str]:
    """Return what is enabled in an instance: ``system:*``, or events one by one."""
    names = []
    for system in systems(f"{path}/events"):
        directory = f"{path}/events/{system}"
        state = _state(f"{directory}/enable")
        if state == "1":
            names.append(f"{system}:*")
        elif state == "X":
            names += [
                f"{system}:{event}"
                for event in events_of(directory)
                if _state(f"{directory}/{event}/enable") == "1"
            ]
    return names


def _state(enable_file: str) -> str:
    try:
        return read_text(enable_file)[:1]
    except LttdError:
        return ""  # some events have none; a module may have gone


def _set(instance: Instance, name: str, text: str) -> None:
    if instance.own:
        write_text(instance.file(name), text)
    else:
        instance.undo.change(instance.file(name), text)


def _try_to_set(instance: Instance, name: str, text: str) -> None:
    try:
        _set(instance, name, text)
    except LttdError as error:
        instance.notes.append(str(error))


def _read_or(instance: Instance, name: str, default: str) -> str:
    try:
        return read_text(instance.file(name))
    except LttdError:
        return default


def _set_clock(instance: Instance, clock: str) -> None:
    path = instance.file("trace_clock")
    known = read_text(path).replace("[", "").replace("]", "").split()
    if clock not in known:
        raise UsageError(f"this kernel has no trace clock {clock!r}; it has {', '.join(known)}")
    before = clock_of(instance)
    if before == clock:
        return  # writing it would empty the ring all the same, and takes 20 ms
    write_text(path, clock)
    if not instance.own:
        instance.undo.remember(path, before)


def _set_subbuffer_bytes(instance: Instance, size_bytes: int) -> None:
    if size_bytes <= 0 or size_bytes % 1024:
        raise UsageError(f"a sub-buffer of {size_bytes} bytes: give a multiple of 1024")
    _try_to_set(instance, "buffer_subbuf_size_kb", str(size_bytes >> 10))


def _set_buffer_bytes(instance: Instance, size_bytes: int) -> None:
    if size_bytes < 1024:
        raise UsageError(f"a buffer of {size_bytes} bytes holds no event: give 64K or more")
    text = str(max(1, -(-size_bytes // 1024)))
    if instance.own:
        write_text(instance.file("buffer_size_kb"), text)
        return
    for cpu in sorted(instance.raw_fds):
        path = instance.file(f"per_cpu/cpu{cpu}/buffer_size_kb")
        before = read_text(path).split()[0]
        if before != text:
            instance.undo.remember(path, before)
            write_text(path, text)


def _enable(instance: Instance, globs: Sequence[str]) -> None:
    refused = []
    files = find_events(instance.file("events"), globs)
    for file in files:
        try:
            if instance.own:
                write_text(file.path, "1")
            else:
                _enable_what_is_off(file.path, instance.producers)
            instance.events.append(file.name)
        except LttdError as error:
            refused.append(error)
    if files and len(refused) == len(files):
        raise refused[0]
    instance.notes += map(str, refused)


def _enable_what_is_off(enable_file: str, undo: Undo) -> None:
    """Enable an event, a system, or all; only what was off is switched off again."""
    state = _state(enable_file)
    if state == "0":
        undo.remember(enable_file, "0")
        write_text(enable_file, "1")
    elif state == "X":
        directory = os.path.dirname(enable_file)
        for name in events_of(directory):
            _enable_what_is_off(f"{directory}/{name}/enable", undo)


def _tell_differences(instance: Instance, settings: FtraceSettings) -> None:
    """Note what was asked for and what the kernel made of it."""
    asked_and_made = (
        ("buffer size", settings.buffer_bytes, instance.ring_bytes),
        ("sub-buffer size", settings.subbuffer_bytes, page_layout(instance).subbuffer_bytes),
    )
    for what, asked, made in asked_and_made:
        if asked is not None and asked != made:
            instance.notes.append(
                f"{what}: asked for {-(-asked // 1024)} KiB, the kernel made {made >> 10} KiB"
            )
    if settings.overwrite is not None and overwrites(instance) != settings.overwrite:
        instance.notes.append(
            f"overwrite: asked for {settings.overwrite}, the kernel kept the other"
        )
