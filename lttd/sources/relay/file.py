"""One per-CPU file of a relay channel: what may be read of it, and what it never gave.

Rule: never read beyond ``st_size`` less what was read before.  The kernel raises ``st_size`` by a
sub-buffer's content when it closes it; what lies beyond is being written, and a record that was
reserved but not filled in yet looks like any other (kernel/relay.c: relay_switch_subbuf()).
Rule: ``poll`` says IN exactly while a closed sub-buffer is not consumed (relay_buf_empty()).  What
``st_size`` promised before poll said otherwise will never be delivered: it is lost, and counted.
Invariant: growth of st_size = bytes_read - unpromised_bytes + lost_bytes + what may still be read.
"""

import ctypes
import enum
import errno
import fcntl
import os
import select
import time
from collections.abc import Callable
from typing import Final, Protocol

from lttd.errors import LockedError, LttdError, NothingToRecordError, SourceError
from lttd.locks import lock_holder
from lttd.sources.refused import remedy

# Empty sub-buffers (flushed while they held nothing) fill the ring like others, and two in front of
# a full one make the kernel deliver that one twice: relay_file_read_start_pos() steps over the
# second, which relay_file_read_consume() then takes for the one that was read.  So they are passed
# one by one before each read: as many as there can be if nobody flushes more than once a ms.
MOST_EMPTY: Final = 4096
# So many between two records that are read one by one.
_BETWEEN_RECORDS: Final = 4
_ATTEMPTS: Final = 64
# How long a promise may lag behind poll, even where the CPU that makes it is taken away meanwhile.
PATIENCE_NS: Final = 50_000_000
# So many records are read one by one at most before others get their turn.
_RECORDS: Final = 4096

_REMEDIES: Final = {
    errno.ENODEV: "its channel is being removed",
}
# The file is no longer the channel's: debugfs_remove() while we have it open (full proxy), or the
# module behind it is gone.
# Only poll tells that apart from a read that failed once.
_GONE: Final = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO})
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Ready(enum.Enum):
    """What poll says."""

    NO = enum.auto()
    """No closed sub-buffer is left unread."""
    YES = enum.auto()
    CLOSED = enum.auto()
    """The channel was closed; what it holds can still be read."""
    GONE = enum.auto()
    """The file was removed, and what it held with it."""


class Descriptor(Protocol):
    """The system calls on an open relay file, so that a model of the kernel can stand for them."""

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
        """Consume up to so many bytes.

        Raises:
            OSError: EIO, once the file was removed.
        """
        ...

    def pass_empty(self, most: int) -> None:
        """Consume empty sub-buffers, as long as the next one is, and nothing else."""
        ...

    def close(self) -> None:
        """Give the descriptor back."""
        ...


class OpenFile:
    """See Descriptor."""

    def __init__(self, path: str) -> None:
        """Open *path* and take the lock that makes it ours.

        Raises:
            LockedError: another recorder reads it.
            LttdError: it cannot be opened.
        """
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise explained(path, error) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = lock_holder(self._fd)
            self.close()
            raise LockedError(f"{path}: {holder} reads it; stop that first") from None
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
        """Consume up to so many bytes."""
        return os.readv(self._fd, [buffer])

    def pass_empty(self, most: int) -> None:
        """Read to where nothing can be written.

        relay_file_read() first steps over a sub-buffer that is consumed to its end, as an empty one
        is from the start; then copying fails, so that nothing is consumed, and it returns 0.
        """
        for _ in range(most):
            _libc.read(self._fd, None, 1)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def explained(path: str, error: OSError) -> LttdError:
    """Return what to raise for *error* at *path*: one line with the remedy."""
    what = f"{path}: {os.strerror(error.errno or 0)}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return NothingToRecordError(what, remedy(error.errno))
    helps = _REMEDIES.get(error.errno or 0)
    return SourceError(f"{what}; {helps}" if helps else what)


def _some_more(begun: memoryview) -> int:
    """Stand for records that nothing is known of: multiples of 8 bytes, as is usual."""
    return 0 if len(begun) else 8


