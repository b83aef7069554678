"""Plain counters of what happened to every byte, and frozen snapshots of them.

Rule: each field has one writing thread; nobody locks.
Invariant: delivered = stored + padding + refused + what is still in the backlog.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lttd.subbuffer import KERNEL_EVENT_REASONS, Batch, Gap, Reason, StreamId, Unit


@dataclass(slots=True)
class StreamStats:
    """What happened in one stream since lttd took it over."""

    stream: StreamId
    # by the reading thread
    subbuffers: int = 0
    delivered_bytes: int = 0
    padding_bytes: int = 0
    events_lost: Counter[Reason] = field(default_factory=Counter)
    subbuffers_lost: Counter[Reason] = field(default_factory=Counter)
    bytes_lost: Counter[Reason] = field(default_factory=Counter)
    gaps_unknown: int = 0
    last_taken_ns: int = 0
    # by its writer thread
    stored_bytes: int = 0
    stored_subbuffers: int = 0
    refused_bytes: int = 0
    refused_subbuffers: int = 0

    def took(self, batch: Batch) -> None:
        """Count what the kernel delivered, and what it said was lost."""
        kernel_bytes = batch.kernel_bytes
        self.subbuffers += len(batch.rows)
        self.delivered_bytes += kernel_bytes
        self.padding_bytes += kernel_bytes - batch.stored_bytes
        self.last_taken_ns = batch.taken_ns
        for gap in batch.gaps:
            self.lost(gap)

    def lost(self, gap: Gap) -> None:
        """Count one known loss."""
        if gap.count is None:
            self.gaps_unknown += 1
            return
        by_unit = {
            Unit.EVENTS: self.events_lost,
            Unit.SUBBUFFERS: self.subbuffers_lost,
            Unit.BYTES: self.bytes_lost,
        }
        by_unit[gap.unit][gap.reason] += gap.count
        if gap.reason is Reason.DAMAGED and gap.unit is Unit.BYTES:
            self.delivered_bytes += gap.count
            self.refused_bytes += gap.count

    def stored(self, batch: Batch) -> None:
        """Count what reached the file."""
        self.stored_subbuffers += len(batch.rows)
        self.stored_bytes += batch.stored_bytes

    def refused(self, batch: Batch) -> None:
        """Count what was taken and never written: its content; its padding stays padding."""
        self.refused_subbuffers += len(batch.rows)
        self.refused_bytes += batch.stored_bytes


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """One line of the summary: what the table, the JSON and ``lttv info`` all tell."""

    name: str
    cpu: int
    subbuffers: int
    payload_bytes: int
    """Headers and content: what a packed data file holds."""
    padding_bytes: int
    events_lost: int
    lost: dict[str, int]
    """By reason, in its own unit: ``overwritten``, ``torn_bytes``, ``backlog_subbuffers``."""
    gaps_unknown: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return one element of the JSON summary's streams."""
        return {slot: getattr(self, slot) for slot in self.__slots__}


def lost_key(reason: Reason, unit: Unit) -> str:
    """Name a loss in a summary: the unit is told unless it is events."""
    return reason.name.lower() + ("" if unit is Unit.EVENTS else f"_{unit.name.lower()}")


def summarize(stats: StreamStats) -> StreamSummary:
    """Freeze the counters of one stream as the summary tells them."""
    lost: dict[str, int] = {}
    for unit, counter in (
        (Unit.EVENTS, stats.events_lost),
        (Unit.SUBBUFFERS, stats.subbuffers_lost),
        (Unit.BYTES, stats.bytes_lost),
    ):
        lost |= {lost_key(reason, unit): count for reason, count in counter.items() if count}
    return StreamSummary(
        name=stats.stream.name,
        cpu=stats.stream.cpu,
        subbuffers=stats.stored_subbuffers,
        payload_bytes=stats.stored_bytes,
        padding_bytes=stats.padding_bytes,
        events_lost=events_lost(stats.events_lost),
        lost=lost,
        gaps_unknown=stats.gaps_unknown,
    )


def events_lost(counter: Counter[Reason]) -> int:
    """Sum the losses that the kernel gave in events."""
    return sum(count for reason, count in counter.items() if reason in KERNEL_EVENT_REASONS)


def summary_json(streams: Iterable[StreamSummary]) -> dict[str, Any]:
    """Return the design's one JSON object."""
    rows = list(streams)
    return {
        "events_lost": sum(row.events_lost for row in rows),
        "subbuffers": sum(row.subbuffers for row in rows),
        "payload_bytes": sum(row.payload_bytes for row in rows),
        "padding_bytes": sum(row.padding_bytes for row in rows),
        "streams": [row.to_json() for row in rows],
    }
