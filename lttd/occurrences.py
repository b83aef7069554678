"""The occurrence table of a segment: which event ids occur in which sub-buffers of each stream.

A question for a rare event reads it instead of the data, and decodes what is left.

    file     := header record* frame*
    header   := magic:u32 = 0x6C6F6363 ("locc") major:u32 = 1 minor:u32 = 0 records:u32
    record   := name:u32 frame_bytes:u32 entries:u64 data_bytes:u64
    frame    := a zstd frame with the size and the checksum of its content
    content  := group:u32 ids:u32 id:u32{ids} checksum:u32{chunks} row{ids}

All integers are big-endian.  A record belongs to the stream whose name has the CRC-32 ``name``.  A
checksum is the CRC-32 of CHUNK_ENTRIES entries of the stream's index.  A row has a bit for each
group of ``group`` entries, the first one on top, and fills whole bytes.

Rule: a table says where an event may be, never that it is there.
Rule: what does not fit the stream that it is used for is an error, so that nothing is left out by a
table of other data.  The index is compared where it is used, so a window reads no more of it.
Invariant: a parsed table has as many rows and checksums as its ids and entries ask for.
"""

import struct
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.beneath import Place
from lttd.errors import TraceDamagedError
from lttd.index import Entries
from lttd.limits import EVENT_TYPES, OCCURRENCES, STREAMS
from lttd.readfile import ReadFile

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

HEADER: Final = struct.Struct(">4I")
MAGIC: Final = 0x6C6F6363  # "locc"
MAJOR: Final = 1
MINOR: Final = 0
RECORD_DTYPE: Final = np.dtype(
    [("name", ">u4"), ("frame_bytes", ">u4"), ("entries", ">u8"), ("data_bytes", ">u8")]
)
CONTENT_HEAD: Final = struct.Struct(">2I")
CHUNK_ENTRIES: Final = 910
"""As many as a compressed index has in a frame."""
DAMAGED: Final = 0xFFFFFFFF
"""The id of sub-buffers that did not parse to their end: they may hold anything."""
_U32: Final = np.dtype(">u4")
# As for other compressed files: a frame cannot make the decompressor ask for more memory.
_WINDOW_LOG_MAX: Final = 23


