"""Name the functions of programs by address: which file was there, and its table of symbols.

    maps: <time>\t<process>\t<begin>-<end>\t<offset>\t<build-id, or ->\t<path>

Rule: a file names functions only if it has the build-id that was recorded; else an address is the
file's name and the offset in it.
Rule: of several files that were at one address of a process, the last one that was noted counts.
Rule: the path is from the trace, so only a regular file is opened.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from lttd.abi.elf import Elf, Functions, Segment
from lttd.errors import TraceDamagedError
from lttd.limits import MAPS
from lttd.readfile import read_limited
from lttd.terminal import printable_bytes
from lttd.view.trace import Segment as TraceSegment

FILE: Final = "maps"
DEBUG: Final = "/usr/lib/debug/.build-id"
_LINE: Final = re.compile(
    r"^\d+\t(\d{1,10})\t([0-9a-f]{1,16})-([0-9a-f]{1,16})\t([0-9a-f]{1,16})\t([0-9a-f]*|-)\t(.*)$",
    re.MULTILINE,
)
_ANONYMOUS: Final = "[anonymous]"


class Code(NamedTuple):
    """A part of a file that a process had in its memory."""

    begin: int
    end: int
    offset: int
    build_id: str
    path: str


class _File(NamedTuple):
    segments: list[Segment]
    functions: Functions


class UserCode:
    """The code of the processes in some segments."""

    def __init__(self, segments: Iterable[TraceSegment]) -> None:
        self._of: dict[int, list[Code]] = {}
        """By process, the latest first."""
        for segment in segments:
            try:
                text = read_limited(segment.paths.tracefs / FILE, MAPS).decode(errors="replace")
            except (OSError, TraceDamagedError):
                continue
            for pid, begin, end, offset, build_id, path in _LINE.findall(text):
                place = int(begin, 16), int(end, 16), int(offset, 16)
                one = Code(*place, build_id.strip("-"), path)
                known = self._of.setdefault(int(pid), [])
                if one not in known[-1:]:
                    known.append(one)
        for known in self._of.values():
            known.reverse()
        self._files: dict[tuple[str, str], _File | None] = {}

    @property
    def is_known(self) -> bool:
        """Tell whether the code of any process was saved."""
        return bool(self._of)

    def name(self, process: int, address: int, after: int) -> bytes:
        """Return the name of a function; *after*: 1 if the address is the one after a call."""
        code = self._code(process, address)
        if code is None:
            return b"0x%x" % address
        offset = address - code.begin + code.offset
        if not code.path.startswith("/"):
            return printable_bytes(os.fsencode(code.path or _ANONYMOUS))
        found = self._function(code, offset - after)
        if found:
            return printable_bytes(found)
        name = os.fsencode(PurePosixPath(code.path.removesuffix(" (deleted)")).name)
        return printable_bytes(name) + b"+0x%x" % offset

    def _code(self, process: int, address: int) -> Code | None:
        known = self._of.get(process, ())
        return next((one for one in known if one.begin <= address < one.end), None)

    def _function(self, code: Code, offset: int) -> bytes:
        key = code.path, code.build_id
        if key not in self._files:
            self._files[key] = _file(*key)
        file = self._files[key]
        for one in file.segments if file else ():
            if one.offset <= offset < one.offset + one.size_bytes:
                assert file is not None
                return file.functions.name(offset - one.offset + one.address)
        return b""


def _file(path: str, build_id: str) -> _File | None:
    """Return what names a file's functions; None: it is not the recorded file, or lacks names."""
    if not build_id:
        return None
    segments, own = _read(path, build_id)
    if not segments:
        return None
    _, separate = _read(f"{DEBUG}/{build_id[:2]}/{build_id[2:]}.debug", build_id)
    functions = separate or own
    return _File(segments, functions) if functions else None


def _read(path: str, build_id: str) -> tuple[list[Segment], Functions | None]:
    try:
        if not Path(path).is_file():
            return [], None
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return [], None
    try:
        elf = Elf(lambda at, size: os.pread(fd, size, at))
        if elf.build_id() != build_id:
            return [], None
        return elf.segments(), elf.functions()
    except (OSError, ValueError, OverflowError):
        return [], None
    finally:
        os.close(fd)
