"""Sub-buffers of a data file, by where they lie: those that adjoin are read together, as a block.

Rule: what an index says is not trusted: an entry may name any bytes, and many may name the same.
Invariant: each sub-buffer is in one run, runs keep the order of the entries, and bytes that no
entry is near to are not read.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Headers
from lttd.errors import TraceDamagedError
from lttd.index import ENTRY_BYTES, INDEX_HEADER, Entries

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Of a block: its arrays take some ten times as much memory.
BLOCK_BYTES: Final = 4 << 20
ANY_BYTES: Final = 1 << 62
# Sub-buffers that are no farther apart are read in one go.
NEAR_BYTES: Final = 64 << 10

NOT_IN_DATA: Final = "the sub-buffer is not in the data file"
NO_SUBBUFFER: Final = "no sub-buffer begins here"
DIFFERS: Final = "header differs from the index"


class Wrong(NamedTuple):
    """An entry that the data contradicts."""

    path: Path
    offset_bytes: int
    reason: str
    row: int
    """Number of the entry, of those that were asked for."""
    left_out: bool = True
    """False: the sub-buffer is read as its own header says."""

    def __str__(self) -> str:
        return f"{self.path}: byte {self.offset_bytes}: {self.reason}"


def wrong_of(damage: TraceDamagedError, row: int) -> Wrong:
    """Return the damage that was found while sub-buffers from number *row* on were read."""
    return Wrong(damage.path, damage.offset_bytes, damage.reason, row)


class Compared(NamedTuple):
    """Some entries, compared with the sub-buffers that they name."""

    headers: Headers
    sound: Mask
    """True: the entry names a sub-buffer, and the sub-buffer fits into the size that it states."""
    wrong: list[Wrong]


class Block(NamedTuple):
    """Sub-buffers that were read together."""

    rows: I64
    """Numbers of their entries, of those that were asked for."""
    data: memoryview
    base: int
    """An offset in ``data``, plus this, is one in the file."""
    headers: Headers
    """Their offsets are in ``data``."""
    entries: Entries
    wrong: list[Wrong]
    """The defects of these entries, and of others before or among them."""

    @property
    def left_out(self) -> list[Wrong]:
        """Those whose sub-buffers are not in the block."""
        return [one for one in self.wrong if one.left_out]


class Run(NamedTuple):
    """Sub-buffers that adjoin, or nearly so."""

    rows: slice
    begin: int
    """In the file."""
    end: int


def bytes_of(entries: Entries) -> tuple[I64, I64]:
    """Return offsets and sizes; those beyond any file are negative."""
    offset = entries["offset_bytes"].astype(np.int64)
    return offset, (entries["packet_bits"] >> np.uint64(3)).astype(np.int64)


def content_bytes_of(entries: Entries) -> I64:
    """Return the sizes of header and content."""
    return (entries["content_bits"] >> np.uint64(3)).astype(np.int64)


def entry_at(number: int) -> int:
    """Return at which byte of an index an entry lies."""
    return len(INDEX_HEADER) + number * ENTRY_BYTES


def runs_of(offset: I64, size: I64, most_bytes: int) -> Iterator[Run]:
    """Divide sub-buffers into runs of at most *most_bytes*, or of a single one that is larger."""
    if not len(offset):
        return
    ends = offset + size
    apart = (offset[1:] < offset[:-1]) | (offset[1:] > ends[:-1] + NEAR_BYTES)
    for first, behind in pairwise([0, *(np.flatnonzero(apart) + 1).tolist(), len(offset)]):
        reach = np.maximum.accumulate(ends[first:behind])
        at = first
        while at < behind:
            begin = int(offset[at])
            fitting = first + int(np.searchsorted(reach, begin + most_bytes, "right"))
            stop = max(fitting, at + 1)
            yield Run(slice(at, stop), begin, int(reach[stop - 1 - first]))
            at = stop


def not_repeated(offset: I64, size: I64) -> Mask:
    """Tell which sub-buffers do not lie within earlier ones, where many do; else all pass.

    An index of a few MB could else name the same bytes a million times.  One wrong offset is not
    such a case: what follows it is kept.
    """
    there = size > 0
    ends = np.where(there, offset + size, 0)
    if not there.any() or int(size[there].sum()) <= 2 * int(ends.max() - offset[there].min()):
        return np.ones(len(offset), np.bool_)
    behind = np.concatenate(([0], np.maximum.accumulate(ends)[:-1]))
    return offset >= behind


def moved(headers: Headers, by_bytes: int) -> Headers:
    """Return *headers* with their offsets counted from elsewhere."""
    return headers._replace(offset_bytes=headers.offset_bytes + by_bytes)
