"""Open a directory of pages that were read from ``trace_pipe_raw``, with the files beside them.

See ``lttd.copied_tracefs`` for their names; ``lttd --source replay:DIR`` records the same.

Rule: only regular files are opened, no symbolic link below the directory is followed, and each file
is read through one descriptor.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from lttd.abi.ftrace import NAME
from lttd.beneath import OpenDirectory
from lttd.copied_tracefs import HEADER_PAGES, clock_of, find_streams, page_layout, small_files
from lttd.errors import LttdError, TraceDamagedError, reason_of
from lttd.limits import HOLE, SUBBUFFER
from lttd.readfile import ReadFile
from lttd.view.foreign.segment import Opened, Ring, Told, segment_of

_OTHERS: Final = ("metadata", "metadata_0")
"""Files that CTF and LTTng 0.x have beside streams with such names."""


def is_there(directory: Path) -> bool:
    """Tell whether a directory has pages, and the description of them.

    The files of the kernel's own tracefs have no size; they are left alone, since to read them is
    to take events from it.
    """
    if not any((directory / name).is_file() for name in HEADER_PAGES):
        return False
    if any((directory / name).exists() for name in _OTHERS):
        return False
    try:
        return any(one.path.stat().st_size for one in find_streams(directory))
    except (OSError, LttdError):
        return False


def open_pages(directory: Path) -> Opened:
    """Open the directory.

    Raises:
        TraceDamagedError: it, or a file of it, cannot be read.
    """
    try:
        base = OpenDirectory.open(directory)
        found = find_streams(directory)
        layout, lines = page_layout(base, None)
    except OSError as error:
        raise TraceDamagedError(directory, 0, reason_of(error)) from None
    except LttdError as error:
        raise TraceDamagedError(directory, 0, str(error)) from None
    if layout.subbuffer_bytes > SUBBUFFER.most:
        raise TraceDamagedError(
            directory, 0, f"sub-buffers of {layout.subbuffer_bytes:,} bytes; {SUBBUFFER}"
        )
    notes = list(lines)
    files = {one.name: one.content for one in small_files(base, notes)}
    told = Told(directory, "pages", layout.byteorder, clock_of(base), files=files)
    rings: dict[str, dict[int, ReadFile]] = {}
    for path, stream in found:
        file = ReadFile(base.place(path))
        file.refuse_hole(0, file.size_bytes, HOLE)
        if torn := file.size_bytes % layout.subbuffer_bytes:
            notes.append(
                f"{path}: {torn} bytes after the last whole sub-buffer of"
                f" {layout.subbuffer_bytes} are left out"
            )
        rings.setdefault(stream.channel, {})[stream.cpu] = file
    segments = [
        segment_of(
            told,
            Ring("" if name == NAME else name, layout.subbuffer_bytes, layout.long_bytes, cpus),
            number,
        )
        for number, (name, cpus) in enumerate(rings.items(), 1)
    ]
    return Opened(segments, notes)


OPEN: Final[Callable[[Path], Opened]] = open_pages
