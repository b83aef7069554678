"""The seek table of zstd's seekable format: where each frame of a file begins, also decompressed.

    file    := frame* table
    frame   := a zstd frame with the size and the checksum of its content
    table   := 0x184D2A5E:u32 bytes:u32 row* rows:u32 flags:u8 0x8F92EAB1:u32
    row     := compressed_bytes:u32 content_bytes:u32 [checksum:u32, with bit 7 of flags]

All integers are little-endian.  The table is a skippable frame, so ``zstd -d`` decompresses such a
file like any other.
Source: zstd contrib/seekable_format/zstd_seekable_compression_format.md, version 0.1.0.

Rule: pure.  A table that passes ``parse_table`` covers its file exactly, and no frame is larger
than the limit.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.limits import FRAME, FRAMES

I64 = npt.NDArray[np.int64]

HEAD: Final = struct.Struct("<2I")
FOOTER: Final = struct.Struct("<IBI")
SKIPPABLE_MAGIC: Final = 0x184D2A5E
SEEKABLE_MAGIC: Final = 0x8F92EAB1
ROW_DTYPE: Final = np.dtype([("compressed_bytes", "<u4"), ("content_bytes", "<u4")])
CHECKSUM_BYTES: Final = 4
_HAS_CHECKSUMS: Final = 0x80
_RESERVED: Final = 0x7C
# zstd's own bound is content + content / 256 + 64.
_MOST_OVERHEAD_BYTES: Final = 64 << 10


class FrameTable(NamedTuple):
    """Where frames lie; each array has one number more than there are frames."""

    compressed_at: I64
    """Offsets in the file; the last one is the end of all frames."""
    content_at: I64
    """Offsets in the decompressed data; the last one is its length."""

    def covering(self, begin: int, end: int) -> range:
        """Return the numbers of the frames that hold bytes ``[begin:end)`` of the data."""
        if begin >= end:
            return range(0)
        first = int(np.searchsorted(self.content_at, begin, "right")) - 1
        return range(first, int(np.searchsorted(self.content_at, end, "left")))


def encode_table(frames: Sequence[tuple[int, int]]) -> bytes:
    """Return the seek table of *frames*: (compressed bytes, content bytes) of each."""
    rows = np.array(frames, ROW_DTYPE).tobytes()
    head = HEAD.pack(SKIPPABLE_MAGIC, len(rows) + FOOTER.size)
    return head + rows + FOOTER.pack(len(frames), 0, SEEKABLE_MAGIC)


def table_bytes(footer: bytes, file_bytes: int) -> int:
    """Return the length of the table that ends with *footer*, of a file of *file_bytes*.

    Raises:
        ValueError: no table ends there.
    """
    if len(footer) < FOOTER.size:
        raise ValueError("no seek table at its end")
    count, flags, magic = FOOTER.unpack(footer)
    if magic != SEEKABLE_MAGIC:
        raise ValueError("no seek table at its end")
    if flags & _RESERVED:
        raise ValueError(f"the seek table has unknown flags ({flags:#x})")
    if count > FRAMES.most:
        raise ValueError(f"{count:,} frames; {FRAMES}")
    length: int = HEAD.size + count * _row_bytes(flags) + FOOTER.size
    if length > file_bytes:
        raise ValueError(f"the seek table claims {count:,} frames, more than the file has room for")
    return length


def parse_table(table: bytes | memoryview, file_bytes: int) -> FrameTable:
    """Return the frames that *table* names, the end of a file of *file_bytes*.

    Raises:
        ValueError: it is not a seek table, or does not fit the file.
    """
    count, flags, _ = FOOTER.unpack(table[-FOOTER.size :])
    magic, size = HEAD.unpack(table[: HEAD.size])
    if magic != SKIPPABLE_MAGIC or size != len(table) - HEAD.size:
        raise ValueError("the seek table does not begin where its end says")
    raw = np.frombuffer(table[HEAD.size : -FOOTER.size], np.uint8)
    sizes = raw.reshape(count, _row_bytes(flags))[:, : ROW_DTYPE.itemsize]
    rows = np.ascontiguousarray(sizes).view(ROW_DTYPE).reshape(count)
    compressed, content = (rows[name].astype(np.int64) for name in ROW_DTYPE.fields or ())
    if count and (not content.all() or int(content.max()) > FRAME.most):
        raise ValueError(f"a frame of {int(content.max()):,} bytes, or an empty one; {FRAME}")
    if np.any(compressed > content + (content >> 8) + _MOST_OVERHEAD_BYTES):
        raise ValueError("the seek table names a frame that is larger than its content")
    starts = FrameTable(*(np.concatenate(([0], np.cumsum(each))) for each in (compressed, content)))
    if int(starts.compressed_at[-1]) + len(table) != file_bytes:
        raise ValueError("the frames of the seek table are not all that the file has")
    return starts


def _row_bytes(flags: int) -> int:
    return ROW_DTYPE.itemsize + (CHECKSUM_BYTES if flags & _HAS_CHECKSUMS else 0)
