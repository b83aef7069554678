"""Read the small files beside replayed ftrace streams, and name them as tracefs does."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lttd.abi.saved_cmdlines import commands_of
from lttd.beneath import OpenDirectory
from lttd.errors import TraceDamagedError
from lttd.limits import (
    COMMANDS,
    FORMAT,
    FORMATS,
    HEADER_PAGE,
    KALLSYMS,
    TRACEFS_FILE,
    Limit,
)
from lttd.readfile import read_limited
from lttd.sources.base import Attachment

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


def tracefs_files(base: OpenDirectory, notes: list[str]) -> Iterator[Attachment]:
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

    def of(self, path: Path, name: str) -> Iterator[Attachment]:
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
        yield Attachment(f"tracefs/{name}", data)

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


def _commands(directory: Path, copies: _Copies) -> Iterator[Attachment]:
    """Make a recording's ``commands`` file from saved_cmdlines (see ftrace/attachments.py)."""
    names = copies.read(directory / "saved_cmdlines", TRACEFS_FILE) or b""
    tgids = copies.read(directory / "saved_tgids", TRACEFS_FILE) or b""
    if lines := commands_of(names, tgids):
        yield Attachment("tracefs/commands", lines, append=True)
