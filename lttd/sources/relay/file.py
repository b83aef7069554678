"""One per-CPU file of a relay channel: reads closed sub-buffers, counts bytes never delivered.

Rule: lttd reads at most the bytes by which ``st_size`` has grown.  The kernel adds the content of a
sub-buffer to ``st_size`` when it closes it.  The bytes after that are still being written: a record
that is reserved and not filled in yet looks like any other (kernel/relay.c: relay_switch_subbuf()).
Rule: ``poll`` reports IN exactly while a closed sub-buffer is not consumed (relay_buf_empty()).
Bytes that ``st_size`` promised before poll stopped reporting IN never come: they count as lost.
Invariant: growth of st_size = bytes_read - unpromised_bytes + lost_bytes + promised_bytes.
"""

import ctypes
import enum
import errno
import os
import select
import time
from collections.abc import Callable
from typing import Final, Protocol

from lttd.errors import LttdError, NothingToRecordError, SourceError
from lttd.locks import lock_now
from lttd.sources.refused import remedy

# Empty sub-buffers (flushed while they held nothing) fill the ring like others.  Two before a full
# one make the kernel deliver the full one twice: relay_file_read_start_pos() steps over the second,
# and relay_file_read_consume() then takes it for the one that was read.  So lttd consumes them one
# by one before each read: at most as many as come if somebody flushes once a ms.
MOST_EMPTY: Final = 4096
# At most this many empty sub-buffers between two records that are read one by one.
_BETWEEN_RECORDS: Final = 4
_ATTEMPTS: Final = 64
# The longest time from IN to the growth of st_size, even if the writer is descheduled meanwhile.
PATIENCE_NS: Final = 50_000_000
# At most this many records are read one by one before other streams get their turn.
_RECORDS: Final = 4096

_REMEDIES: Final = {
    errno.ENODEV: "its channel is being removed",
}
# The file does not belong to the channel any more: debugfs_remove() while it was open (full proxy),
# or the module is gone.  Only poll tells that apart from a read that failed once.
_GONE: Final = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO})
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Ready(enum.Enum):
    """The answers of poll."""

    NO = enum.auto()
    """No closed sub-buffer is left unread."""
    YES = enum.auto()
    CLOSED = enum.auto()
    """The channel was closed; its content can still be read."""
    GONE = enum.auto()
    """The file was removed with its content."""


