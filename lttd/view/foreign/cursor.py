"""Read numbers, strings and sized texts one after the other: from a file, or from memory.

Rule: nothing is read that the file has not, and no text beyond its limit; either ends in one error
with the place.
"""

import struct
from pathlib import Path
from typing import Final, Protocol

from lttd.errors import TraceDamagedError
from lttd.limits import Limit
from lttd.readfile import ReadFile

_MOST_NAME_BYTES: Final = 4096


class Bytes(Protocol):
    """A source of bytes."""

    size_bytes: int

    def read(self, begin: int, end: int) -> memoryview:
        """Return bytes ``[begin:end)``; fewer where they end."""
        ...


class InMemory:
    """Bytes in memory."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.size_bytes = len(data)

    def read(self, begin: int, end: int) -> memoryview:
        """See Bytes."""
        return self._data[begin:end]


class Cursor:
    """A place in some bytes, which moves as they are read."""

    def __init__(
        self, data: Bytes | ReadFile, path: Path, byteorder: str = "<", at: int = 0, base: int = 0
    ) -> None:
        """*base* is the offset in the file of the first of these bytes, for messages."""
        self.data = data
        self.path = path
        self.byteorder = byteorder
        self.at = at
        self._base = base

    @property
    def left_bytes(self) -> int:
        """The number of bytes from here to the end."""
        return max(self.data.size_bytes - self.at, 0)

    def damaged(self, reason: str) -> TraceDamagedError:
        """Return the error for what is here."""
        return TraceDamagedError(self.path, self._base + self.at, reason)

    def take(self, count: int, what: str) -> bytes:
        """Return the next *count* bytes.

        Raises:
            TraceDamagedError: there are fewer.
        """
        if count > self.left_bytes:
            raise self.damaged(f"{what} of {count:,} bytes reaches beyond the end: cut short?")
        found = bytes(self.data.read(self.at, self.at + count))
        if len(found) < count:
            raise self.damaged("the file was cut here while it was read")
        self.at += count
        return found

    def number(self, code: str, what: str) -> int:
        """Return an integer of the size of a struct's code.

        Raises:
            TraceDamagedError: the bytes end before it.
        """
        form = struct.Struct(f"{self.byteorder}{code}")
        return int(form.unpack(self.take(form.size, what))[0])

    def string(self, what: str) -> bytes:
        """Return a string that ends with a NUL, without it.

        Raises:
            TraceDamagedError: it does not end.
        """
        found, nul, _ = bytes(self.data.read(self.at, self.at + _MOST_NAME_BYTES + 1)).partition(
            b"\0"
        )
        if not nul:
            raise self.damaged(f"{what} does not end within {_MOST_NAME_BYTES:,} bytes")
        self.at += len(found) + 1
        return found

    def sized(self, code: str, limit: Limit) -> bytes | None:
        """Return a text after its size; None if it is larger than its limit, and passed over.

        Raises:
            TraceDamagedError: the bytes end before it does.
        """
        size = self.number(code, f"the size of {limit.what}")
        if size > self.left_bytes:
            raise self.damaged(f"{limit.what} of {size:,} bytes reaches beyond the end: cut short?")
        if size > limit.most:
            self.at += size
            return None
        return self.take(size, limit.what)
