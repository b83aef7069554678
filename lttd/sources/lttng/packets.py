"""Turn copied sub-buffers into rows and gaps; a sub-buffer of lttng-modules is a CTF packet.

A packet's header counts the events that were discarded since the buffer was made, up to the end of
the packet; numbers of packets that are missing were overwritten.

Rule: that counter never falls.  lttng-modules leaves 0 in it where an interrupt's event made the
ring go on to the next sub-buffer while another event was being written: only the first of the two
knows the counter, and the second one closes the packet (lib_ring_buffer_try_reserve_slow()).  To
babeltrace such a 0 is a loss of 2^64 events; so lttd writes the total of the packet before.
Rule: a stored packet states the size that it has in the file (packet_size): without padding, that
of its content.
Invariant: events of the gaps so far = ``events_discarded`` of the last packet; packets of the gaps
so far + packets taken = its number + 1.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf import PacketLayout
from lttd.sources.lttng.ring import Taken
from lttd.sources.rows import RowBook
from lttd.subbuffer import ROW_DTYPE, Gap, Reason, Rows, Unit

HEADER_DTYPE: Final = np.dtype(
    [
        ("magic", "=u4"),
        ("uuid", "V16"),
        ("stream_id", "=u4"),
        ("instance", "=u8"),
        ("begin", "=u8"),
        ("end", "=u8"),
        ("content_bits", "=u8"),
        ("packet_bits", "=u8"),
        ("sequence", "=u8"),
        ("discarded", "=u8"),
        ("cpu", "=u4"),
    ]
)
_NAMES: Final = {
    "magic": "magic",
    "stream_id": "stream_id",
    "instance": "stream_instance_id",
    "begin": "timestamp_begin",
    "end": "timestamp_end",
    "content_bits": "content_size",
    "packet_bits": "packet_size",
    "sequence": "packet_seq_num",
    "discarded": "events_discarded",
    "cpu": "cpu_id",
}
LAYOUT: Final = PacketLayout.of_dtype(HEADER_DTYPE, _NAMES)
"""The same for the manifest."""
_SIZE_AT: Final = 56
"""Of packet_bits."""
_TOTAL_AT: Final = 72
"""Of discarded."""
_SIZE: Final = np.dtype("=u8")
Headers = npt.NDArray[np.void]


class PacketBook:
    """Completes the rows of one stream, and counts what its headers say was lost."""

    def __init__(self) -> None:
        self._rows = RowBook()
        self._next = 0
        """The number of the packet that is expected."""
        self.discarded = 0
        """Events, by the last header."""
        self.overwritten = 0
        """Packets that the ring overwrote before they were taken."""

    @property
    def end(self) -> int:
        """The end of the last packet."""
        return self._rows.end

    def enter(self, buffer: memoryview, takens: Sequence[Taken]) -> tuple[Rows, tuple[Gap, ...]]:
        """Return rows for packets that lie one after the other, and the losses between them."""
        used = np.array([taken.used_bytes for taken in takens], np.int64)
        offsets = np.cumsum(used) - used
        headers = _read(buffer, offsets)
        rows = np.zeros(len(takens), ROW_DTYPE)
        rows["offset_bytes"] = offsets
        rows["payload_bytes"] = used
        rows["kernel_bytes"] = [taken.padded_bytes for taken in takens]
        for name in ("content_bits", "begin", "end"):
            rows[name] = headers[name]
        before = self._rows.end
        self._rows.number(rows)
        totals = self._correct(buffer, offsets, headers["discarded"])
        gaps = self._lost(rows, headers, totals, before)
        self._rows.count(rows, gaps)
        rows["sequence"] = headers["sequence"]  # a tracer's packet keeps its number
        return rows, gaps

    def is_news(self, packet: memoryview) -> bool:
        """Tell whether a packet has events, or reports losses that no other one did."""
        header = _read(packet, np.zeros(1, np.int64))[0]
        return (
            int(header["content_bits"]) > HEADER_DTYPE.itemsize * 8
            or int(header["discarded"]) > self.discarded
            or int(header["sequence"]) != self._next
        )

    def _correct(
        self, buffer: memoryview, offsets: npt.NDArray[np.int64], discarded: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.int64]:
        """Return the totals of discarded events, and write those that are missing."""
        totals = np.maximum.accumulate(np.maximum(discarded.astype(np.int64), self.discarded))
        wrong = totals != discarded.astype(np.int64)
        if wrong.any():
            where = offsets[wrong, None] + np.arange(_TOTAL_AT, _TOTAL_AT + _SIZE.itemsize)
            right = totals[wrong].astype(_SIZE).view(np.uint8).reshape(where.shape)
            np.frombuffer(buffer, np.uint8)[where] = right
        return totals

    def _lost(
        self, rows: Rows, headers: Headers, totals: npt.NDArray[np.int64], before: int
    ) -> tuple[Gap, ...]:
        numbers = headers["sequence"].astype(np.int64)
        missing = np.diff(numbers, prepend=self._next - 1) - 1
        discarded = np.diff(totals, prepend=self.discarded)
        self._next, self.discarded = int(numbers[-1]) + 1, int(totals[-1])
        self.overwritten += int(missing.sum())
        ends = [before or int(rows["begin"][0]), *rows["end"].tolist()]
        begins = rows["begin"].tolist()
        gaps = [
            Gap(
                row,
                Reason.OVERWRITTEN,
                Unit.SUBBUFFERS,
                int(missing[row]),
                ends[row],
                max(ends[row], begins[row]),
            )
            for row in np.flatnonzero(missing > 0).tolist()
        ]
        # The ring was full between the end of the packet before and the end of this one.
        gaps += [
            Gap(
                row,
                Reason.DISCARDED,
                Unit.EVENTS,
                int(discarded[row]),
                min(ends[row], ends[row + 1]),
                ends[row + 1],
            )
            for row in np.flatnonzero(discarded > 0).tolist()
        ]
        return tuple(sorted(gaps, key=lambda gap: gap.row))


def _read(buffer: memoryview, offsets: npt.NDArray[np.int64]) -> Headers:
    """Return the headers at *offsets*."""
    data = np.frombuffer(buffer, np.uint8)
    where = offsets[:, None] + np.arange(HEADER_DTYPE.itemsize)
    found: Headers = data[where].view(HEADER_DTYPE)[:, 0]
    return found


def sizes_in(packet: memoryview) -> tuple[int, int]:
    """Return content and packet size in bits, as a packet states them."""
    header = _read(packet, np.zeros(1, np.int64))[0]
    return int(header["content_bits"]), int(header["packet_bits"])


def resized(buffer: memoryview, rows: Rows, slot_bytes: int) -> npt.NDArray[np.uint8]:
    """Return new first bytes for each packet, which state its size without padding.

    In *buffer* each packet then states *slot_bytes*: a sparse file has one in each slot.
    """
    data = np.frombuffer(buffer, np.uint8)
    offsets = rows["offset_bytes"].astype(np.int64)[:, None]
    heads: npt.NDArray[np.uint8] = data[offsets + np.arange(_SIZE_AT + _SIZE.itemsize)]
    sizes = (rows["payload_bytes"] * np.uint64(8)).astype(_SIZE)
    heads[:, _SIZE_AT:] = sizes.view(np.uint8).reshape(-1, _SIZE.itemsize)
    slot = np.array([slot_bytes * 8], _SIZE).view(np.uint8)
    data[offsets + np.arange(_SIZE_AT, heads.shape[1])] = slot
    return heads
