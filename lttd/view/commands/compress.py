"""``lttv compress`` and ``lttv decompress``: change the form of the closed segments of a trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from lttd.compress import Sizes, compress, decompress
from lttd.errors import LttdError
from lttd.files import Disk
from lttd.stats import counted
from lttd.terminal import Level, put_line, say
from lttd.tracedir import SegmentPaths, deletion_note, segments

MOST_LINES: Final = 8
Change = Callable[[SegmentPaths, Disk], Sizes | None]


def compress_all(trace: Path, level: int) -> int:
    """Compress all segments that can be; return an exit status."""
    return _change_all(trace, lambda segment, disk: compress(segment, disk, level), "compressed")


def decompress_all(trace: Path) -> int:
    """Make all segments plain that can be; return an exit status."""
    return _change_all(trace, decompress, "plain")


def _change_all(trace: Path, change: Change, form: str) -> int:
    total, done, failed, disk = Sizes(), 0, 0, Disk()
    found = segments(trace)
    found_count = len(found)
    for segment in found:
        try:
            sizes = change(segment, disk)
        except LttdError as error:
            if segment.is_gone():
                found_count -= 1
                say(deletion_note(segment.directory), Level.NOTICE, "lttv")
                continue
            failed += 1
            if failed <= MOST_LINES:
                say(str(error), Level.ERROR, "lttv")
            continue
        if sizes is not None:
            total, done = total.plus(sizes), done + 1
    if failed > MOST_LINES:
        say(f"{trace}: {failed - MOST_LINES} more segments stay as they are", Level.ERROR, "lttv")
    words = f"{counted(done, 'segment')} of {found_count} made {form}"
    if done:
        plain, compressed = total
        ratio = plain / max(compressed, 1)
        words += f": {_mib(plain)} plain, {_mib(compressed)} compressed, ratio {ratio:.1f}"
    put_line(words)
    return 1 if failed else 0


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f} MiB"
