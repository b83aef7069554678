"""The seek index of a stream, and the file of its gaps.

The index is the CTF packet index 1.1 as lttng-tools writes it (src/common/index/ctf-index.hpp):
big-endian, a header of four u32 (magic, major, minor, bytes per entry), then entries of nine u64.

Rule: a seek to T returns the first entry whose end is >= T.  (A flushed continuation begins at the
time of the previous sub-buffer's last event: "the last entry that begins at or before T" would lose
events.)
Invariant: entries are ordered by offset; begin and end never step back; a torn entry does not
count.
"""

import mmap
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.beneath import Place, place_of
from lttd.errors import TraceDamagedError, reason_of
from lttd.files import read_head
from lttd.limits import AT_ONE_TIME, GAPS
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
_BEGIN_AT: Final = 24
_END_AT: Final = 32
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


def salvage_gaps(raw: memoryview) -> tuple[list[Gap], bool]:
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


def _check_header(
    data: bytes | mmap.mmap, where: Path | str, magic: int, record_bytes: int
) -> None:
    if len(data) < HEADER.size:
        raise TraceDamagedError(Path(where), 0, f"{len(data)} bytes are too few for a header")
    found_magic, major, _minor, found_bytes = HEADER.unpack_from(data)
    if found_magic != magic:
        raise TraceDamagedError(Path(where), 0, f"magic {found_magic:#x} instead of {magic:#x}")
    if (major, found_bytes) != (1, record_bytes):
        reason = f"version {major} with {found_bytes}-byte records is not known"
        raise TraceDamagedError(Path(where), 4, reason)


class SeekIndex:
    """A stream's index as a mapped file, never read as a whole; the trace may still be growing."""

    def __init__(self, where: Place | Path) -> None:
        """Map the file.

        Raises:
            TraceDamagedError: it is not an index.
            FileNotFoundError: there is no such file.
        """
        self._place = place_of(where)
        try:
            view = self._place.map()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise TraceDamagedError(self.path, 0, reason_of(error)) from None
        if not isinstance(view.obj, mmap.mmap):
            raise TraceDamagedError(self.path, 0, "empty")
        self._map = view.obj
        self._size_bytes = len(view)
        # A bisection needs one page of the file per step, so read-ahead would be wasted.
        self._map.madvise(mmap.MADV_RANDOM)
        _check_header(self._map, self._place.path, MAGIC, ENTRY_BYTES)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(self._place.path)

    def __len__(self) -> int:
        return (self._size_bytes - HEADER.size) // ENTRY_BYTES

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
        if count > AT_ONE_TIME.most and not self.entries(count - 1).tobytes().strip(b"\0"):
            at = HEADER.size + (count - 1) * ENTRY_BYTES
            raise TraceDamagedError(self.path, at, f"the last entry is all zeros; {remedy}")

    @property
    def torn_bytes(self) -> int:
        """The bytes after the last whole entry."""
        return (self._size_bytes - HEADER.size) % ENTRY_BYTES

    def entries(self, first: int = 0, behind: int | None = None) -> Entries:
        """Return entries ``[first:behind]`` as a view of the mapping."""
        whole = np.frombuffer(self._map, ENTRY_DTYPE, len(self), HEADER.size)
        return whole[first:behind]

    def first_at_or_after(self, time: int) -> int:
        """Return the number of the first entry whose end is >= *time*, or len() if there is none.

        Touches O(log n) pages of the file.
        """
        return self._first(_END_AT, time)

    def first_beginning_after(self, time: int) -> int:
        """Return the number of the first entry whose begin is > *time*, or len()."""
        return self._first(_BEGIN_AT, time + 1)

    def between(self, begin: int, end: int) -> tuple[int, int]:
        """Return ``(first, behind)``: the entries that may hold events in [*begin*, *end*]."""
        first = self.first_at_or_after(begin)
        return first, max(self.first_beginning_after(end), first)

    def _first(self, field_at: int, least: int) -> int:
        """Bisect for the first entry with a field >= *least*; the field never steps back."""
        low, high = 0, len(self)
        read, data, at = _U64.unpack_from, self._map, HEADER.size + field_at
        while low < high:
            middle = (low + high) // 2
            if read(data, at + middle * ENTRY_BYTES)[0] < least:
                low = middle + 1
            else:
                high = middle
        return low
