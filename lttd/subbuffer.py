"""The value that crosses every boundary of the live half: a batch of sub-buffers of one stream.

Rule: lttd moves batches, never single sub-buffers; a sub-buffer is a row of an array.
Rule: a stream completes rows, gaps and heads before it makes a batch; nobody edits a batch.
Invariant: sum(rows["kernel_bytes"]) = payload + padding, and a batch's buffer is not written to
between its making and its release().
"""

import enum
import mmap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple, overload

import numpy as np
import numpy.typing as npt

# The unit of memory; a take keeps as many slots as it fills.
SLOT_BYTES: Final = 1 << 20
# The largest take.  At this size the fixed cost of a take is small compared with its copying.
TAKE_BYTES: Final = 4 * SLOT_BYTES
# The largest take from a ring at rest, which can wait for the writers: half the fixed costs.
LAST_TAKE_BYTES: Final = 2 * TAKE_BYTES
# A smaller take is copied into memory of its own size, so that one page does not keep a slot.
SMALL_BYTES: Final = SLOT_BYTES // 4

ROW_DTYPE: Final = np.dtype(
    [
        ("offset_bytes", "<u8"),  # where the sub-buffer begins in the batch's buffer
        ("kernel_bytes", "<u8"),  # the delivered bytes: header + content + padding
        ("payload_bytes", "<u8"),  # header + content: what a packed file holds of it
        ("content_bits", "<u8"),  # content_size of the CTF index: from the sub-buffer's begin
        ("begin", "<u8"),  # trace clock; a running maximum within the stream
        ("end", "<u8"),  # trace clock, of the last event or an upper bound; running maximum
        ("discarded_total", "<u8"),  # events lost since the stream began, up to this sub-buffer
        ("sequence", "<u8"),  # number of the sub-buffer in its stream
        ("flags", "<u8"),  # RowFlag
    ]
)
Rows = npt.NDArray[np.void]
NO_ROWS: Final[Rows] = np.zeros(0, ROW_DTYPE)
"""Of a batch that has only gaps, and of bytes without a sub-buffer."""
NO_ROWS.flags.writeable = False
NO_BYTES: Final = memoryview(b"")
Column = npt.NDArray[np.uint64]


class RowFlag(enum.IntFlag):
    """Properties of one sub-buffer."""

    PARTIAL = 1  # flushed before the kernel was done with it
    MISSED = 2  # the kernel says that events were lost before it


class Unit(enum.IntEnum):
    """The unit in which a loss is counted."""

    EVENTS = 1
    SUBBUFFERS = 2
    BYTES = 3


class Reason(enum.IntEnum):
    """The reasons of a loss.  The kernel's reasons are disjoint, so their sum is the total."""

    OVERWRITTEN = 1  # the ring lapped the reader (overwrite mode)
    DROPPED = 2  # the ring was full (no-overwrite mode)
    COMMIT_OVERRUN = 3  # the ring wrapped on events that were not committed yet
    DISCARDED = 4  # the tracer reports the loss in its sub-buffers (CTF, LTT)
    REFUSED = 5  # the kernel took a sub-buffer back while it was being read
    DAMAGED = 6  # delivered, but does not parse
    BACKLOG = 7  # taken, but never written: the backlog was abandoned
    STORAGE = 8  # taken, but the file could not be written
    TORN = 9  # written, but a crash cut it
    ABANDONED = 10  # still in the ring when recording ended: a second signal, a CPU that is down
    UNSYNCED = 11  # written, but a sync failed: some of it may not be on the disk
    REMOVED = 12  # written, and then somebody removed, replaced or cut the file
    KILLED = 13  # taken by an lttd that was killed before it had stored them
    FOREIGN_READ = 14  # another process read them out of the ring
    EMPTIED = 15  # another process emptied the ring
    SWITCHED_OFF = 16  # another process turned tracing, or events, off
    FILTERED = 17  # another process set a filter
    RATE = 18  # taken, but more than --max-rate lets lttd write
    UNWANTED = 19  # the ring overwrote them while no trigger wanted them: no loss (lttd.flight)


