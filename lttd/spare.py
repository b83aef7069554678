"""Take memory by way of trial, or to have it later: limits refuse it here, and not half-way."""

import mmap
from typing import Final

IN_USE: Final = mmap.PROT_READ | mmap.PROT_WRITE
ADDRESSES_ALONE: Final = 0
"""Memory without any access counts as address space alone."""


def reserve(size_bytes: int, access: int = IN_USE) -> mmap.mmap:
    """Map memory that nothing uses; close() returns it.

    Raises:
        OSError: this process's limits do not have it.
    """
    return mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, access)
