"""Records of the block layer's trace: ``struct blk_io_trace`` (version 7) and its successor (8).

Records follow each other without a gap; each carries ``pdu_len`` bytes of its own data after it.
Neither a sub-buffer nor a file has a header.

Source of the layout: Linux include/uapi/linux/blktrace_api.h; kernel/trace/blktrace.c.

Rule: pure; the first magic states byte order and version.
Invariant: every step of a walk advances, so it ends whatever the bytes are.
"""

import struct
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.gather import gather
from lttd.subbuffer import NO_ROWS, ROW_DTYPE, Rows

Buffer = bytes | bytearray | memoryview
I64 = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

NAME: Final = "blktrace"
"""The name of this ABI, and of the framing of channels that hold its records."""
MAGIC: Final = 0x65617400
"""The magic of every record; its lowest byte is the version."""
RECORD_BYTES: Final = {7: 48, 8: 64}
ROW_BYTES: Final = 64 << 10
"""The size of a sub-buffer, hence the resolution of a window; an index entry takes 72 bytes."""
# A record and its longest pdu, whose length is a u16.
MOST_RECORD_BYTES: Final = 64 + (1 << 16) - 1
COMM_BYTES: Final = 16
"""The length of the name in a note that names a process."""

ACT_MASK: Final = 0xFF
ACT_CGROUP: Final = 1 << 8
"""A cgroup's id precedes the pdu (8 bytes)."""
CGROUP_BYTES: Final = 8
CATEGORY_SHIFT: Final = 16

CATEGORIES: Final = (
    "read", "write", "flush", "sync", "queue", "requeue", "issue", "complete", "fs", "pc",
    "notify", "ahead", "meta", "discard", "drv_data", "fua",
)  # fmt: skip
"""The name of each bit, as in ``blktrace -a``; enum blktrace_cat."""
NOTIFY: Final = 1 << CATEGORY_SHIFT + CATEGORIES.index("notify")

ACTIONS: Final = {
    1: "queue", 2: "backmerge", 3: "frontmerge", 4: "getrq", 5: "sleeprq", 6: "requeue",
    7: "issue", 8: "complete", 9: "plug", 10: "unplug_io", 11: "unplug_timer", 12: "insert",
    13: "split", 14: "bounce", 15: "remap", 16: "abort", 17: "drv_data",
}  # fmt: skip
"""enum blktrace_act."""
NOTES: Final = {0: "note_process", 1: "note_timestamp", 2: "note_message"}
"""enum blktrace_notify."""


def record_dtype(version: int, byteorder: str) -> np.dtype[np.void]:
    """Return the dtype of a record without its pdu; *byteorder* is ``<``, ``>`` or ``=``."""
    e = byteorder
    head = [("magic", f"{e}u4"), ("sequence", f"{e}u4"), ("time", f"{e}u8"), ("sector", f"{e}u8")]
    if version == 7:
        return np.dtype(
            [
                *head, ("bytes", f"{e}u4"), ("action", f"{e}u4"), ("pid", f"{e}u4"),
                ("device", f"{e}u4"), ("cpu", f"{e}u4"), ("error", f"{e}u2"),
                ("pdu_len", f"{e}u2"),
            ]
        )  # fmt: skip
    return np.dtype(
        [
            *head, ("bytes", f"{e}u4"), ("pid", f"{e}u4"), ("action", f"{e}u8"),
            ("device", f"{e}u4"), ("cpu", f"{e}u4"), ("error", f"{e}u2"), ("pdu_len", f"{e}u2"),
            ("pad", "V12"),
        ]
    )  # fmt: skip