KERNEL_EVENT_REASONS: Final = frozenset(
    {
        Reason.OVERWRITTEN,
        Reason.DROPPED,
        Reason.COMMIT_OVERRUN,
        Reason.DISCARDED,
        Reason.ABANDONED,
        Reason.KILLED,
        Reason.FOREIGN_READ,
    }
)


class StreamId(NamedTuple):
    """One CPU of one channel."""

    channel: str
    cpu: int

    @property
    def name(self) -> str:
        """The name of the stream and of its data file: the ABI's own ``<channel>_<cpu>``."""
        return f"{self.channel}_{self.cpu}"


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """The constants of a stream; a segment's manifest keeps them."""

    id: StreamId
    abi: str
    """The name of the ABI of its sub-buffers; see ``lttd.abi.table``."""
    subbuffer_bytes: int
    """The size of the kernel's sub-buffers; 0 if the largest size is unknown."""
    header_bytes: int
    ctf_stream_id: int = 0
    page_bytes: int = 0
    """Not 0: the kernel delivers only the used part of a sub-buffer, rounded up to this, and
    subbuffer_bytes is the largest size."""
    read_events_before: int = 0
    """The kernel's ``read events`` of the ring when lttd took it over."""
    packet_layout: str = ""
    """Where the headers of its packets have what, if only their metadata states that (CTF)."""
    time_scale: str = ""
    """How times follow from the time stamps of another program's recording, by
    ``lttd.abi.time_scale``; empty: the stamps are the times."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A known loss, with its place among the sub-buffers."""

    row: int
    """The loss lies before this row of the batch; ``len(rows)``: after all of them."""
    reason: Reason
    unit: Unit
    count: int | None
    """None: some, of unknown number.  A count is never 0."""
    begin: int
    end: int
    """Bounds of the loss in trace-clock units."""


class Pieces(Sequence[memoryview]):
    """Parts of one buffer, for one ``writev``; a view of a part is made on access."""

    def __init__(self, buffer: memoryview, offsets: Column, lengths: Column) -> None:
        """*offsets* and *lengths*: u64, shape (pieces,), in bytes."""
        self._buffer = buffer
        self._offsets = offsets
        self._lengths = lengths
        self.payload_bytes = int(lengths.sum())

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, key: int) -> memoryview: ...
    @overload
    def __getitem__(self, key: slice) -> list[memoryview]: ...
    def __getitem__(self, key: int | slice) -> memoryview | list[memoryview]:
        if isinstance(key, slice):
            return [self[number] for number in range(*key.indices(len(self)))]
        start = int(self._offsets[key])
        return self._buffer[start : start + int(self._lengths[key])]

    def iovecs(self) -> Column:
        """Return the pieces as an array of C's ``struct iovec``: shape (n, 2), u64.

        It is valid as long as the buffer.
        """
        vectors = np.empty((len(self), 2), np.uint64)
        np.add(self._offsets, np.uint64(_address(self._buffer)), out=vectors[:, 0])
        vectors[:, 1] = self._lengths
        return vectors


