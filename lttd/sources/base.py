"""The interface between lttd and a kernel trace buffer: Source, Stream and Watch.

Rule: a Stream is synchronous, never blocks and knows no event loop, so a fake takes ten lines.
"""

import enum
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

from lttd.clock import Snapshot
from lttd.health import Health
from lttd.subbuffer import Batch, BufferPool, Reason, StreamId, StreamInfo

PRESENT_STATE: Final = frozenset({"entries", "bytes", "oldest event ts", "now ts"})
"""The counters of a stream that state what is now; all others only grow."""
OVERWRITTEN_IDLE: Final = "overwritten while idle"
"""The counter of events that a PausableStream let go in its pauses."""


class Nothing(enum.Enum):
    """Why take() returned no batch."""

    YET = "the writer has not finished a sub-buffer"
    OFFLINE = "the CPU is down or absent; it may come back"
    EVER = "the stream is over and drained"


class Stored(NamedTuple):
    """The events of a stream on disk, from one sub-buffer on."""

    events: int
    end: int
    """The trace-clock time of the last one."""
    lost: Mapping[Reason, int] | None
    """Lost events in gaps, by reason; None: it is unknown which gaps are meant."""


class Earlier(NamedTuple):
    """A segment that an earlier boot recorded from a ring; it describes the ring's content."""

    machine: Mapping[str, str]
    """The manifest's: host, boot_id, kernel, ..."""
    clock: str
    snapshot: Snapshot | None
    """The last one."""
    files: "Callable[[], Iterable[Attachment]]"
    """Reads the files that decoding needs."""


def _nothing_stored(_segment: str, _stream: str, _first: int) -> Stored | None:
    return None


def _nothing_earlier(_source: str) -> Earlier | None:
    return None


@dataclass(frozen=True, slots=True)
class Owner:
    """The trace into which a source is recorded; only it gets the data that a kill leaves."""

    device: int
    inode: int
    path: str
    handle: str = ""
    """The directory's handle (lttd.handles), since inode numbers are used again; may be empty."""
    stored: Callable[[str, str, int], Stored | None] = field(
        default=_nothing_stored, compare=False, repr=False
    )
    """Counts the events of a stream in an earlier segment, from sub-buffer number *first* on."""
    earlier: Callable[[str], Earlier | None] = field(
        default=_nothing_earlier, compare=False, repr=False
    )
    """Finds the newest segment of a source that an earlier boot recorded."""

    def is_trace(self, other: "Owner") -> bool:
        """Tell whether *other* is the same directory, under any name."""
        if self.handle and other.handle and self.handle != other.handle:
            return False
        return bool(self.inode) and (self.device, self.inode) == (other.device, other.inode)


NO_OWNER: Final = Owner(0, 0, "")
"""The owner of a source without a trace: no data of a killed lttd belongs to it."""


NAME_BYTES: Final = 15
"""The longest name of a task: TASK_COMM_LEN without the NUL."""


class Child(NamedTuple):
    """The child of lttd that waits to become COMMAND."""

    pid: int
    name: bytes
    """The name that the kernel will give it."""


def child_of(pid: int | None, words: Sequence[str]) -> Child | None:
    """Return the child *pid* that becomes the program *words*; None: there is none."""
    if pid is None:
        return None
    return Child(pid, os.fsencode(os.path.basename(words[0]))[:NAME_BYTES])


@dataclass(frozen=True, slots=True)
class Request:
    """What a SPEC asks for, and for whom; ``open_source`` of a source's module takes one."""

    target: str
    """Empty where the SPEC names none."""
    options: Mapping[str, Any]
    """Values of the SPEC's keys, by the names of keywords; those of ``*-size`` end in _bytes."""
    pool: BufferPool
    owner: Owner = NO_OWNER
    command: Child | None = None
    replays: Mapping[str, str] = field(default_factory=dict)
    """See ``lttd.sources.table.SourceRow``."""