class Layout(NamedTuple):
    """The layout of all records of a stream."""

    version: int
    byteorder: str
    """``<`` or ``>``."""

    @property
    def record_bytes(self) -> int:
        """The size of a record without its pdu."""
        return RECORD_BYTES[self.version]

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The dtype of a record without its pdu."""
        return record_dtype(self.version, self.byteorder)

    @property
    def magic(self) -> bytes:
        """The first four bytes of each record."""
        return struct.pack(f"{self.byteorder}I", MAGIC | self.version)


def layout_of(data: Buffer, at: int = 0) -> Layout | None:
    """Return the layout of the record at *at*; None if there is no record."""
    magic = bytes(data[at : at + 4])
    for version in RECORD_BYTES:
        for byteorder in "<>":
            if magic == (layout := Layout(version, byteorder)).magic:
                return layout
    return None


class BadBytes(NamedTuple):
    """Bytes that are not records, and the reason."""

    offset_bytes: int
    size_bytes: int
    reason: str


class Walked(NamedTuple):
    """The records of some bytes."""

    offset_bytes: I64
    size_bytes: I64
    """The size of each record with its pdu."""
    damage: list[BadBytes]


def walk(data: Buffer, begin: int, end: int, layout: Layout) -> Walked:
    """Find the records in ``data[begin:end]``; bytes between them are damage."""
    head = layout.record_bytes
    for step in (8, 1):  # nearly all pdus have 8 or 16 bytes; messages have any length
        offsets = _magics(data, begin, end, layout, step)
        sizes = head + _pdu_bytes(data, offsets, layout)
        ends = offsets + sizes
        if (
            len(offsets)
            and offsets[0] == begin
            and ends[-1] == end
            and (ends[:-1] == offsets[1:]).all()
        ):
            return Walked(offsets, sizes, [])
    chased, damage = _chase(data, begin, end, layout)
    offsets = np.array(chased, np.int64)
    return Walked(offsets, head + _pdu_bytes(data, offsets, layout), damage)


def records_at(data: Buffer, offsets_bytes: I64, layout: Layout) -> Records:
    """Return the records at *offsets_bytes*, which must lie within *data*, as columns."""
    return gather(data, offsets_bytes, layout.dtype)


def pdu_of(data: Buffer, at: int, size_bytes: int, action: int, layout: Layout) -> bytes:
    """Return the pdu of one record, without a cgroup's id."""
    skip = CGROUP_BYTES if action & ACT_CGROUP else 0
    return bytes(data[at + layout.record_bytes + skip : at + size_bytes])


def notes(data: Buffer, walked: Walked, layout: Layout) -> I64:
    """Return the numbers of the records that name a process or state the wall-clock time."""
    action = records_at(data, walked.offset_bytes, layout)["action"]
    return np.flatnonzero((action & NOTIFY != 0) & (action & ACT_MASK < 2))


def _magics(data: Buffer, begin: int, end: int, layout: Layout, step: int) -> I64:
    """Return the offsets, multiples of *step*, at which a record may begin."""
    count = (end - begin - layout.record_bytes) // step + 1
    if count <= 0:
        return np.empty(0, np.int64)
    words = np.ndarray((count,), "V4", data, begin, (step,))
    return begin + step * np.flatnonzero(words == np.void(layout.magic))


def _pdu_bytes(data: Buffer, offsets: I64, layout: Layout) -> I64:
    place = layout.dtype.fields["pdu_len"][1]  # type: ignore[index]
    return gather(data, offsets + place, f"{layout.byteorder}u2").astype(np.int64)


def _chase(data: Buffer, begin: int, end: int, layout: Layout) -> tuple[list[int], list[BadBytes]]:
    """Go from record to record; skip bytes that are not a record to the next magic."""
    head = layout.record_bytes
    place = layout.dtype.fields["pdu_len"][1]  # type: ignore[index]
    length = struct.Struct(f"{layout.byteorder}H")
    magics = _magics(data, begin, end, layout, 1)
    places = [*magics.tolist(), end]
    known = set(places)
    found: list[int] = []
    damage: list[BadBytes] = []
    at = begin
    for place_at, after in pairwise(places):
        if place_at < at:
            continue  # inside the record before
        behind = place_at + head + length.unpack_from(data, place_at + place)[0]
        if behind > end or (behind > after and behind not in known):
            continue  # cut short: another record begins inside of it
        if place_at > at:
            damage.append(BadBytes(at, place_at - at, "no whole record begins here"))
        found.append(place_at)
        at = behind
    if at < end:
        damage.append(BadBytes(at, end - at, "no whole record begins here"))
    return found, damage


def rows_of(walked: Walked, time: npt.NDArray[np.uint64], row_bytes: int) -> Rows:
    """Cut records into rows of at most *row_bytes* (but at least one record), never across a gap.

    *time* is the running maximum of the records' times.  Sequence and totals stay 0.
    """
    offset, size = walked.offset_bytes, walked.size_bytes
    if not len(offset):
        return NO_ROWS
    ends = offset + size
    alone = np.flatnonzero(ends[:-1] != offset[1:]) + 1
    firsts: list[int] = []
    for begin, behind in pairwise([0, *alone.tolist(), len(offset)]):
        at = begin
        while at < behind:
            firsts.append(at)
            more = int(np.searchsorted(ends[:behind], offset[at] + row_bytes, "right"))
            at = max(more, at + 1)
    lasts = [*(first - 1 for first in firsts[1:]), len(offset) - 1]
    rows = np.zeros(len(firsts), ROW_DTYPE)
    rows["offset_bytes"] = offset[firsts]
    rows["kernel_bytes"] = rows["payload_bytes"] = ends[lasts] - offset[firsts]
    rows["content_bits"] = rows["payload_bytes"] << np.uint64(3)
    rows["begin"], rows["end"] = time[firsts], time[lasts]
    return rows
