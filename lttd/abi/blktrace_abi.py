"""Block traces on disk: records from end to end, which index entries group to sub-buffers.

So only the index states sizes of sub-buffers; a rebuilt index may group the records otherwise.
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi import blktrace
from lttd.abi.base import I64, U64, Buffer, Damage, Decoded, Headers
from lttd.limits import BLKTRACE_PACKET
from lttd.subbuffer import StreamInfo

_WALK_BYTES: Final = 16 << 20


def _adjoining_records(data: Buffer, at: int, layout: blktrace.Layout) -> tuple[I64, I64]:
    """Return offsets and sizes of the records from *at* on, until one is not whole.

    Read in steps, because a hole of a terabyte may follow.
    """
    found: list[blktrace.Walked] = []
    while at < len(data):
        end = min(at + _WALK_BYTES, len(data))
        walked = blktrace.walk(data, at, end, layout)
        cut = walked.damage[0].offset_bytes if walked.damage else end
        whole = int(np.searchsorted(walked.offset_bytes, cut))
        found.append(blktrace.Walked(walked.offset_bytes[:whole], walked.size_bytes[:whole], []))
        if cut == at or (end - cut) > blktrace.MOST_RECORD_BYTES:
            break  # otherwise the end of the step has cut a record
        at = cut
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    offsets = np.concatenate([each.offset_bytes for each in found])
    return offsets, np.concatenate([each.size_bytes for each in found])


class BlktraceAbi:
    """See ``lttd.abi.base.Abi``."""

    states_ends = True
    needs_context = False

    def __init__(self, info: StreamInfo, byteorder: str) -> None:
        pass

    def headers(self, data: Buffer, entries: npt.NDArray[np.void]) -> Headers:
        """Return the sub-buffers of the entries; sizes are 0 if no record begins there."""
        offset = entries["offset_bytes"].astype(np.int64)
        size = (entries["packet_bits"] >> np.uint64(3)).astype(np.int64)
        there = (offset >= 0) & (size > 0) & (size <= min(len(data), BLKTRACE_PACKET.most))
        there &= offset <= len(data) - size
        for row in np.flatnonzero(there).tolist():
            there[row] = blktrace.layout_of(data, int(offset[row])) is not None
        begin = entries["begin"].astype(np.uint64)
        return Headers(offset, np.where(there, size, 0), size, begin)

    def walk(self, data: Buffer, start_bytes: int, slot_bytes: int = 0) -> Headers:
        """Follow the records until one is not whole; *slot_bytes* is 0: they vary in size."""
        layout = blktrace.layout_of(data, start_bytes)
        if layout is None:
            nothing = np.empty(0, np.int64)
            return Headers(nothing, nothing, nothing, nothing.astype(np.uint64))
        offsets, sizes = _adjoining_records(data, start_bytes, layout)
        walked = blktrace.Walked(offsets, sizes, [])
        records = blktrace.records_at(data, walked.offset_bytes, layout)
        time = np.maximum.accumulate(records["time"].astype(np.uint64))
        rows = blktrace.rows_of(walked, time, blktrace.ROW_BYTES)
        size = rows["payload_bytes"].astype(np.int64)
        return Headers(rows["offset_bytes"].astype(np.int64), size, size, rows["begin"])

    def ends(self, data: Buffer, headers: Headers) -> U64:
        """Return the time of the latest record of each sub-buffer."""
        return self.decode(data, headers).end

    def numbers(self, data: Buffer, headers: Headers) -> None:
        """Return None: records have numbers, and sub-buffers have none."""

    def decode(self, data: Buffer, headers: Headers, context: Any = None) -> Decoded:  # noqa: ANN401
        """Count the records."""
        events = np.zeros(len(headers.begin), np.int64)
        end = np.zeros(len(headers.begin), np.uint64)
        damage: list[Damage] = []
        spans = zip(headers.offset_bytes.tolist(), headers.payload_bytes.tolist(), strict=True)
        for row, (at, size) in enumerate(spans):
            layout = blktrace.layout_of(data, at)
            if layout is None:
                damage.append(Damage(row, at, "no block trace record begins here"))
                continue
            walked = blktrace.walk(data, at, at + size, layout)
            damage += [Damage(row, one.offset_bytes, one.reason) for one in walked.damage]
            records = blktrace.records_at(data, walked.offset_bytes, layout)
            events[row] = len(records)
            end[row] = records["time"].max() if len(records) else 0
        return Decoded(events, end, damage)

    def event_ids(self, data: Buffer, headers: Headers) -> None:
        """Return None: a record has an action instead."""

    def describes_others(self, channel: str) -> bool:
        """Return False: each record describes itself."""
        return False


ABI: Final = BlktraceAbi
