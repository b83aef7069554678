"""Read stored files, in parts or whole, while others may write to them, cut or remove them.

Rule: no stored file is mapped.  Where a file is cut, or its disk fails, a mapping ends the process
with SIGBUS; a read comes back short, or with an error that can be reported.
Invariant: what is read is of one file, whatever its name leads to later, and no more than it held
when it was opened: a stream's data and index are looked at as of one moment.
"""

import os
from pathlib import Path

import numpy as np

from lttd.beneath import Place, place_of
from lttd.errors import TraceDamagedError, reason_of, storage_error
from lttd.limits import Limit
from lttd.openat import close_fd
from lttd.writefile import File, extents


class ReadFile:
    """A file that is open for reading."""

    reads_any_part = True
    """Whether a few bytes can be read without all that surrounds them."""

    def __init__(self, where: Place | Path) -> None:
        """Open the file.

        Raises:
            FileNotFoundError: there is none.
            TraceDamagedError: it cannot be opened, or is not a regular file.
        """
        self._fd = -1
        place = place_of(where)
        self.name = place.path
        try:
            self._fd = place.open()
            self.size_bytes = os.fstat(self._fd).st_size
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._error(0, error) from None

    @property
    def path(self) -> Path:
        """Where the file is, or was when it was opened."""
        return Path(self.name)

    @classmethod
    def if_there(cls, where: Place | Path) -> "ReadFile | None":
        """Open the file; None where there is none.

        Raises:
            TraceDamagedError: it cannot be opened, or is not a regular file.
        """
        try:
            return cls(where)
        except FileNotFoundError:
            return None

    def __del__(self) -> None:
        if self._fd >= 0:
            close_fd(self._fd)

    def read(self, begin: int, end: int) -> memoryview:
        """Return bytes ``[begin:end)``; fewer where the file ends, or was cut meanwhile.

        Raises:
            TraceDamagedError: the disk does not give them, or they are more than memory holds.
        """
        length = max(min(end, self.size_bytes) - begin, 0)
        try:
            # Unlike a bytearray not cleared first.
            buffer = np.empty(length, np.uint8).data
        except MemoryError:
            reason = f"{length:,} bytes do not fit into memory"
            raise TraceDamagedError(self.path, begin, reason) from None
        return buffer[: self.read_into(buffer, begin)]

    def read_into(self, buffer: memoryview, begin: int) -> int:
        """Fill *buffer* from *begin* on; return how many bytes there were.

        Raises:
            TraceDamagedError: the disk does not give them.
        """
        return self._read_stored(buffer, begin)

    def _read_stored(self, buffer: memoryview, begin: int) -> int:
        """Fill *buffer* with the bytes that the file itself has from *begin* on."""
        done = 0
        try:
            while done < len(buffer):
                got = os.preadv(self._fd, [buffer[done:]], begin + done)
                if not got:
                    break
                done += got
        except OSError as error:
            raise self._error(begin + done, error) from None
        return done

    def read_all_of(self, begin: int, end: int) -> memoryview:
        """Return bytes ``[begin:end)``, of a file that held them when it was opened.

        Raises:
            TraceDamagedError: it was cut meanwhile, or the disk does not give them.
        """
        data = self.read(begin, end)
        if len(data) < end - begin:
            reason = "the file was cut here while it was read"
            raise TraceDamagedError(self.path, begin + len(data), reason)
        return data

    def refuse_hole(self, begin: int, end: int, limit: Limit) -> None:
        """Reject a range with a hole that is larger than any real one.

        Raises:
            TraceDamagedError: there is such a hole.
        """
        behind = begin
        for start, stop in (*extents(self._fd, begin, end), (end, end)):
            if start - behind > limit.most:
                reason = f"a hole of {start - behind:,} bytes; {limit}"
                raise TraceDamagedError(self.path, behind, reason)
            behind = stop

    def copy_to(self, target: File, begin: int, length: int, to: int) -> None:
        """Copy a range to *target*, at its byte *to*; holes stay holes.

        Raises:
            StorageError: it could not be written, or the file ends before the range.
        """
        target.copy_from(self._fd, begin, length, to)

    def _error(self, at: int, error: OSError) -> TraceDamagedError:
        return TraceDamagedError(self.path, at, reason_of(error))


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
    for start, end in (*extents(fd, 0, size_bytes), (size_bytes, size_bytes)):
        if start - behind > limit.most:
            reason = f"a hole of {start - behind:,} bytes; {limit}; truncate -s {behind} cuts it"
            raise TraceDamagedError(path, behind, reason)
        behind = end


def data_extents(place: Place, start: int) -> list[tuple[int, int]]:
    """Return the ranges of a file from *start* on that hold data; none if it is absent.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        fd = place.open()
        try:
            return list(extents(fd, start, os.fstat(fd).st_size))
        finally:
            close_fd(fd)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error(Path(place.path), error) from None
