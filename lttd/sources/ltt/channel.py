"""One channel file of LTTng 0.x: its ioctls, splice and poll.

A reader reserves the oldest closed sub-buffer (GET), splices it from offset 0 and releases it
(PUT).  Up to format 2.4, ioctl number 3 returns the fixed size of a sub-buffer.  From 2.5 on it
returns the bytes to read of the reserved one, and number 4 the largest size.  All arguments are
u32.

Rule: a reserved sub-buffer is released, whatever goes wrong meanwhile.
Invariant: no byte of a sub-buffer leaves this module before the kernel has said that it was whole.

Source: LTTng 0.x ltt/ltt-relay-vfs.c (ltt_ioctl, ltt_poll), ltt/ltt-relay-splice.c,
include/linux/ltt-relay.h; ltt-control liblttd/liblttd.c for the reader's side.
"""

import errno
import fcntl
import os
import select
import struct
from contextlib import suppress
from typing import Final, NamedTuple

from lttd.errors import LockedError, NothingToRecordError, SourceError, StreamLostError
from lttd.sources.base import Nothing
from lttd.sources.ioctls import READ, WRITE, request
from lttd.sources.pipe import Pipe
from lttd.sources.tracefs import explained

READABLE: Final = select.POLLIN
URGENT: Final = select.POLLPRI
"""Every sub-buffer is full; the kernel reports this *instead of* READABLE."""
OVER: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL
"""The trace was destroyed and all of it read."""
NAME_IT: Final = "name the directory of one trace: DEBUGFS/ltt/NAME"
COOKIES: Final = 1 << 32
"""Cookies are positions modulo this."""

_U32: Final = struct.Struct("=I")
_TYPE: Final = 0xF5


def _request(direction: int, number: int) -> int:
    return request(direction, _TYPE, number, _U32.size)


GET: Final = _request(READ, 0)
PUT: Final = _request(WRITE, 1)
COUNT: Final = _request(READ, 2)
SIZE: Final = _request(READ, 3)
MAX_SIZE: Final = _request(READ, 4)

# Attempts after poll reported a sub-buffer in which a writer is not done yet.  It is done after the
# time of a few calls, or something delays it for long.
LOOKS: Final = 16
# A sub-buffer must fit into memory; the tracer takes all of its buffers from the kernel's memory.
MOST_BYTES: Final = 1 << 30
_NOT_NOW: Final = frozenset({errno.EAGAIN, errno.EINTR})
_NO_CHANNEL: Final = frozenset({errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})


class Held(NamedTuple):
    """A sub-buffer that was read and released."""

    cookie: int
    """Its position in all bytes that were ever written, modulo COOKIES."""
    used_bytes: int
    """Its length; 0 if it was refused."""
    refusal: str = ""
    """Why its bytes must not be stored; empty if they are good."""


