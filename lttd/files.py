"""The disk: create, replace, rename and remove files, and make their names durable.

Rule: only a Disk, and the files that it opens (lttd.writefile), make bytes durable, so that a test
can replace it by a disk that forgets.
Rule: a Disk writes only below directories that it holds open, and that only this user may write to.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from lttd.beneath import OpenDirectory
from lttd.errors import LostFileError, StorageError, storage_error
from lttd.lockfile import Lock
from lttd.openat import close_fd
from lttd.writefile import File

# The descriptors to remove a segment without attachments: one for each level.
SPARE_DESCRIPTORS: Final = 4

# The file system has no links, or the file has as many as it can.
_CANNOT_LINK: Final = {errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syncfs.argtypes = [ctypes.c_int]  # os lacks it


class Disk:
    """Creates files and makes them durable; tests replace it by one that forgets.

    All methods raise StorageError.
    """

    trace_lock: Lock | None = None
    """The lock of the trace that is recorded."""
    _held: tuple[OpenDirectory, ...] = ()

    def __init__(self, *directories: Path) -> None:
        """Allow writing below *directories*, and below those of later calls of hold()."""
        for each in directories:
            self.hold(each)

    def hold(self, where: Path | OpenDirectory) -> OpenDirectory:
        """Allow writing below a directory from now on; return it opened.

        A path that is held already is not resolved again.
        """
        path = where if isinstance(where, Path) else where.path
        for held in self._held:
            if held is where or (held.path == path and isinstance(where, Path)):
                return held
        try:
            directory = OpenDirectory.open(where) if isinstance(where, Path) else where
            directory.refuse_foreign()
        except OSError as error:
            raise storage_error(path, error) from None
        self._held = (directory, *self._held)
        return directory

    def release(self, directory: OpenDirectory) -> None:
        """End the permission to write below *directory*."""
        self._held = tuple(held for held in self._held if held is not directory)

    def _holder(self, path: Path) -> OpenDirectory:
        """Return the innermost held directory above *path*; of several, the latest."""
        holders = [held for held in self._held if held.holds(path)]
        if not holders:
            raise AssertionError(f"{path} is in no directory that is held for writing")
        return max(holders, key=lambda held: len(held.path.parts))

    def open(self, path: Path, *, truncate: bool = False) -> File:
        """Open a file for writing; create it if absent."""
        try:
            file = self.file(path, self._holder(path).open_for_writing(path))
        except OSError as error:
            raise storage_error(path, error) from None
        if truncate and file.size_bytes():
            file.truncate(0)
        return file

    def create(self, path: Path) -> IO[bytes]:
        """Create a file to be written from begin to end."""
        try:
            return os.fdopen(self._holder(path).create(path), "wb")
        except OSError as error:
            raise storage_error(path, error) from None

    def file(self, path: Path, fd: int) -> File:
        """Return an object for the opened file; tests return one of another class."""
        return File(path, fd)

    def status(self, path: Path) -> os.stat_result | None:
        """Return the status of *path* now, through the held directory; None: nothing is there."""
        try:
            return self._holder(path).stat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(path, error) from None

    def refuse_if_gone(self, file: File, least_bytes: int) -> None:
        """Check that the path of an open file still leads to it, and that it was not cut.

        Further names of the file do no harm.

        Raises:
            LostFileError: it was removed, replaced, renamed or cut.
        """
        status, named = file.status(), self.status(file.path)
        if named is not None:
            if os.path.samestat(status, named):
                file.refuse_if_cut(least_bytes)
                return
            reason = "somebody put another file in its place while it was recorded"
        else:
            how = "renamed" if status.st_nlink else "removed"
            reason = f"somebody {how} it while it was recorded"
        raise LostFileError(file.path, reason, 0)

    def make_directory(self, path: Path) -> None:
        """Create a directory and its parents, if absent."""
        try:
            self._holder(path).make_directory(path)
        except OSError as error:
            raise storage_error(path, error) from None

    def replace(self, path: Path, data: bytes, *, like: Path | None = None) -> None:
        """Replace *path* by *data*; after a crash it is the old file or the new one, whole.

        It keeps the permissions of *path*; a new file gets those of *like*, if that is there.
        """
        holder, temporary = self._holder(path), path.with_name(f".{path.name}.new")
        try:
            with suppress(FileNotFoundError):
                holder.remove_file(temporary)
            mode = _mode_of(holder, path) or (like and _mode_of(holder, like))
            file = self.open(temporary)
            try:
                if mode:
                    file.permit(mode)
                file.write_at([data], 0)
                file.sync()
            finally:
                file.close()
            holder.rename(temporary, path.name)
        except (OSError, StorageError) as error:
            with suppress(OSError):
                holder.remove_file(temporary)
            if isinstance(error, StorageError):
                raise
            raise storage_error(path, error) from None
        self.sync_directory(path.parent)

    def rename(self, path: Path, name: str, *, durably: bool = True) -> None:
        """Give a file or directory another name in its directory; replace such a file."""
        try:
            self._holder(path.parent).rename(path, name)
        except OSError as error:
            raise storage_error(path, error) from None
        if durably:
            self.sync_directory(path.parent)

    @contextmanager
    def whole_or_absent(self, path: Path) -> Iterator[None]:
        """Remove the directory *path*, which was just created, if the block that fills it fails.

        Removing needs descriptors, which may have run out, so some are reserved for it.
        """
        spare: list[int] = []
        try:
            try:
                spare += (os.dup(self._holder(path.parent).fd) for _ in range(SPARE_DESCRIPTORS))
                yield
            except OSError as error:
                raise storage_error(path, error) from None
        except BaseException:
            while spare:
                close_fd(spare.pop())
            self.remove_tree(path)
            raise
        finally:
            while spare:
                close_fd(spare.pop())

    def share(self, path: Path, name: Path) -> None:
        """Give the file *path* the name *name*, too, or copy it where it can have only one.

        Whoever writes to one of both names must replace the file; see open().
        """
        try:
            try:
                self._holder(path).link(path, self._holder(name), name)
            except OSError as error:
                if error.errno not in _CANNOT_LINK:
                    raise
                self._copy(path, name)
        except OSError as error:
            raise storage_error(name, error) from None

    def _copy(self, path: Path, name: Path) -> None:
        fd = self._holder(path).open_file(path)
        try:
            file = self.open(name, truncate=True)
            try:
                file.copy_from(fd, 0, os.fstat(fd).st_size, 0)
            finally:
                file.close()
        finally:
            close_fd(fd)

    def remove(self, path: Path) -> None:
        """Remove a file that nobody needs; ignore errors."""
        with suppress(OSError):
            self._holder(path).remove_file(path)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and its content; ignore errors."""
        holder = self._holder(path.parent)
        with suppress(OSError):
            try:
                holder.remove_directory(path)  # this needs no descriptor
            except OSError:
                holder.remove_tree(path)

    def sync_file_system(self, path: Path) -> None:
        """Make all data on the file system of *path* durable."""
        fd = self._opened(path)
        try:
            if _libc.syncfs(fd):
                number = ctypes.get_errno()
                raise storage_error(path, OSError(number, os.strerror(number)))
        finally:
            close_fd(fd)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        fd = self._opened(path)
        try:
            os.fsync(fd)
        except OSError as error:
            raise storage_error(path, error) from None
        finally:
            close_fd(fd)

    def sync_parent(self, directory: OpenDirectory) -> None:
        """Make the names in the parent of *directory* durable, which may be another user's."""
        try:
            fd = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory.fd)
            try:
                os.fsync(fd)
            finally:
                close_fd(fd)
        except OSError as error:
            raise storage_error(directory.path.parent, error) from None

    def _opened(self, path: Path) -> int:
        try:
            return self._holder(path).open_directory(path)
        except OSError as error:
            raise storage_error(path, error) from None


def _mode_of(holder: OpenDirectory, path: Path) -> int:
    """Return the permissions of a regular file; 0 if there is none."""
    try:
        mode = holder.stat(path).st_mode
    except OSError:
        return 0
    return mode & 0o644 | 0o600 if stat.S_ISREG(mode) else 0
