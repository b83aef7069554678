"""Hearing that something was created in some directories.

Source: inotify(7); the standard library has no door to it.
"""

import ctypes
import os
from typing import Final

_IN_CREATE: Final = 0x100
_IN_MOVED_TO: Final = 0x80
_IN_ONLYDIR: Final = 0x01000000
_READ_BYTES: Final = 65536

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Tells whether to look again; where the kernel refuses, it always says no."""

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)

    def watch(self, directory: str) -> None:
        """Hear of this directory, too."""
        if self._fd >= 0:
            flags = _IN_CREATE | _IN_MOVED_TO | _IN_ONLYDIR
            _libc.inotify_add_watch(self._fd, os.fsencode(directory), flags)

    def heard(self) -> bool:
        """Tell whether anything was created since the last call."""
        heard = False
        while self._fd >= 0:
            try:
                os.read(self._fd, _READ_BYTES)
            except OSError:  # EAGAIN: that was all
                return heard
            heard = True
        return heard

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
