"""Parts of a foreign file that readers take for a stream's data: as they are, or by chunks.

    chunks := count:u32 (compressed_bytes:u32 content_bytes:u32 data){count}

Source of the layout: trace-cmd lib/trace-cmd/trace-compress.c; the integers have the file's byte
order.

Rule: a chunk is decompressed when it is needed, and to no more than the file says; a few that were
used last are kept.
Rule: a chunk that does not decompress is reported once, and its bytes are zeros.
"""

import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.errors import TraceDamagedError
from lttd.limits import CHUNK, FRAMES
from lttd.readfile import ReadFile
from lttd.seekable import FrameTable

if TYPE_CHECKING:
    from lttd.writefile import File

I64 = npt.NDArray[np.int64]

_KEPT_CHUNKS: Final = 4
# A copy reads so many bytes at a time.
_COPY_BYTES: Final = 1 << 20
# 8 MiB, as for lttd's own frames: a header cannot make the decompressor ask for more memory.
_WINDOW_LOG_MAX: Final = 23


class Extent(NamedTuple):
    """A range of a file."""

    begin: int
    length_bytes: int


class FilePart(ReadFile):
    """A range of an open file."""

    def __init__(self, file: ReadFile, extent: Extent, label: str) -> None:
        """*label* is the part's name in messages."""
        self._fd = -1
        self._whole = file
        self._begin = extent.begin
        self.name = label
        self.size_bytes = max(min(extent.length_bytes, file.size_bytes - extent.begin), 0)

    def read_into(self, buffer: memoryview, begin: int) -> int:
        """See ReadFile."""
        room = max(min(len(buffer), self.size_bytes - begin), 0)
        return self._whole.read_into(buffer[:room], self._begin + begin)

    def copy_to(self, target: "File", begin: int, length: int, to: int) -> None:
        """See ReadFile."""
        self._whole.copy_to(target, self._begin + begin, length, to)


Decompress = Callable[[memoryview, int], bytes]
"""Returns the content of a chunk, at most that many bytes and one."""


def _zlib(data: memoryview, most_bytes: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, most_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from None


def _zstd(data: memoryview, most_bytes: int) -> bytes:
    from lttd.zstd import DecompressionParameter, ZstdDecompressor, ZstdError  # noqa: PLC0415

    options: dict[int, int] = {DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
    try:
        return ZstdDecompressor(options=options).decompress(data, most_bytes + 1)
    except ZstdError as error:
        raise ValueError(str(error).rpartition(": ")[2]) from None


COMPRESSIONS: Final[dict[str, Decompress]] = {"zlib": _zlib, "zstd": _zstd}
"""By the name in the file's header."""


def content_of(decompress: Decompress, data: memoryview, content_bytes: int) -> bytes:
    """Return the content of a chunk or section.

    Raises:
        ValueError: it does not decompress to *content_bytes*.
    """
    content = decompress(data, content_bytes)
    if len(content) != content_bytes:
        raise ValueError(f"its content has not the stated {content_bytes:,} bytes")
    return content


class ChunkedFile(ReadFile):
    """A part of a file that is compressed by chunks; offsets are those of the content."""

    reads_any_part = False

    def __init__(
        self,
        file: ReadFile,
        extent: Extent,
        label: str,
        byteorder: str,
        decompress: Decompress,
    ) -> None:
        """Read where the chunks are.

        Raises:
            TraceDamagedError: the file cannot be read, or its chunks are too many or too large.
        """
        self._fd = -1
        self._whole = file
        self.name = label
        self._decompress = decompress
        self.on_damage: Callable[[TraceDamagedError], None] = lambda error: None
        """Called for a chunk that does not decompress."""
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._damaged: set[int] = set()
        self.table = _table_of(file, extent, label, np.dtype(f"{byteorder}u4"))
        self.size_bytes = int(self.table.content_at[-1])

    def read_into(self, buffer: memoryview, begin: int) -> int:
        """See ReadFile."""
        end = min(begin + len(buffer), self.size_bytes)
        done = 0
        for number in self.table.covering(begin, end):
            at = int(self.table.content_at[number])
            content = self._content(number)
            low, high = max(begin - at, 0), min(end - at, len(content))
            buffer[done : done + high - low] = memoryview(content)[low:high]
            done += high - low
        return done

    def copy_to(self, target: "File", begin: int, length: int, to: int) -> None:
        """See ReadFile."""
        for at in range(0, length, _COPY_BYTES):
            part = self.read_all_of(begin + at, begin + min(at + _COPY_BYTES, length))
            target.write_at([part], to + at)

    def _content(self, number: int) -> bytes:
        kept = self._kept.get(number)
        if kept is not None:
            self._kept.move_to_end(number)
            return kept
        content = self._read_chunk(number)
        self._kept[number] = content
        if len(self._kept) > _KEPT_CHUNKS:
            self._kept.popitem(last=False)
        return content

    def _read_chunk(self, number: int) -> bytes:
        begin, end = (int(at) for at in self.table.compressed_at[number : number + 2])
        length = int(self.table.content_at[number + 1] - self.table.content_at[number])
        try:
            data = self._whole.read_all_of(begin + 8, end)
            return content_of(self._decompress, data, length)
        except ValueError as error:
            if number not in self._damaged:
                self._damaged.add(number)
                reason = f"chunk {number} is damaged: {error}"
                self.on_damage(TraceDamagedError(Path(self._whole.name), begin, reason))
            return bytes(length)


def _table_of(
    file: ReadFile, extent: Extent, label: str, number: "np.dtype[np.uint32]"
) -> FrameTable:
    """Return where the chunks of a part begin; those that the file has not whole are left out.

    The count of chunks says where they end: trace-cmd does not look at the extent's length either.
    """
    path, end = Path(file.name), file.size_bytes
    head = bytes(file.read(extent.begin, min(extent.begin + 4, end)))
    count = int(np.frombuffer(head, number)[0]) if len(head) == number.itemsize else 0
    if count > FRAMES.most:
        reason = f"{label}: {count:,} chunks; {FRAMES}"
        raise TraceDamagedError(path, extent.begin, reason)
    at, content_bytes = extent.begin + 4, 0
    places, contents = [at], [0]
    for _ in range(count):
        words = np.frombuffer(file.read(at, min(at + 8, end)), np.uint8)
        if len(words) < 8:
            break
        compressed, content = words.view(number).tolist()
        if content > CHUNK.most or compressed > CHUNK.most:
            raise TraceDamagedError(path, at, f"{label}: a chunk of {content:,} bytes; {CHUNK}")
        at += 8 + compressed
        if at > end or not content:
            break
        content_bytes += content
        places.append(at)
        contents.append(content_bytes)
    return FrameTable(np.array(places, np.int64), np.array(contents, np.int64))
