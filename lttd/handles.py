"""Identify a directory for good, by a file handle.

An inode's number is used again once the file is removed.  A handle also has the inode's generation,
so it shows whether the file still exists, under any name and in any mount namespace.

Source: name_to_handle_at(2).  Making a handle needs no privilege, opening it CAP_DAC_READ_SEARCH.
"""

import ctypes
import errno
import os
import struct
from typing import Final

from lttd.openat import close_fd

_MOST_BYTES: Final = 128  # MAX_HANDLE_SZ
_HEAD: Final = struct.Struct("=Ii")  # bytes that follow, type
_AT_EMPTY_PATH: Final = 0x1000
_libc: Final = ctypes.CDLL(None, use_errno=True)


def handle_of(fd: int) -> str:
    """Return the handle of an open file; empty if its file system has no handles."""
    handle = ctypes.create_string_buffer(_HEAD.pack(_MOST_BYTES, 0), _HEAD.size + _MOST_BYTES)
    mount = ctypes.c_int()
    make = getattr(_libc, "name_to_handle_at", None)
    if make is None or make(fd, b"", handle, ctypes.byref(mount), _AT_EMPTY_PATH):
        return ""
    length_bytes, handle_type = _HEAD.unpack_from(handle.raw)
    return f"{handle_type}:{handle.raw[_HEAD.size : _HEAD.size + length_bytes].hex()}"


def is_there(handle: str, path: str) -> bool | None:
    """Tell whether the file of *handle* still exists; *path* is on its file system.

    Return None if this user may not ask.
    """
    ask = getattr(_libc, "open_by_handle_at", None)
    handle_type, _, words = handle.partition(":")
    try:
        data = bytes.fromhex(words)
        packed = _HEAD.pack(len(data), int(handle_type)) + data
        on = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (ValueError, struct.error, OSError):
        return None
    try:
        if ask is None or len(data) > _MOST_BYTES:
            return None
        fd = ask(on, packed, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if fd < 0:
            return False if ctypes.get_errno() == errno.ESTALE else None
        try:
            return os.fstat(fd).st_nlink > 0
        finally:
            close_fd(fd)
    finally:
        close_fd(on)