class Channel:
    """An open channel file; this process is its only reader."""

    def __init__(self, path: str) -> None:
        """Open a channel and ask for its sizes.

        Raises:
            LockedError: another process reads it.
            NothingToRecordError: it is not a channel, or this process may not read it.
            SourceError: it was removed, or reports impossible sizes.
        """
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise _unopened(path, error) from error
        try:
            self._ask_sizes()
        except BaseException:
            os.close(self.fd)
            raise
        self.holds = False
        """Whether a sub-buffer is reserved; after an error it is released and not stored."""
        self._poll = select.poll()
        self._poll.register(self.fd, READABLE | URGENT)

    def _ask_sizes(self) -> None:
        self.subbuffer_count = self._size(COUNT)
        largest = self._ask(MAX_SIZE, _NO_CHANNEL)
        self.varying = largest is not None
        """Whether the kernel delivers the used part of a sub-buffer only (2.5 and later)."""
        self.subbuffer_bytes = self._size(SIZE) if largest is None else largest
        if not self.subbuffer_count or not 0 < self.subbuffer_bytes <= MOST_BYTES:
            sizes = f"{self.subbuffer_count} sub-buffers of {self.subbuffer_bytes} bytes"
            raise SourceError(f"{self.path}: reports impossible sizes: {sizes}")

    def poll(self) -> int:
        """Return the kernel's state of the channel: READABLE or URGENT, OVER, or 0."""
        return next((found for _, found in self._poll.poll(0)), 0)

    def take(self, pipe: Pipe, buffer: memoryview) -> Held | Nothing:
        """Read the oldest sub-buffer into *buffer*, which has room for any, and release it.

        Raises:
            SourceError: the channel cannot be read now; no sub-buffer is reserved.
            StreamLostError: the reserved sub-buffer cannot be released, so the channel can never be
                read again.
        """
        cookie = self._get()
        if isinstance(cookie, Nothing):
            return cookie
        used, refusal = 0, ""
        self.holds = True
        try:
            used = self._size(SIZE) if self.varying else self.subbuffer_bytes
            if 0 < used <= self.subbuffer_bytes:
                self._read(pipe, buffer, used)
            else:
                refusal = f"a sub-buffer of {used} bytes, of {self.subbuffer_bytes} at most"
        except OSError as error:
            refusal = f"splice: {os.strerror(error.errno or 0)}"
        except SourceError as error:
            refusal = str(error)
        finally:
            pushed = not self._put(cookie)
        self.holds = False
        if pushed:
            refusal = "pushed by the writer while it was read"
        return Held(cookie, 0 if refusal else used, refusal)

    def close(self) -> None:
        """Close the descriptor: the kernel waits for that before it destroys the trace."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            with suppress(OSError):  # it is closed even after an error
                os.close(fd)

    def _get(self) -> int | Nothing:
        cookie = self._ask(GET, _NOT_NOW)
        for _ in range(LOOKS):
            if cookie is not None:
                return cookie
            said = self.poll()
            if said & OVER:
                return Nothing.EVER
            if not said:
                break
            # poll() tells that the writer is elsewhere, not that all events are committed.
            cookie = self._ask(GET, _NOT_NOW)
        return Nothing.YET if cookie is None else cookie

    def _read(self, pipe: Pipe, buffer: memoryview, used_bytes: int) -> None:
        """Read the reserved sub-buffer; one splice returns at most 16 pages."""
        done = 0
        while done < used_bytes:
            moved = pipe.move(self.fd, used_bytes - done, buffer[done:used_bytes], done)
            if not moved:
                raise OSError(errno.ENODATA, "splice returned nothing")
            done += moved

    def _put(self, cookie: int) -> bool:
        """Release the reserved sub-buffer; return False if the writer took it back meanwhile."""
        try:
            fcntl.ioctl(self.fd, PUT, _U32.pack(cookie))
        except OSError as error:
            # Kernels that give the reader a sub-buffer of its own (LTTng 0.147) never report this.
            if error.errno == errno.EIO:
                return False
            raise StreamLostError(str(_unreadable(self.path, error, "PUT"))) from error
        return True

    def _size(self, request: int) -> int:
        found = self._ask(request, frozenset())
        assert found is not None
        return found

    def _ask(self, request: int, expected: frozenset[int]) -> int | None:
        """Return the answer of an ioctl; None if it fails with one of the *expected* errors."""
        argument = bytearray(_U32.size)
        try:
            fcntl.ioctl(self.fd, request, argument)
        except OSError as error:
            if error.errno in expected:
                return None
            if request == COUNT and error.errno in _NO_CHANNEL:
                raise _no_channel(self.path) from error
            raise _unreadable(self.path, error, f"ioctl {request & 0xFF}") from error
        value: int = _U32.unpack(argument)[0]
        return value


def _no_channel(path: str) -> NothingToRecordError:
    """Return the exception to raise for a file that is not a channel of LTTng 0.x."""
    what = f"{path}: no LTTng 0.x channel (it knows none of the ioctls)"
    return NothingToRecordError(what, NAME_IT)


def _unopened(path: str, error: OSError) -> Exception:
    if error.errno == errno.EBUSY:
        return LockedError(f"{path}: has a reader, and can have only one; stop the other lttd")
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return SourceError(f"{path}: {os.strerror(error.errno)}; its trace was destroyed")
    return explained(path, error)


def _unreadable(path: str, error: OSError, doing: str) -> SourceError:
    told = {
        errno.EBUSY: "another process reads this channel, too: stop the other lttd",
        errno.EFAULT: "the kernel cannot take a sub-buffer back: its buffer is damaged",
    }
    reason = told.get(error.errno or 0, "the channel cannot be read")
    return SourceError(f"{path}: {doing}: {os.strerror(error.errno or 0)}; {reason}")