class Descriptor(Protocol):
    """The system calls on an open relay file; tests put a model of the kernel in their place."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...

    def size_bytes(self) -> int:
        """Return ``st_size``: the content of all sub-buffers closed so far."""
        ...

    def ready(self) -> Ready:
        """Poll, without waiting."""
        ...

    def read(self, buffer: memoryview) -> int:
        """Consume up to ``len(buffer)`` bytes; return the number of bytes read.

        Raises:
            OSError: EIO, once the file was removed.
        """
        ...

    def pass_empty(self, most: int) -> None:
        """Consume at most *most* empty sub-buffers; stop before the first that holds bytes."""
        ...

    def close(self) -> None:
        """Close the descriptor."""
        ...


class OpenFile:
    """See Descriptor."""

    def __init__(self, path: str) -> None:
        """Open *path* and lock it against other recorders.

        Raises:
            LockedError: another recorder reads it.
            LttdError: it cannot be opened.
        """
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise explained(path, error) from error
        try:
            lock_now(self._fd, lambda holder: f"{path}: {holder} reads it; stop that first")
        except OSError as error:
            self.close()
            raise explained(path, error) from error
        except BaseException:
            self.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def fileno(self) -> int:
        """Return the descriptor; -1 when closed."""
        return self._fd

    def size_bytes(self) -> int:
        """Return ``st_size``."""
        return os.fstat(self._fd).st_size

    def ready(self) -> Ready:
        """Poll, without waiting."""
        for _, events in self._poll.poll(0):
            if events & select.POLLHUP:
                return Ready.GONE
            if events & select.POLLERR:
                return Ready.CLOSED
            return Ready.YES
        return Ready.NO

    def read(self, buffer: memoryview) -> int:
        """Consume up to ``len(buffer)`` bytes; return the number of bytes read."""
        return os.readv(self._fd, [buffer])

    def pass_empty(self, most: int) -> None:
        """Read to an address that cannot be written to.

        relay_file_read() first steps over a sub-buffer that is consumed to its end; an empty one is
        so from the start.  Then copying fails, so it consumes nothing and returns 0.
        """
        for _ in range(most):
            _libc.read(self._fd, None, 1)

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def explained(path: str, error: OSError) -> LttdError:
    """Return the exception to raise for *error* at *path*: one line with the remedy."""
    what = f"{path}: {os.strerror(error.errno or 0)}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return NothingToRecordError(what, remedy(error.errno))
    helps = _REMEDIES.get(error.errno or 0)
    return SourceError(f"{what}; {helps}" if helps else what)


def _some_more(begun: memoryview) -> int:
    """Treat unknown records as multiples of 8 bytes, which they usually are."""
    return 0 if len(begun) else 8


class RelayFile:
    """A relay file with its books: bytes read, bytes lost, bytes that may be read now.

    All readers of a file share one position in the kernel, so each byte goes to one of them; what
    others take counts as lost.
    """

    def __init__(
        self,
        path: str,
        descriptor: Descriptor | None = None,
        more: Callable[[memoryview], int] | None = None,
        *,
        base_bytes: int | None = None,
    ) -> None:
        """Open *path*, or take *descriptor* over.

        *more* gets the first bytes of a record, and returns how many bytes of it are missing at
        least; 0 when it is whole.  *base_bytes* is the part of the size that was read before; None:
        that is unknown, so the promise is what comes from now on.

        Raises:
            LockedError: another recorder reads it.
            LttdError: it cannot be opened.
        """
        self.path = path
        self.bytes_read = 0
        self.lost_bytes = 0
        """Bytes of closed sub-buffers that ``st_size`` promised and the kernel never delivered."""
        self.unpromised_bytes = 0
        """Bytes read beyond the promise: left by an earlier reader, or delivered twice."""
        self.ended = False
        """Whether the channel is closed or the file removed, and nothing is left to read."""
        self.settled = False
        """Whether all closed sub-buffers were read to their end, which is the end of a record."""
        self.careful = False
        """Whether other processes read, too: the promise is then too large by what they take, so
        closed sub-buffers are read record by record."""
        self._repeated_bytes = 0
        self._told_bytes = 0
        self._dry = False
        self._descriptor: Final = descriptor or OpenFile(path)
        self._more: Final = more or _some_more
        self._knows_records: Final = more is not None
        size_bytes = self._descriptor.size_bytes()
        self._base_bytes = size_bytes if base_bytes is None else base_bytes
        self._passed_ns = 0
        self._surplus_bytes = self._surplus_ns = 0

    def fileno(self) -> int:
        """Return the descriptor to poll: IN once a sub-buffer closed; -1 when closed."""
        return self._descriptor.fileno()

    def size_bytes(self) -> int:
        """Return ``st_size``: the content of all sub-buffers closed so far."""
        return self._descriptor.size_bytes()

    def promised_bytes(self) -> int:
        """Return the bytes of closed sub-buffers that were neither read nor counted as lost."""
        return max(-self._balance_bytes(), 0)

    def _balance_bytes(self) -> int:
        accounted = self._base_bytes + self.bytes_read + self.lost_bytes
        return accounted - self._descriptor.size_bytes()

    def read(self, buffer: memoryview, begun: int = 0, *, everything: bool = False) -> int:
        """Read the content of closed sub-buffers into *buffer*, after its first *begun* bytes.

        Those hold a record that is not whole yet.  Return the number of bytes read; 0: nothing now,
        or (``ended``) never again.  With *everything*, also read the open sub-buffer; only correct
        when nobody writes (the producer was stopped, the CPU is offline).
        """
        used = begun
        for _ in range(_ATTEMPTS):
            ready, promised = self._look()
            may_read_open = everything or ready is Ready.CLOSED
            if self.ended or (ready is Ready.NO and not may_read_open):
                break
            self._pass_empty(ready)
            one_by_one = not promised or (self.careful and self._knows_records)
            if one_by_one and ready is Ready.YES:
                got = self._read_records(buffer, used)
                used += got
                if got or not everything:
                    break
                continue
            room = len(buffer) - used
            got = self._read(buffer[used : used + (min(promised, room) if promised else room)])
            used += got
            self._dry = not got
            if ready is Ready.YES and got == promised:
                # A sub-buffer that closed just now waits for the next read: the reader must not
                # run after the writer.
                self._look()
                break
            if ready is Ready.CLOSED and not got and not promised:
                self.ended = True
            if used == len(buffer) or (ready is not Ready.YES and not promised):
                break
        return used - begun

    def _look(self) -> tuple[Ready, int]:
        """Return poll's answer and the promised bytes; count bytes that will never come as lost."""
        # In this order, so that the bytes in the size were closed before poll is asked.
        promised = self.promised_bytes()
        ready = self._descriptor.ready()
        closed_and_dry = ready is Ready.CLOSED and self._dry
        if ready in (Ready.NO, Ready.GONE) or closed_and_dry:
            self.lost_bytes += promised
            promised = 0
        self.settled = ready is Ready.NO
        if self.settled:
            self._accept_surplus()
        self.ended |= ready is Ready.GONE
        self._dry = False
        return ready, promised

    def _accept_surplus(self) -> None:
        """Count bytes read beyond the promise as unpromised, once the promise stays behind.

        The kernel lets poll report a closed sub-buffer a moment before it raises ``st_size``.
        """
        surplus, now = max(self._balance_bytes(), 0), time.monotonic_ns()
        if surplus != self._surplus_bytes:
            self._surplus_bytes, self._surplus_ns = surplus, now
        elif surplus and now - self._surplus_ns >= PATIENCE_NS:
            self.unpromised_bytes += surplus
            self._base_bytes -= surplus
            self._surplus_bytes = 0

    def repeated(self, count: int) -> None:
        """Do not count *count* read bytes as promised ones: they were delivered twice.

        Otherwise the promise would end inside a sub-buffer.  After empty sub-buffers, the kernel
        delivers a sub-buffer that is read in part from its begin again.
        """
        self._repeated_bytes += count
        surplus = max(self._repeated_bytes - self.unpromised_bytes, 0)
        self.unpromised_bytes += surplus
        self._base_bytes -= surplus

    def _pass_empty(self, ready: Ready) -> None:
        now = time.monotonic_ns()
        if ready in (Ready.YES, Ready.CLOSED):
            passed_ms = (now - self._passed_ns) // 1_000_000
            self._descriptor.pass_empty(min(passed_ms + 1, MOST_EMPTY))
        self._passed_ns = now

    def _read_records(self, buffer: memoryview, used: int) -> int:
        """Read record by record while poll reports an unread closed sub-buffer.

        For bytes without a promise: an earlier reader left them, or the kernel delivers them twice.
        No record lies in two sub-buffers, so this reads nothing of the open one.
        """
        start, first, more = 0, used, self._more
        for _ in range(_RECORDS):
            if self._descriptor.ready() is not Ready.YES:
                break
            wanted = more(buffer[start:used])
            while wanted > 0 and used + wanted <= len(buffer):
                got = self._read(buffer[used : used + wanted])
                used += got
                wanted = more(buffer[start:used]) if got == wanted else 0
            if wanted > 0 or used == first:
                break  # no room, or nothing came
            start = used
            self._descriptor.pass_empty(_BETWEEN_RECORDS)
        self._look()
        return used - first

    def _read(self, buffer: memoryview) -> int:
        try:
            got = self._descriptor.read(buffer)
        except OSError as error:
            if error.errno not in _GONE or self._descriptor.ready() is not Ready.GONE:
                raise SourceError(str(explained(self.path, error))) from error
            self.lost_bytes += self.promised_bytes()
            self.ended = True
            return 0
        self.bytes_read += got
        return got

    def take_lost_bytes(self) -> int:
        """Return the bytes that were lost since the last call."""
        told, self._told_bytes = self._told_bytes, self.lost_bytes
        return self.lost_bytes - told

    def close(self) -> None:
        """Close the descriptor."""
        self._descriptor.close()
        self.ended = True
