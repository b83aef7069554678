"""A model of one CPU's buffer in the kernel's kernel/relay.c (as of Linux 6.1), for unit tests.

Rule: a reader can interrupt the model wherever it can interrupt the kernel's writer: between
reserving and filling a record; between raising ``produced``, raising ``st_size``, and beginning the
next sub-buffer.
"""

import errno

from lttd.sources.relay.file import Ready

STALE = 0xEE


def _nothing() -> None:
    return None


class RelayModel:
    """The buffer, its writer, and the descriptor of its one reader."""

    def __init__(
        self, subbuffer_bytes: int, subbuffers: int, *, overwrite: bool = False, head: int = 0
    ) -> None:
        """*head*: the bytes at the begin of a sub-buffer in which its module states the padding."""
        self.size, self.count, self.overwrite = subbuffer_bytes, subbuffers, overwrite
        self.head = head
        self.data = bytearray([STALE]) * (subbuffer_bytes * subbuffers)
        self.padding = [0] * subbuffers
        self.produced = self.consumed = 0
        self.offset = head
        self.current = 0
        self.bytes_consumed = 0
        self.st_size = 0
        self.refused = 0
        self.position = 0
        self.closed = self.removed = False
        self.between = _nothing
        """The model calls this wherever a reader can interrupt the writer."""

    # --- the writer: relay_write(), relay_reserve(), relay_switch_subbuf() ------------------------

    def reserve(self, length: int) -> int | None:
        """Return the place for a record, or None if it was refused."""
        if self.offset + length > self.size:
            length = self._switch(length)
            if not length:
                return None
        at = self.current * self.size + self.offset
        self.offset += length
        return at

    def write(self, record: bytes) -> bool:
        at = self.reserve(len(record))
        if at is None:
            return False
        self.between()
        self.data[at : at + len(record)] = record
        return True

    def flush(self) -> None:
        self._switch(0)

    def _switch(self, length: int) -> int:
        if length > self.size:
            return 0
        if self.offset != self.size + 1:
            padding = self.size - self.offset
            self.padding[self.produced % self.count] = padding
            self.produced += 1
            self.between()
            self.st_size += self.size - padding
            if self.head:
                self.between()
                at = self.current * self.size
                self.data[at : at + self.head] = padding.to_bytes(self.head, "little")
        self.offset = 0
        self.between()
        if not self.overwrite and self.produced - self.consumed >= self.count:
            self.offset = self.size + 1
            self.refused += 1 if length else 0
            return 0
        self.current = self.produced % self.count
        self.padding[self.current] = 0
        self.offset = self.head
        return length

    # --- the reader: relay_file_read(), relay_file_poll() -----------------------------------------

    def fileno(self) -> int:
        return -1

    def size_bytes(self) -> int:
        return self.st_size

    def ready(self) -> Ready:
        if self.removed:
            return Ready.GONE
        if self.closed:
            return Ready.CLOSED
        return Ready.YES if self.produced != self.consumed else Ready.NO

    def read(self, buffer: memoryview) -> int:
        if self.removed:
            raise OSError(errno.EIO, "Input/output error")
        done = 0
        while done < len(buffer) and self._available():
            start = self._start()
            some = min(self._in_subbuffer(start), len(buffer) - done)
            if not some:
                break
            buffer[done : done + some] = self.data[start : start + some]
            self._consume(start, some)
            self.position = self._end(start, some)
            done += some
        return done

    def pass_empty(self, most: int) -> None:
        for _ in range(0 if self.removed else min(most, self.count)):
            self._available()

    def close(self) -> None:
        self.removed = True

    def _consume(self, start: int, length: int) -> None:
        if self.produced == self.consumed and self.offset == self.bytes_consumed:
            return
        if self.bytes_consumed + length > self.size:
            self._consumed_one()
        self.bytes_consumed += length
        subbuffer = start // self.size if start else self.consumed % self.count
        if self.bytes_consumed + self.padding[subbuffer] == self.size:
            if subbuffer == self.produced % self.count and self.offset == self.size:
                return
            self._consumed_one()

    def _consumed_one(self) -> None:
        self.consumed = min(self.consumed + 1, self.produced)
        self.bytes_consumed = 0

    def _available(self) -> bool:
        self._consume(0, 0)
        if self.offset > self.size:
            return self.produced != self.consumed
        if self.produced - self.consumed >= self.count:
            self.consumed = self.produced - self.count + 1
            self.bytes_consumed = 0
        produced = self.produced % self.count * self.size + self.offset
        consumed = self.consumed % self.count * self.size + self.bytes_consumed
        if consumed > produced:
            produced += self.count * self.size
        if consumed == produced:
            return self.offset == self.size and self.produced > self.consumed
        return True

    def _start(self) -> int:
        ring = self.size * self.count
        start = (self.consumed % self.count * self.size + self.bytes_consumed) % ring
        end_of_slot = (start // self.size + 1) * self.size
        if end_of_slot - self.padding[start // self.size] <= start < end_of_slot:
            return end_of_slot % ring
        return start

    def _in_subbuffer(self, start: int) -> int:
        written = min(self.offset, self.size)
        subbuffer, offset = divmod(start, self.size)
        padding = self.padding[subbuffer]
        if subbuffer == self.current:
            return max(written - (offset + padding), 0)
        return self.size - padding - offset

    def _end(self, start: int, length: int) -> int:
        subbuffer, offset = divmod(start, self.size)
        end = start + length
        if offset + length + self.padding[subbuffer] == self.size:
            end = (subbuffer + 1) * self.size
        return 0 if end >= self.size * self.count else end
