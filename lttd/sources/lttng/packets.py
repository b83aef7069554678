"""Turn copied sub-buffers into rows and gaps; a sub-buffer of lttng-modules is a CTF packet.

A packet's header counts the events that were discarded since the buffer was made, up to the end of
the packet; numbers of packets that are missing were overwritten.

Rule: that counter never falls.  lttng-modules leaves 0 in it where an interrupt's event made the
ring go on to the next sub-buffer while another event was being written: only the first of the two
knows the counter, and the second one closes the packet (lib_ring_buffer_try_reserve_slow()).  To
babeltrace such a 0 is a loss of 2^64 events; so lttd writes the total of the packet before.
Rule: a stored packet states the size that it has in the file (packet_size): without padding, that
of its content.
Rule: the session's metadata says where the fields of a packet are.
Invariant: events of the gaps so far = ``events_discarded`` of the last packet; packets of the gaps
so far + packets taken = its number + 1.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.base import I64, U64
from lttd.abi.ctf import PacketField, PacketHeaders, PacketLayout, headers_at, packed_heads
from lttd.sources.lttng.ring import Taken
from lttd.sources.rows import RowBook
from lttd.subbuffer import ROW_DTYPE, Gap, Reason, Rows, Unit

NEEDED: Final = frozenset(
    {"timestamp_begin", "timestamp_end", "content_size", "packet_size", "packet_seq_num"}
    | {"events_discarded"}
)
"""The fields without which packets can be neither packed nor counted; 2.8 and later have them."""


class PacketBook:
    """Completes the rows of one stream, and counts what its headers say was lost."""

    def __init__(self, layout: PacketLayout, stream_id: int) -> None:
        """*layout* has the fields that are NEEDED."""
        self._layout = layout
        self._stream_id = stream_id
        self._rows = RowBook()
        self._next = 0
        """The number of the packet that is expected."""
        self.discarded = 0
        """Events, by the last header."""
        self.overwritten = 0
        """Packets that the ring overwrote before they were taken."""
        self.unwanted = 0
        """Packets that it overwrote while nobody wanted them."""

    @property
    def begin(self) -> int:
        """The begin of the last packet."""
        return self._rows.begin

    @property
    def end(self) -> int:
        """The end of the last packet."""
        return self._rows.end

    def enter(
        self, buffer: memoryview, takens: Sequence[Taken], *, after_pause: bool = False
    ) -> tuple[Rows, tuple[Gap, ...]]:
        """Return rows for packets that lie one after the other, and the losses between them.

        *after_pause*: nobody wanted what the ring overwrote before the first one.
        """
        used = np.array([taken.used_bytes for taken in takens], np.int64)
        offsets = np.cumsum(used) - used
        headers = self._headers(buffer, offsets)
        rows = np.zeros(len(takens), ROW_DTYPE)
        rows["offset_bytes"] = offsets
        rows["payload_bytes"] = used
        rows["kernel_bytes"] = [taken.padded_bytes for taken in takens]
        rows["content_bits"] = headers.content_bits
        rows["begin"], rows["end"] = headers.begin, headers.end
        before = self._rows.end
        self._rows.number(rows)
        totals = self._correct(buffer, offsets, headers.discarded)
        gaps = self._lost(rows, headers, totals, before, after_pause=after_pause)
        self._rows.count(rows, gaps)
        rows["sequence"] = headers.sequence  # a tracer's packet keeps its number
        return rows, gaps

    def is_news(self, packet: memoryview) -> bool:
        """Tell whether a packet has events, or reports losses that no other one did."""
        header = self._headers(packet, np.zeros(1, np.int64))
        return (
            int(header.content_bits[0]) > self._layout.header_bytes * 8
            or int(header.discarded[0]) > self.discarded
            or int(header.sequence[0]) != self._next
        )

    def sizes_in(self, packet: memoryview) -> tuple[int, int]:
        """Return content and packet size in bits, as a packet states them."""
        header = self._headers(packet, np.zeros(1, np.int64))
        return int(header.content_bits[0]), int(header.packet_bits[0])

    def resized(
        self, buffer: memoryview, rows: Rows, slot_bytes: int
    ) -> npt.NDArray[np.uint8] | None:
        """Return new first bytes for each packet, which state its size without padding.

        In *buffer* each packet then states *slot_bytes*: a sparse file has one in each slot.
        """
        offsets = rows["offset_bytes"].astype(np.int64)
        payload_bytes = rows["payload_bytes"].astype(np.int64)
        heads = packed_heads(buffer, offsets, payload_bytes, self._layout)
        slots = np.full(len(rows), slot_bytes * 8, np.uint64)
        _write(buffer, offsets, self._layout.fields["packet_size"], slots)
        return heads

    def _headers(self, buffer: memoryview, offsets: I64) -> PacketHeaders:
        return headers_at(buffer, offsets, self._layout, self._stream_id)

    def _correct(self, buffer: memoryview, offsets: I64, discarded: U64) -> I64:
        """Return the totals of discarded events, and write those that are missing."""
        totals = np.maximum.accumulate(np.maximum(discarded.astype(np.int64), self.discarded))
        wrong = totals != discarded.astype(np.int64)
        if wrong.any():
            field = self._layout.fields["events_discarded"]
            _write(buffer, offsets[wrong], field, totals[wrong].astype(np.uint64))
        return totals

    def _lost(
        self, rows: Rows, headers: PacketHeaders, totals: I64, before: int, *, after_pause: bool
    ) -> tuple[Gap, ...]:
        numbers = headers.sequence.astype(np.int64)
        missing = np.diff(numbers, prepend=self._next - 1) - 1
        discarded = np.diff(totals, prepend=self.discarded)
        self._next, self.discarded = int(numbers[-1]) + 1, int(totals[-1])
        self.overwritten += int(missing[after_pause:].sum())
        self.unwanted += int(missing[:after_pause].sum())
        ends = [before or int(rows["begin"][0]), *rows["end"].tolist()]
        begins = rows["begin"].tolist()
        gaps = [
            Gap(
                row,
                Reason.UNWANTED if after_pause and not row else Reason.OVERWRITTEN,
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


def _write(buffer: memoryview, offsets: I64, field: PacketField, values: U64) -> None:
    """Write a field of the packets at *offsets*."""
    where = offsets[:, None] + np.arange(field.at_bytes, field.behind_bytes)
    np.frombuffer(buffer, np.uint8)[where] = (
        values.astype(field.dtype).view(np.uint8).reshape(where.shape)
    )
