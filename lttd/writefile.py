"""Write a file at offsets that the caller keeps, and make its data durable.

Rule: a File is opened by a Disk (lttd.files), which decides where lttd may write.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from lttd.errors import LostFileError, StorageError, storage_error
from lttd.openat import close_fd
from lttd.subbuffer import Pieces

IOV_MAX: Final = 1024
IOVEC_BYTES: Final = 16
# The bytes per call, about.  Page cache folios grow with the call.  On virtual machines that report
# free memory to their host, folios of 2 MiB and more need memory that the host has to find first,
# and the same data costs several times the CPU time.
WRITE_BYTES: Final = 1 << 20
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
        if isinstance(pieces, Pieces) and pieces.payload_bytes:
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
        step = max(min(count * WRITE_BYTES // pieces.payload_bytes, IOV_MAX), 1)
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
        if end_bytes == offset_bytes + pieces.payload_bytes:
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
            for start, behind in extents(source, source_at, end):
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

    def forget(self, begin_bytes: int = 0, end_bytes: int | None = None) -> None:
        """Drop synced pages in a range of the file from the page cache; None: up to its end.

        Reading them reads the disk, and other programs get the memory.
        """
        length_bytes = 0 if end_bytes is None else end_bytes - begin_bytes
        os.posix_fadvise(self._fd, begin_bytes, length_bytes, os.POSIX_FADV_DONTNEED)

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


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
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


def _behind(pieces: list[bytes | memoryview], skip_bytes: int) -> list[bytes | memoryview]:
    for number, piece in enumerate(pieces):
        if skip_bytes < len(piece):
            return [memoryview(piece)[skip_bytes:], *pieces[number + 1 :]]
        skip_bytes -= len(piece)
    return []
