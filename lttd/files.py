"""The only calls that make bytes durable: append, sync, punch, replace, lock.

Rule: only this module makes bytes durable or exclusive, so that a test can replace it by a disk
that forgets.
Rule: a Disk writes only below directories that it holds open, and that only this user may write to.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from lttd.beneath import OpenDirectory, Place, RefusedError, close_fd, place_of
from lttd.errors import (
    REMEDIES,
    LostFileError,
    StorageError,
    TraceDamagedError,
)
from lttd.limits import Limit
from lttd.locks import is_listed, lock_now
from lttd.subbuffer import Pieces

# The descriptors to remove a segment without attachments: one for each level.
SPARE_DESCRIPTORS: Final = 4
# Nobody else can open the file, so nobody else can hold its lock.
LOCK_MODE: Final = 0o600
# A process that takes a lock tries this often, since is_locked() may hold it meanwhile.
_ATTEMPTS: Final = 6
IOV_MAX: Final = 1024
IOVEC_BYTES: Final = 16
# The bytes per call, about.  Page cache folios grow with the call.  On virtual machines that report
# free memory to their host, folios of 2 MiB and more need memory that the host has to find first,
# and the same data costs several times the CPU time.
WRITE_BYTES: Final = 1 << 20

_REMEDY: Final = {
    errno.ENOSPC: "no space left: free some, or record elsewhere",
    errno.EDQUOT: "the quota is used up: free some, or record elsewhere",
    errno.EROFS: "the file system is read-only: record elsewhere",
    errno.EACCES: "permission denied: choose a directory that this user may write",
    errno.EPERM: "not permitted here: record to a directory of an ordinary file system",
    errno.EFBIG: "the file is as large as the limit allows: raise it (ulimit -f)",
    errno.EMFILE: f"too many open files: {REMEDIES[errno.EMFILE]}",
    errno.ENFILE: f"too many open files: {REMEDIES[errno.ENFILE]}",
    errno.ENOMEM: f"no memory: {REMEDIES[errno.ENOMEM]}",
}


def storage_error(path: Path, error: OSError, *, end_bytes: int | None = None) -> StorageError:
    """Return the StorageError for an errno, with the remedy; *end_bytes* as in StorageError."""
    number = error.errno or 0
    reason = error.strerror or str(error)
    if not isinstance(error, RefusedError):
        reason = _REMEDY.get(number, reason)
    return StorageError(path, reason, errno.errorcode.get(number, "EIO"), end_bytes=end_bytes)


def read_limited(where: Place | Path, limit: Limit) -> bytes:
    """Read a whole file, up to its limit in ``lttd.limits``.

    Raises:
        TraceDamagedError: it is larger.
        OSError: it cannot be read, or is not a regular file.
    """
    place = place_of(where)
    fd = place.open()
    try:
        size_bytes = os.fstat(fd).st_size
        data = b"" if size_bytes > limit.most else _read(fd, limit.most + 1)
    finally:
        close_fd(fd)
    if max(size_bytes, len(data)) > limit.most:
        reason = f"{max(size_bytes, len(data)):,} bytes; {limit}"
        raise TraceDamagedError(Path(place.path), limit.most, reason)
    return data


def size_bytes(where: Place | Path) -> int:
    """Return the size of a file; 0 if it is unknown, which readers of the file report."""
    try:
        return place_of(where).stat().st_size
    except OSError:
        return 0


def read_head(where: Place | Path, most_bytes: int) -> bytes:
    """Return the first *most_bytes* of a file."""
    fd = place_of(where).open()
    try:
        return _read(fd, most_bytes)
    finally:
        close_fd(fd)


def _read(fd: int, most_bytes: int) -> bytes:
    parts, left = [], most_bytes
    while left and (part := os.read(fd, min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def refuse_hole(path: Path, fd: int, limit: Limit) -> None:
    """Reject a file with a hole that is larger than any real one: reading it would take too long.

    Raises:
        TraceDamagedError: there is such a hole.
    """
    size_bytes = os.fstat(fd).st_size
    behind = 0
    for start, end in (*_extents(fd, 0, size_bytes), (size_bytes, size_bytes)):
        if start - behind > limit.most:
            reason = f"a hole of {start - behind:,} bytes; {limit}; truncate -s {behind} cuts it"
            raise TraceDamagedError(path, behind, reason)
        behind = end


# os lacks sync_file_range(2) and fallocate(2) with flags; its pwritev2 needs an object per piece.
_SYNC_FILE_RANGE_WRITE: Final = 2  # starts writing out and does not wait
_FALLOC_FL_KEEP_SIZE: Final = 1
# Written pages leave the page cache as soon as they are on the device (Linux 6.14, if the file
# system supports it; else EOPNOTSUPP).  include/uapi/linux/fs.h.
_RWF_DONTCACHE: Final = 0x80
# Otherwise lttd starts writing in steps of this size, and drops pages when the device had time.
WRITE_BEHIND_BYTES: Final = 8 << 20
DROP_BEHIND_BYTES: Final = 4 * WRITE_BEHIND_BYTES
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.pwritev2.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_int,
]
_libc.pwritev2.restype = ctypes.c_ssize_t
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.syncfs.argtypes = [ctypes.c_int]


class File:
    """A file open for writing at offsets that the caller keeps."""

    def __init__(self, path: Path, fd: int) -> None:
        """Take over *fd*, which is open for writing; messages name the file *path*."""
        self.path = path
        self._fd = fd
        self._cached_until_bytes: int | None = None
        self._can_bypass_cache = True
        self._written_out_bytes = 0

    def cache_until(self, offset_bytes: int) -> None:
        """Keep data from *offset_bytes* on out of the page cache.

        Otherwise a long recording would evict the pages of other programs, and collect dirty pages
        until the kernel stalls all writers.
        """
        self._cached_until_bytes = self._written_out_bytes = offset_bytes

    def preallocate(self, offset_bytes: int, length_bytes: int) -> bool:
        """Allocate blocks after the file's end; return whether the file system did so.

        Writing into them costs less (ext4), and files that grow side by side stay in large pieces.
        truncate() to the file's own length frees them.
        """
        return not _libc.fallocate(self._fd, _FALLOC_FL_KEEP_SIZE, offset_bytes, length_bytes)

    def can_bypass_cache(self) -> bool:
        """Write a byte at the begin, to find out whether written pages leave the page cache."""
        try:
            return os.pwritev(self._fd, [b"\0"], 0, _RWF_DONTCACHE) == 1
        except OSError:
            return False

    def size_bytes(self) -> int:
        """Return the file's length."""
        return self.status().st_size

    def status(self) -> os.stat_result:
        """Return the status of the open file, under any name."""
        try:
            return os.fstat(self._fd)
        except OSError as error:
            raise storage_error(self.path, error) from None

    def refuse_if_cut(self, least_bytes: int) -> None:
        """Refuse a file that is shorter than the data written to it.

        Raises:
            LostFileError: somebody cut it.
        """
        size_bytes = self.size_bytes()
        if size_bytes < least_bytes:
            reason = f"somebody cut it to {size_bytes} of {least_bytes} bytes while it was recorded"
            raise LostFileError(self.path, reason, size_bytes)

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Return *length_bytes* of the file from *offset_bytes* on; fewer at its end."""
        try:
            return os.pread(self._fd, length_bytes, offset_bytes)
        except OSError as error:
            raise storage_error(self.path, error) from None

    def write_at(self, pieces: Sequence[bytes | memoryview], offset_bytes: int) -> int:
        """Write all *pieces* one after the other; return the offset after them.

        Raises:
            StorageError: not all was written; its ``end_bytes`` is the offset reached.
        """
        uncached = self._cached_until_bytes is not None and offset_bytes >= self._cached_until_bytes
        if isinstance(pieces, Pieces) and pieces.size_bytes:
            end_bytes = self._write_gathered(pieces, offset_bytes, uncached=uncached)
        else:
            end_bytes = self._write_pieces(pieces, offset_bytes)
        if uncached and not self._can_bypass_cache:
            self._write_behind(end_bytes)
        return end_bytes

    def _write_gathered(self, pieces: Pieces, offset_bytes: int, *, uncached: bool) -> int:
        """Write *pieces* in few calls, without an object per piece."""
        vectors = pieces.iovecs()
        address, count = vectors.ctypes.data, len(vectors)
        step = max(min(count * WRITE_BYTES // pieces.size_bytes, IOV_MAX), 1)
        end_bytes = offset_bytes
        flags = _RWF_DONTCACHE if uncached and self._can_bypass_cache else 0
        for at in range(0, count, step):
            some = min(step, count - at)
            written_bytes = _libc.pwritev2(
                self._fd, address + at * IOVEC_BYTES, some, end_bytes, flags
            )
            if written_bytes < 0:
                if flags and ctypes.get_errno() in (errno.EOPNOTSUPP, errno.EINVAL):
                    self._can_bypass_cache = False
                break
            end_bytes += written_bytes
            if written_bytes != int(vectors[at : at + some, 1].sum()):
                break
        if end_bytes == offset_bytes + pieces.size_bytes:
            return end_bytes
        # Short, interrupted or refused: write again from the start, in calls that report why.
        return self._write_pieces(pieces, offset_bytes)

    def _write_pieces(self, pieces: Sequence[bytes | memoryview], offset_bytes: int) -> int:
        for at in range(0, len(pieces), IOV_MAX):
            run = list(pieces[at : at + IOV_MAX])
            while run:
                try:
                    written_bytes = os.pwritev(self._fd, run, offset_bytes)
                except OSError as error:
                    raise storage_error(self.path, error, end_bytes=offset_bytes) from None
                offset_bytes += written_bytes
                run = _behind(run, written_bytes)
        return offset_bytes

    def _write_behind(self, end_bytes: int) -> None:
        start = self._written_out_bytes
        if end_bytes - start < WRITE_BEHIND_BYTES:
            return
        _libc.sync_file_range(self._fd, start, end_bytes - start, _SYNC_FILE_RANGE_WRITE)
        # Drop each range twice: pages that were still dirty the first time go the second time.
        drop_to = max(start - DROP_BEHIND_BYTES, 0)
        drop_from = max(drop_to - DROP_BEHIND_BYTES, 0)
        if drop_to:
            os.posix_fadvise(self._fd, drop_from, drop_to - drop_from, os.POSIX_FADV_DONTNEED)
        self._written_out_bytes = end_bytes

    def truncate(self, size_bytes: int) -> None:
        """Cut the file, or extend it by a hole."""
        try:
            os.ftruncate(self._fd, size_bytes)
        except OSError as error:
            raise storage_error(self.path, error) from None

    def copy_from(self, source: int, source_at: int, length_bytes: int, offset_bytes: int) -> None:
        """Copy a range of the file of descriptor *source*, in the kernel; holes stay holes.

        Raises:
            StorageError: it could not be written, or *source* ends before the range.
        """
        end = source_at + length_bytes
        try:
            if os.fstat(source).st_size < end:
                raise StorageError(self.path, "the source of the copy ends too early")
            for start, behind in _extents(source, source_at, end):
                self._copy_run(source, start, behind - start, offset_bytes + start - source_at)
            if self.size_bytes() < offset_bytes + length_bytes:
                os.ftruncate(self._fd, offset_bytes + length_bytes)
        except OSError as error:
            raise storage_error(self.path, error) from None

    def _copy_run(self, source: int, at: int, length_bytes: int, to: int) -> None:
        copy: _Copy = os.copy_file_range
        while length_bytes:
            try:
                copied = copy(source, self._fd, min(length_bytes, 1 << 30), at, to)
            except OSError as error:
                # Between file systems, or if one of them does not support it.
                if copy is _copy_by_hand or error.errno not in _CANNOT_COPY:
                    raise
                copy, copied = _copy_by_hand, 0
            else:
                if not copied:
                    raise StorageError(self.path, "the source of the copy ends too early")
            at, to, length_bytes = at + copied, to + copied, length_bytes - copied

    def permit(self, mode: int) -> None:
        """Give the file the permissions *mode*."""
        try:
            os.fchmod(self._fd, mode)
        except OSError as error:
            raise storage_error(self.path, error) from None

    def forget(self) -> None:
        """Drop the synced pages of the file from the page cache, so that reading reads the disk."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Make the written data durable."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise storage_error(self.path, error) from None

    def close(self) -> None:
        """Close the descriptor; sync() has reported all errors."""
        close_fd(self._fd)


