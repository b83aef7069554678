"""The victims of the fuzzer that are traces of other programs, which lttv opens as they are.

Steps are indexes into these tables, so new entries go to the end of each table.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.fuzz_damage import ANYWHERE, EDGES, Change, Victim, replaced
from tests.fuzz_targets import Target, columns, viewed
from tests.tracedat_builder import File, Machine

_SIZES: Final = {"H": 2, "I": 4, "Q": 8}


def _set_number(held: bytes, place: int, value: int) -> bytes:
    """Set a number at any place to an edge, or to a place or size within the file."""
    code = "HIQ"[value % 3]
    order, rest = "<>"[value >> 2 & 1], value >> 3
    inside = (0, 10, 64, place, len(held) - place, len(held), len(held) + 1, len(held) // 2)
    known = (*EDGES, *inside, 3, 6, 14, 16, 18, 4096, 65_535, 65_536)
    number = known[rest % len(known)] & ((1 << 8 * _SIZES[code]) - 1)
    return replaced(held, place, _SIZES[code], struct.pack(order + code, number))


def _copy(held: bytes, place: int, value: int) -> bytes:
    """Copy bytes from another place of the file."""
    begin, size = value % max(len(held), 1), (value >> 16) % 300
    return replaced(held, place, size, held[begin : begin + size])


class ForeignFile(Victim):
    """A directory with one file."""

    changes: Sequence[Change] = (*ANYWHERE, _set_number, _set_number, _set_number, _copy)
    name = "t"

    @staticmethod
    def of(target: Target) -> Target:
        """Return a target that takes the file of the directory."""
        return lambda directory, out: target(directory / ForeignFile.name, out)

    @staticmethod
    def lttv(*arguments: str) -> Target:
        """Return a target that runs lttv on the file."""
        return ForeignFile.of(lambda path, out: viewed(path, out, arguments=arguments))


ForeignFile.targets = {
    "foreign text": ForeignFile.lttv("text", "--jobs", "1"),
    "foreign import": ForeignFile.lttv("import", "-o", "OUT"),
    "foreign info": ForeignFile.lttv("info"),
    "foreign columns": ForeignFile.of(columns),
    "foreign json": ForeignFile.lttv("text", "--json", "--jobs", "1"),
    "foreign window": ForeignFile.lttv("cut", "--begin", "+10us", "--end", "-10us", "-o", "OUT"),
    "foreign plot": ForeignFile.lttv("plot", "-o", "OUT.html"),
    "foreign export": ForeignFile.lttv("export", "--to", "trace.dat", "-o", "OUT"),
    "foreign ctf": ForeignFile.lttv("export", "--to", "ctf", "-o", "OUT"),
    "foreign check": ForeignFile.lttv("check"),
}


def _file(version: int, machine: Machine, compression: str = "none") -> File:
    from tests.test_tracedat import pages  # noqa: PLC0415

    rings: dict[str, Mapping[int, Sequence[bytes]]] = {
        "": {cpu: pages(machine, cpu) for cpu in (0, 1)},
        "other": {1: pages(machine, 1, 2)},
    }
    options = [(7, b"1000\0"), (14, struct.pack("<IIQ", 3, 1, 0)), (2, b"CPU: 0\nentries: 1\n\0")]
    return File(machine, version, rings, options=options, compression=compression)


def _made(directory: Path, file: File) -> Path:
    directory.mkdir()
    file.write(directory / ForeignFile.name)
    return directory


def foreign_6(directory: Path) -> Path:
    """Make a trace.dat of version 6."""
    return _made(directory, _file(6, Machine(page_bytes=512)))


def foreign_6_big(directory: Path) -> Path:
    """Make a trace.dat of a big-endian machine of 32 bits."""
    return _made(directory, _file(6, Machine(">", 4, 512)))


def foreign_7(directory: Path) -> Path:
    """Make a trace.dat of version 7."""
    return _made(directory, _file(7, Machine(page_bytes=512)))


def foreign_7_zstd(directory: Path) -> Path:
    """Make a trace.dat that is compressed by zstd."""
    return _made(directory, _file(7, Machine(page_bytes=512), "zstd"))


def foreign_7_zlib(directory: Path) -> Path:
    """Make a trace.dat that is compressed by zlib."""
    return _made(directory, _file(7, Machine(page_bytes=512), "zlib"))


FOREIGN: Final[Sequence[tuple[Callable[[Path], Path], type[Victim]]]] = (
    (foreign_6, ForeignFile),
    (foreign_7, ForeignFile),
    (foreign_7_zstd, ForeignFile),
    (foreign_7_zlib, ForeignFile),
    (foreign_6_big, ForeignFile),
)
