"""Read from an ELF file what names its functions: the build-id, the segments, the symbols.

Source: the System V ABI, chapters 4 and 5 (ELF-64 and ELF-32); elf(5); the note NT_GNU_BUILD_ID of
GNU ld.

Rule: the file may be anything: each size is limited, and what does not fit is absent, not an error.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

_HEAD_BYTES: Final = 64
_MAGIC: Final = b"\x7fELF"
_LOAD, _NOTE = 1, 4
_SYMTAB, _DYNSYM = 2, 11
_BUILD_ID: Final = 3
_FUNCTIONS: Final = (2, 10)
"""Types of symbols: STT_FUNC, STT_GNU_IFUNC."""
MOST_ENTRIES: Final = 4096
MOST_NOTES_BYTES: Final = 1 << 16
MOST_SYMBOLS_BYTES: Final = 1 << 28

Read = Callable[[int, int], bytes]
"""Returns up to so many bytes from an offset of the file."""


class Segment(NamedTuple):
    """Where a part of the file is in memory."""

    offset: int
    size_bytes: int
    address: int


class Functions(NamedTuple):
    """Functions in the order of their addresses."""

    begin: npt.NDArray[np.uint64]
    size_bytes: npt.NDArray[np.uint64]
    name_at: npt.NDArray[np.uint32]
    names: bytes

    def name(self, address: int) -> bytes:
        """Return the name of the function at an address; nothing if there is none."""
        at = int(np.searchsorted(self.begin, np.uint64(address), "right")) - 1
        if at < 0:
            return b""
        begin, size = int(self.begin[at]), int(self.size_bytes[at])
        if size and address >= begin + size:
            return b""
        name = int(self.name_at[at])
        return self.names[name : self.names.find(b"\0", name)]


class _Layout(NamedTuple):
    """The words of one class of files."""

    head: str
    segment: str
    fields: tuple[int, int, int, int]
    """Places of type, offset, address and file size in a program header."""
    section: str
    symbol: tuple[tuple[str, str], ...]


_OF_64: Final = _Layout(
    "HHIQQQIHHHHHH", "IIQQQQQQ", (0, 2, 3, 5), "IIQQQQIIQQ",
    (("name", "u4"), ("info", "u1"), ("other", "u1"), ("section", "u2"), ("value", "u8"),
     ("size", "u8")),
)  # fmt: skip
_OF_32: Final = _Layout(
    "HHIIIIIHHHHHH", "IIIIIIII", (0, 1, 2, 4), "IIIIIIIIII",
    (("name", "u4"), ("value", "u4"), ("size", "u4"), ("info", "u1"), ("other", "u1"),
     ("section", "u2")),
)  # fmt: skip


class Elf:
    """An ELF file."""

    def __init__(self, read: Read) -> None:
        """Raise ValueError if it is not such a file."""
        head = read(0, _HEAD_BYTES)
        if head[:4] != _MAGIC or len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise ValueError("no ELF file")
        self._read = read
        self._layout = _OF_64 if head[4] == 2 else _OF_32
        self._order = "<" if head[5] == 1 else ">"
        words = struct.unpack_from(
            self._order + self._layout.head, head.ljust(_HEAD_BYTES, b"\0"), 16
        )
        self._segments_at, self._sections_at = words[4], words[5]
        self._segment_bytes, self._segment_count = words[8], min(words[9], MOST_ENTRIES)
        self._section_bytes, self._section_count = words[10], min(words[11], MOST_ENTRIES)

    def build_id(self) -> str:
        """Return the build-id in hexadecimal; empty if it has none."""
        for kind, offset, _, size in self._program_headers():
            if kind == _NOTE:
                for type_, name, content in self._notes(offset, size):
                    if type_ == _BUILD_ID and name == b"GNU\0":
                        return content.hex()
        return ""

    def segments(self) -> list[Segment]:
        """Return the parts that are loaded."""
        return [
            Segment(offset, size, address)
            for kind, offset, address, size in self._program_headers()
            if kind == _LOAD
        ]

    def functions(self) -> Functions | None:
        """Return the functions in the table of symbols, else in that of the dynamic linker."""
        sections = list(self._entries(self._sections_at, self._section_bytes, self._section_count,
                                      self._layout.section))  # fmt: skip
        for wanted in (_SYMTAB, _DYNSYM):
            for one in sections:
                if (
                    one[1] == wanted
                    and one[6] < len(sections)
                    and (found := self._table(one, sections[one[6]]))
                ):
                    return found
        return None

    def _table(self, symbols: tuple[int, ...], names: tuple[int, ...]) -> Functions | None:
        dtype = np.dtype([(name, self._order + kind) for name, kind in self._layout.symbol])
        raw, text = (
            self._read(one[4], min(one[5], MOST_SYMBOLS_BYTES)) for one in (symbols, names)
        )
        table: npt.NDArray[Any] = np.frombuffer(raw, dtype, len(raw) // dtype.itemsize)
        kept = np.isin(table["info"] & 15, _FUNCTIONS) & (table["section"] != 0)
        kept &= table["name"] < len(text)
        table = table[kept]
        if not len(table):
            return None
        table = table[np.argsort(table["value"], kind="stable")]
        value, size = (table[name].astype(np.uint64) for name in ("value", "size"))
        return Functions(value, size, table["name"].astype(np.uint32), text + b"\0")

    def _program_headers(self) -> Iterator[tuple[int, int, int, int]]:
        places = self._layout.fields
        for words in self._entries(
            self._segments_at, self._segment_bytes, self._segment_count, self._layout.segment
        ):
            yield tuple(words[place] for place in places)  # type: ignore[misc]

    def _entries(self, at: int, size: int, count: int, layout: str) -> Iterator[tuple[int, ...]]:
        entry = struct.Struct(self._order + layout)
        if size < entry.size:
            return
        data = self._read(at, size * count)
        for offset in range(0, len(data) - size + 1, size):
            yield entry.unpack_from(data, offset)

    def _notes(self, at: int, size: int) -> Iterator[tuple[int, bytes, bytes]]:
        data = self._read(at, min(size, MOST_NOTES_BYTES))
        place = 0
        while place + 12 <= len(data):
            name_bytes, content_bytes, type_ = struct.unpack_from(f"{self._order}III", data, place)
            name_at = place + 12
            content_at = name_at + -(-name_bytes // 4) * 4
            place = content_at + -(-content_bytes // 4) * 4
            yield (
                type_,
                data[name_at : name_at + name_bytes],
                data[content_at : content_at + content_bytes],
            )
