"""Keep the record of a tracefs instance that an lttd uses, in the runtime directory.

    ftrace-lttd-4711     {"instance": "lttd-4711", "own": true, "boot_id": ..., "trace": ...,
                          "recorder": ..., "boottime_ns": 90125000000}
                         {"made": 77265}
    ftrace-%2F           {"instance": "/", "own": false, ...}
                         {"file": "events/irq/enable", "before": "0", "after": "1"}
                         {"added": "set_event_notrace_pid", "items": ["4711", "4712"], ...}
                         {"undone": ["events/irq/enable"]}
                         {"taken_back": "set_event_notrace_pid", "items": ["4711", "4712"]}
    progress-lttd-4711   {"segment": "20261127T...", "streams": {"ftrace_0": [[0, 0], [512, 4096]]},
                          "lost": {"ftrace_0": [[0, 0, 0], [9, 0, 0]]}, "boottime_ns": 100125000000}
                         {"segment": "", "streams": {}, "idle": true, "boottime_ns": ...}

A record is written before the instance is made or changed, and removed after the instance was
removed or restored.  An instance of lttd's own is removed whole, so its record has only changes
outside of it: ``{"added": "/dynamic_events", "items": ["p:lttd/opens do_sys_open"], ...}``.
Earlier versions wrote ``{"left_out": [4711]}`` for pids.  Lines are added, each by one write; a
line that a kill cut short describes a change that was not made.  The lock of the record is held as
long as its recorder lives.  The progress is replaced every few seconds, so its age is the time
since a recorder's death.  The age is a difference of CLOCK_BOOTTIME, which nobody can set; notes
end with the boot, as this clock does.  While a recorder is idle, nobody wants what the ring holds,
and the progress stays as it is.
"""

import json
import math
import os
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from lttd.errors import LttdError
from lttd.limits import NOTE_LINES
from lttd.namespaces import kernel_clock_ns
from lttd.runtime import Note, Recorder, RuntimeDirectory, boot_id, known_notes
from lttd.sources.base import Owner
from lttd.sources.ftrace.additions import PIDS_FILE, Added, added_of
from lttd.sources.ftrace.loss import LossCounts, Mark
from lttd.sources.ftrace.settings import Change

PREFIX: Final = "ftrace-"
TOP_LEVEL: Final = "/"
"""The name of the top level of tracefs among instances."""
_PROGRESS: Final = "progress-"
_NAME_BYTES: Final = 200
_AT_ONCE_NS: Final = 1_000_000_000
Marks = Mapping[str, Sequence[Mark]]
"""By stream, the earliest first."""


@dataclass(slots=True)
class Left:
    """The content of a record whose recorder is dead."""

    instance: str
    own: bool
    boot_id: str
    owner: Owner
    recorder: Recorder
    made: int = 0
    """The inode of the instance's directory that lttd made; 0: it was not made."""
    finished: bool = False
    """Whether the instance is drained and off, and only its removal failed."""
    changes: dict[str, Change] = field(default_factory=dict)
    added: dict[str, Added] = field(default_factory=dict)

    @property
    def of_this_boot(self) -> bool:
        """False: the record is of an earlier boot, whose state has ended."""
        return self.boot_id == boot_id()


def parse_record(content: bytes) -> Left:
    """Parse a record.

    Raises:
        ValueError: lttd did not write it, or another version did.
    """
    # The last line has no end if its writer was killed: its change was not made.
    lines = content.split(b"\n")[:-1]
    if not lines or len(lines) > NOTE_LINES.most:
        raise ValueError(f"{len(lines)} lines")
    try:
        head = json.loads(lines[0])
        recorder = head["recorder"]
        left = Left(
            _instance(head["instance"]),
            head["own"] is True,
            str(head["boot_id"]),
            _owner(head["trace"]),
            Recorder(**{slot: int(recorder[slot]) for slot in Recorder._fields}),
        )
        for line in lines[1:]:
            _add(left, json.loads(line))
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a record: {error!r}") from None
    return left


