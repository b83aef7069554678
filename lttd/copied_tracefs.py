"""Find what a copied tracefs tree, or a directory of its files, has: streams, and small files.

    per_cpu/cpuN/trace_pipe_raw    or  cpuN.*  or  <channel>_<cpu>       pages
    events/SYSTEM/EVENT/format     or  EVENT.format                      formats
    events/header_page, saved_cmdlines, kallsyms, trace_clock, ...       or beside the pages

Rule: the directory is opened once, and no symbolic link below it is followed.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from lttd.abi.ftrace import NAME, PageLayout, parse_header_page
from lttd.abi.saved_cmdlines import commands_of
from lttd.beneath import OpenDirectory
from lttd.errors import SourceError, TraceDamagedError, UsageError
from lttd.limits import (
    COMMANDS,
    CPUS,
    FORMAT,
    FORMATS,
    HEADER_PAGE,
    KALLSYMS,
    TRACEFS_FILE,
    Limit,
)
from lttd.plausible import is_name
from lttd.readfile import read_limited
from lttd.subbuffer import StreamId

DEFAULT_SUBBUFFER_BYTES: Final = 4096
COMMANDS_FILE: Final = "commands"
"""The names of tasks, in lttd's own form."""
HEADER_PAGES: Final = ("events/header_page", "header_page")


class StreamPath(NamedTuple):
    """A file and its stream."""

    path: Path
    stream: StreamId


class SmallFile(NamedTuple):
    """A file beside the streams, by its name below tracefs."""

    name: str
    content: bytes


def find_streams(directory: Path) -> list[StreamPath]:
    """Return the streams of *directory*, by the first form of file names that matches any.

    Raises:
        UsageError: two files would be the same stream.
    """
    files = [path for path in sorted(directory.iterdir()) if path.is_file()]
    tree = sorted(directory.glob("per_cpu/cpu*/trace_pipe_raw"))
    for found in (
        [_named(path, path.parent.name, r"cpu(?P<cpu>[0-9]+)") for path in tree],
        [_named(path, path.name, r"cpu(?P<cpu>[0-9]+)(\..*)?") for path in files],
        [_named(path, path.name, r"(?P<channel>[^.].*)_(?P<cpu>[0-9]+)") for path in files],
    ):
        streams = sorted((one for one in found if one), key=lambda one: one.stream)
        for one, other in pairwise(streams):
            if one.stream == other.stream:
                raise UsageError(f"{one.path} and {other.path}: both are {one.stream.name}")
        if streams:
            return streams
    return []


def _named(path: Path, name: str, pattern: str) -> StreamPath | None:
    match = re.fullmatch(pattern, name)
    if match is None:
        return None
    words = match.groupdict()
    cpu, named = int(words["cpu"]), words.get("channel", NAME)
    if cpu >= CPUS.most or not is_name(named):
        return None
    return StreamPath(path, StreamId(named, cpu))


def page_layout(
    directory: OpenDirectory, subbuffer_bytes: int | None
) -> tuple[PageLayout, tuple[str, ...]]:
    """Return the layout of a directory's pages, and lines about what contradicts it.

    *subbuffer_bytes* is the size of a sub-buffer where no ``header_page`` states it.

    Raises:
        SourceError: header_page cannot be read.
    """
    asked = subbuffer_bytes or DEFAULT_SUBBUFFER_BYTES
    for name in HEADER_PAGES:
        path = directory.path / name
        try:
            layout = parse_header_page(read_limited(directory.place(path), HEADER_PAGE))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (ValueError, TraceDamagedError) as error:
            what = str(error) if isinstance(error, TraceDamagedError) else f"{path}: {error}"
            return PageLayout(asked), (f"{what}; assuming sub-buffers of {asked} bytes",)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from None
        if subbuffer_bytes in (None, layout.subbuffer_bytes):
            return layout, ()
        size = layout.subbuffer_bytes
        return layout, (f"{path} states sub-buffers of {size} bytes, not {subbuffer_bytes}",)
    return PageLayout(asked), ()


