"""Lock, splice and read one ``per_cpu/cpuN/trace_pipe_raw``.

Rule: splice returns full sub-buffers; read also returns the one that is being written.  Both
consume the sub-buffer: if it cannot be read to its end, it is lost, and the caller is told so.
Rule: sub-buffers that the kernel has surely left are read, many in one call of readv: the kernel
copies each from the page that it takes out of the ring, and puts the same page back for the next
one.  Splice allocates a page for each, and needs a second call for the copy: 1.5 times the CPU
time for sub-buffers of 4 KiB, 2 times for those of 64 KiB.
Source: Linux kernel/trace/trace.c, tracing_buffers_splice_read() and tracing_buffers_read();
fs/read_write.c, do_loop_readv_writev().
"""

import ctypes
import errno
import os
from collections.abc import Iterable
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from lttd.errors import LockedError, SourceError
from lttd.locks import first_listed, holder_of, lock_now
from lttd.sources.base import Nothing
from lttd.sources.pipe import Pipe, TakeBrokeOffError, fill
from lttd.sources.tracefs import explained
from lttd.subbuffer import Pieces

# Errors of splice and read on trace_pipe_raw that are expected.
EXPECTED: Final[dict[int, Nothing]] = {
    errno.EAGAIN: Nothing.YET,  # there is no full sub-buffer (splice), or no event (read)
    errno.EBUSY: Nothing.YET,  # the ring is being resized
    errno.ENOMEM: Nothing.YET,  # there is no page to swap in; the kernel counts its losses
    errno.EINTR: Nothing.YET,  # a signal handler ran; the tick tries again
    errno.ENODEV: Nothing.OFFLINE,  # the CPU has no buffer now
}

_IOV_MAX: Final = 1024
# os.readv needs an object for each sub-buffer.
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.readv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
_libc.readv.restype = ctypes.c_ssize_t


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


class Taken(NamedTuple):
    """Full sub-buffers."""

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

    def take_full(self, buffer: memoryview, *, full: int, once: bool) -> Taken:
        """Fill *buffer* with full sub-buffers, as far as there are any.

        The ring has at least *full* of them.  *once*: after these, or if there are none after one
        splice, take no more.

        Raises:
            TakeBrokeOffError: the first sub-buffers were taken but could not be read.
            SourceError: the kernel returned an unexpected error.
        """
        limit = len(buffer) // self._subbuffer_bytes * self._subbuffer_bytes
        used = self._read_full(buffer, min(full, limit // self._subbuffer_bytes))
        pipe, moved = self._pipe, self._pipe.capacity_bytes
        try:
            # A splice that does not fill the pipe has emptied the ring.
            while used < limit and moved >= pipe.capacity_bytes and not (once and used):
                moved = pipe.move(self._fd, limit - used, buffer[used:])
                used += moved
        except OSError as error:
            if not used:
                return Taken(0, self._expected(error))
            moved = 0
        except TakeBrokeOffError as error:
            if not used:
                raise
            return Taken(used, broke_off=error)
        return Taken(used, drained=used < limit and moved < pipe.capacity_bytes)

    def _read_full(self, buffer: memoryview, count: int) -> int:
        """Read *count* sub-buffers that the ring has; return their bytes.

        After an error there are fewer; the next splice reports it.

        Raises:
            TakeBrokeOffError: the last sub-buffer could not be read to its end.
        """
        size, used = np.uint64(self._subbuffer_bytes), 0
        offsets = np.arange(count, dtype=np.uint64) * size
        vectors = Pieces(buffer, offsets, np.full(count, size)).iovecs()
        for at in range(0, count, _IOV_MAX):
            some = vectors[at : at + _IOV_MAX]
            got = max(_libc.readv(self._fd, some.ctypes.data, len(some)), 0)
            used += got
            if got < len(some) * self._subbuffer_bytes:
                break
        whole = -(-used // self._subbuffer_bytes) * self._subbuffer_bytes
        self._fill(buffer, whole, used)
        return whole

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
        self._fill(buffer, self._subbuffer_bytes, used)
        return self._subbuffer_bytes

    def _fill(self, buffer: memoryview, used_bytes: int, done_bytes: int) -> None:
        try:
            fill(self._fd, buffer, used_bytes, done_bytes)
        except TakeBrokeOffError as error:
            self._remainder_bytes = error.unread_bytes
            raise

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
