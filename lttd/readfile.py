"""A file that is read in parts, while others may write to it, cut it or remove it.

Rule: no stored file is mapped.  Where a file is cut, or its disk fails, a mapping ends the process
with SIGBUS; a read comes back short, or with an error that can be reported.
Invariant: what is read is of one file, whatever its name leads to later, and no more than it held
when it was opened: a stream's data and index are looked at as of one moment.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lttd.beneath import Place, close_fd, place_of
from lttd.errors import TraceDamagedError, reason_of

if TYPE_CHECKING:
    from lttd.files import File


class ReadFile:
    """A file that is open for reading."""

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

    def copy_to(self, target: "File", begin: int, length: int, to: int) -> None:
        """Copy a range to *target*, at its byte *to*; holes stay holes.

        Raises:
            StorageError: it could not be written, or the file ends before the range.
        """
        target.copy_from(self._fd, begin, length, to)

    def _error(self, at: int, error: OSError) -> TraceDamagedError:
        return TraceDamagedError(self.path, at, reason_of(error))