def _owner(trace: Mapping[str, Any]) -> Owner:
    handle = str(trace.get("handle", ""))
    return Owner(int(trace["device"]), int(trace["inode"]), _path(trace["path"]), handle)


def _instance(value: object) -> str:
    """Return the name of an instance unchanged, if it cannot lead elsewhere.

    Raises:
        ValueError: it can.
    """
    name = _path(value)
    if name != TOP_LEVEL and (name in {"", ".", ".."} or "/" in name):
        raise ValueError(f"{name!r:.80} is not the name of an instance")
    return name


def _path(value: object) -> str:
    """Return a path unchanged, if it is possible.

    Raises:
        ValueError: it is not.
    """
    if b"\0" in os.fsencode(str(value)):
        raise ValueError("a path with a NUL")
    return str(value)


def _add(left: Left, line: Mapping[str, Any]) -> None:
    if "file" in line:
        change = Change.from_json(line)
        left.changes[change.file] = change
    for file in line.get("undone", ()):
        left.changes.pop(str(file), None)
        left.added.pop(str(file), None)
    if "left_out" in line:  # of an earlier version
        line = {**line, "added": PIDS_FILE, "items": [str(int(pid)) for pid in line["left_out"]]}
    if "added" in line:
        new = added_of(line)
        known = left.added.get(new.file)
        left.added[new.file] = known.with_more(new.items) if known else new
    if "taken_back" in line:
        file = str(line["taken_back"])
        if (known := left.added.pop(file, None)) and (rest := known.without(line["items"])).items:
            left.added[file] = rest
    left.made = int(line.get("made", left.made))
    left.finished |= line.get("finished") is True


