"""What the rest of lttd knows about a kernel trace buffer.

Rule: a Stream is synchronous, never blocks and knows no event loop, so that a fake is ten lines.
"""

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from lttd.clock import Snapshot
from lttd.health import Health
from lttd.subbuffer import Batch, Reason, StreamInfo


class Nothing(enum.Enum):
    """Why take() had no batch to give."""

    YET = "the writer has not finished a sub-buffer"
    OFFLINE = "the CPU is down or absent; it may come back"
    EVER = "the stream is over and drained"


class Stored(NamedTuple):
    """How many events of a stream are on disk, and the trace clock of the last of them."""

    events: int
    end: int


def _nothing_stored(_segment: str, _stream: str, _first: int) -> Stored | None:
    return None


@dataclass(frozen=True, slots=True)
class Owner:
    """The trace that a source is recorded into: it alone gets what a kill leaves in the kernel."""

    device: int
    inode: int
    path: str
    handle: str = ""
    """As lttd.handles has it: a number of an inode is used again; empty: the disk has none."""
    stored: Callable[[str, str, int], Stored | None] = field(
        default=_nothing_stored, compare=False, repr=False
    )
    """Counts what an earlier segment holds of a stream, from sub-buffer number *first* on."""

    def is_trace(self, other: "Owner") -> bool:
        """Tell whether *other* is the same directory, whatever it is called now."""
        if self.handle and other.handle and self.handle != other.handle:
            return False
        return bool(self.inode) and (self.device, self.inode) == (other.device, other.inode)


NO_OWNER: Final = Owner(0, 0, "")
"""For a source that is opened without a trace: nothing that others left is its own."""


class When(enum.Enum):
    """When attachments are asked for."""

    OPEN = "open"
    PERIODIC = "periodic"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that belongs to the segment because decoding needs it."""

    name: str
    """Path below the segment, such as ``tracefs/events/header_page``."""
    data: bytes
    append: bool = False
    """True: *data* goes behind what the file has already."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """What a manifest says of a segment's source."""

    kind: str
    """``ftrace``, ``replay``, ...: the end of the segment's name."""
    spec: str
    """The SPEC as the user could have written it."""
    clock: str
    """Name of the trace clock, as the source's own words have it; ``mono``, ``local``, ..."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for and what the kernel made of it; JSON values only."""
    live: bool = True
    """False: the data are of another time, so that no clock snapshot of now fits them."""
    previous_run: bool = False
    """True: the ring of an lttd that was killed, drained by its successor."""
    continues: str = ""
    """Name of the segment that a killed lttd recorded of the same rings before, if any."""
    snapshot: Snapshot | None = None
    """Where the data themselves tell how their clock stood to the wall clock: that."""


class Stream(Protocol):
    """One CPU of one channel, opened for consuming reads."""

    @property
    def info(self) -> StreamInfo:
        """What does not change while the stream is read."""
        ...

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1 where poll is not to be trusted."""
        ...

    def take(self, flush: bool) -> Batch | Nothing:
        """Consume what there is, at most one buffer full.

        With *flush*, also the sub-buffer that the kernel has not finished.  A batch that ends the
        turn (nothing more to be had now) is followed by a Nothing.  The kernel has released what
        is returned, so the caller may keep it as long as it likes.

        Raises:
            SourceError: the stream cannot be read now; the reader asks again later.
            StreamLostError: it never can again.
        """
        ...

    def urgent(self) -> bool:
        """Tell whether the kernel says that this stream is about to lose: it is served first."""
        ...

    def losses(self) -> Batch | None:
        """Return, as a batch without rows, losses that the kernel has counted and no batch told.

        Called after each flush that left the stream dry, and once more after the last.
        """
        ...

    def unplaced(self) -> Mapping[Reason, int]:
        """Return events that the kernel has counted as lost by now, and that no batch has told yet.

        A loss is told where it belongs, which can be known much later than that it happened.
        """
        ...

    def counters(self) -> Mapping[str, int]:
        """Return the kernel's own counters of this stream, by its own names; empty if none."""
        ...

    def close(self) -> None:
        """Give the descriptor back; the reader does so when the stream has ended, too.

        losses() and counters() can still be asked then, and close() called again.
        """
        ...


class Watch(Protocol):
    """Notices what other tools do to what is recorded, and reports it to Health.

    All but look_closer() is called on the reading thread.
    """

    wants_closer_look: bool
    """True: call look_closer() soon."""

    def arm(self, health: Health) -> None:
        """Take what is now for what has to be, and notice from here on what changes."""
        ...

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1; heard() is called when it is readable."""
        ...

    def heard(self) -> None:
        """Look at what was changed."""
        ...

    def tick(self) -> None:
        """Look at what changes unheard; called at every tick."""
        ...

    def look_closer(self) -> None:
        """Do what takes longer.  Called from a thread beside the reading loop."""
        ...


class Source(Protocol):
    """Several streams that are set up, started and stopped together: one segment's source."""

    @property
    def info(self) -> SourceInfo:
        """What the manifest says of it."""
        ...

    @property
    def streams(self) -> Sequence[Stream]:
        """The streams that are there now."""
        ...

    @property
    def watch(self) -> Watch | None:
        """Who notices what other tools do to it; None where nobody can."""
        ...

    @property
    def grows(self) -> bool:
        """Whether streams may appear while it is read: discover() is then called at every tick."""
        ...

    @property
    def open_ended(self) -> bool:
        """Whether streams may appear even when all that there were have ended."""
        ...

    def discover(self) -> Sequence[Stream]:
        """Open streams that have appeared since the last call, and return them.

        Called from a thread beside the reading loop, and once more between stop() and the drain.
        One whose id was there before continues that stream: its sequence and times go on rising.
        """
        ...

    def leave_out(self, thread_ids: Iterable[int]) -> None:
        """Do not record these threads (lttd's own), where the kernel can do that."""
        ...

    def start(self) -> None:
        """Let the kernel produce."""
        ...

    def stop(self) -> None:
        """Let the kernel produce no more, where that is ours to say; the rings keep their data."""
        ...

    def now(self) -> int:
        """Read the trace clock."""
        ...

    def attachments(self, when: When) -> Iterable[Attachment]:
        """Return what the segment needs beside the streams.  Called from any one thread."""
        ...

    def mark_progress(self, segment: str) -> None:
        """Leave a sign of life, and how much of *segment* was taken, for who comes after a kill.

        Called between takes, by the thread that takes.
        """
        ...

    def notes(self) -> Sequence[str]:
        """Return, once each, lines the user should see: what the kernel changed or refused."""
        ...

    def close(self) -> None:
        """Close every stream and undo what was set up, an own instance included."""
        ...