class When(enum.Enum):
    """The moment for which attachments are requested."""

    OPEN = "open"
    ROLLED = "data comes from now on; after OPEN, in each segment but a run's first"
    PERIODIC = "periodic"
    RELOAD = "reload"
    """Other events are about to be recorded."""
    CLOSE = "close"


class Attachment(NamedTuple):
    """A file that decoding needs, to be stored in the segment."""

    name: str
    """The path below the segment, such as ``tracefs/events/header_page``."""
    data: bytes = b""
    append: bool = False
    """True: append *data* to the file."""
    same: bool = False
    """True: the segment before has the file with the same content; *data* is empty."""


Attachments = Callable[[When], Iterable[Attachment]]
"""Yields the files that a segment needs besides its streams and does not have yet.

Called from any thread, one call at a time.
"""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """The description of a source for the manifest."""

    kind: str
    """``ftrace``, ``replay``, ...: the end of the segment's name."""
    spec: str
    """The SPEC as the user could have written it."""
    clock: str
    """The source's name of its trace clock: ``mono``, ``local``, ..."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The requested settings and the kernel's actual ones; JSON values only."""
    live: bool = True
    """False: the data is from an earlier time, so present clock snapshots do not fit it."""
    previous_run: bool = False
    """True: the ring of a killed lttd, drained by the next one."""
    previous_boot: bool = False
    """True: what an earlier boot left in a ring that survived the reboot."""
    frees_rings: bool = False
    """True: the kernel frees the rings when lttd ends, also by a kill."""
    continues: str = ""
    """The segment that a killed lttd recorded from the same rings before, if any."""
    machine: Mapping[str, str] = field(default_factory=dict)
    """What of the manifest's machine is not as on this machine in this boot."""
    snapshot: Snapshot | None = None
    """A clock snapshot from the data itself, if it has one."""


class Stream(Protocol):
    """One CPU of one channel, opened for consuming reads."""

    @property
    def info(self) -> StreamInfo:
        """The constants of the stream."""
        ...

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1 if poll does not work on it."""
        ...

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume the available sub-buffers, at most one full buffer.

        With *flush*, also consume the sub-buffer that the kernel has not finished.  When nothing
        more is available, the call after the last batch returns a Nothing.  The kernel has released
        the sub-buffers of a batch, so the caller may keep it for any time.

        Raises:
            SourceError: the stream cannot be read now; the reader tries again later.
            StreamLostError: the stream can never be read again.
        """
        ...

    def urgent(self) -> bool:
        """Tell whether the kernel reports that this stream will lose events soon; it goes first."""
        ...

    def losses(self) -> Batch | None:
        """Return the losses that the kernel counted and no batch contains, in a batch without rows.

        Called after each flush that emptied the stream, and once more after the last one.
        """
        ...

    def unplaced(self) -> Mapping[Reason, int]:
        """Return events that the kernel has counted as lost so far, and that no batch contains yet.

        A batch contains a loss at its place, which may be known much later than the loss itself.
        """
        ...

    def counters(self) -> Mapping[str, int]:
        """Return the kernel's counters of this stream, by the kernel's names; may be empty."""
        ...

    def close(self) -> None:
        """Close the descriptor; the reader also calls this when the stream has ended.

        losses(), counters() and close() can still be called afterwards.
        """
        ...


@runtime_checkable
class RestingStream(Stream, Protocol):
    """A stream that knows whether its ring keeps what it holds."""

    def at_rest(self) -> bool:
        """Tell whether nothing is written to the ring any more, so that its data can wait."""
        ...


@runtime_checkable
class PausableStream(Stream, Protocol):
    """A stream whose ring may overwrite itself while nobody wants its events (lttd.flight)."""

    complete_since: int
    """Since when, on the trace clock, no event was overwritten in a pause."""
    wanted_from: tuple[int, int] | None
    """As of the end of the last pause: sub-buffers taken, and the kernel's ``read events``."""

    def want(self, until: int | None) -> None:
        """Take until the trace clock shows *until*, and then pause by itself; None: no end."""
        ...

    def pause(self) -> Batch | None:
        """Let the ring overwrite itself until the next take(), which is no loss.

        Return the losses before, in a batch without rows.
        """
        ...


