"""The small files beside replayed ftrace streams, under the names that tracefs gives them."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lttd.sources.base import Attachment

_TOP: Final = ("trace_clock", "printk_formats", "kallsyms", "saved_cmdlines", "saved_tgids")
_HEADERS: Final = ("header_page", "header_event")
_IN_TREE: Final = (
    *(f"events/{name}" for name in _HEADERS),
    "events/*/*/format",
    *_TOP,
    "commands",
    "per_cpu/cpu*/stats",
)


def tracefs_files(directory: Path) -> Iterator[Attachment]:
    """Return the files of a copied tracefs tree, or of a folder with all of them side by side.

    There, ``NAME.format`` does not tell its system; what stands before the name's first underline
    is taken for it.
    """
    if not (directory / "events").is_dir():
        for name in _HEADERS:
            yield from _copy(directory / name, f"events/{name}")
        for path in sorted(directory.glob("*.format")):
            yield from _copy(path, f"events/{_system(path.stem)}/{path.stem}/format")
    for pattern in _IN_TREE:
        for path in sorted(directory.glob(pattern)):
            yield from _copy(path, str(path.relative_to(directory)))
    if not (directory / "commands").exists():
        yield from _commands(directory)


def _copy(path: Path, name: str) -> Iterator[Attachment]:
    try:
        data = path.read_bytes()
    except OSError:
        return
    yield Attachment(f"tracefs/{name}", data)


def _system(event: str) -> str:
    return "syscalls" if re.match(r"sys_(enter|exit)_", event) else event.partition("_")[0]


def _commands(directory: Path) -> Iterator[Attachment]:
    """Make the ``commands`` that a recording has (see ftrace_files) of saved_cmdlines."""
    tgids = dict(_pairs(directory / "saved_tgids"))
    lines = [
        b"0\t%b\t%b\t%b\n" % (pid, tgids.get(pid, b""), command.replace(b"\\", b"\\\\"))
        for pid, command in _pairs(directory / "saved_cmdlines")
        if command != b"<...>"
    ]
    if lines:
        yield Attachment("tracefs/commands", b"".join(lines), append=True)


def _pairs(path: Path) -> Iterator[tuple[bytes, bytes]]:
    if not os.path.exists(path):
        return
    for line in path.read_bytes().splitlines():
        pid, _, rest = line.partition(b" ")
        if pid.isdigit():
            yield pid, rest
