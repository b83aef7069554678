"""The seek index of a stream, and the file of its gaps.

The index is the CTF packet index 1.1 as lttng-tools writes it (src/common/index/ctf-index.hpp):
big-endian, a header of four u32 (magic, major, minor, bytes per entry), then entries of nine u64.

Rule: a seek to T returns the first entry whose end is >= T.  (A flushed continuation begins at the
time of the previous sub-buffer's last event: "the last entry that begins at or before T" would lose
events.)
Invariant: entries are ordered by offset; begin and end never step back; a torn entry does not
count.
"""

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, overload

import numpy as np
import numpy.typing as npt

from lttd.beneath import Place, place_of
from lttd.errors import TraceDamagedError
from lttd.limits import AT_ONE_TIME, GAPS
from lttd.readfile import ReadFile, read_head
from lttd.subbuffer import Gap, Reason, StreamInfo, Unit

HEADER: Final = struct.Struct(">4I")
MAGIC: Final = 0xC1F1DCC1
MAJOR: Final = 1
MINOR: Final = 1

ENTRY_DTYPE: Final = np.dtype(
    [
        ("offset_bytes", ">u8"),
        ("packet_bits", ">u8"),
        ("content_bits", ">u8"),
        ("begin", ">u8"),
        ("end", ">u8"),
        ("events_discarded", ">u8"),
        ("stream_id", ">u8"),
        ("instance_id", ">u8"),
        ("sequence", ">u8"),
    ]
)
ENTRY_BYTES: Final = 72
INDEX_HEADER: Final = HEADER.pack(MAGIC, MAJOR, MINOR, ENTRY_BYTES)
# Records whose field is read in one go.
_AT_ONCE: Final = 65536
_FEW: Final = 32
_U64: Final = struct.Struct(">Q")

GAP_DTYPE: Final = np.dtype(
    [
        ("row", ">u8"),  # the loss lies before this entry of the index; may be past the last
        ("begin", ">u8"),
        ("end", ">u8"),
        ("count", ">u8"),  # UNKNOWN: some
        ("reason", ">u4"),
        ("unit", ">u4"),
    ]
)
GAP_BYTES: Final = 40
GAPS_MAGIC: Final = 0x6C676170  # "lgap"
GAPS_HEADER: Final = HEADER.pack(GAPS_MAGIC, 1, 0, GAP_BYTES)
_MOST_GAPS_BYTES: Final = HEADER.size + GAPS.most * GAP_BYTES
UNKNOWN: Final = (1 << 64) - 1
FOREVER: Final = (1 << 64) - 1  # an end that nobody knows
MOST_LOST: Final = (1 << 63) - 1  # more is UNKNOWN, or damage: some
PAST_ALL: Final = UNKNOWN  # a row that no index reaches

Entries = npt.NDArray[np.void]


def encode_entries(
    rows: npt.NDArray[np.void],
    offsets_bytes: npt.NDArray[np.uint64],
    info: StreamInfo,
    *,
    sparse: bool,
) -> Entries:
    """Return the index entries of *rows*, which begin at *offsets_bytes* in the data file.

    A packet's length is the distance to the next one: for sparse data the largest sub-buffer.
    """
    entries = np.empty(len(rows), ENTRY_DTYPE)
    entries["offset_bytes"] = offsets_bytes
    payload_bytes = rows["payload_bytes"]
    entries["packet_bits"] = info.subbuffer_bytes * 8 if sparse else payload_bytes << np.uint64(3)
    entries["content_bits"] = rows["content_bits"]
    entries["begin"] = rows["begin"]
    entries["end"] = rows["end"]
    entries["events_discarded"] = rows["discarded_total"]
    entries["stream_id"] = info.ctf_stream_id
    entries["instance_id"] = info.id.cpu
    entries["sequence"] = rows["sequence"]
    return entries


def encode_gaps(gaps: Sequence[Gap], first_row: int) -> bytes:
    """Return the records of *gaps*, whose rows count from entry number *first_row*."""
    records = np.array(
        [
            (
                g.row + first_row,
                g.begin,
                g.end,
                UNKNOWN if g.count is None else g.count,
                g.reason,
                g.unit,
            )
            for g in gaps
        ],
        GAP_DTYPE,
    )
    return records.tobytes()


def parse_gaps(data: bytes, path: Path) -> list[Gap]:
    """Return the gaps of a whole gaps file; a row is the number of an index entry.

    A torn last record is left out.  Without a loss there is no file.
    """
    if not data:
        return []
    _check_header(data, path, GAPS_MAGIC, GAP_BYTES)
    count = (len(data) - HEADER.size) // GAP_BYTES
    records = np.frombuffer(data, GAP_DTYPE, count, HEADER.size)
    gaps: list[Gap] = []
    for number, (row, begin, end, count, reason, unit) in enumerate(records.tolist()):
        try:
            known = None if count > MOST_LOST else count
            gaps.append(Gap(row, Reason(reason), Unit(unit), known, begin, end))
        except ValueError as error:
            raise TraceDamagedError(path, HEADER.size + number * GAP_BYTES, str(error)) from None
    return gaps


