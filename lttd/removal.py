"""Measure a segment's blocks, and remove it in such a way that no crash leaves a half segment.

    TRACE/20261127T201535Z-000001-ftrace          1. renamed, and the new name made durable
    TRACE/.gone-20261127T201535Z-000001-ftrace    2. its files removed, then its directories

A crash after step 1 leaves a hidden directory, which the next start removes.  A reader that has
files open goes on reading them.

Rule: every step goes through descriptors of directories.  No symbolic link is followed, and no
mount is crossed: the files of another file system are not this trace's.
Rule: a segment with a directory that another user may write to is left alone.  That user could move
other directories into it while lttd removes what it finds there.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from lttd.beneath import OpenDirectory
from lttd.errors import RefusedError
from lttd.files import Disk
from lttd.limits import DEPTH
from lttd.openat import close_fd
from lttd.tracedir import MANIFEST, gone_name

BLOCK_BYTES: Final = 512
"""The unit of st_blocks, on every file system."""
# A compressor that still works in the directory may add a file between two steps.
_ATTEMPTS: Final = 3
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Measured(NamedTuple):
    """The size of a segment, and whether lttd can remove it."""

    allocated_bytes: int
    """The blocks of files and directories; a file with several names counts in each segment."""
    obstacle: OSError | None
    """The first directory that lttd must not remove, or cannot look into."""


def measure(trace: OpenDirectory, name: str) -> Measured:
    """Measure the directory *name* in *trace*.

    Raises:
        FileNotFoundError: it is gone.
    """
    blocks = os.stat(name, dir_fd=trace.fd, follow_symlinks=False).st_blocks
    below = _below(trace.fd, _Tree(trace.path / name, name, _mount_of(trace.fd)))
    return Measured((blocks + below.allocated_bytes) * BLOCK_BYTES, below.obstacle)


def hide(disk: Disk, trace: OpenDirectory, name: str) -> str:
    """Rename a segment, durably, to the name of one that is being removed; return that name.

    Raises:
        StorageError: it cannot be renamed, or the new name cannot be made durable.
    """
    disk.rename(trace.path / name, gone_name(name))
    return gone_name(name)


def remove_hidden(trace: OpenDirectory, name: str) -> None:
    """Remove a segment that hide() has renamed.

    Raises:
        OSError: the first part of it that cannot be removed; all others are gone.
    """
    tree = _Tree(trace.path / name, name, _mount_of(trace.fd))
    for attempt in range(_ATTEMPTS):
        failure = _remove(trace.fd, tree)
        if failure is None:
            return
        if failure.errno != errno.ENOTEMPTY or attempt == _ATTEMPTS - 1:
            raise failure


def remove_in_place(disk: Disk, trace: OpenDirectory, name: str) -> None:
    """Remove a segment that cannot be renamed, since a longer name would need another block.

    The manifest goes first: a segment that a crash leaves without it is damaged, and goes next.

    Raises:
        OSError: the first part of it that cannot be removed.
        StorageError: the manifest could not be removed durably.
    """
    trace.remove_file(trace.path / name / MANIFEST)
    disk.sync_directory(trace.path / name)
    remove_hidden(trace, name)


def remove_whole(trace: OpenDirectory, name: str) -> None:
    """Remove a segment that holds nothing, or leave all of it.

    Raises:
        OSError: a part of it must not, or cannot, be removed.
    """
    obstacle = measure(trace, name).obstacle
    if obstacle is not None:
        raise obstacle
    remove_hidden(trace, name)


class _Tree(NamedTuple):
    """A directory of a segment."""

    path: Path
    name: str
    mount: str
    """The mount of the trace."""
    level: int = 1

    def directory(self, name: str) -> "_Tree":
        return _Tree(self.path / name, name, self.mount, self.level + 1)

    def why_not(self, fd: int) -> OSError | None:
        """Return why lttd must not remove the content of this directory, opened as *fd*."""
        if _mount_of(fd) != self.mount:
            reason = "another file system is mounted there"
            return RefusedError(errno.EXDEV, reason, self.path)
        if self.level > DEPTH.most:
            return RefusedError(errno.ELOOP, f"is too deep: {DEPTH}", self.path)
        status = os.fstat(fd)
        if status.st_uid != os.geteuid():
            return RefusedError(errno.EPERM, f"belongs to user {status.st_uid}", self.path)
        if status.st_mode & _WRITABLE_BY_OTHERS:
            return RefusedError(errno.EPERM, "other users may write to it", self.path)
        return None


def _below(parent: int, tree: _Tree) -> Measured:
    """Measure the content of a directory, in blocks; leave out other mounts."""
    blocks = 0
    try:
        with _entered(parent, tree) as fd:
            obstacle = tree.why_not(fd)
            if obstacle is not None and obstacle.errno in (errno.EXDEV, errno.ELOOP):
                return Measured(0, obstacle)
            with os.scandir(fd) as entries:
                for entry in entries:
                    blocks += _blocks_of(entry)
                    if entry.is_dir(follow_symlinks=False):
                        below = _below(fd, tree.directory(entry.name))
                        blocks += below.allocated_bytes
                        obstacle = obstacle or below.obstacle
    except FileNotFoundError:
        return Measured(blocks, None)  # somebody removed it
    except OSError as error:
        return Measured(blocks, error)
    return Measured(blocks, obstacle)


def _blocks_of(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks
    except FileNotFoundError:
        return 0


def _remove(parent: int, tree: _Tree) -> OSError | None:
    """Remove a directory and its content; go on after a failure, and return the first."""
    failures: list[OSError] = []
    try:
        with _entered(parent, tree) as fd:
            refused = tree.why_not(fd)
            if refused is not None:
                return refused
            with os.scandir(fd) as entries:
                found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for name, is_directory in found:
                failure = (
                    _remove(fd, tree.directory(name))
                    if is_directory
                    else _unlink(fd, name, tree.path)
                )
                if failure is not None:
                    failures.append(failure)
        if not failures:
            os.rmdir(tree.name, dir_fd=parent)
    except FileNotFoundError:
        return None
    except OSError as error:
        error.filename = os.fspath(tree.path)
        return error
    return failures[0] if failures else None


def _unlink(directory: int, name: str, path: Path) -> OSError | None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        error.filename = os.fspath(path / name)
        return error
    return None


@contextmanager
def _entered(parent: int, tree: _Tree) -> Iterator[int]:
    try:
        fd = os.open(tree.name, _OPEN, dir_fd=parent)
    except OSError as error:
        error.filename = os.fspath(tree.path)
        raise
    try:
        yield fd
    finally:
        close_fd(fd)


def _mount_of(fd: int) -> str:
    """Return the identity of the mount that a descriptor was opened on.

    A bind mount of the same file system has the same st_dev, but another mount id (Linux 3.15).
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line for line in lines if line.startswith("mnt_id:"))
    except (OSError, StopIteration):
        return str(os.fstat(fd).st_dev)
