"""What the runtime directory says of a tracefs instance that an lttd uses: whose it is, and why.

    ftrace-lttd-4711     {"instance": "lttd-4711", "own": true, "boot_id": ..., "trace": ...,
                          "recorder": ..., "boottime_ns": 90125000000}
                         {"made": 77265}
    ftrace-%2F           {"instance": "/", "own": false, ...}
                         {"file": "events/irq/enable", "before": "0", "after": "1"}
                         {"left_out": [4711, 4712]}
                         {"undone": ["events/irq/enable"]}
    progress-lttd-4711   {"segment": "20261127T...", "streams": {"ftrace_0": [[0, 0], [512, 4096]]},
                          "boottime_ns": 100125000000}

A record is written before the instance is made or changed, and removed after it was removed or put
back.  Lines are added, each by one write; one that a kill cut short tells of a change that was not
made.  The lock of the record is its recorder's life.  The progress is written anew every few
seconds, so that its age is how long a dead recorder has been dead.  The age is a difference of the
kernel's CLOCK_BOOTTIME: nobody sets that clock, and notes end with the boot as it does.
"""

import json
import math
import os
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from lttd.errors import LttdError
from lttd.limits import NOTE_LINES
from lttd.namespaces import kernel_clock_ns
from lttd.runtime import Note, Recorder, RuntimeDirectory, boot_id, known_notes
from lttd.sources.base import Owner
from lttd.sources.ftrace.undo import PIDS_FILE, Change

PREFIX: Final = "ftrace-"
TOP_LEVEL: Final = "/"
"""Stands for the top level of tracefs where an instance is named."""
_PROGRESS: Final = "progress-"
_NAME_BYTES: Final = 200
_AT_ONCE_NS: Final = 1_000_000_000
Marks = Mapping[str, Sequence[tuple[int, int]]]
"""By stream: how many sub-buffers had been taken when the kernel's ``read events`` was so much."""


@dataclass(slots=True)
class Left:
    """What a record says, once its recorder is dead."""

    instance: str
    own: bool
    boot_id: str
    owner: Owner
    recorder: Recorder
    made: int = 0
    """Inode of the instance's directory, made by lttd; 0: it came not so far."""
    finished: bool = False
    """Drained and switched off; only removing it did not work."""
    changes: dict[str, Change] = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)

    @property
    def of_this_boot(self) -> bool:
        """False: what it tells of ended with another boot."""
        return self.boot_id == boot_id()


def parse_record(content: bytes) -> Left:
    """Read a record.

    Raises:
        ValueError: lttd did not write it, or not this one.
    """
    # The last line has no end if its writer was killed: what it tells of was not done.
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
            Recorder(**{slot: int(recorder[slot]) for slot in Recorder.__slots__}),
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
    """Return the name of an instance as it is, if it leads to one and nowhere else.

    Raises:
        ValueError: it does not.
    """
    name = _path(value)
    if name != TOP_LEVEL and (name in {"", ".", ".."} or "/" in name):
        raise ValueError(f"{name!r:.80} is not the name of an instance")
    return name


def _path(value: object) -> str:
    """Return a path as it is, if it can be one.

    Raises:
        ValueError: it cannot.
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
        if file == PIDS_FILE:
            left.pids.clear()
    left.pids.update(map(int, line.get("left_out", ())))
    left.made = int(line.get("made", left.made))
    left.finished |= line.get("finished") is True


class InstanceRecord:
    """The record of an instance that this process uses, and its progress."""

    def __init__(self, directory: RuntimeDirectory, note: Note) -> None:
        """*note*: the record, which this process holds."""
        self._directory = directory
        self._note = note
        self._progress = _PROGRESS + note.name.removeprefix(PREFIX)

    @property
    def path(self) -> str:
        """Where the record is."""
        return f"{self._directory.path}/{self._note.name}"

    @classmethod
    def create(
        cls, directory: RuntimeDirectory, instance: str, owner: Owner, *, own: bool
    ) -> "InstanceRecord":
        """Make and hold the record of *instance*.

        Raises:
            FileExistsError: there is one.
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
        """Return what it says.

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
        """Write how far the recording of *segment* has come: a sign of life."""
        value: dict[str, Any] = {"segment": segment}
        value["streams"] = {name: list(each) for name, each in marks.items()}
        value["boottime_ns"] = kernel_clock_ns(time.CLOCK_BOOTTIME)
        self._directory.write(self._progress, json.dumps(value).encode())

    def progress(self) -> "Progress":
        """Return how far it had come, and how long ago."""
        content = self._directory.read(self._progress)
        if content is None:
            return Progress("", {}, _age_s(self._note.content().partition(b"\n")[0]))
        try:
            value = json.loads(content)
            marks = {
                str(name): [(int(rows), int(events)) for rows, events in each]
                for name, each in value["streams"].items()
            }
            segment = str(value["segment"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            segment, marks = "", {}
        return Progress(segment, marks, _age_s(content))

    def remove(self) -> None:
        """Remove it: nothing is left that it tells of."""
        self.forget()
        self._directory.close()

    def forget(self) -> None:
        """Remove it, and leave the runtime directory open."""
        self._directory.remove(self._progress)
        self._note.remove()

    def release(self) -> None:
        """Leave it to the next lttd."""
        self._note.release()
        self._directory.close()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a recorder had come when it last said so."""

    segment: str
    """Name of the segment's directory; empty: it never began one."""
    marks: Marks
    age_s: float


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
    """Return what the record called *name* says, without holding it; None: nothing to be used."""
    try:
        with RuntimeDirectory() as directory:
            return parse_record(directory.read(name) or b"")
    except (LttdError, ValueError):
        return None


def open_left(name: str) -> InstanceRecord | None:
    """Hold the record called *name*; None: it has gone, or is not a file of ours.

    Raises:
        LockedError: its recorder lives.
        LttdError: no runtime directory.
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
    """Tell whether what is called like a record is not even a file of lttd's."""
    try:
        with RuntimeDirectory() as directory:
            return directory.is_foreign(name)
    except LttdError:
        return False


def _age_s(content: bytes) -> float:
    """Return how long ago a line of a note was written.

    One without a time is from a version of lttd before this one: its recorder is long dead.
    """
    try:
        written_ns = int(json.loads(content)["boottime_ns"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf
    return (kernel_clock_ns(time.CLOCK_BOOTTIME) - written_ns) / 1e9


def _head(instance: str, owner: Owner, *, own: bool) -> bytes:
    trace = {slot: getattr(owner, slot) for slot in ("device", "inode", "path", "handle")}
    value = {
        "instance": instance,
        "own": own,
        "boot_id": boot_id(),
        "trace": trace,
        "recorder": asdict(Recorder.this()),
        "boottime_ns": kernel_clock_ns(time.CLOCK_BOOTTIME),
    }
    return json.dumps(value).encode() + b"\n"