def read_gaps(where: Place | Path) -> list[Gap]:
    """Read a gaps file; return no gaps if it is absent.

    Raises:
        TraceDamagedError: it cannot be read, does not parse, or is larger than the limit.
    """
    place = place_of(where)
    path = Path(place.path)
    try:
        refuse_too_many_gaps(path, place.stat().st_size)
        data = read_head(place, _MOST_GAPS_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TraceDamagedError(path, 0, error.strerror or str(error)) from None
    return parse_gaps(data, path)


def refuse_too_many_gaps(path: Path, size_bytes: int) -> None:
    """Reject a gaps file that is too large to be read as a whole.

    Raises:
        TraceDamagedError: it is too large.
    """
    if size_bytes > _MOST_GAPS_BYTES:
        reason = f"{(size_bytes - HEADER.size) // GAP_BYTES:,} gaps; {GAPS}"
        raise TraceDamagedError(path, _MOST_GAPS_BYTES, f"{reason}; move the file elsewhere")


def salvage_entries(raw: memoryview) -> Entries:
    """Return the whole entries of an index, without a look at its header."""
    count = max(len(raw) - len(INDEX_HEADER), 0) // ENTRY_BYTES
    return np.frombuffer(raw, ENTRY_DTYPE, count, len(INDEX_HEADER) if count else 0)


def salvage_gaps(raw: bytes | memoryview) -> tuple[list[Gap], bool]:
    """Return the gaps of a file, and whether the file differs from these gaps encoded.

    A record that does not parse was a loss, too, so it becomes a gap of unknown number.  A torn end
    becomes one such gap after all rows (PAST_ALL).
    """
    if not len(raw):
        return [], False
    body = raw[len(GAPS_HEADER) :]
    records = np.frombuffer(body, GAP_DTYPE, len(body) // GAP_BYTES).tolist()
    found = [_gap_of(*record) for record in records]
    whole = len(found)
    while whole and found[whole - 1] is None:
        whole -= 1
    torn = whole < len(found) or len(body) % GAP_BYTES != 0 or len(raw) < len(GAPS_HEADER)
    gaps: list[Gap] = []
    row = at = 0
    for gap in found[:whole]:
        some = Gap(row, Reason.TORN, Unit.EVENTS, None, at, at)
        gaps.append(some if gap is None else gap)
        row, at = gaps[-1].row, gaps[-1].end
    if torn:
        gaps.append(Gap(PAST_ALL, Reason.TORN, Unit.EVENTS, None, at, at))
    differ = torn or None in found or raw[: len(GAPS_HEADER)] != GAPS_HEADER
    return gaps, differ


def _gap_of(row: int, begin: int, end: int, count: int, reason: int, unit: int) -> Gap | None:
    try:
        known = None if count > MOST_LOST else count
        return Gap(row, Reason(reason), Unit(unit), known, begin, end)
    except ValueError:
        return None


def moved(gap: Gap, rows: int) -> Gap:
    """Return *gap* with its row moved by *rows*."""
    return replace(gap, row=gap.row + rows)


def _check_header(data: bytes, where: Path | str, magic: int, record_bytes: int) -> None:
    if len(data) < HEADER.size:
        raise TraceDamagedError(Path(where), 0, f"{len(data)} bytes are too few for a header")
    found_magic, major, _minor, found_bytes = HEADER.unpack_from(data)
    if found_magic != magic:
        raise TraceDamagedError(Path(where), 0, f"magic {found_magic:#x} instead of {magic:#x}")
    if (major, found_bytes) != (1, record_bytes):
        reason = f"version {major} with {found_bytes}-byte records is not known"
        raise TraceDamagedError(Path(where), 4, reason)


class RecordFile:
    """A file of equal records behind a header, read in parts; as a sequence, and by bisection.

    The header may have any content.  A torn last record does not count.
    """

    def __init__(
        self,
        file: ReadFile | None,
        dtype: np.dtype[np.void],
        rows: range | None = None,
    ) -> None:
        """*file*: None is as good as an empty one; *rows*: None are all records."""
        self._file = file
        self._dtype = dtype
        self.size_bytes = file.size_bytes if file else 0
        whole = max(self.size_bytes - HEADER.size, 0) // dtype.itemsize
        self._rows = range(whole) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    def some(self, first: int, behind: int) -> "RecordFile":
        """Return records ``[first:behind)`` as a sequence of their own, not read yet."""
        return RecordFile(self._file, self._dtype, self._rows[first:behind])

    @overload
    def __getitem__(self, key: int) -> np.void: ...
    @overload
    def __getitem__(self, key: slice) -> Entries: ...
    def __getitem__(self, key: int | slice) -> np.void | Entries:
        """Return one record, or some that follow each other.

        Raises:
            TraceDamagedError: the file was cut meanwhile, or cannot be read.
        """
        if isinstance(key, slice):
            rows = self._rows[key]
            return self._records(rows.start, max(rows.stop, rows.start))
        row = self._rows[key]
        one: np.void = self._records(row, row + 1)[0]
        return one

    def _records(self, first: int, behind: int) -> Entries:
        if self._file is None or first == behind:
            return np.empty(0, self._dtype)
        size = self._dtype.itemsize
        raw = self._file.read_all_of(HEADER.size + first * size, HEADER.size + behind * size)
        return np.frombuffer(raw, self._dtype)

    @property
    def header(self) -> bytes:
        """The header; of a shorter file what there is of it."""
        return bytes(self._file.read(0, HEADER.size)) if self._file else b""

    def column(self, name: str) -> npt.NDArray[np.uint64]:
        """Return a field of all records."""
        some = (self[at : at + _AT_ONCE][name] for at in range(0, len(self), _AT_ONCE))
        return np.concatenate([np.empty(0, np.uint64), *(one.astype(np.uint64) for one in some)])

    def first_at_least(self, name: str, least: int) -> int:
        """Return the number of the first record whose field is >= *least*; len() if there is none.

        The field, a big-endian u64, never steps back.  Reads O(log n) times.
        """
        if self._file is None:
            return 0
        low, high = 0, len(self)
        at, size = HEADER.size + self._dtype.fields[name][1], self._dtype.itemsize  # type: ignore[index]
        while high - low > _FEW:
            middle = (low + high) // 2
            place = at + self._rows[middle] * size
            if _U64.unpack(self._file.read_all_of(place, place + _U64.size))[0] < least:
                low = middle + 1
            else:
                high = middle
        some = self[low:high][name].tolist()  # one read costs less than those of the last steps
        return low + next((row for row, value in enumerate(some) if value >= least), len(some))


class SeekIndex(RecordFile):
    """A stream's index.  Also of a trace that is still written: it is as long as when opened."""

    def __init__(self, where: ReadFile | Place | Path) -> None:
        """Take over an open file, or open it.

        Raises:
            TraceDamagedError: it is not an index.
            FileNotFoundError: there is no such file.
        """
        file = where if isinstance(where, ReadFile) else ReadFile(where)
        super().__init__(file, ENTRY_DTYPE)
        self._opened = file
        if not self.size_bytes:
            raise TraceDamagedError(self.path, 0, "empty")
        _check_header(self.header, file.name, MAGIC, ENTRY_BYTES)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._opened.path

    def refuse_more_than(self, data_bytes: int, least_bytes: int) -> None:
        """Reject an index of more entries than a data file can have sub-buffers.

        *least_bytes* is the size of the smallest sub-buffer in it.  Also reject a last entry of
        zeros, which a hole or a power loss leaves.

        Raises:
            TraceDamagedError: it has more, or ends with zeros.
        """
        count, most = len(self), data_bytes // least_bytes
        remedy = "lttv check --repair makes it again"
        if count > most:
            at = HEADER.size + most * ENTRY_BYTES
            reason = f"{count:,} entries for {data_bytes:,} bytes of data; {remedy}"
            raise TraceDamagedError(self.path, at, reason)
        if count > AT_ONE_TIME.most and not self[count - 1 :].tobytes().strip(b"\0"):
            at = HEADER.size + (count - 1) * ENTRY_BYTES
            raise TraceDamagedError(self.path, at, f"the last entry is all zeros; {remedy}")

    @property
    def torn_bytes(self) -> int:
        """The bytes after the last whole entry."""
        return (self.size_bytes - HEADER.size) % ENTRY_BYTES

    def entries(self, first: int = 0, behind: int | None = None) -> Entries:
        """Return entries ``[first:behind]``."""
        return self[first:behind]

    def first_at_or_after(self, time: int) -> int:
        """Return the number of the first entry whose end is >= *time*; len() if there is none."""
        return self.first_at_least("end", time)

    def first_beginning_after(self, time: int) -> int:
        """Return the number of the first entry whose begin is > *time*, or len()."""
        return self.first_at_least("begin", time + 1)

    def between(self, begin: int, end: int) -> tuple[int, int]:
        """Return ``(first, behind)``: the entries that may hold events in [*begin*, *end*]."""
        first = self.first_at_or_after(begin)
        return first, max(self.first_beginning_after(end), first)
