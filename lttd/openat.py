"""Open a file below an open directory; follow no symbolic link and no ``..`` on the way.

openat2(2) with RESOLVE_BENEATH does this in the kernel (Linux 5.6, fddb5d430ad9).  Without it, lttd
opens each component with O_NOFOLLOW.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
"""For a descriptor that names a file, and can neither read nor write it."""

_SYS_OPENAT2: Final = 437  # on every architecture that Python runs on
# include/uapi/linux/openat2.h
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_RESOLVE: Final = _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
_OPEN_HOW: Final = struct.Struct("=3Q")  # flags, mode, resolve
_syscall: Final = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = [
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_size_t,
]
_syscall.restype = ctypes.c_long
Open = Callable[[int, str, int, int], int]
"""Arguments: an open directory, a name below it, flags, the mode of a new file."""


def open_by_kernel(directory: int, name: str, flags: int, mode: int = 0) -> int:
    """Open *name* below *directory* by one openat2(2); return the descriptor."""
    encoded, how = os.fsencode(name), _OPEN_HOW.pack(flags, mode, _RESOLVE)
    while True:
        opened: int = _syscall(_SYS_OPENAT2, directory, encoded, how, len(how))
        if opened >= 0:
            return opened
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), name)


def open_by_steps(directory: int, name: str, flags: int, mode: int = 0) -> int:
    """Open *name* below *directory* component by component; return the descriptor."""
    *above, last = [part for part in name.split("/") if part not in ("", ".")] or ["."]
    if ".." in (*above, last) or name.startswith("/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
    at = directory
    try:
        for part in above:
            # O_PATH alone would open a symbolic link itself; O_DIRECTORY makes that ENOTDIR.
            below = os.open(part, LOOK | os.O_DIRECTORY, dir_fd=at)
            if at != directory:
                close_fd(at)
            at = below
        return os.open(last, flags | os.O_NOFOLLOW, mode, dir_fd=at)
    finally:
        if at != directory:
            close_fd(at)


def way_to_open() -> Open:
    """Return the function that opens; try openat2, since a sandbox may refuse it."""
    root = os.open("/", LOOK)
    try:
        close_fd(open_by_kernel(root, ".", LOOK))
    except OSError:
        return open_by_steps
    finally:
        close_fd(root)
    return open_by_kernel


def close_fd(fd: int) -> None:
    """Close a descriptor; it is closed even if close() fails."""
    with suppress(OSError):
        os.close(fd)
