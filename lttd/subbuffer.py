"""The one value that crosses every boundary: a batch of sub-buffers of one stream.

Rule: a batch, not a sub-buffer, is what moves; what there is per sub-buffer is a row of an array.
Invariant: sum(rows["kernel_bytes"]) = stored + padding, and a batch's buffer is not written to
between its making and its last release().
"""

import enum
import mmap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, overload

import numpy as np
import numpy.typing as npt

# Memory is handed out in these; a take keeps as many as it fills.
SLOT_BYTES: Final = 1 << 20
# At most this much a take: what it costs besides copying is then small beside the copying.
TAKE_BYTES: Final = 4 * SLOT_BYTES
# Less than this is copied out, so that a flush of one page does not keep a slot.
SMALL_BYTES: Final = SLOT_BYTES // 4

ROW_DTYPE: Final = np.dtype(
    [
        ("offset_bytes", "<u8"),  # where the sub-buffer begins in the batch's buffer
        ("kernel_bytes", "<u8"),  # what the kernel delivered: header + content + padding
        ("payload_bytes", "<u8"),  # header + content: what a packed file holds of it
        ("content_bits", "<u8"),  # as the CTF index means it; from the sub-buffer's own start
        ("begin", "<u8"),  # trace clock; a running maximum within the stream
        ("end", "<u8"),  # trace clock, of the last event or an upper bound; running maximum
        ("discarded_total", "<u8"),  # events lost since the stream began, up to this sub-buffer
        ("sequence", "<u8"),  # number of the sub-buffer in its stream
        ("flags", "<u8"),  # RowFlag
    ]
)
Rows = npt.NDArray[np.void]
Column = npt.NDArray[np.uint64]


class RowFlag(enum.IntFlag):
    """What is particular about one sub-buffer."""

    PARTIAL = 1  # flushed before the kernel was done with it
    MISSED = 2  # the kernel says that events were lost before it


class Unit(enum.IntEnum):
    """What a loss is counted in."""

    EVENTS = 1
    SUBBUFFERS = 2
    BYTES = 3


class Reason(enum.IntEnum):
    """Why something is missing.  The kernel's reasons are disjoint, so that their sum is true."""

    OVERWRITTEN = 1  # the ring lapped the reader (overwrite mode)
    DROPPED = 2  # the ring was full (no-overwrite mode)
    COMMIT_OVERRUN = 3  # the ring wrapped on events that were not committed yet
    DISCARDED = 4  # the tracer says so in the sub-buffer (CTF, LTT)
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
        """The stream's name, and its data file's: the ABI's own ``<channel>_<cpu>``."""
        return f"{self.channel}_{self.cpu}"


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What does not change while a stream is read; a segment's manifest keeps it."""

    id: StreamId
    abi: str
    """Which of ``lttd.abi`` reads its sub-buffers."""
    subbuffer_bytes: int
    """Size of the kernel's sub-buffers, or 0 where nobody knows how large one can be."""
    header_bytes: int
    ctf_stream_id: int = 0
    page_bytes: int = 0
    """Not 0: a sub-buffer is delivered no longer than it is used, rounded up to this, and
    subbuffer_bytes is the most that one can have."""
    read_events_before: int = 0
    """How many events of the ring the kernel had counted as read when lttd took it over."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A known loss, and where it belongs."""

    row: int
    """Before which row of the batch; ``len(rows)`` when it comes after all of them."""
    reason: Reason
    unit: Unit
    count: int | None
    """None: some, the number is not known.  Never 0 for that."""
    begin: int
    end: int
    """Bounds of the loss in trace-clock units."""


class Pieces(Sequence[memoryview]):
    """Parts of one buffer, for one ``writev``; views are made only of those that are asked for."""

    def __init__(self, buffer: memoryview, offsets: Column, lengths: Column) -> None:
        """*offsets* and *lengths* in bytes, u64, one of each a piece."""
        self._buffer = buffer
        self._offsets = offsets
        self._lengths = lengths
        self.size_bytes = int(lengths.sum())

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
        """Return the pieces as C's ``struct iovec`` has them, by address: shape (n, 2), u64.

        Good as long as the buffer is.
        """
        vectors = np.empty((len(self), 2), np.uint64)
        np.add(self._offsets, np.uint64(_address(self._buffer)), out=vectors[:, 0])
        vectors[:, 1] = self._lengths
        return vectors


class HeadedPieces(Pieces):
    """The same with other first bytes: every piece becomes two, a head of its own and the rest."""

    def __init__(self, plain: Pieces, heads: npt.NDArray[np.uint8]) -> None:
        """*heads*: shape (pieces, bytes), contiguous; no piece is shorter than its head."""
        self._head_bytes = heads.shape[1]
        head_bytes = np.uint64(self._head_bytes)
        super().__init__(
            plain._buffer,  # noqa: SLF001  (of the same class)
            plain._offsets + head_bytes,  # noqa: SLF001
            plain._lengths - head_bytes,  # noqa: SLF001
        )
        self.size_bytes += heads.size
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
        """Return the pieces as C's ``struct iovec`` has them; good as long as this is."""
        vectors = np.empty((len(self), 2), np.uint64)
        numbers = np.arange(len(self._offsets), dtype=np.uint64)
        vectors[0::2, 0] = numbers * np.uint64(self._head_bytes) + np.uint64(_address(self._heads))
        vectors[0::2, 1] = self._head_bytes
        np.add(self._offsets, np.uint64(_address(self._buffer)), out=vectors[1::2, 0])
        vectors[1::2, 1] = self._lengths
        return vectors


