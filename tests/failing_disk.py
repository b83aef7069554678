"""A disk that fails on demand: it fills up, has bad files, opens no more files, or hangs."""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from lttd.errors import StorageError, storage_error
from lttd.files import Disk
from lttd.writefile import File
from tests.running import PATIENCE_S


def is_data(path: Path) -> bool:
    """Return whether *path* is the data file of a stream."""
    return path.parent.name == "streams"


class FailingDisk(Disk):
    """A disk whose failures a test sets, also while it is in use; it begins as a good one.

    A full disk writes the part of a write that fits; a bad file takes half of it.
    """

    def __init__(
        self,
        *,
        room_bytes: int | None = None,
        is_limited: Callable[[Path], bool] = is_data,
        opens: int | None = None,
    ) -> None:
        super().__init__()
        self.room_bytes = room_bytes
        """Room for all files that *is_limited* accepts; None for no limit."""
        self.is_limited = is_limited
        self.opens = opens
        """How many more files can be opened; None for no limit."""
        self.bad: dict[str, set[str]] = {"open": set(), "write": set(), "cut": set(), "sync": set()}
        """Names of files, by the call that fails on them."""
        self.refused = 0
        """The number of files that could not be opened."""
        self.works = threading.Event()
        """While this is clear, writes of stream data hang."""
        self.works.set()
        self.syncs = threading.Event()
        """While this is clear, syncs of stream data hang."""
        self.syncs.set()

    def open(self, path: Path, *, truncate: bool = False) -> File:
        if self.opens == 0 or path.name in self.bad["open"]:
            self.refused += 1
            raise _failure(path, errno.ENOSPC)
        if self.opens is not None:
            self.opens -= 1
        return super().open(path, truncate=truncate)

    def file(self, path: Path, fd: int) -> File:
        return _FailingFile(self, path, fd)


class _FailingFile(File):
    def __init__(self, disk: FailingDisk, path: Path, fd: int) -> None:
        super().__init__(path, fd)
        self._disk = disk

    def write_at(self, pieces: Sequence[bytes | memoryview], offset_bytes: int) -> int:
        disk = self._disk
        if is_data(self.path):
            assert disk.works.wait(PATIENCE_S)
        size_bytes = sum(map(len, pieces))
        if self.path.name in disk.bad["write"]:
            fitting_bytes, number = size_bytes // 2, errno.EIO
        elif disk.room_bytes is not None and disk.is_limited(self.path):
            fitting_bytes, number = min(size_bytes, disk.room_bytes), errno.ENOSPC
            disk.room_bytes -= fitting_bytes
        else:
            return super().write_at(pieces, offset_bytes)
        end_bytes = offset_bytes
        if fitting_bytes:
            end_bytes = super().write_at([b"".join(pieces)[:fitting_bytes]], offset_bytes)
        if fitting_bytes < size_bytes:
            raise _failure(self.path, number, end_bytes)
        return end_bytes

    def truncate(self, size_bytes: int) -> None:
        self._fail_if_bad("cut")
        super().truncate(size_bytes)

    def sync(self) -> None:
        self._fail_if_bad("sync")
        if is_data(self.path):
            assert self._disk.syncs.wait(PATIENCE_S)
        super().sync()

    def _fail_if_bad(self, call: str) -> None:
        if self.path.name in self._disk.bad[call]:
            raise _failure(self.path, errno.EIO)


def _failure(path: Path, number: int, end_bytes: int | None = None) -> StorageError:
    return storage_error(path, OSError(number, os.strerror(number)), end_bytes=end_bytes)