class Occurrences(NamedTuple):
    """The table of one stream."""

    entries: int
    data_bytes: int
    group: int
    """The number of entries that share a bit."""
    ids: tuple[int, ...]
    checksums: U32
    """Of each chunk of the index."""
    bits: U8
    """A row for each id."""

    def without_bits(self) -> "Occurrences":
        """Return the table without its rows, which take most of its memory."""
        return self._replace(
            ids=(), checksums=self.checksums.copy(), bits=np.empty((0, 0), np.uint8)
        )

    def of(self, wanted: Collection[int]) -> U8:
        """Return the bits of the groups that may hold any of some ids."""
        rows = [row for row, one in enumerate(self.ids) if one in wanted]
        found: U8 = np.bitwise_or.reduce(self.bits[rows], axis=0)
        return found

    def entries_of(self, groups: U8, first: int, behind: int) -> Mask:
        """Return which entries ``[first:behind)`` are in the groups whose bits are set."""
        numbers = np.arange(first, behind, dtype=np.int64) // self.group
        low = int(numbers[0]) >> 3 if len(numbers) else 0
        bits = np.unpackbits(groups[low : (behind // self.group >> 3) + 1])
        found: Mask = bits[numbers - (low << 3)] != 0
        return found

    def numbers(self, groups: U8) -> I64:
        """Return the numbers of all entries in the groups whose bits are set."""
        marked = np.flatnonzero(np.unpackbits(groups))
        marked = marked[marked * self.group < self.entries]  # the last byte may have more bits
        group = min(self.group, self.entries)
        found: I64 = (marked[:, None] * self.group + np.arange(group)).reshape(-1)
        return found[found < self.entries]

    def fits(self, chunk: int, entries: Entries) -> bool:
        """Tell whether *entries* are those of a chunk that the table was made with."""
        return checksum(entries) == int(self.checksums[chunk])


def checksum(entries: Entries) -> int:
    """Return the checksum of a chunk of an index."""
    return zlib.crc32(np.ascontiguousarray(entries).data.cast("B"))


def chunks_of(entries: int) -> int:
    """Return the number of chunks of an index."""
    return -(-entries // CHUNK_ENTRIES)


def row_bytes(entries: int, group: int) -> int:
    """Return the length of a row."""
    return (-(-entries // group) + 7) >> 3


def encode_content(table: Occurrences) -> bytes:
    """Return the content of a stream's frame."""
    head = CONTENT_HEAD.pack(table.group, len(table.ids))
    ids, checksums = np.array(table.ids, _U32), table.checksums.astype(_U32)
    return b"".join((head, ids.tobytes(), checksums.tobytes(), table.bits.tobytes()))


def parse_content(content: bytes, entries: int, data_bytes: int) -> Occurrences:
    """Return the table of a stream from the content of its frame.

    Raises:
        ValueError: it is not the content of a frame for so many entries.
    """
    if len(content) < CONTENT_HEAD.size:
        raise ValueError("too short")
    group, ids = CONTENT_HEAD.unpack_from(content)
    chunks = chunks_of(entries)
    if not group:
        raise ValueError("groups of no entries")
    if ids > EVENT_TYPES.most + 1:
        raise ValueError(f"{ids:,} ids; {EVENT_TYPES}")
    numbers_end = CONTENT_HEAD.size + (ids + chunks) * _U32.itemsize
    length = row_bytes(entries, group)
    if numbers_end + ids * length != len(content):
        raise ValueError(f"{len(content):,} bytes for {ids:,} ids and {entries:,} entries")
    numbers = np.frombuffer(content, _U32, ids + chunks, CONTENT_HEAD.size)
    bits = np.frombuffer(content, np.uint8, ids * length, numbers_end).reshape(ids, length)
    known = tuple(numbers[:ids].tolist())
    return Occurrences(entries, data_bytes, group, known, numbers[ids:], bits)


def encode(tables: Sequence[tuple[str, Occurrences, bytes]]) -> bytes:
    """Return a whole file: name, table and compressed content of each stream that has one."""
    records = np.array(
        [(_key(name), len(frame), t.entries, t.data_bytes) for name, t, frame in tables],
        RECORD_DTYPE,
    )
    head = HEADER.pack(MAGIC, MAJOR, MINOR, len(tables))
    return b"".join((head, records.tobytes(), *(frame for _, _, frame in tables)))


def _key(name: str) -> int:
    return zlib.crc32(name.encode())


def of_other_index(file: Path, name: str, entry: int) -> TraceDamagedError:
    """Return the error for the table of a stream whose index it does not fit, from *entry* on."""
    reason = f"of other data: {name} has another index, from entry {entry:,} on"
    return TraceDamagedError(file, 0, reason)


class OccurrenceFile:
    """The tables of a segment, read one by one."""

    def __init__(self, place: Place) -> None:
        """Open the file, and read its head.

        Raises:
            FileNotFoundError: there is none.
            TraceDamagedError: it cannot be read, or is not such a file.
        """
        self._file = file = ReadFile(place)
        self.path = file.path
        head = file.read(0, HEADER.size)
        if len(head) < HEADER.size:
            raise TraceDamagedError(file.path, 0, f"{len(head)} bytes are too few for a header")
        magic, major, _minor, count = HEADER.unpack(head)
        if magic != MAGIC:
            raise TraceDamagedError(file.path, 0, f"magic {magic:#x} instead of {MAGIC:#x}")
        if major != MAJOR:
            raise TraceDamagedError(file.path, 4, f"version {major} is not known")
        if count > STREAMS.most:
            raise TraceDamagedError(file.path, 12, f"{count:,} streams; {STREAMS}")
        end = HEADER.size + count * RECORD_DTYPE.itemsize
        self._records = np.frombuffer(file.read_all_of(HEADER.size, end), RECORD_DTYPE)
        self._ends = end + np.cumsum(self._records["frame_bytes"], dtype=np.int64)
        if (count and self._ends[-1] != file.size_bytes) or (not count and end != file.size_bytes):
            reason = "its frames do not end where the file ends"
            raise TraceDamagedError(file.path, file.size_bytes, reason)

    def table(self, name: str, entries: int, data_bytes: int) -> Occurrences | None:
        """Return the table of the stream *name*; None: it has none.

        Raises:
            TraceDamagedError: it is damaged, or of a stream with more or less in it.
        """
        found = np.flatnonzero(self._records["name"] == _key(name))
        if not len(found):
            return None
        number = int(found[0])
        record = self._records[number]
        if (int(record["entries"]), int(record["data_bytes"])) != (entries, data_bytes):
            at = HEADER.size + number * RECORD_DTYPE.itemsize
            raise TraceDamagedError(
                self._file.path, at, f"of other data: {name} has another length"
            )
        end = int(self._ends[number])
        begin = end - int(record["frame_bytes"])
        try:
            content = _decompressed(self._file.read_all_of(begin, end))
            return parse_content(content, entries, data_bytes)
        except ValueError as error:
            raise TraceDamagedError(self._file.path, begin, f"{name}: {error}") from None


def _decompressed(frame: memoryview) -> bytes:
    from lttd.zstd import (  # noqa: PLC0415  (it takes 5 ms to load)
        DecompressionParameter,
        ZstdDecompressor,
        ZstdError,
    )

    options: dict[int, int] = {DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
    decompressor = ZstdDecompressor(options=options)
    try:
        content: bytes = decompressor.decompress(frame, OCCURRENCES.most + 1)
    except ZstdError as error:
        raise ValueError(str(error)) from None
    if len(content) > OCCURRENCES.most:
        raise ValueError(f"more bytes; {OCCURRENCES}")
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("the frame is not whole")
    return content