def clock_of(directory: OpenDirectory) -> str:
    """Return the clock that ``trace_clock`` says was in use."""
    try:
        text = read_limited(directory.place(directory.path / "trace_clock"), HEADER_PAGE)
    except (OSError, TraceDamagedError):
        return "unknown"
    chosen = re.search(rb"\[([\w-]{1,64}+)\]", text)
    return chosen[1].decode() if chosen else "unknown"


# So many files that are left out get a line each.
_LINES: Final = 8
_TOP: Final = ("trace_clock", "printk_formats", "kallsyms", "saved_cmdlines", "saved_tgids")
_HEADERS: Final = ("header_page", "header_event")
_IN_TREE: Final = (
    *(f"events/{name}" for name in _HEADERS),
    "events/*/*/format",
    *_TOP,
    "commands",
    "per_cpu/cpu*/stats",
)


def small_files(base: OpenDirectory, notes: list[str]) -> Iterator[SmallFile]:
    """Yield the files of a copied tracefs tree, or of a directory that holds them side by side.

    In such a directory ``NAME.format`` does not state the event's system; the part of NAME before
    the first underscore serves as the system.  *notes* gets a line for each file that is left out,
    up to a number.
    """
    directory, copies = base.path, _Copies(base, notes)
    if not (directory / "events").is_dir():
        for name in _HEADERS:
            yield from copies.of(directory / name, f"events/{name}")
        for path in sorted(directory.glob("*.format")):
            yield from copies.of(path, f"events/{_system(path.stem)}/{path.stem}/format")
    for pattern in _IN_TREE:
        for path in sorted(directory.glob(pattern)):
            yield from copies.of(path, str(path.relative_to(directory)))
    if not (directory / "commands").exists():
        yield from _commands(directory, copies)
    copies.sum_up()


class _Copies:
    """Reads small files within the limits."""

    def __init__(self, base: OpenDirectory, notes: list[str]) -> None:
        self._base = base
        self._notes = notes
        self._left_out = 0
        self._left_bytes = FORMATS.most
        """The number of bytes that the remaining formats may take."""

    def of(self, path: Path, name: str) -> Iterator[SmallFile]:
        """Yield a file's copy; nothing if it is absent or too large."""
        limit = _LIMITS.get(path.name, FORMAT if path.suffix == ".format" else TRACEFS_FILE)
        data = self.read(path, limit)
        if data is None:
            return
        if limit is FORMAT:
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                self._leave_out(f"{path}: {FORMATS}")
                return
        yield SmallFile(name, data)

    def read(self, path: Path, limit: Limit) -> bytes | None:
        """Return a file's content; None if it is absent, unreadable or too large."""
        try:
            return read_limited(self._base.place(path), limit)
        except FileNotFoundError:
            return None
        except TraceDamagedError as error:
            self._leave_out(str(error))
        except OSError as error:
            self._leave_out(f"{path}: {error.strerror}")
        return None

    def _leave_out(self, line: str) -> None:
        self._left_out += 1
        if self._left_out <= _LINES:
            self._notes.append(f"{line}; left out")

    def sum_up(self) -> None:
        """Add a line for those that got none."""
        if self._left_out > _LINES:
            more = self._left_out - _LINES
            self._notes.append(f"{self._base.path}: {more} more files are left out")


_LIMITS: Final = {
    "format": FORMAT,
    "header_page": HEADER_PAGE,
    "header_event": HEADER_PAGE,
    "trace_clock": HEADER_PAGE,
    "stats": HEADER_PAGE,
    "kallsyms": KALLSYMS,
    "commands": COMMANDS,
}


def _system(event: str) -> str:
    return "syscalls" if re.match(r"sys_(enter|exit)_", event) else event.partition("_")[0]


def _commands(directory: Path, copies: _Copies) -> Iterator[SmallFile]:
    """Make a recording's ``commands`` file from saved_cmdlines (see ftrace/attachments.py)."""
    names = copies.read(directory / "saved_cmdlines", TRACEFS_FILE) or b""
    tgids = copies.read(directory / "saved_tgids", TRACEFS_FILE) or b""
    if lines := commands_of(names, tgids):
        yield SmallFile(COMMANDS_FILE, lines)
