"""Deal with the instances and settings that killed lttds left, by their records.

    whose record         its instance         what happens
    another boot's       any                  the record is removed
    any                  made anew            the record is removed
    any                  gone                 reported to the start of its trace
    this trace's own     any                  drained into a segment of this trace, then removed
    another trace's own  holds nothing        removed
                         trace is there       reported; tracing is turned off after a minute
                         trace has gone       removed; how many events went with it is reported
    any trace's own      no trigger wants it  removed likewise (lttd.flight)
    not lttd's own       any                  the settings are put back; the ring keeps its data

Rule: the data of a ring belongs to the trace into which it was recorded.
Rule: a trace is gone only if the kernel says so for its file handle.  If the trace may have been
moved, or this user may not ask (that takes CAP_DAC_READ_SEARCH), its ring stays.
Rule: an instance without a record may not be lttd's, so it is reported and left alone.
"""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Final

from lttd.errors import LockedError, LttdError
from lttd.handles import is_there
from lttd.runtime import Recorder, directory_path, remove_half_made
from lttd.sources.base import Owner
from lttd.sources.ftrace import instance as ftrace_instance
from lttd.sources.ftrace.additions import PROBES_FILE
from lttd.sources.ftrace.instance import (
    Instance,
    cpus_of,
    hold_left,
    lock_all,
    remove_own,
    unread_events,
)
from lttd.sources.ftrace.killed import unstored
from lttd.sources.ftrace.loss import LossCounts, Mark
from lttd.sources.ftrace.raw import lock_raw, refuse_locked
from lttd.sources.ftrace.record import (
    TOP_LEVEL,
    InstanceRecord,
    Left,
    glance,
    is_foreign,
    open_left,
    record_name,
    record_names,
)
from lttd.sources.ftrace.undo import Undo, empties_ring
from lttd.sources.tracefs import parse_stats, read_bytes, read_text, write_text

# Its owner may start again at once.  After this time, lttd turns tracing off: it costs CPU time.
GRACE_S: Final = 60.0
_LISTED: Final = 3
# The most lines on notes that lttd did not write, and the most characters that a line quotes.
_REFUSED: Final = 8
_QUOTED: Final = 200