# source, target, count, offsets in both -> copied
_Copy = Callable[[int, int, int, int, int], int]
_CANNOT_COPY: Final = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def _copy_by_hand(source: int, target: int, count: int, at: int, to: int) -> int:
    return os.pwrite(target, os.pread(source, min(count, 1 << 20), at), to)


def _extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of ``[start:end)`` that hold data."""
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole follows
                return
            raise
        if start < end:
            behind = min(os.lseek(fd, start, os.SEEK_HOLE), end)
            yield start, behind
            start = behind


def data_extents(place: Place, start: int) -> list[tuple[int, int]]:
    """Return the ranges of a file from *start* on that hold data; none if it is absent.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        fd = place.open()
        try:
            return list(_extents(fd, start, os.fstat(fd).st_size))
        finally:
            close_fd(fd)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error(Path(place.path), error) from None


def _behind(pieces: list[bytes | memoryview], skip_bytes: int) -> list[bytes | memoryview]:
    for number, piece in enumerate(pieces):
        if skip_bytes < len(piece):
            return [memoryview(piece)[skip_bytes:], *pieces[number + 1 :]]
        skip_bytes -= len(piece)
    return []


# The file system has no links, or the file has as many as it can.
_CANNOT_LINK: Final = {errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV}


class Disk:
    """Creates files and makes them durable; tests replace it by one that forgets.

    All methods raise StorageError.
    """

    trace_lock: "Lock | None" = None
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

    def replace(self, path: Path, data: bytes) -> None:
        """Replace *path* by *data*; after a crash it is the old file or the new one, whole."""
        holder, temporary = self._holder(path), path.with_name(f".{path.name}.new")
        try:
            with suppress(FileNotFoundError):
                holder.remove_file(temporary)
            file = self.open(temporary)
            try:
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


