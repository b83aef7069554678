"""The damage that the fuzzer does to files: a program of steps of 8 bytes. Any bytes are a program.

A step chooses a file, a change, a place in the file and a value. Inputs are indexes into these
tables, so new entries go to the end of each table.
"""

import gzip
import json
import os
import re
import shutil
import socket
import stat
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

STEP: Final = struct.Struct("<BBHI")
MOST_STEPS: Final = 12
EDGES: Final = (
    0, 1, 7, 8, 0x7F, 0xFF, 0xFFFF, 1 << 20, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
SPARSE_BYTES: Final = (1 << 30, 1 << 40)
# Words of format files and their neighbours, and texts that may break a parser of them.
TOKENS: Final = (
    b" ", b"(", b")", b"[", b"]", b"{", b"}", b"-", b"~", b"%", b"%0", b"\\", b'"', b"'", b",",
    b";", b"\n", b"\t", b"\0", b"\xff", b"9", b"0x", b"\\x110000000", b"\\400", b"REC->",
    b"REC->count", b"__get_str(", b"__get_dynamic_array(", b"__print_flags(",
    b"__print_symbolic(", b"__print_hex(", b"__print_array(", b"__data_loc ", b"__rel_loc ",
    b"char[] ", b"unsigned long ", b"(int)", b"1?", b":", b"+1", b"<<", b">>", b"/0", b"%0d",
    b"%*d", b"%.*s", b"%s", b"%pS", b"%pI6c", b"%pUb", b"%c", b"%*pbl", b"{ 1, \"a\" },",
    b"sizeof(", b"field:", b"field:int x;\toffset:8;\tsize:4;\tsigned:1;\n", b"offset:", b"size:",
    b"signed:", b"offset:65535;", b"size:0;", b"ID: ", b"name: ", b"print fmt: ",
    b"print fmt: \"", b"[18446744073709551615]", b"kworker/0:0-", b"-1", b"1e999",
    b"\xed\xa0\x80",
)  # fmt: skip
VALUES: Final[Sequence[Any]] = (
    None, True, False, -1, 0, 1, 1.5, 1e999, float("nan"), 1 << 31, (1 << 63) - 1, 1 << 63,
    (1 << 64) - 1, 1 << 64, 10**300, "", "x", "\ud800", "a\0b", "../../x", "x" * 300, "ftrace",
    "ltt", "blktrace", "sparse", "packed", "open", "closed", [], {}, [[[]]], {"a": {"a": 1}},
    [1] * 1000,
)  # fmt: skip


def _flip(held: bytes, place: int, value: int) -> bytes:
    data = bytearray(held)
    if data:
        data[place] ^= 1 << value % 8
    return bytes(data)


def _set_byte(held: bytes, place: int, value: int) -> bytes:
    data = bytearray(held)
    if data:
        data[place] = value & 0xFF
    return bytes(data)


def _set_u32(held: bytes, place: int, value: int) -> bytes:
    return replaced(held, place & ~3, 4, struct.pack("<I", value))


def _set_edge(held: bytes, place: int, value: int) -> bytes:
    edge = EDGES[value % len(EDGES)]
    return replaced(held, place & ~7, 8, edge.to_bytes(8, "little" if value & 1 else "big"))


def _cut(held: bytes, place: int, value: int) -> bytes:
    return held[:place]


def _remove(held: bytes, place: int, value: int) -> bytes:
    return replaced(held, place, value % 97, b"")


def _repeat(held: bytes, place: int, value: int) -> bytes:
    return replaced(held, place, 0, held[place : place + value % 97])


def _set_number(held: bytes, place: int, value: int) -> bytes:
    """Replace a number of a text by one at the edge of a type."""
    found = re.compile(rb"\d+").search(held, place)
    if not found:
        return held
    edge = EDGES[value % len(EDGES)]
    told = str(-edge if value & 256 else edge).encode()
    return replaced(held, found.start(), len(found[0]), told)


def _put_token(held: bytes, place: int, value: int) -> bytes:
    """Insert a token of the format language; every fourth time, replace a word by it."""
    token = TOKENS[value % len(TOKENS)]
    rest = value // len(TOKENS)
    word = re.compile(rb"\w+").search(held, place) if rest % 4 == 0 else None
    return replaced(held, word.start() if word else place, len(word[0]) if word else 0, token)


def _put_many(held: bytes, place: int, value: int) -> bytes:
    token = TOKENS[value % len(TOKENS)]
    return replaced(held, place, 0, token * (value // len(TOKENS) % 20_000))


def _set_json(held: bytes, place: int, value: int) -> bytes:
    """Set a value of a JSON file to another type or to an edge."""
    try:
        whole = json.loads(held)
    except (ValueError, RecursionError):
        return held
    places = list(places_in(whole))
    if not places:
        return held
    holder, key = places[place % len(places)]
    rest = value // len(VALUES)
    if rest % 8 == 0:
        del holder[key]
    else:
        holder[key] = VALUES[value % len(VALUES)]
    return json.dumps(whole).encode()


def places_in(value: object) -> list[tuple[Any, Any]]:
    """Return (holder, key) of every item in a JSON value."""
    if not isinstance(value, dict | list):
        return []
    keys = value if isinstance(value, dict) else range(len(value))
    found: list[tuple[Any, Any]] = [(value, key) for key in keys]
    for _, key in list(found):
        found += places_in(value[key])
    return found


def _repeat_records(held: bytes, place: int, value: int) -> bytes:
    """Repeat a record of an index or a gaps file many times."""
    size = 72 if value & 1 else 40
    first = 16 + max(place - 16, 0) // size * size
    return replaced(held, first, 0, held[first : first + size] * (value // 2 % 20_000))


def replaced(held: bytes, place: int, size: int, new: bytes) -> bytes:
    """Return *held* with *size* bytes at *place* replaced by *new*."""
    return held[:place] + new + held[place + size :]


Change = Callable[[bytes, int, int], bytes]
"""Arguments: the content of a file, a place in it, and a value."""
ANYWHERE: Final[Sequence[Change]] = (
    _flip, _set_byte, _set_u32, _set_edge, _cut, _remove, _repeat, _set_number,
)  # fmt: skip
_DAMAGE: Final[Sequence[Change]] = (
    *ANYWHERE, _put_token, _put_token, _put_many, _set_json, _set_json, _repeat_records,
)  # fmt: skip
_IN_TEXTS: Final = (_put_token, _put_many)
REPLACE: Final = len(_DAMAGE)
"""Steps from this number on replace a file by one of another kind."""
_REPLACING: Final = 2
"""How many of the numbers of steps replace a file."""


class Victim:
    """A directory to damage, and the original content of its files."""

    changes: Sequence[Change] = _DAMAGE
    replacing = _REPLACING
    targets: Mapping[str, Callable[[Path, Path], object]] | None = None
    """The functions that may run on it; None: those of all traces, or of all replays."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.whole = {
            path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()
        }
        # Most of the code reads streams and their indexes, so these are listed three times.
        streams = [path for path in self.whole if "streams" in path.parts]
        self.places = [*streams, *streams, *self.whole]
        self._json = [path for path in self.whole if path.suffix == ".json"]
        self._texts = [path for path in self.whole if _is_text(path)] or self.places

    def damage(self, program: bytes) -> set[Path]:
        """Run *program* on the files; return the paths that it changed."""
        now = dict(self.whole)
        others: dict[Path, int] = {}
        for number in range(min(len(program) // STEP.size, MOST_STEPS)):
            which, what, at, value = STEP.unpack_from(program, number * STEP.size)
            kind = what % (len(self.changes) + self.replacing)
            change = self.changes[kind] if kind < len(self.changes) else None
            path = self.chosen(which, change)
            if change is None:
                others[path] = value
            else:
                now[path] = self.changed(path, now[path], change, at, value)
        touched = {path for path in self.whole if now[path] is not self.whole[path]} | set(others)
        for path in touched:
            path.unlink()  # another inode: a mapping of the old file keeps its content
            if path in others:
                self._replace(path, now[path], others[path])
            else:
                path.write_bytes(now[path])
        return touched

    def chosen(self, which: int, change: Change | None) -> Path:
        """Return the file that a step changes; None: it replaces it."""
        if change is _set_json and self._json:
            return self._json[which % len(self._json)]
        places = self._texts if change in _IN_TEXTS else self.places
        return places[which % len(places)]

    def changed(self, path: Path, held: bytes, change: Change, at: int, value: int) -> bytes:
        """Return the content of a file after a change; of packed formats their texts change."""
        packed = path.suffix == ".gz" and change in _IN_TEXTS
        if packed:
            held = _unpacked(held)
        new = change(held, at * len(held) >> 16, value)
        return gzip.compress(new, 1) if packed else new

    def _replace(self, path: Path, held: bytes, value: int) -> None:
        """Replace a file by one of another kind."""
        other = self.places[(value >> 8) % len(self.places)]
        put = REPLACEMENTS[value % len(REPLACEMENTS)]
        try:
            put(path, held, other)
        except OSError:  # another step has removed *other*, or we are not root
            path.unlink(missing_ok=True)

    def restore(self, touched: set[Path] | None = None) -> None:
        """Restore the files *touched*, or all of them."""
        if touched is None:
            shutil.rmtree(self.directory, ignore_errors=True)
            touched = set(self.whole)
        for path in touched:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.whole[path])


def _unpacked(held: bytes) -> bytes:
    """Return what a gzip file holds; as it is where an earlier step has damaged it."""
    try:
        return gzip.decompress(held)
    except (OSError, EOFError, zlib.error):
        return held


def _is_text(path: Path) -> bool:
    return (
        path.name in ("format", "formats.gz")
        or path.parent.name in ("tracefs", "events")
        or (path.name in ("saved_cmdlines", "trace_clock", "header_page"))
    )


def _bind(path: Path, _held: bytes, _other: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def _make_sparse(size_bytes: int) -> Callable[[Path, bytes, Path], None]:
    def put(path: Path, held: bytes, _other: Path) -> None:
        path.write_bytes(held)
        os.truncate(path, size_bytes)

    return put


def _make_device(path: Path, _held: bytes, _other: Path) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero


REPLACEMENTS: Final[Sequence[Callable[[Path, bytes, Path], None]]] = (
    lambda path, held, other: None,
    lambda path, held, other: os.mkfifo(path),
    lambda path, held, other: path.mkdir(),
    lambda path, held, other: path.symlink_to(other),
    lambda path, held, other: path.symlink_to("/dev/zero"),
    lambda path, held, other: path.symlink_to(path),
    lambda path, held, other: path.hardlink_to(other),
    _bind,
    _make_device,
    _make_sparse(SPARSE_BYTES[0]),
    _make_sparse(SPARSE_BYTES[1]),
)
