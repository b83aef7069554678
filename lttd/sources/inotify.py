"""Report changes of files and directories.

Source: inotify(7), which the standard library lacks.
"""

import ctypes
import os
import struct
from typing import Final, NamedTuple

IN_MODIFY: Final = 0x2
IN_CLOSE_WRITE: Final = 0x8
IN_CLOSE_NOWRITE: Final = 0x10
IN_OPEN: Final = 0x20
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ONLYDIR: Final = 0x01000000

_APPEARED: Final = IN_CREATE | IN_MOVED_TO | IN_ONLYDIR
_READ_BYTES: Final = 65536
_HEAD: Final = struct.Struct("iIII")

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Heard(NamedTuple):
    """One report: the number that watch() returned (-1: reports were lost), and IN_ flags."""

    watch: int
    mask: int


class Inotify:
    """Reports changes of watched files; if the kernel refuses inotify, it reports nothing."""

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1 if the kernel refuses inotify."""
        return self._fd

    def watch(self, path: str, mask: int = _APPEARED) -> int:
        """Also report *mask* of *path*; return the watch's number, or -1.

        Without *mask*, report files that are created in the directory *path*.
        """
        if self._fd < 0:
            return -1
        number: int = _libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        return number

    def events(self) -> list[Heard]:
        """Return the reports since the last call."""
        found: list[Heard] = []
        while self._fd >= 0:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except OSError:  # EAGAIN: there are no more
                break
            at = 0
            while at < len(data):
                watch, mask, _, name_bytes = _HEAD.unpack_from(data, at)
                found.append(Heard(watch, mask))
                at += _HEAD.size + name_bytes
        return found

    def heard(self) -> bool:
        """Tell whether there were reports since the last call."""
        return bool(self.events())

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