class InstanceRecord:
    """The record of an instance that this process uses, and its progress."""

    def __init__(self, directory: RuntimeDirectory, note: Note) -> None:
        """*note* is the record, which this process holds."""
        self._directory = directory
        self._note = note
        self._progress = _PROGRESS + note.name.removeprefix(PREFIX)

    @property
    def path(self) -> str:
        """The path of the record."""
        return f"{self._directory.path}/{self._note.name}"

    @classmethod
    def create(
        cls, directory: RuntimeDirectory, instance: str, owner: Owner, *, own: bool
    ) -> "InstanceRecord":
        """Make and hold the record of *instance*.

        Raises:
            FileExistsError: it has one already.
            NothingToRecordError: it cannot be written.
        """
        content = _head(instance, owner, own=own)
        return cls(directory, directory.create(record_name(instance), content))

    @classmethod
    def replace(cls, directory: RuntimeDirectory, instance: str, owner: Owner) -> "InstanceRecord":
        """Make and hold the record of *instance*, in place of a dead recorder's."""
        content = _head(instance, owner, own=False)
        return cls(directory, directory.replace(record_name(instance), content))

    def left(self) -> Left:
        """Return the content of the record.

        Raises:
            ValueError: lttd did not write it.
        """
        left = parse_record(self._note.content())
        if record_name(left.instance) != self._note.name:
            raise ValueError(f"it names the instance {left.instance!r:.80}")
        return left

    def is_as_old_as(self, path: str) -> bool:
        """Tell whether a directory was made right after the record, so by who wrote that."""
        made_ns = os.stat(path).st_ctime_ns - self._directory.written_ns(self._note.name)
        return 0 <= made_ns < _AT_ONCE_NS

    def write_down(self, line: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            NothingToRecordError: it cannot be written.
        """
        self._note.append(json.dumps(line).encode() + b"\n")

    def mark(self, segment: str, marks: Marks) -> None:
        """Note how far *segment* was recorded, which also shows that the recorder lives."""
        value: dict[str, Any] = {"segment": segment}
        value["streams"] = {
            name: [(mark.subbuffers, mark.read_events) for mark in each]
            for name, each in marks.items()
        }
        value["lost"] = {name: [mark.lost for mark in each] for name, each in marks.items()}
        self._write_progress(value)

    def mark_idle(self) -> None:
        """Note that nobody wants what the ring holds, until the next mark()."""
        self._write_progress({"segment": "", "streams": {}, "idle": True})

    def _write_progress(self, value: dict[str, Any]) -> None:
        value["boottime_ns"] = kernel_clock_ns(time.CLOCK_BOOTTIME)
        self._directory.write(self._progress, json.dumps(value).encode())

    def progress(self) -> "Progress":
        """Return the last noted progress, and its age."""
        content = self._directory.read(self._progress)
        if content is None:
            return Progress("", {}, _age_s(self._note.content().partition(b"\n")[0]))
        try:
            value = json.loads(content)
            lost = value.get("lost", {})  # earlier versions lack it
            marks = {
                str(name): _marks(each, lost.get(name) or [None] * len(each))
                for name, each in value["streams"].items()
            }
            segment, is_idle = str(value["segment"]), value.get("idle") is True
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            segment, marks, is_idle = "", {}, False
        return Progress(segment, marks, _age_s(content), is_idle)

    def remove(self) -> None:
        """Remove the record, because nothing is left to undo."""
        self.forget()
        self._directory.close()

    def forget(self) -> None:
        """Remove the record, and leave the runtime directory open."""
        self._directory.remove(self._progress)
        self._note.remove()

    def release(self) -> None:
        """Leave the record to the next lttd."""
        self._note.release()
        self._directory.close()


class Progress(NamedTuple):
    """The last noted progress of a recorder."""

    segment: str
    """The name of the segment's directory; empty: it never began a segment."""
    marks: Marks
    age_s: float
    is_idle: bool = False
    """Whether it waited for a trigger, so that nobody wants what the ring holds."""


def record_name(instance: str) -> str:
    """Return the name of an instance's record."""
    quoted = urllib.parse.quote(instance, safe="", errors="surrogateescape")
    if len(quoted) > _NAME_BYTES:
        import hashlib  # noqa: PLC0415  (seldom needed)

        quoted = hashlib.sha256(os.fsencode(instance)).hexdigest()
    return PREFIX + quoted


def record_names() -> list[str]:
    """Return the names of all records."""
    return [name for name in known_notes() if name.startswith(PREFIX)]


def glance(name: str) -> Left | None:
    """Return the content of the record *name*, without holding it; None: it is not usable."""
    try:
        with RuntimeDirectory() as directory:
            return parse_record(directory.read(name) or b"")
    except (LttdError, ValueError):
        return None


def open_left(name: str) -> InstanceRecord | None:
    """Hold the record *name*; None: it was removed, or belongs to another user.

    Raises:
        LockedError: its recorder lives.
        LttdError: there is no runtime directory.
    """
    directory = RuntimeDirectory()
    try:
        note = directory.hold(name)
    except LttdError:
        directory.close()
        raise
    if note is None:
        directory.close()
        return None
    return InstanceRecord(directory, note)


def is_foreign(name: str) -> bool:
    """Tell whether a file with the name of a record is not lttd's."""
    try:
        with RuntimeDirectory() as directory:
            return directory.is_foreign(name)
    except LttdError:
        return False


def _age_s(content: bytes) -> float:
    """Return the age of a line of a note, in s.

    A line without a time is from an earlier version of lttd: its recorder is long dead.
    """
    try:
        written_ns = int(json.loads(content)["boottime_ns"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf
    return (kernel_clock_ns(time.CLOCK_BOOTTIME) - written_ns) / 1e9


def _marks(taken: Sequence[tuple[int, int]], lost: Sequence[Sequence[int] | None]) -> list[Mark]:
    return [
        Mark(int(rows), int(events), LossCounts(*map(int, counts)) if counts else None)
        for (rows, events), counts in zip(taken, lost, strict=True)
    ]


def _head(instance: str, owner: Owner, *, own: bool) -> bytes:
    trace = {slot: getattr(owner, slot) for slot in ("device", "inode", "path", "handle")}
    value = {
        "instance": instance,
        "own": own,
        "boot_id": boot_id(),
        "trace": trace,
        "recorder": Recorder.this()._asdict(),
        "boottime_ns": kernel_clock_ns(time.CLOCK_BOOTTIME),
    }
    return json.dumps(value).encode() + b"\n"