class RelayFile:
    """What was read of a relay file, what was lost of it, and how much of it may be read now.

    Nobody else may read it: readers share one cursor, and each would get a part.
    """

    def __init__(
        self,
        path: str,
        descriptor: Descriptor | None = None,
        more: Callable[[memoryview], int] | None = None,
    ) -> None:
        """Open *path*, or take *descriptor* over.

        *more* returns how many bytes follow, at least, in the record that the given bytes begin; 0
        when it is whole.

        Raises:
            LockedError: another recorder reads it.
            LttdError: it cannot be opened.
        """
        self.path = path
        self.bytes_read = 0
        self.lost_bytes = 0
        """Of closed sub-buffers, promised by ``st_size`` and never delivered."""
        self.unpromised_bytes = 0
        """Read although nothing was promised: left by others before us, or given twice."""
        self.ended = False
        """The channel is closed or the file removed, and nothing is left to read."""
        self.settled = False
        """All closed sub-buffers were read to their end, so that a record ended there, too."""
        self._told_bytes = 0
        self._dry = False
        self._descriptor: Final = descriptor or OpenFile(path)
        self._more: Final = more or _some_more
        # What is promised counts from here on: who read what before, nobody can tell.
        self._base_bytes = self._descriptor.size_bytes()
        self._passed_ns = 0
        self._surplus_bytes = self._surplus_ns = 0

    def fileno(self) -> int:
        """Return the descriptor to poll: IN once a sub-buffer closed; -1 when closed."""
        return self._descriptor.fileno()

    def promised_bytes(self) -> int:
        """Return how much of closed sub-buffers was neither read nor counted as lost."""
        return max(-self._balance_bytes(), 0)

    def _balance_bytes(self) -> int:
        accounted = self._base_bytes + self.bytes_read + self.lost_bytes
        return accounted - self._descriptor.size_bytes()

    def read(self, buffer: memoryview, begun: int = 0, *, everything: bool = False) -> int:
        """Read what closed sub-buffers hold behind the first *begun* bytes of *buffer*.

        These are of a record that is not whole yet.  Returns the number of bytes read; 0: nothing
        now, or (``ended``) never again.  With *everything*, the sub-buffer that is being written,
        too: only when nobody writes (the producer was stopped, the CPU is offline).
        """
        used = begun
        for _ in range(_ATTEMPTS):
            ready, promised = self._look()
            may_read_open = everything or ready is Ready.CLOSED
            if self.ended or (ready is Ready.NO and not may_read_open):
                break
            self._pass_empty(ready)
            if not promised and ready is Ready.YES:
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
                # What has closed only just now is left for the next time: not to run after it.
                self._look()
                break
            if ready is Ready.CLOSED and not got and not promised:
                self.ended = True
            if used == len(buffer) or (ready is not Ready.YES and not promised):
                break
        return used - begun

    def _look(self) -> tuple[Ready, int]:
        """Return what poll says and what is promised; what will not come any more is lost."""
        # In this order: what the size promises was closed before poll is asked.
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
        """Take what was read beyond the promise for unpromised, once it has stayed so.

        The kernel raises ``st_size`` a moment after it has let poll say that a sub-buffer closed.
        """
        surplus, now = max(self._balance_bytes(), 0), time.monotonic_ns()
        if surplus != self._surplus_bytes:
            self._surplus_bytes, self._surplus_ns = surplus, now
        elif surplus and now - self._surplus_ns >= PATIENCE_NS:
            self.unpromised_bytes += surplus
            self._base_bytes -= surplus
            self._surplus_bytes = 0

    def _pass_empty(self, ready: Ready) -> None:
        now = time.monotonic_ns()
        if ready in (Ready.YES, Ready.CLOSED):
            passed_ms = (now - self._passed_ns) // 1_000_000
            self._descriptor.pass_empty(min(passed_ms + 1, MOST_EMPTY))
        self._passed_ns = now

    def _read_records(self, buffer: memoryview, used: int) -> int:
        """Read record by record while poll says that a closed sub-buffer is unread.

        That it is although nothing is promised: what somebody left unread before us, or what the
        kernel gives twice.  No record lies in two sub-buffers, so none read is of the open one.
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
        """Return the bytes lost since this was last asked."""
        told, self._told_bytes = self._told_bytes, self.lost_bytes
        return self.lost_bytes - told

    def close(self) -> None:
        """Give the descriptor back."""
        self._descriptor.close()
        self.ended = True
