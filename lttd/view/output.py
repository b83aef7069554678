"""Make the output of a command under its name as a whole, or not at all.

Rule: the output is made in a private directory beside its name, and renamed when it is complete; an
existing file is never touched.
Rule: lttv uses the private directory by its descriptor only: its parent may belong to another user,
who could put another directory in its place.
"""

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

from lttd.beneath import OpenDirectory
from lttd.errors import UsageError, storage_error
from lttd.files import Disk
from lttd.openat import close_fd
from lttd.view.times import seconds
from lttd.view.trace import Trace

_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


class _EndedError(BaseException):
    """A signal ends this process."""


@contextmanager
def unwound_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP leave the block as Ctrl-C does; afterwards they end the process.

    A signal that is ignored, or has a handler, keeps its meaning.
    """
    got: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        got.append(number)
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # a second one must not interrupt the clean-up
        raise _EndedError

    is_main = threading.current_thread() is threading.main_thread()
    ours = [each for each in _ENDING if is_main and signal.getsignal(each) is signal.SIG_DFL]
    for each in ours:
        signal.signal(each, leave)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        if got:
            os.kill(os.getpid(), got[0])


@contextmanager
def new_output(out: Path, disk: Disk, trace: Trace) -> Iterator[Path]:
    """Yield a path for a file or a directory, which becomes *out* if the block succeeds.

    Only users who may read *trace* may read the output.

    Raises:
        UsageError: *out* exists already, or its directory does not.
        StorageError: the directory, or what the block makes there, cannot be written to.
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
    except OSError as error:
        raise storage_error(out, error) from None
    finally:
        disk.release(held)
        with suppress(OSError):
            above.remove_tree(beside)


def _permit(held: OpenDirectory, made: Path, mode: int) -> None:
    """Give the output the permissions *mode*, less those that the umask removes."""
    mask = os.umask(0o077)
    os.umask(mask)
    mode &= ~mask
    if held.is_file(made):
        _chmod(held.open_file(made), mode)
        return
    # A user who may read a directory's files may enter it.
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
    """Return the permissions that all manifests and data files of a trace grant."""
    mode = 0o666
    for segment in trace.segments:
        paths = segment.paths
        places = [paths.place(paths.manifest)]
        for stream in segment.streams:
            places += paths.data_places(stream.name)
        for place in places:
            with suppress(OSError):
                mode &= place.stat().st_mode
    return mode | 0o600


def _refuse_existing(out: Path) -> None:
    if os.path.lexists(out):
        raise UsageError(f"{out}: exists already; name another, or remove it")


def nothing_within(trace: Trace) -> str:
    """Return a line for an empty window, with the times that the trace has."""
    span = trace.span
    words = f"{trace.path}: nothing was recorded within these times"
    if span is None:
        return words
    return f"{words}; it has {seconds(span.begin)} to {seconds(span.end)}"
