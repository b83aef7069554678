"""What a command makes is there whole under its name, or not at all.

Rule: it is made in a directory beside that nobody else can enter, and renamed when it is done; what
is there is never touched.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lttd.errors import UsageError
from lttd.files import Disk, storage_error
from lttd.view.commands.info import seconds
from lttd.view.trace import Trace


@contextmanager
def new_output(out: Path, disk: Disk, trace: Trace) -> Iterator[Path]:
    """Yield a path to make a file or a directory at; it becomes *out* when the block ends well.

    Whoever may not read *trace* may not read what is made of it either.

    Raises:
        UsageError: *out* is there already, or its directory is not.
        StorageError: nothing can be written there.
    """
    _refuse_existing(out)
    parent = out.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"{parent}: no such directory")
    try:
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
    except OSError as error:
        raise storage_error(parent, error) from None
    held = disk.hold(beside)
    try:
        made = beside / out.name
        yield made
        _permit(made, trace)
        disk.sync_file_system(beside)
        _refuse_existing(out)
        made.rename(out)
        disk.sync_parent(held)
    finally:
        disk.release(held)
        shutil.rmtree(beside, ignore_errors=True)


def _permit(made: Path, trace: Trace) -> None:
    """Give what was made the permissions of the trace, less what the umask takes away."""
    mask = os.umask(0o077)
    os.umask(mask)
    mode = _mode_of(trace) & ~mask
    for path in (made, *made.rglob("*")):
        is_directory = path.is_dir()
        # Whoever may read a directory's files may enter it.
        path.chmod(mode | (mode & 0o444) >> 2 if is_directory else mode)


def _mode_of(trace: Trace) -> int:
    """Return the permissions that all manifests and data files of a trace have."""
    mode = 0o666
    for segment in trace.segments:
        paths = segment.paths
        files = [paths.manifest, *(stream.paths.data for stream in segment.streams)]
        for path in files:
            with suppress(OSError):
                mode &= paths.place(path).stat().st_mode
    return mode | 0o600


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise UsageError(f"{out}: is there already; name another, or remove it")


def nothing_within(trace: Trace) -> str:
    """Say that a window is empty, and what there is."""
    span = trace.span
    words = f"{trace.path}: nothing was recorded within these times"
    if span is None:
        return words
    return f"{words}; it has {seconds(span.begin)} to {seconds(span.end)}"
