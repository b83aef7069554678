"""What a command makes is there whole under its name, or not at all.

Rule: it is made in a directory beside that nobody else can enter, and renamed when it is done; what
is there is never touched.
Rule: the directory beside is made, filled in and renamed from by its descriptor: its parent may be
anybody's, who could put another one in its place.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lttd.beneath import OpenDirectory, close_fd
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
    beside = parent / f".{out.name}.{secrets.token_hex(4)}"
    try:
        above = OpenDirectory.open(parent)
        above.create_directory(beside)
        held = above.enter(beside)
        os.fchmod(held.fd, 0o700)
    except OSError as error:
        raise storage_error(parent, error) from None
    disk.hold(held)
    try:
        made = beside / out.name
        yield made
        _permit(held, made, _mode_of(trace))
        disk.sync_file_system(beside)
        _refuse_existing(out)
        os.rename(made.name, out.name, src_dir_fd=held.fd, dst_dir_fd=above.fd)
        disk.sync_parent(held)
    finally:
        disk.release(held)
        with suppress(OSError):
            above.remove_tree(beside)


def _permit(held: OpenDirectory, made: Path, mode: int) -> None:
    """Give what was made the permissions *mode*, less what the umask takes away."""
    mask = os.umask(0o077)
    os.umask(mask)
    mode &= ~mask
    if held.is_file(made):
        _chmod(held.open_file(made), mode)
        return
    # Whoever may read a directory's files may enter it.
    enter = mode | (mode & 0o444) >> 2
    for directory, below, files in held.walk(made):
        for name in below:
            _chmod(held.open_directory(directory / name), enter)
        for name in files:
            _chmod(held.open_file(directory / name), mode)
    _chmod(held.open_directory(made), enter)


def _chmod(fd: int, mode: int) -> None:
    try:
        os.fchmod(fd, mode)
    finally:
        close_fd(fd)


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