class Leftovers:
    """Handles the records of dead recorders one by one."""

    def __init__(self, root: str, owner: Owner) -> None:
        """*root* is the mount point of tracefs; *owner* is the trace of this run."""
        self._root = root
        self._owner = owner
        self.lines: list[str] = []
        """Lines for the user."""
        self._refused = 0

    def own_instances(self) -> Iterator[Instance]:
        """Handle every record; yield the instances of this trace, locked and stopped."""
        remove_half_made()
        for name in sorted(record_names(), key=_has_probes):
            record = self._hold(name)
            if record is None:
                continue
            try:
                instance = self._deal_with(record)
            except (LttdError, OSError) as error:  # the instance is removed at this moment, say
                self.lines.append(str(error))
                instance = None
            except BaseException:
                record.release()
                raise
            if instance is None:
                record.release()
            else:
                yield instance
        if self._refused > _REFUSED:
            more = self._refused - _REFUSED
            self.lines.append(f"{more} more such notes there: remove those that lttd did not write")

    def report_unknown(self) -> None:
        """Report instances with a name like lttd's that have no record and no reader."""
        try:
            names = sorted(os.listdir(f"{self._root}/instances"))
        except OSError:
            return  # a user may be allowed to use one instance, but not to list all
        for name in names:
            path = f"{self._root}/instances/{name}"
            if not re.fullmatch(rf"{re.escape(ftrace_instance.OWN_PREFIX)}\d+", name):
                continue
            if not _has_record(name) and _is_unused(path):
                what = "no record says that lttd made it, and nobody reads it; it is left alone"
                self.lines.append(f"{path}: {what}; rmdir {path} removes it")

    def _hold(self, name: str) -> InstanceRecord | None:
        seen = glance(name)
        if seen is not None and seen.recorder == Recorder.this():
            return None  # it is the record of this process
        try:
            # This process holds the lock of its trace, so all other recorders of the trace are
            # dead: only another lttd that reads the record can hold it, for a moment.
            of_this_trace = seen is not None and self._owner.is_trace(seen.owner)
            record = hold_left(name) if of_this_trace else open_left(name)
        except LockedError:
            return None  # its recorder lives
        if record is None and is_foreign(name):
            self._refuse(f"{directory_path()}/{name}", "it is not a file that only lttd can write")
        return record

    def _refuse(self, path: str, reason: str) -> None:
        self._refused += 1
        if self._refused <= _REFUSED:
            self.lines.append(f"{path}: {reason:.{_QUOTED}}; lttd did not write it: remove it")

    def _deal_with(self, record: InstanceRecord) -> Instance | None:
        try:
            left = record.left()
        except ValueError as error:
            self._refuse(record.path, str(error))
            return None
        path = self._path_of(left)
        if not left.of_this_boot:
            record.remove()
        elif not os.path.isdir(path):
            self._report_removed(record, left, path)
        elif not left.own:
            self._put_back(record, left, path)
        elif not left.made and record.is_as_old_as(path) and not _is_in_use(path):
            # Killed before it could write down its inode.
            self.lines += remove_own(path, record, self._undo(record, left, path))
        elif left.made != os.stat(path).st_ino:
            self._end(record, left, path)  # it is not the instance that lttd made
        elif left.finished or (not record.progress().segment and not unread_events(path)):
            self.lines += remove_own(path, record, self._undo(record, left, path))
        elif record.progress().is_idle:
            what = f"left by an lttd that was killed (pid {left.recorder.pid}) while no trigger"
            self._discard(record, left, path, f"{path}: {what} asked for its events")
        elif self._is_ours(record, left):
            return self._take_over(record, left, path)
        else:
            self._report(record, left, path)
        return None

    def _path_of(self, left: Left) -> str:
        top = left.instance == TOP_LEVEL
        return self._root if top else f"{self._root}/instances/{left.instance}"

    def _undo(self, record: InstanceRecord, left: Left, path: str) -> Undo:
        """Return the changes of a record, to be undone."""
        undo = Undo(path, record.write_down, root=self._root, own=left.own)
        undo.take_over(left.changes.values(), left.added.values())
        return undo

    def _end(self, record: InstanceRecord, left: Left, path: str) -> None:
        """Undo what outlived an own instance, and remove its record unless something stays."""
        undo = self._undo(record, left, path)
        self.lines += undo.run()
        if not undo.changed:
            record.remove()

    def _is_ours(self, record: InstanceRecord, left: Left) -> bool:
        """Tell whether the ring was recorded into the trace of this run.

        A directory can have the inode of a removed one, but then with another path and content.
        """
        if not self._owner.is_trace(left.owner):
            return False
        segment = record.progress().segment
        here = bool(segment) and os.path.isdir(f"{self._owner.path}/{segment}")
        return here or left.owner.path == self._owner.path

    def _take_over(self, record: InstanceRecord, left: Left, path: str) -> Instance | None:
        try:
            raw_fds = lock_all(path)
        except LockedError as error:
            self.lines.append(f"{error}; it holds data that a killed lttd recorded into this trace")
            return None
        progress = record.progress()
        undo = self._undo(record, left, path)
        instance = Instance(self._root, path, left.instance, True, raw_fds, undo)
        instance.owner, instance.record, instance.progress = self._owner, record, progress
        try:
            # It must not be removed before it is drained: its data belongs to the last run.
            _switch_off(path)
        except BaseException:
            instance.unlock()
            raise
        return instance

    def _report(self, record: InstanceRecord, left: Left, path: str) -> None:
        events = unread_events(path)
        who = f"{path}: left by an lttd that was killed (pid {left.recorder.pid})"
        if _has_gone(left):
            self._discard(record, left, path, f"{who}, whose trace {left.owner.path} is gone, too")
            return
        state = f"it holds {events:,} events of {left.owner.path}{_doubt(left)}"
        if record.progress().age_s > GRACE_S:
            if _switch_off(path):
                state += "; its tracing was on and is off now"
        elif read_text(f"{path}/tracing_on") == "1":
            state += " and records on"
        remedy = f"lttd --append -t {left.owner.path} keeps them, rmdir {path} discards them"
        self.lines.append(f"{who}; {state}; {remedy}")

    def _discard(self, record: InstanceRecord, left: Left, path: str, why: str) -> None:
        """Remove a ring whose events nobody wants."""
        events = unread_events(path)
        refused = remove_own(path, record, self._undo(record, left, path))
        self.lines += refused or [f"{why}: removed, and {events:,} events with it"]

    def _report_removed(self, record: InstanceRecord, left: Left, path: str) -> None:
        """Report a removed ring to the start of its trace; keep the record until then."""
        if left.own and left.made and not left.finished and not _has_gone(left):
            if not self._is_ours(record, left):
                self.lines += self._undo(record, left, path).run()
                return
            what = "with events that a killed lttd had not stored yet"
            self.lines.append(f"{path}: somebody removed it, {what}; their number is unknown")
        self._end(record, left, path)

    def _put_back(self, record: InstanceRecord, left: Left, path: str) -> None:
        """Undo the changes of a killed lttd in an instance that is not lttd's own."""
        events = unread_events(path)
        undo = self._undo(record, left, path)
        before = undo.files
        failed = undo.run(keep_rings=bool(events))
        stay = undo.files
        self.lines += failed
        who = f"{path}: an lttd that was killed (pid {left.recorder.pid})"
        if done := [file for file in before if file not in stay]:
            self.lines.append(f"{who} had changed it; restored: {_listed(done)}")
        if waiting := [file for file in stay if events and empties_ring(file)]:
            what = f"left {_listed(waiting)} changed: restoring this"
            what += f" would lose its {events:,} unread events"
            remedy = "record from it, or read them; then the next lttd restores it"
            self.lines.append(f"{who} {what}; {remedy}")
        if stay:
            return
        if self._owner.is_trace(left.owner):
            self._tell_unstored(record, path)
            record.remove()
        elif not record.progress().segment or _has_gone(left):
            record.remove()  # no trace waits for the count of the lost events

    def _tell_unstored(self, record: InstanceRecord, path: str) -> None:
        """Report the losses of a ring that this run does not record, so that no gap states them."""
        progress, taken, lost = record.progress(), 0, 0
        for stream in progress.marks:
            file = f"{path}/per_cpu/cpu{stream.rpartition('_')[2]}/stats"
            stats = parse_stats(read_bytes(file))
            now = Mark(0, stats.get("read events", 0), LossCounts.of(stats))
            if missing := unstored(stream, now, progress, self._owner):
                taken += missing.taken or 0
                lost += sum(missing.lost or ())
        if taken or lost:
            what = f"of {taken:,} events that a killed lttd took of it and did not store"
            what += f", and of {lost:,} that the kernel lost since" if lost else ""
            self.lines.append(f"{path}: no gap in the trace states {what}; record from it, too")


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - _LISTED} more" if len(files) > _LISTED else ""
    return ", ".join(files[:_LISTED]) + more


