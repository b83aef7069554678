"""Lock, splice and read one ``per_cpu/cpuN/trace_pipe_raw``.

Rule: splice returns full sub-buffers; read also returns the one that is being written.  Both
consume the sub-buffer: if it cannot be read to its end, it is lost, and the caller is told so.
Source: Linux kernel/trace/trace.c, tracing_buffers_splice_read() and tracing_buffers_read().
"""

import errno
import os
from collections.abc import Iterable
from functools import partial
from typing import Final, NamedTuple

from lttd.errors import LockedError, SourceError
from lttd.locks import first_listed, holder_of, lock_now
from lttd.sources.base import Nothing
from lttd.sources.pipe import Pipe, TakeBrokeOffError, fill
from lttd.sources.tracefs import explained

# Errors of splice and read on trace_pipe_raw that are expected.
EXPECTED: Final[dict[int, Nothing]] = {
    errno.EAGAIN: Nothing.YET,  # there is no full sub-buffer (splice), or no event (read)
    errno.EBUSY: Nothing.YET,  # the ring is being resized
    errno.ENOMEM: Nothing.YET,  # there is no page to swap in; the kernel counts its losses
    errno.EINTR: Nothing.YET,  # a signal handler ran; the tick tries again
    errno.ENODEV: Nothing.OFFLINE,  # the CPU has no buffer now
}


def refuse_locked(paths: Iterable[str]) -> None:
    """Refuse files of which one is visibly locked, without opening any.

    The owner of a file notices openings, and would report this process as a reader.

    Raises:
        LockedError: another recorder has one of them.
        LttdError: one of them is not there.
    """
    statuses = {}
    for path in paths:
        try:
            statuses[os.stat(path)] = path
        except OSError as error:
            raise explained(path, error) from error
    if (locked := first_listed(statuses)) is not None:
        raise LockedError(_locked(statuses[locked], holder_of(locked)))


def lock_raw(path: str) -> int:
    """Open a ``trace_pipe_raw`` for non-blocking reads, and lock it against other recorders.

    Raises:
        LockedError: another recorder has it.
        LttdError: it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise explained(path, error) from error
    try:
        lock_now(fd, partial(_locked, path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _locked(path: str, holder: str) -> str:
    return f"{path}: {holder} reads it; stop that, or record from another instance"


class Spliced(NamedTuple):
    """The result of a splice."""

    used_bytes: int
    why: Nothing = Nothing.YET
    """Why there are no bytes, if there are none."""
    drained: bool = False
    """Whether the ring had fewer full sub-buffers than there was room for."""
    broke_off: TakeBrokeOffError | None = None
    """An error after these bytes; the sub-buffers in them are complete."""


class RawFile:
    """A ``trace_pipe_raw`` that is open and locked."""

    def __init__(self, cpu: int, fd: int, subbuffer_bytes: int, pipe: Pipe) -> None:
        """Take over *fd*; splices go through *pipe*."""
        self._cpu = cpu
        self._fd = fd
        self._subbuffer_bytes = subbuffer_bytes
        self._pipe = pipe
        # After a failed read, the rest of a sub-buffer is in the ring and must be discarded.
        self._remainder_bytes = 0

    def fileno(self) -> int:
        """Return the descriptor; -1 when closed."""
        return self._fd

    def splice(self, buffer: memoryview, *, once: bool) -> Spliced:
        """Fill *buffer* with full sub-buffers, as far as there are any.

        *once*: call splice only once.

        Raises:
            TakeBrokeOffError: the first sub-buffers were taken but could not be read.
            SourceError: the kernel returned an unexpected error.
        """
        pipe, used = self._pipe, 0
        limit = len(buffer) // self._subbuffer_bytes * self._subbuffer_bytes
        moved = pipe.capacity_bytes
        try:
            # A splice that does not fill the pipe has emptied the ring.
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
        """Read one complete sub-buffer: after a short read, the kernel returns zeros for the rest.

        Return its size, 0 if the ring is empty, or why the kernel did not look.

        Raises:
            TakeBrokeOffError: the sub-buffer could not be read to its end.
            SourceError: the kernel returned an unexpected error.
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
        """Read and discard the rest of a sub-buffer after a failed read."""
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
        """Close the descriptor, which releases the lock."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _expected(self, error: OSError) -> Nothing:
        why = EXPECTED.get(error.errno or 0)
        if why is None:
            words = explained(f"CPU {self._cpu}: trace_pipe_raw", error)
            raise SourceError(str(words)) from error
        return why
