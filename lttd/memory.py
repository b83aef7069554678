"""Reserve the memory of a run: the backlog, one take beside it, and some for its end."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lttd.errors import UsageError
from lttd.spare import reserve
from lttd.subbuffer import TAKE_BYTES, BufferPool

_SPARE_BYTES: Final = 4 << 20


@contextmanager
def spare_memory() -> Iterator[None]:
    """Hold address space during the block, so that what follows a failure in it has memory.

    Raises:
        OSError: this process's limits do not have it.
    """
    with reserve(_SPARE_BYTES):
        yield


def pool_of(backlog_bytes: int) -> BufferPool:
    """Return the memory for a backlog of this size.

    Raises:
        UsageError: the machine, or this process's limits, do not have it.
    """
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    has = f"this machine has {memory_bytes >> 20}M of memory"
    try:
        if backlog_bytes <= memory_bytes:
            return BufferPool(backlog_bytes + TAKE_BYTES)
    except (OSError, MemoryError):
        has = "this process may not have so much memory (ulimit -v)"
    raise UsageError(f"backlog {backlog_bytes >> 20}M: {has}; ask for less")
