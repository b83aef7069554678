"""Set up the C library's malloc.  Works with glibc only; others are left as they are.

Source: glibc malloc.h, mallopt(3).
"""

import contextlib
import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
# DEFAULT_MMAP_THRESHOLD_MAX of 64-bit systems, less what malloc and the mapping add.
_LARGEST_THRESHOLD_BYTES: Final = (32 << 20) - (64 << 10)


def keep_freed_memory() -> None:
    """Keep the freed memory of one piece's arrays for those of the next.

    Otherwise the C library maps new memory for each array, with a page fault per 4 KiB: these took
    0.73 s of 3.3 s for 5.8 million events, and 0.08 s with this.
    """
    _set((_M_MMAP_THRESHOLD, 256 << 20), (_M_TRIM_THRESHOLD, 512 << 20), (_M_TOP_PAD, 64 << 20))


def keep_some_freed_memory() -> None:
    """Keep up to 64 MiB of freed memory, as in any program that has freed a large array.

    When the C library frees a block that it mapped, it raises its thresholds to the block's size,
    up to 32 MiB, and to twice that; unless they were set.  Columns of five million events took 42
    thousand page faults without this, and 500 with it.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
        library.free(library.malloc(_LARGEST_THRESHOLD_BYTES))


def share_one_arena() -> None:
    """Let all threads allocate from one arena; call it before the first one starts.

    Otherwise each thread has its own, and what one has freed serves no other: 2 MiB more after two
    minutes of rolling.  Python's lock leaves them nothing to allocate at the same time.
    """
    _set((_M_ARENA_MAX, 1))


def _set(*options: tuple[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options:
            mallopt(option, value)
