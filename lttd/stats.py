"""Plain counters of what happened to every byte, and frozen snapshots of them.

Rule: each field has one writing thread; nobody locks.
Invariant: delivered = stored + padding + refused + what is still in the backlog.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from lttd.health import Trouble
from lttd.subbuffer import KERNEL_EVENT_REASONS, Batch, Gap, Reason, Rows, StreamId, Unit
from lttd.terminal import printable

StreamKey = tuple[str, StreamId]
"""Source and stream."""


def _unwritten() -> Counter[Reason]:
    # No key is added later: other threads go through it meanwhile.
    return Counter({Reason.BACKLOG: 0, Reason.STORAGE: 0})


def _all(lost: Counter[Reason], unwritten: Counter[Reason], removed: int) -> Counter[Reason]:
    # Of many streams most have lost nothing: a scrape is not to add for them.
    if not removed and not unwritten.total():
        return lost
    return lost + unwritten + Counter({Reason.REMOVED: removed})


@dataclass(slots=True)
class StreamStats:
    """What happened in one stream since lttd took it over."""

    stream: StreamId
    source: str = ""
    """Whose it is: kind and target, as ``ltt:/sys/kernel/debug/ltt/x``; two may have equal ids."""
    # by the reading thread
    subbuffers: int = 0
    delivered_bytes: int = 0
    padding_bytes: int = 0
    events_lost: Counter[Reason] = field(default_factory=Counter)
    subbuffers_lost: Counter[Reason] = field(default_factory=Counter)
    bytes_lost: Counter[Reason] = field(default_factory=Counter)
    gaps_unknown: int = 0
    unplaced: Mapping[Reason, int] = field(default_factory=dict)
    """Events that the kernel counts as lost, and that no batch has told when it was last asked."""
    # by its writer thread
    stored_bytes: int = 0
    stored_subbuffers: int = 0
    unwritten_bytes: Counter[Reason] = field(default_factory=_unwritten)
    unwritten_subbuffers: Counter[Reason] = field(default_factory=_unwritten)
    unsynced: int = 0
    """Times that a sync failed: how much of what was stored is on the disk, nobody knows then."""

    removed_bytes: int = 0
    """Of what was stored: lost with a file that somebody removed, replaced or cut."""
    removed_subbuffers: int = 0

    def took(self, batch: Batch) -> None:
        """Count what the kernel delivered, and what it said was lost."""
        kernel_bytes = batch.kernel_bytes
        self.subbuffers += len(batch.rows)
        self.delivered_bytes += kernel_bytes
        self.padding_bytes += kernel_bytes - batch.payload_bytes
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
            # It stands in no row, yet the kernel delivered it.
            self.delivered_bytes += gap.count

    def stored(self, rows: Rows) -> None:
        """Count what reached the file."""
        self.stored_subbuffers += len(rows)
        self.stored_bytes += int(rows["payload_bytes"].sum())

    def unwritten(self, rows: Rows, reason: Reason) -> None:
        """Count what was taken and never written: its content; its padding stays padding."""
        self.unwritten_subbuffers[reason] += len(rows)
        self.unwritten_bytes[reason] += int(rows["payload_bytes"].sum())

    def lost_so_far(self) -> Counter[Reason]:
        """Return all events that are known to be lost, wherever in the trace they will be told."""
        return self.events_lost + Counter(self.unplaced)

    @property
    def key(self) -> StreamKey:
        """What tells it from all others of a run."""
        return self.source, self.stream

    @property
    def all_subbuffers_lost(self) -> Counter[Reason]:
        """Sub-buffers lost in the kernel, not written, or lost after that."""
        return _all(self.subbuffers_lost, self.unwritten_subbuffers, self.removed_subbuffers)

    @property
    def all_bytes_lost(self) -> Counter[Reason]:
        """The same in bytes."""
        return _all(self.bytes_lost, self.unwritten_bytes, self.removed_bytes)

    @property
    def unknown(self) -> int:
        """Losses of which nobody knows how much was lost."""
        return self.gaps_unknown + self.unsynced

    @property
    def refused_bytes(self) -> int:
        """What was delivered and is not stored: it does not parse, or was not written."""
        return self.unwritten_bytes.total() + self.bytes_lost[Reason.DAMAGED]


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
    source: str = ""
    """As StreamStats has it; the table tells it where there are several."""

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
        (Unit.SUBBUFFERS, stats.all_subbuffers_lost),
        (Unit.BYTES, stats.bytes_lost),
    ):
        lost |= {lost_key(reason, unit): count for reason, count in counter.items() if count}
    return StreamSummary(
        name=stats.stream.name,
        cpu=stats.stream.cpu,
        subbuffers=stats.stored_subbuffers - stats.removed_subbuffers,
        payload_bytes=stats.stored_bytes - stats.removed_bytes,
        padding_bytes=stats.padding_bytes,
        events_lost=events_lost(stats.events_lost),
        lost=lost,
        gaps_unknown=stats.unknown,
        source=stats.source,
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


class Fill(NamedTuple):
    """How far behind the kernel the reading of one stream was, when it was last looked at."""

    ratio: float
    """Of the ring, 0 to 1: what was written and not read yet."""
    lag_seconds: float
    """How long the oldest event that was not read yet had been waiting."""


@dataclass(frozen=True, slots=True)
class DaemonGauges:
    """Where the daemon stands at one moment: what is not counted by a stream's own counters."""

    backlog_bytes: int
    backlog_limit_bytes: int
    backlog_high_water_bytes: int
    segments: int
    """In the trace directory, open ones included."""
    turns_total: int
    last_turn_ns: int
    """CLOCK_MONOTONIC."""
    troubles: frozenset[Trouble] = frozenset()
    """What makes lttd unhealthy now."""
    write_errors: Mapping[str, int] = field(default_factory=dict)
    """By the errno's name."""
    fill: Mapping[StreamKey, Fill] = field(default_factory=dict)
    """Only of streams whose kernel tells it."""
    foreign_read_events: Mapping[StreamKey, int] = field(default_factory=dict)
    """Events that somebody else consumed; only of streams whose kernel tells it, then from 0 on."""