class Lock:
    """An exclusive flock, held until release() or the process's end.

    It is on a file that only its owner can open, because any user who may read a directory could
    lock the directory.  The file exists while the lock is held, and after a kill.
    """

    def __init__(self, directory: OpenDirectory, path: Path) -> None:
        """Take the lock, on a file at *path* below *directory*.

        Raises:
            LockedError: another process has it; the text names its pid if the kernel reports it.
            StorageError: the file cannot be made.
        """
        self._directory, self.path = directory, path
        while True:
            try:
                self._fd = directory.open_for_writing(path, LOCK_MODE)
            except RefusedError as error:
                reason = f"{error.strerror}; it is not a lock file of lttd: remove it"
                raise StorageError(path, reason, "EPERM") from None
            except OSError as error:
                raise storage_error(path, error) from None
            try:
                if self._take():
                    return
            except BaseException:
                close_fd(self._fd)
                raise
            close_fd(self._fd)

    def _take(self) -> bool:
        """Lock the file; return whether its name still leads to it."""
        try:
            os.fchmod(self._fd, LOCK_MODE)  # a copied file may have another mode
            # Several times, since a viewer that tests the lock holds it for a moment.
            lock_now(self._fd, self._in_use, attempts=_ATTEMPTS)
            return os.path.samestat(os.fstat(self._fd), self._directory.stat(self.path))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(self.path, error) from None

    def _in_use(self, holder: str) -> str:
        return f"{self.path.parent}: in use by {holder}; stop it, or choose another"

    def is_in_place(self) -> bool:
        """Tell whether other processes would still find the lock; True if that is unknown."""
        try:
            return os.path.samestat(os.fstat(self._fd), self._directory.stat(self.path))
        except FileNotFoundError:
            return False
        except OSError:  # too many open files, say
            return True

    def release(self) -> None:
        """Release the lock, and remove its file.

        Leave a file that was put in its place: it may be another process's lock.
        """
        if self.is_in_place():
            with suppress(OSError):
                self._directory.remove_file(self.path)
        close_fd(self._fd)


def is_locked(place: Place) -> bool:
    """Tell whether a process holds the lock of a file.

    If this process may not open the file, use /proc/locks, which covers one pid namespace.
    """
    try:
        if is_listed(place.stat()):
            return True
        fd = place.open()
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        close_fd(fd)
    return False