def _switch_off(path: str) -> bool:
    """Turn tracing off; return whether it was on."""
    was_on = read_text(f"{path}/tracing_on") != "0"
    if was_on:
        write_text(f"{path}/tracing_on", "0")
    return was_on


def _has_gone(left: Left) -> bool:
    """Tell whether the kernel says that a trace directory was removed."""
    path = left.owner.path
    try:
        while _is_missing(path) and path not in ("", "/"):
            path = os.path.dirname(path)
        if os.stat(path).st_dev != left.owner.device:
            return False  # its file system is not mounted here
        directory = path if os.path.isdir(path) else os.path.dirname(path)
        return is_there(left.owner.handle, directory) is False
    except OSError:
        return False


def _doubt(left: Left) -> str:
    """Return words to add to the path of a trace whose removal is not proved."""
    try:
        missing = _is_missing(left.owner.path)
    except OSError:
        return ""
    return ", which is not there now (moved, removed, or not to be seen from here)" * missing


def _is_missing(path: str) -> bool:
    """Tell whether nothing has the name *path*.

    Raises:
        OSError: it is unknown; this user may not search a directory on the way to it.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


def _has_probes(name: str) -> bool:
    """Tell whether a record has probes: they go last, since other sources of its run use them."""
    left = glance(name)
    return left is not None and PROBES_FILE in left.added


def _has_record(instance: str) -> bool:
    return record_name(instance) in record_names()


def _is_in_use(path: str) -> bool:
    """Tell whether an instance is read by somebody, holds data, or has events on."""
    return not _is_unused(path) or bool(unread_events(path) or read_text(f"{path}/set_event"))


def _is_unused(path: str) -> bool:
    try:
        raw = f"{path}/per_cpu/cpu{cpus_of(path)[0]}/trace_pipe_raw"
        refuse_locked([raw])
        os.close(lock_raw(raw))
    except (LttdError, OSError):
        return False  # it is in use, or being made or removed at this moment
    return True