class HeadedPieces(Pieces):
    """Pieces with other first bytes: each becomes two, its new head and the rest."""

    def __init__(self, plain: Pieces, heads: npt.NDArray[np.uint8]) -> None:
        """*heads*: u8, shape (pieces, head bytes), contiguous; a piece is at least that long."""
        self._head_bytes = heads.shape[1]
        head_bytes = np.uint64(self._head_bytes)
        super().__init__(
            plain._buffer,  # noqa: SLF001  (of the same class)
            plain._offsets + head_bytes,  # noqa: SLF001
            plain._lengths - head_bytes,  # noqa: SLF001
        )
        self.payload_bytes += heads.size
        self._heads: memoryview = heads.reshape(-1).data

    def __len__(self) -> int:
        return 2 * len(self._offsets)

    @overload
    def __getitem__(self, key: int) -> memoryview: ...
    @overload
    def __getitem__(self, key: slice) -> list[memoryview]: ...
    def __getitem__(self, key: int | slice) -> memoryview | list[memoryview]:
        if isinstance(key, slice):
            return [self[number] for number in range(*key.indices(len(self)))]
        number, rest = divmod(range(len(self))[key], 2)
        start = number * self._head_bytes
        return super().__getitem__(number) if rest else self._heads[start:][: self._head_bytes]

    def iovecs(self) -> Column:
        """Return the pieces as an array of C's ``struct iovec``, valid as long as this object."""
        vectors = np.empty((len(self), 2), np.uint64)
        numbers = np.arange(len(self._offsets), dtype=np.uint64)
        vectors[0::2, 0] = numbers * np.uint64(self._head_bytes) + np.uint64(_address(self._heads))
        vectors[0::2, 1] = self._head_bytes
        np.add(self._offsets, np.uint64(_address(self._buffer)), out=vectors[1::2, 0])
        vectors[1::2, 1] = self._lengths
        return vectors


def _nothing_to_release() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Batch:
    """The sub-buffers of one take from a stream: their bytes, a row for each, and gaps."""

    stream: StreamId
    buffer: memoryview
    rows: Rows
    gaps: tuple[Gap, ...] = ()
    heads: npt.NDArray[np.uint8] | None = None
    """The bytes that replace the first ones of each row in a packed file, so that a stripped
    sub-buffer states its own size: u8, shape (rows, head bytes)."""
    held_bytes: int = 0
    """The memory that the batch occupies, by which it counts in the backlog."""
    release: Callable[[], None] = _nothing_to_release
    """Returns the buffer to its pool: called once, when the batch is written or refused."""

    def __post_init__(self) -> None:
        self.rows.flags.writeable = False

    @property
    def kernel_bytes(self) -> int:
        """The bytes that the kernel delivered."""
        return int(self.rows["kernel_bytes"].sum())

    @property
    def payload_bytes(self) -> int:
        """Bytes of headers and content: the delivered ones less the padding."""
        return int(self.rows["payload_bytes"].sum())

    def after(self, rows: int) -> "Batch":
        """Return the batch without its first *rows* and the gaps that were written with them."""
        if not rows:
            return self
        gaps = tuple(replace(gap, row=gap.row - rows) for gap in self.gaps if gap.row > rows)
        heads = None if self.heads is None else self.heads[rows:]
        return replace(self, rows=self.rows[rows:], gaps=gaps, heads=heads)

    def pieces(self) -> Sequence[memoryview]:
        """Return header and content of every row, with their packed heads, for one ``writev``."""
        plain = Pieces(self.buffer, self.rows["offset_bytes"], self.rows["payload_bytes"])
        return plain if self.heads is None else HeadedPieces(plain, self.heads)