class Watch(Protocol):
    """Notices when other tools change the recorded rings, and reports it to Health.

    The reading thread calls all methods except look_closer().
    """

    wants_closer_look: bool
    """True: call look_closer() soon."""

    def arm(self, health: Health) -> None:
        """Remember the present state, and report changes from now on."""
        ...

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1; heard() is called when it is readable."""
        ...

    def heard(self) -> None:
        """Examine the changes that the descriptor reports."""
        ...

    def tick(self) -> None:
        """Examine the state that changes without a report; called at every tick."""
        ...

    def look_closer(self) -> None:
        """Do longer examinations, in a thread beside the reading loop."""
        ...


class Change(Protocol):
    """A change of what a source records, by a reload; it is decided, and not made yet."""

    def announce(self) -> None:
        """Let attachments() describe what will be recorded, too; this changes nothing else."""
        ...

    def withdraw(self) -> None:
        """Undo announce(): the change is not made."""
        ...

    def make(self) -> None:
        """Make the change while the source records; settings of its info follow.

        Raises:
            SourceError: the kernel refuses; the source records what it recorded before.
        """
        ...


@runtime_checkable
class Reloadable(Protocol):
    """A source that can change what it records; its row in SOURCES names the keys."""

    def changed(self, options: Mapping[str, Any]) -> Change:
        """Decide what to change, so that the source records what *options* ask for.

        Raises:
            UsageError: they are not possible.
        """
        ...


@runtime_checkable
class Markable(Protocol):
    """A source into whose rings a line of text can be written."""

    def mark(self, text: str) -> str:
        """Write *text* at this moment; return the name of the place, for people.

        Raises:
            LttdError: the kernel does not record it, or not all of it.
        """
        ...


class Source(Protocol):
    """Streams that are set up, started and stopped together; a segment has one source."""

    @property
    def info(self) -> SourceInfo:
        """The description for the manifest."""
        ...

    @property
    def streams(self) -> Sequence[Stream]:
        """The streams that exist now."""
        ...

    @property
    def watch(self) -> Watch | None:
        """The watch on other tools; None if their acts cannot be noticed."""
        ...

    @property
    def grows(self) -> bool:
        """Tell whether streams may appear later; then discover() is called at every tick."""
        ...

    @property
    def open_ended(self) -> bool:
        """Tell whether streams may appear even after all others have ended."""
        ...

    def discover(self) -> Sequence[Stream]:
        """Open streams that have appeared since the last call, and return them.

        Called in a thread beside the reading loop, and once more between stop() and the drain.  A
        stream with the id of an earlier one continues it: sequence and times keep rising.
        """
        ...

    def leave_out(self, thread_ids: Iterable[int]) -> None:
        """Exclude these threads (lttd's own) from the trace, if the kernel can do that."""
        ...

    def start(self) -> None:
        """Start tracing."""
        ...

    def stop(self) -> None:
        """Stop tracing, if lttd controls it; the rings keep their data."""
        ...

    def now(self) -> int:
        """Read the trace clock."""
        ...

    def attachments(self) -> Attachments:
        """Return the function that yields one segment's attachments.

        The function, not the source, remembers what the segment has: each segment gets its own.
        That of a later segment of the run also yields what was announced before and still counts.
        """
        ...

    def mark_progress(self, segment: str) -> None:
        """Note for the start after a kill that lttd lives, and how much it took into *segment*.

        *segment* is the oldest one that is not closed.  Called between takes, by the thread that
        takes.
        """
        ...

    def roll(self, segment: str) -> Mapping[StreamId, int]:
        """Note that *segment* begins; return the kernel's ``read events`` of each stream.

        Streams without that counter are left out.  Called between takes, by the thread that takes.
        """
        ...

    def notes(self) -> Sequence[str]:
        """Return lines for the user on settings that the kernel changed or refused, each once."""
        ...

    def close(self) -> None:
        """Close every stream and undo the set-up; remove an instance that lttd made."""
        ...
