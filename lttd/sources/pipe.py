"""Move sub-buffers from the kernel into lttd's memory by splice, through a pipe."""

import fcntl
import os
from typing import Final

from lttd.errors import SourceError

_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class TakeBrokeOffError(SourceError):
    """Data that the kernel released into the pipe could not be read to its end, and is lost."""

    def __init__(self, done_bytes: int, used_bytes: int, why: str) -> None:
        super().__init__(f"a take broke off after {done_bytes} of {used_bytes} bytes: {why}")
        self.used_bytes = used_bytes
        """The lost bytes: all of the take."""
        self.unread_bytes = used_bytes - done_bytes


class Pipe:
    """The pipe between kernel and buffers; one per reading thread.

    Invariant: it is empty whenever no take() runs.
    """

    def __init__(self, wanted_bytes: int) -> None:
        self._wanted_bytes = wanted_bytes
        self._open()

    def _open(self) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        wanted = self._wanted_bytes
        # Only a privileged user may exceed /proc/sys/fs/pipe-max-size, or have many large pipes.
        while wanted > 65536:
            try:
                fcntl.fcntl(self.write_fd, fcntl.F_SETPIPE_SZ, wanted)
            except OSError:
                wanted //= 2
            else:
                break
        self.capacity_bytes = fcntl.fcntl(self.write_fd, fcntl.F_GETPIPE_SZ)

    def move(
        self, fd: int, limit_bytes: int, buffer: memoryview, offset_bytes: int | None = None
    ) -> int:
        """Move the bytes of one splice from *fd* into *buffer*; return their number.

        *offset_bytes* is the place in a file with offsets; None: the next bytes.

        Raises:
            OSError: splice returned nothing.
            TakeBrokeOffError: the spliced bytes could not be read.
        """
        try:
            moved = os.splice(fd, self.write_fd, limit_bytes, offset_bytes, flags=_FLAGS)
            if moved:
                fill(self.read_fd, buffer, moved, 0)
        except OSError:
            raise  # splice returned nothing: the pipe is still empty
        except BaseException:
            # A signal handler may raise between the two calls: discard the content of the pipe.
            self._renew()
            raise
        return moved

    def _renew(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        """Close the descriptors."""
        if self.read_fd >= 0:
            os.close(self.read_fd)
            os.close(self.write_fd)
            self.read_fd = self.write_fd = -1


def fill(fd: int, buffer: memoryview, used_bytes: int, done_bytes: int) -> None:
    """Read until *buffer* holds *used_bytes*, of which the first *done_bytes* are there already.

    Raises:
        TakeBrokeOffError: there were fewer bytes.
    """
    why = "it ended"
    while done_bytes < used_bytes:
        try:
            more = os.readv(fd, [buffer[done_bytes:used_bytes]])
        except OSError as error:
            more, why = 0, os.strerror(error.errno or 0)
        if not more:
            raise TakeBrokeOffError(done_bytes, used_bytes, why)
        done_bytes += more