def _nothing_to_recycle() -> None:
    return None


@dataclass(slots=True)
class Batch:
    """Sub-buffers of one stream that were taken at once, with what is known of each."""

    stream: StreamId
    buffer: memoryview
    rows: Rows
    taken_ns: int
    """CLOCK_MONOTONIC when the take was over."""
    gaps: tuple[Gap, ...] = ()
    heads: npt.NDArray[np.uint8] | None = None
    """What a packed copy has in place of each row's first bytes, so that a stripped sub-buffer
    agrees with itself: shape (rows, bytes)."""
    held_bytes: int = 0
    """What the batch keeps from being used again; the backlog is charged for it."""
    recycle: Callable[[], None] = _nothing_to_recycle
    _holders: int = field(default=1)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def kernel_bytes(self) -> int:
        """Bytes that the kernel delivered."""
        return int(self.rows["kernel_bytes"].sum())

    @property
    def payload_bytes(self) -> int:
        """Bytes of headers and content: the delivered ones less the padding."""
        return int(self.rows["payload_bytes"].sum())

    def pieces(self) -> Sequence[memoryview]:
        """Return header and content of every row, with their packed heads, for one ``writev``."""
        plain = Pieces(self.buffer, self.rows["offset_bytes"], self.rows["payload_bytes"])
        return plain if self.heads is None else HeadedPieces(plain, self.heads)

    def hold(self) -> None:
        """Count one more consumer that will call release()."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """Say that one consumer is done; the last one gives the buffer back."""
        with self._lock:
            self._holders -= 1
            last = self._holders == 0
        if last:
            self.recycle()


class BufferPool:
    """Memory that goes round between reader and writers: slots of one arena, lowest first.

    Invariant: a slot is free, or belongs to one buffer that was handed out and not given back.
    """

    def __init__(self, arena_bytes: int = 0, *, take_bytes: int = TAKE_BYTES) -> None:
        """*arena_bytes*: what takes can hold at once; beyond it they get memory of their own."""
        self.take_bytes = take_bytes
        """The most that one take is given."""
        self.least_bytes = min(SLOT_BYTES, take_bytes)
        """The least."""
        slots = max(arena_bytes // SLOT_BYTES, 0)
        self._lock = threading.Lock()
        self._free = bytearray(b"\1" * slots)
        self._arena = memoryview(b"")
        self._base = 0
        if slots:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            memory = mmap.mmap(-1, slots * SLOT_BYTES, flags=flags)
            self._arena = memoryview(memory)
            self._base = _address(self._arena)

    def take(self) -> memoryview:
        """Return least_bytes to take_bytes of memory, contents undefined."""
        count = self.take_bytes // SLOT_BYTES
        with self._lock:
            while count:
                first = self._free.find(b"\1" * count)
                if first >= 0:
                    self._free[first : first + count] = bytes(count)
                    return self._arena[first * SLOT_BYTES : (first + count) * SLOT_BYTES]
                count //= 2
        return memoryview(bytearray(self.least_bytes))

    def trim(self, buffer: memoryview, used_bytes: int) -> memoryview:
        """Take back the slots behind the first *used_bytes*; return what is left of *buffer*."""
        keep = -(-used_bytes // SLOT_BYTES) * SLOT_BYTES
        if keep < len(buffer):
            self.give(buffer[keep:])
        return buffer[:keep]

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back.  Callable from any thread."""
        at = _address(buffer) - self._base if self._free and len(buffer) else -1
        if 0 <= at < len(self._arena):
            first, count = at // SLOT_BYTES, len(buffer) // SLOT_BYTES
            with self._lock:
                self._free[first : first + count] = b"\1" * count


def _address(buffer: memoryview) -> int:
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


def make_batch(
    stream: StreamId,
    rows: Rows,
    taken_ns: int,
    *,
    pool: BufferPool,
    buffer: memoryview,
    gaps: tuple[Gap, ...] = (),
) -> Batch:
    """Wrap *buffer*, which came from *pool*; what it does not fill goes back at once."""
    used = int((rows["offset_bytes"] + rows["kernel_bytes"]).max()) if len(rows) else 0
    if used <= SMALL_BYTES:
        view = memoryview(bytes(buffer[:used]))
        pool.give(buffer)
        return Batch(stream, view, rows, taken_ns, gaps, held_bytes=used)
    kept = pool.trim(buffer, used)
    recycle = partial(pool.give, kept)
    return Batch(stream, kept, rows, taken_ns, gaps, held_bytes=len(kept), recycle=recycle)