def summary_table(streams: Iterable[StreamSummary]) -> str:
    """Return the summary as a table for people: one line a stream, and a last one for all.

    Of several sources each line says whose it is.  Names are escaped (lttd.terminal).
    """
    rows = [("stream", "sub-buffers", "payload", "padding stripped", "lost")]
    summaries = list(streams)
    several = len({row.source for row in summaries}) > 1
    rows += [
        (
            printable(f"{row.source} {row.name}" if several else row.name),
            f"{row.subbuffers:,}",
            human_bytes(row.payload_bytes),
            human_bytes(row.padding_bytes),
            losses_text(row.lost, row.gaps_unknown),
        )
        for row in summaries
    ]
    if len(summaries) > 1:
        lost: Counter[str] = Counter()
        for row in summaries:
            lost.update(row.lost)
        rows.append(
            (
                "all",
                f"{sum(row.subbuffers for row in summaries):,}",
                human_bytes(sum(row.payload_bytes for row in summaries)),
                human_bytes(sum(row.padding_bytes for row in summaries)),
                losses_text(lost, sum(row.gaps_unknown for row in summaries)),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}"
        f"  {row[3]:>{widths[3]}}  {row[4]}"
        for row in rows
    )


def losses_text(lost: Mapping[str, int], gaps_unknown: int = 0) -> str:
    """Say what was lost: how many of what, and how; keys as lost_key() makes them."""
    parts = []
    for key, count in lost.items():
        suffix, noun = next(each for each in _NOUNS if key.endswith(each[0]))
        reason = key.removesuffix(suffix)
        parts.append(f"{counted(count, noun)} {_HOW.get(reason, reason)}")
    if gaps_unknown:
        parts.append(f"some, {counted(gaps_unknown, 'time')}")
    return ", ".join(parts) or "nothing"


_NOUNS: Final = (("_subbuffers", "sub-buffer"), ("_bytes", "byte"), ("", "event"))
_HOW: Final = {
    "commit_overrun": "overrun while being written",
    "backlog": "abandoned",
    "storage": "not written",
    "removed": "removed from the disk",
    "abandoned": "left in the ring",
    "killed": "taken and not stored by a killed lttd",
    "foreign_read": "read by another process",
}


def counted(number: int, noun: str) -> str:
    """Write ``1 event``, ``2,000 events``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def human_bytes(size_bytes: int) -> str:
    """Write a size for people: ``512 B``, ``3.4 KiB``, ``1.2 GiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
