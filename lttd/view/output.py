"""What a command makes is there whole under its name, or not at all.

Rule: it is made in a directory beside, and renamed when it is done; what is there is never touched.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lttd.errors import UsageError
from lttd.files import Disk, storage_error
from lttd.view.info import seconds
from lttd.view.trace import Trace


@contextmanager
def new_output(out: Path, disk: Disk) -> Iterator[Path]:
    """Yield a path to make a file or a directory at; it becomes *out* when the block ends well.

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
        disk.sync_file_system(beside)
        _refuse_existing(out)
        made.rename(out)
        disk.sync_parent(held)
    finally:
        disk.release(held)
        shutil.rmtree(beside, ignore_errors=True)


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
