"""``per_cpu/cpuN/trace_pipe_raw``: locked, spliced and read; no state but the descriptor's.

Rule: splice gives whole sub-buffers that are full; read gives the one that is being written, too.
Each consumes what it gives, so what cannot be read to its end is lost, and is said to be.
Source: Linux kernel/trace/trace.c, tracing_buffers_splice_read() and tracing_buffers_read().
"""

import errno
import os
from typing import Final, NamedTuple

from lttd.errors import LockedError, SourceError
from lttd.locks import holder_of, is_listed, lock_now
from lttd.sources.base import Nothing
from lttd.sources.pipe import Pipe, TakeBrokeOffError, fill
from lttd.sources.tracefs import explained

# What splice and read of trace_pipe_raw may say without anything being wrong.
EXPECTED: Final[dict[int, Nothing]] = {
    errno.EAGAIN: Nothing.YET,  # no full sub-buffer (splice), nothing at all (read)
    errno.EBUSY: Nothing.YET,  # the ring is being resized
    errno.ENOMEM: Nothing.YET,  # no page to swap in; the kernel counts what it then loses
    errno.EINTR: Nothing.YET,  # a signal's handler raised nothing; the tick comes back
    errno.ENODEV: Nothing.OFFLINE,  # the CPU has no buffer now
}


def lock_raw(path: str) -> int:
    """Open a ``trace_pipe_raw`` for non-blocking reads and take the lock that makes it ours.

    One that is seen to be locked is not even opened: its owner hears of openings, and would have to
    take us for somebody who consumes.

    Raises:
        LockedError: another recorder has it.
        LttdError: it cannot be opened.
    """

    def locked(holder: str) -> str:
        return f"{path}: {holder} reads it; stop that, or record from another instance"

    try:
        if is_listed(status := os.stat(path)):
            raise LockedError(locked(holder_of(status)))
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise explained(path, error) from error
    try:
        lock_now(fd, locked)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Spliced(NamedTuple):
    """What a splice gave."""

    used_bytes: int
    why: Nothing = Nothing.YET
    """Why it gave nothing, where it gave nothing."""
    drained: bool = False
    """It gave less than there was room for: the ring had no more full sub-buffers."""
    broke_off: TakeBrokeOffError | None = None
    """What went wrong after that; the sub-buffers that it gave before are whole."""


class RawFile:
    """A ``trace_pipe_raw`` that is open and locked."""

    def __init__(self, cpu: int, fd: int, subbuffer_bytes: int, pipe: Pipe) -> None:
        """Take over *fd*; splices go by way of *pipe*."""
        self._cpu = cpu
        self._fd = fd
        self._subbuffer_bytes = subbuffer_bytes
        self._pipe = pipe
        # The rest of a sub-buffer that could not be read to its end is not a sub-buffer.
        self._remainder_bytes = 0

    def fileno(self) -> int:
        """Return the descriptor; -1 when closed."""
        return self._fd

    def splice(self, buffer: memoryview, *, once: bool) -> Spliced:
        """Fill *buffer* with full sub-buffers, as far as there are any.

        *once*: what one call of splice gives is enough.

        Raises:
            TakeBrokeOffError: what was taken first could not be read.
            SourceError: the kernel says something that is not expected.
        """
        pipe, used = self._pipe, 0
        limit = len(buffer) // self._subbuffer_bytes * self._subbuffer_bytes
        moved = pipe.capacity_bytes
        try:
            # Less than the pipe takes: the ring had no more.
            while used < limit and moved >= pipe.capacity_bytes and not (once and used):
                moved = pipe.move(self._fd, limit - used, buffer[used:])
                used += moved
        except OSError as error:
            if not used:
                return Spliced(0, self._expected(error))
            moved = 0
        except TakeBrokeOffError as error:
            if not used:
                raise
            return Spliced(used, broke_off=error)
        return Spliced(used, drained=used < limit and moved < pipe.capacity_bytes)

    def read(self, buffer: memoryview) -> Nothing | int:
        """Read one sub-buffer, never less: what a short read left would come back as zeros.

        Return its size, 0 where the ring holds nothing, or why the kernel did not look.

        Raises:
            TakeBrokeOffError: it could not be read to its end.
            SourceError: the kernel says something that is not expected.
        """
        try:
            used = os.readv(self._fd, [buffer[: self._subbuffer_bytes]])
        except BlockingIOError:
            return 0
        except OSError as error:
            return self._expected(error)
        if not used:
            return 0  # with tracing off
        try:
            fill(self._fd, buffer, self._subbuffer_bytes, used)
        except TakeBrokeOffError as error:
            self._remainder_bytes = error.unread_bytes
            raise
        return self._subbuffer_bytes

    def skip_remainder(self, buffer: memoryview) -> None:
        """Read what is left of a sub-buffer that broke off, and throw it away."""
        while self._remainder_bytes:
            try:
                got = os.readv(self._fd, [buffer[: self._remainder_bytes]])
            except OSError as error:
                self._expected(error)
                return
            if not got:
                return
            self._remainder_bytes -= got

    def close(self) -> None:
        """Give the descriptor, and with it the lock, back."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _expected(self, error: OSError) -> Nothing:
        why = EXPECTED.get(error.errno or 0)
        if why is None:
            words = explained(f"CPU {self._cpu}: trace_pipe_raw", error)
            raise SourceError(str(words)) from error
        return why
