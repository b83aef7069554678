"""A stored file in either form: plain, or compressed (``lttd.seekable``) and read as if plain.

A compressed file is read a frame at a time: 256 KiB of a stream's data, 64 KiB of its index.  A
window decompresses the frames that it touches, and a bisection of an index one frame for each of
its steps.

Rule: where both forms exist the plain one is read; each is whole.
Rule: a file that changes its form while it is looked for is found in the other one.
Invariant: a frame is checked before its bytes are used: by its size and its checksum.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Final

import numpy as np

from lttd.beneath import Place
from lttd.errors import TraceDamagedError
from lttd.readfile import ReadFile
from lttd.seekable import FOOTER, FrameTable, parse_table, table_bytes
from lttd.tracedir import Places

# Frames that a read takes a part of are kept: the next read takes the rest.  Of all files:
KEPT_BYTES: Final = 64 << 20
# Of one file: the frame where a read ended, and the one where it began.
KEPT_FRAMES: Final = 2
# Frames that adjoin are read from the disk in one call of about this size.
_READ_BYTES: Final = 1 << 20
# The smallest hole that is made again of zeros: a block of most file systems.
_BLOCK_BYTES: Final = 4096
# 8 MiB, as the limit of a frame: a header cannot make the decompressor ask for more memory.
_WINDOW_LOG_MAX: Final = 23
# Between two looks a file may change its form once, hardly twice.
_LOOKS: Final = 3
_REMEDY: Final = "zstd -d reads it as far as it is whole"

if TYPE_CHECKING:
    from lttd.writefile import File

OnDamage = Callable[[TraceDamagedError], None]
_Key = tuple[int, int]
_serials: Final = count()


class _Kept:
    """Decompressed frames of all files; the ones that were used last, up to KEPT_BYTES."""

    def __init__(self) -> None:
        self._frames: OrderedDict[_Key, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def get(self, key: _Key) -> bytes | None:
        with self._lock:
            if key in self._frames:
                self._frames.move_to_end(key)
            return self._frames.get(key)

    def add(self, key: _Key, content: bytes) -> None:
        with self._lock:
            self._bytes += len(content) - len(self._frames.pop(key, b""))
            self._frames[key] = content
            while self._bytes > KEPT_BYTES and len(self._frames) > 1:
                self._bytes -= len(self._frames.popitem(last=False)[1])

    def drop(self, key: _Key) -> None:
        with self._lock:
            self._bytes -= len(self._frames.pop(key, b""))


_KEPT: Final = _Kept()


class CompressedFile(ReadFile):
    """A file of zstd frames; offsets and sizes are those of the decompressed data."""

    reads_any_part = False

    def __init__(self, where: Place, on_damage: OnDamage | None = None) -> None:
        """Open the file and read its seek table.

        *on_damage* is called for a damaged frame, whose bytes are then zeros; None: it is raised.

        Raises:
            FileNotFoundError: there is none.
            TraceDamagedError: it cannot be read, or has no seek table.
        """
        self._kept: list[int] = []
        self._serial = next(_serials)
        super().__init__(where)
        self.stored_bytes = self.size_bytes
        """The length of the file itself."""
        self._on_damage = on_damage
        self._told: set[int] = set()
        self.table = self._read_table()
        self.size_bytes = int(self.table.content_at[-1])

    def __del__(self) -> None:
        for number in self._kept:
            _KEPT.drop((self._serial, number))
        super().__del__()

    def _read_table(self) -> FrameTable:
        try:
            footer = self.read_stored(max(self.stored_bytes - FOOTER.size, 0), self.stored_bytes)
            begin = self.stored_bytes - table_bytes(bytes(footer), self.stored_bytes)
            return parse_table(self.read_stored(begin, self.stored_bytes), self.stored_bytes)
        except ValueError as error:
            raise TraceDamagedError(self.path, self.stored_bytes, f"{error}; {_REMEDY}") from None

    def read_stored(self, begin: int, end: int) -> memoryview:
        """Return bytes ``[begin:end)`` of the file itself; fewer if it was cut meanwhile."""
        buffer = memoryview(bytearray(end - begin))
        return buffer[: self._read_stored(buffer, begin)]

    def read_into(self, buffer: memoryview, begin: int) -> int:
        """Fill *buffer* with the data from *begin* on; return how many bytes there were.

        Raises:
            TraceDamagedError: the disk does not give them, or a frame is damaged.
        """
        end = min(begin + len(buffer), self.size_bytes)
        done = 0
        for number, content in self._contents(self.table.covering(begin, end)):
            at = int(self.table.content_at[number])
            low, high = max(begin - at, 0), min(end - at, len(content))
            buffer[done : done + high - low] = memoryview(content)[low:high]
            done += high - low
            if high - low < len(content):
                self._keep(number, content)
        return done

    def copy_to(self, target: "File", begin: int, length: int, to: int) -> None:
        """Copy a range of the data to *target*, at its byte *to*; blocks of zeros become holes.

        Raises:
            StorageError: it could not be written.
            TraceDamagedError: the file was cut meanwhile, or a frame is damaged.
        """
        for at in range(0, length, _READ_BYTES):
            content = self.read_all_of(begin + at, begin + min(at + _READ_BYTES, length))
            _write_unpadded(target, content, to + at)
        target.truncate(max(target.size_bytes(), to + length))

    def _keep(self, number: int, content: bytes) -> None:
        if number in self._kept:
            self._kept.remove(number)
        self._kept.append(number)
        if len(self._kept) > KEPT_FRAMES:
            _KEPT.drop((self._serial, self._kept.pop(0)))
        _KEPT.add((self._serial, number), content)

    def _contents(self, numbers: range) -> Iterator[tuple[int, bytes]]:
        """Yield the content of frames; fewer if the file was cut meanwhile."""
        at = self.table.compressed_at
        while numbers:
            kept = _KEPT.get((self._serial, numbers[0]))
            if kept is not None:
                yield numbers[0], kept
                numbers = numbers[1:]
                continue
            begin = int(at[numbers[0]])
            behind = numbers[0] + 1
            while behind < numbers.stop and int(at[behind + 1]) - begin <= _READ_BYTES:
                behind += 1
            raw = self.read_stored(begin, int(at[behind]))
            for number in range(numbers[0], behind):
                frame = raw[int(at[number]) - begin : int(at[number + 1]) - begin]
                if len(frame) < int(at[number + 1] - at[number]):
                    return
                yield number, self._content(number, frame)
            numbers = numbers[behind - numbers[0] :]

    def _content(self, number: int, frame: memoryview) -> bytes:
        """Decompress a frame."""
        # Loading the library takes 5 ms, and few segments that are viewed are compressed.
        from lttd.zstd import (  # noqa: PLC0415
            DecompressionParameter,
            ZstdDecompressor,
            ZstdError,
        )

        length = int(self.table.content_at[number + 1] - self.table.content_at[number])
        options: dict[int, int] = {DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
        decompressor = ZstdDecompressor(options=options)
        why = "its content has another size than the seek table says"
        try:
            content = decompressor.decompress(frame, length + 1)
            if decompressor.eof and not decompressor.unused_data and len(content) == length:
                return content
        except ZstdError as error:
            why = str(error).rpartition(": ")[2]  # after "Unable to decompress Zstandard data"
        at = int(self.table.compressed_at[number])
        damage = TraceDamagedError(self.path, at, f"compressed frame {number} is damaged: {why}")
        if self._on_damage is None:
            raise damage
        if number not in self._told:
            self._told.add(number)
            self._on_damage(damage)
        return bytes(length)


def _write_unpadded(target: "File", content: memoryview, at: int) -> None:
    """Write *content* at *at*, without the blocks that are all zeros."""
    whole = len(content) // _BLOCK_BYTES * _BLOCK_BYTES
    blocks = np.frombuffer(content[:whole], np.uint8).reshape(-1, _BLOCK_BYTES).any(axis=1)
    held = np.concatenate(([False], blocks, [False]))
    bounds = np.flatnonzero(held[1:] != held[:-1]) * _BLOCK_BYTES
    for begin, end in bounds.reshape(-1, 2).tolist():
        target.write_at([content[begin:end]], at + begin)
    if whole < len(content):
        target.write_at([content[whole:]], at + whole)


def open_stored(places: Places, on_damage: OnDamage | None = None) -> ReadFile | None:
    """Open a file in the form that it has; None where there is neither.

    Raises:
        TraceDamagedError: it cannot be opened, or is not a regular file.
    """
    for _ in range(_LOOKS):
        try:
            return ReadFile(places.plain)
        except FileNotFoundError:
            pass
        try:
            return CompressedFile(places.compressed, on_damage)
        except FileNotFoundError:
            pass
    return None


def stored_bytes(places: Places) -> int:
    """Return the length of a file, decompressed; 0 if it is unknown, which readers report."""
    try:
        return places.plain.stat().st_size
    except FileNotFoundError:
        pass
    except OSError:
        return 0
    try:
        file = open_stored(places)
    except TraceDamagedError:
        return 0
    return file.size_bytes if file else 0
