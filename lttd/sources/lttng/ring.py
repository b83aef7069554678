"""The buffer of one CPU of a channel: its mapping, and the ioctls that take sub-buffers.

Rule: between GET and PUT a sub-buffer is held.  lttng-modules warns and switches a channel off for
good if a reader gets a second one, puts back none, or reads the mapping of an overwriting channel
without one.  So only `_held()` gets and puts, and nothing else reads the mapping.
Rule: a held sub-buffer is copied at once: after PUT its pages belong to the writer again.

Source: lttng-modules src/lib/ringbuffer/ring_buffer_vfs.c and ring_buffer_mmap.c.
"""

import errno
import fcntl
import mmap
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from lttd.errors import SourceError, StreamLostError
from lttd.sources.base import Nothing
from lttd.sources.lttng import abi

_NOTHING: Final = {
    errno.EAGAIN: Nothing.YET,  # no sub-buffer is closed
    errno.ENODATA: Nothing.EVER,  # the session is gone, and all was taken
}
_CHECK_BYTES: Final = 4


class Taken(NamedTuple):
    """A sub-buffer that was copied and released."""

    used_bytes: int
    padded_bytes: int
    """With the padding up to a page."""
    stated_bits: tuple[int, int] | None = None
    """Of a ring's first one: content and packet size, as the kernel says them."""


class Ring:
    """The only reader of a stream's descriptor."""

    def __init__(self, fd: int, where: str) -> None:
        """Take *fd* over; *where* names the stream for people.

        Raises:
            SourceError: it cannot be mapped.
        """
        self.fd = fd
        self._where = where
        self._has_asked = False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        try:
            length_bytes = abi.ask_word(fd, abi.MAPPING_BYTES)
            self._mapping = mmap.mmap(fd, length_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ)
        except OSError as error:
            os.close(fd)
            raise SourceError(f"{where}: mmap: {os.strerror(error.errno or 0)}") from error
        self._bytes = memoryview(self._mapping)

    def take(self, buffer: memoryview) -> Taken | Nothing:
        """Copy the oldest closed sub-buffer without its padding into *buffer*, and release it.

        Raises:
            SourceError: the sub-buffer cannot be asked for.
            StreamLostError: the kernel has switched the channel off.
        """
        with self._held() as nothing:
            if nothing is not None:
                return nothing
            used_bytes = self._ask(abi.SUBBUFFER_BYTES)
            begin = self._ask(abi.MAPPING_OFFSET)
            if used_bytes > len(buffer):
                raise SourceError(f"{self._where}: a sub-buffer of {used_bytes} bytes is too large")
            buffer[:used_bytes] = self._bytes[begin : begin + used_bytes]
            return Taken(used_bytes, self._ask(abi.PADDED_BYTES), self._stated())

    def _stated(self) -> tuple[int, int] | None:
        """Ask for the sizes in the header of the sub-buffer that is held, if it is the first."""
        if self._has_asked:
            return None
        self._has_asked = True
        content, packet = (
            self._ask(request, abi.ask_u64) for request in (abi.CONTENT_BITS, abi.PACKET_BITS)
        )
        return content, packet

    def flush(self, *, also_empty: bool = False) -> None:
        """Let the kernel close the sub-buffer that it writes, if it has events or *also_empty*.

        Raises:
            SourceError: the kernel refuses.
        """
        try:
            abi.call(self.fd, abi.FLUSH_EMPTY if also_empty else abi.FLUSH)
        except OSError as error:
            if not also_empty or error.errno != errno.ENOTTY:  # modules before 2.10
                raise self._failed(error, "FLUSH") from error

    def now(self) -> int:
        """Read the trace clock."""
        return self._ask(abi.NOW, abi.ask_u64)

    def is_readable(self) -> bool:
        """Tell whether a sub-buffer is closed, or the stream is over."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Remove the mapping, and close the descriptor."""
        if self.fd >= 0:
            self._bytes.release()
            self._mapping.close()
            fd, self.fd = self.fd, -1
            with suppress(OSError):  # it is closed even after an error
                os.close(fd)

    @contextmanager
    def _held(self) -> Iterator[Nothing | None]:
        """Hold the oldest closed sub-buffer; yield why there is none, if so."""
        nothing = self._get()
        if nothing is not None:
            yield nothing
            return
        try:
            yield None
        finally:
            try:
                abi.call(self.fd, abi.PUT_NEXT)
            except OSError as error:
                raise StreamLostError(str(self._failed(error, "PUT_NEXT_SUBBUF"))) from error

    def _get(self) -> Nothing | None:
        try:
            self._request_next()
        except OSError as error:
            if error.errno in _NOTHING:
                return _NOTHING[error.errno]
            raise self._failed(error, "GET_NEXT_SUBBUF") from error
        return None

    def _request_next(self) -> None:
        abi.call(self.fd, abi.GET_NEXT)

    def _ask(self, request: int, ask: abi.Ask = abi.ask_word) -> int:
        try:
            return ask(self.fd, request)
        except OSError as error:
            raise self._failed(error, f"ioctl {request & 0xFF:#x}") from error

    def _failed(self, error: OSError, doing: str) -> SourceError:
        what = f"{self._where}: {doing}: {os.strerror(error.errno or 0)}"
        if error.errno == errno.EIO:
            return StreamLostError(f"{what}; the kernel has switched the channel off: see dmesg")
        if error.errno == errno.EBUSY:
            return StreamLostError(f"{what}; another process reads this stream, too")
        return SourceError(what)


class MetadataRing(Ring):
    """The stream of a session's metadata."""

    says_coherent = True
    _coherent: bool | None = None

    def take_packet(self) -> tuple[bytes, bool | None] | Nothing:
        """Return the oldest packet, and whether the metadata can be parsed up to its end.

        None: these modules (before 2.13) do not say so.

        Raises:
            SourceError: it cannot be read.
        """
        with self._held() as nothing:
            if nothing is not None:
                return nothing
            begin, used_bytes = self._ask(abi.MAPPING_OFFSET), self._ask(abi.SUBBUFFER_BYTES)
            return bytes(self._bytes[begin : begin + used_bytes]), self._coherent

    def _request_next(self) -> None:
        if self.says_coherent:
            answer = bytearray(_CHECK_BYTES)
            try:
                fcntl.ioctl(self.fd, abi.GET_NEXT_METADATA, answer)
            except OSError as error:
                if error.errno != errno.ENOTTY:
                    raise
                self.says_coherent = False
            else:
                self._coherent = any(answer)
                return
        super()._request_next()