class BufferPool:
    """Memory that reader and writers use in turn: slots of one arena, the lowest first.

    Invariant: a slot is free, or belongs to one buffer between its take() and its give().
    """

    def __init__(self, arena_bytes: int = 0, *, take_bytes: int = TAKE_BYTES) -> None:
        """*arena_bytes*: memory for all takes together; further takes get memory of their own."""
        self.take_bytes = take_bytes
        """The most memory for one take."""
        self.least_bytes = min(SLOT_BYTES, take_bytes)
        """The least memory for one take."""
        self.wanted_bytes = take_bytes
        """One take should bring no more than this now."""
        slots = max(arena_bytes // SLOT_BYTES, 0)
        self._lock = threading.Lock()
        self._free = bytearray(b"\1" * slots)
        self._arena = memoryview(b"")
        self._base = 0
        # Ends of the highest slots: taken since give_back(), before that, and with memory.
        self._peak = self._earlier_peak = self._touched = 0
        if slots:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._memory = mmap.mmap(-1, slots * SLOT_BYTES, flags=flags)
            self._arena = memoryview(self._memory)
            self._base = _address(self._arena)

    def take(self, most_bytes: int | None = None) -> memoryview:
        """Return least_bytes to *most_bytes* of memory with undefined content.

        None: as much as a take should bring now.
        """
        most_bytes = self.wanted_bytes if most_bytes is None else most_bytes
        count = max(most_bytes, self.least_bytes) // SLOT_BYTES
        with self._lock:
            while count:
                first = self._free.find(b"\1" * count)
                if first >= 0:
                    self._free[first : first + count] = bytes(count)
                    self._peak = max(self._peak, first + count)
                    return self._arena[first * SLOT_BYTES : (first + count) * SLOT_BYTES]
                count //= 2
        return memoryview(bytearray(self.least_bytes))

    def take_at_least(self, least_bytes: int) -> memoryview:
        """Return take(), or memory of its own where that is too small for a sub-buffer."""
        buffer = self.take()
        if len(buffer) >= least_bytes:
            return buffer
        self.give(buffer)
        return memoryview(bytearray(least_bytes))

    def want(self, take_bytes: int) -> None:
        """Let later takes bring at most *take_bytes*, as far as their sub-buffers allow that."""
        self.wanted_bytes = min(take_bytes, self.take_bytes)

    def trim(self, buffer: memoryview, used_bytes: int) -> memoryview:
        """Free the slots after the first *used_bytes*; return the shortened buffer."""
        keep = -(-used_bytes // SLOT_BYTES) * SLOT_BYTES
        if keep < len(buffer):
            self.give(buffer[keep:])
        return buffer[:keep]

    def give(self, buffer: memoryview) -> None:
        """Free a buffer.  Callable from any thread."""
        at = _address(buffer) - self._base if self._free and len(buffer) else -1
        if 0 <= at < len(self._arena):
            first, count = at // SLOT_BYTES, len(buffer) // SLOT_BYTES
            with self._lock:
                self._free[first : first + count] = b"\1" * count

    def give_back(self) -> None:
        """Return memory to the kernel that was not used between this call and the last but one.

        A burst, or a slow disk, would else cost memory for the rest of the run.
        """
        with self._lock:
            self._touched = max(self._touched, self._peak)
            keep = max(self._peak, self._earlier_peak)
            self._earlier_peak, self._peak = self._peak, self._free.rfind(b"\0") + 1
            if keep < self._touched:
                begin_bytes, end_bytes = keep * SLOT_BYTES, self._touched * SLOT_BYTES
                self._memory.madvise(mmap.MADV_DONTNEED, begin_bytes, end_bytes - begin_bytes)
                self._touched = keep


def _address(buffer: memoryview) -> int:
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


def make_batch(
    stream: StreamId,
    rows: Rows,
    *,
    pool: BufferPool,
    buffer: memoryview,
    gaps: tuple[Gap, ...] = (),
    heads: npt.NDArray[np.uint8] | None = None,
) -> Batch:
    """Make a batch of *buffer*, which came from *pool*, and free its unused slots at once."""
    used = int((rows["offset_bytes"] + rows["kernel_bytes"]).max()) if len(rows) else 0
    if used <= SMALL_BYTES:
        view = memoryview(bytes(buffer[:used]))
        pool.give(buffer)
        return Batch(stream, view, rows, gaps, heads, used)
    kept = pool.trim(buffer, used)
    return Batch(stream, kept, rows, gaps, heads, len(kept), partial(pool.give, kept))


def losses_batch(stream: StreamId, gaps: Sequence[Gap]) -> Batch:
    """Return a batch without sub-buffers: losses take the same way to the disk as data does."""
    return Batch(stream, NO_BYTES, NO_ROWS, tuple(gaps))
