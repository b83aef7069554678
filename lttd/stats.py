"""Count the fate of every byte of a stream, and freeze the counters for summaries.

Rule: each field has one writing thread, so there are no locks.
Invariant: delivered = stored + padding + refused + what is still in the backlog.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from lttd.subbuffer import KERNEL_EVENT_REASONS, Batch, Gap, Reason, Rows, StreamId, Unit
from lttd.terminal import printable

StreamKey = tuple[str, StreamId]
"""Source and stream."""


def _unwritten() -> Counter[Reason]:
    # No key is added later, because other threads iterate over the counter.
    return Counter({Reason.BACKLOG: 0, Reason.STORAGE: 0, Reason.RATE: 0})


def _all(lost: Counter[Reason], unwritten: Counter[Reason], removed: int) -> Counter[Reason]:
    # Most of many streams have lost nothing: for them a scrape must not do sums.
    if not removed and not unwritten.total():
        return lost
    return lost + unwritten + Counter({Reason.REMOVED: removed})


@dataclass(slots=True)
class StreamStats:
    """The counters of one stream since lttd took it over."""

    stream: StreamId
    source: str = ""
    """Kind and target of its source, such as ``ltt:/sys/kernel/debug/ltt/x``; two streams may have
    equal ids."""
    # by the reading thread
    subbuffers: int = 0
    delivered_bytes: int = 0
    padding_bytes: int = 0
    events_lost: Counter[Reason] = field(default_factory=Counter)
    subbuffers_lost: Counter[Reason] = field(default_factory=Counter)
    bytes_lost: Counter[Reason] = field(default_factory=Counter)
    gaps_unknown: Counter[Reason] = field(default_factory=Counter)
    unwanted_events: int = 0
    """Events in holes between the windows of mode flight: no loss."""
    unplaced: Mapping[Reason, int] = field(default_factory=dict)
    """Events that the kernel counted as lost when last asked, and that no batch contains yet."""
    # by its writer thread
    stored_bytes: int = 0
    stored_subbuffers: int = 0
    unwritten_bytes: Counter[Reason] = field(default_factory=_unwritten)
    unwritten_subbuffers: Counter[Reason] = field(default_factory=_unwritten)
    unsynced: int = 0
    """The number of failed syncs, after which the disk's content is unknown."""

    removed_bytes: int = 0
    """Stored, and then lost with a file that somebody removed, replaced or cut."""
    removed_subbuffers: int = 0

    def took(self, batch: Batch) -> None:
        """Count the sub-buffers of a take, and its losses."""
        kernel_bytes = batch.kernel_bytes
        self.subbuffers += len(batch.rows)
        self.delivered_bytes += kernel_bytes
        self.padding_bytes += kernel_bytes - batch.payload_bytes
        for gap in batch.gaps:
            self.lost(gap)

    def lost(self, gap: Gap) -> None:
        """Count one known loss, or one hole that is none."""
        if gap.reason is Reason.UNWANTED:
            self.unwanted_events += _events_in(gap)
            return
        if gap.count is None:
            self.gaps_unknown[gap.reason] += 1
            return
        self._lost_in(gap.unit)[gap.reason] += gap.count
        if gap.reason is Reason.DAMAGED and gap.unit is Unit.BYTES:
            # These bytes are in no row, but the kernel delivered them.
            self.delivered_bytes += gap.count

    def _lost_in(self, unit: Unit) -> Counter[Reason]:
        if unit is Unit.EVENTS:
            return self.events_lost
        return self.subbuffers_lost if unit is Unit.SUBBUFFERS else self.bytes_lost

    def uncount(self, gap: Gap) -> None:
        """Take back the count of a loss; of a batch that was not written, its sub-buffers."""
        if gap.reason is Reason.UNWANTED:
            self.unwanted_events -= _events_in(gap)
        elif gap.count is None:
            self.gaps_unknown[gap.reason] -= gap.reason in self.gaps_unknown
        elif gap.reason in self.unwritten_subbuffers:
            self.unwritten_subbuffers[gap.reason] -= gap.count
        else:
            self._lost_in(gap.unit)[gap.reason] -= gap.count

    def stored(self, rows: Rows) -> None:
        """Count rows that are in the file."""
        self.stored_subbuffers += len(rows)
        self.stored_bytes += int(rows["payload_bytes"].sum())

    def unwritten(self, rows: Rows, reason: Reason) -> None:
        """Count rows that were taken and never written: their payload; padding stays padding."""
        self.unwritten_subbuffers[reason] += len(rows)
        self.unwritten_bytes[reason] += int(rows["payload_bytes"].sum())

    def lost_so_far(self) -> Counter[Reason]:
        """Return all known lost events by reason, those without a gap yet included."""
        return self.events_lost + Counter(self.unplaced)

    def copied(self) -> "StreamStats":
        """Return the counters of this moment."""
        return self._combined(StreamStats(self.stream, self.source), 1)

    def since(self, before: "StreamStats") -> "StreamStats":
        """Return the counts that are not in *before*, an earlier copy."""
        return self._combined(before, -1)

    def _combined(self, other: "StreamStats", sign: int) -> "StreamStats":
        made = StreamStats(self.stream, self.source)
        for name in _TOTALS:
            setattr(made, name, getattr(self, name) + sign * getattr(other, name))
        for name in _BY_REASON:
            counter = getattr(made, name)
            counter.update(getattr(self, name))
            for reason, count in getattr(other, name).items():
                counter[reason] += sign * count
        return made

    @property
    def key(self) -> StreamKey:
        """The key that is unique in a run."""
        return self.source, self.stream

    @property
    def all_subbuffers_lost(self) -> Counter[Reason]:
        """Sub-buffers that were lost in the kernel, not written, or removed from the disk."""
        return _all(self.subbuffers_lost, self.unwritten_subbuffers, self.removed_subbuffers)

    @property
    def all_bytes_lost(self) -> Counter[Reason]:
        """Bytes that were lost in the kernel, not written, or removed from the disk."""
        return _all(self.bytes_lost, self.unwritten_bytes, self.removed_bytes)

    @property
    def unknown(self) -> Counter[Reason]:
        """The number of losses of unknown size, by reason."""
        if not self.unsynced:
            return self.gaps_unknown
        return self.gaps_unknown + Counter({Reason.UNSYNCED: self.unsynced})

    @property
    def refused_bytes(self) -> int:
        """Delivered bytes that are not stored: they do not parse, or were not written."""
        return self.unwritten_bytes.total() + self.bytes_lost[Reason.DAMAGED]


_BY_REASON: Final = (
    *("events_lost", "subbuffers_lost", "bytes_lost", "gaps_unknown"),
    *("unwritten_bytes", "unwritten_subbuffers"),
)
_TOTALS: Final = (
    *("subbuffers", "delivered_bytes", "padding_bytes", "stored_bytes", "stored_subbuffers"),
    *("unsynced", "removed_bytes", "removed_subbuffers", "unwanted_events"),
)


def _events_in(gap: Gap) -> int:
    """Return the known number of events in a gap."""
    return (gap.count or 0) if gap.unit is Unit.EVENTS else 0


class StreamSummary(NamedTuple):
    """The totals of one stream, for the summary table, its JSON and ``lttv info``."""

    name: str
    cpu: int
    subbuffers: int
    payload_bytes: int
    """Headers and content: the bytes of a packed data file."""
    padding_bytes: int
    events_lost: int
    lost: dict[str, int]
    """Losses by reason and unit: ``overwritten``, ``torn_bytes``, ``backlog_subbuffers``."""
    gaps_unknown: int = 0
    unwanted_events: int = 0
    """As in StreamStats."""
    source: str = ""
    """As in StreamStats; the table names it if there are several sources."""

    def to_json(self) -> dict[str, Any]:
        """Return one element of the JSON summary's streams."""
        return {slot: getattr(self, slot) for slot in self._fields}


def lost_key(reason: Reason, unit: Unit) -> str:
    """Return the key of a loss in a summary: the reason, with the unit unless it is events."""
    return reason.name.lower() + ("" if unit is Unit.EVENTS else f"_{unit.name.lower()}")


def summarize(stats: StreamStats) -> StreamSummary:
    """Freeze the counters of one stream as a summary."""
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
        gaps_unknown=stats.unknown.total(),
        unwanted_events=stats.unwanted_events,
        source=stats.source,
    )


def events_lost(counter: Counter[Reason]) -> int:
    """Return the sum of the losses that the kernel counts in events."""
    return sum(count for reason, count in counter.items() if reason in KERNEL_EVENT_REASONS)


def summary_json(streams: Iterable[StreamSummary]) -> dict[str, Any]:
    """Return the JSON object of ``--summary json``."""
    rows = list(streams)
    return {
        "events_lost": sum(row.events_lost for row in rows),
        "subbuffers": sum(row.subbuffers for row in rows),
        "payload_bytes": sum(row.payload_bytes for row in rows),
        "padding_bytes": sum(row.padding_bytes for row in rows),
        "streams": [row.to_json() for row in rows],
    }


class Fill(NamedTuple):
    """The unread part of one ring when lttd last asked."""

    ratio: float
    """The share of the ring that is written and not read yet, 0 to 1."""
    lag_seconds: float
    """The age of the oldest unread event."""


def summary_table(streams: Iterable[StreamSummary]) -> str:
    """Return the summary as a table for people: a line per stream, and a last one for all.

    If there are several sources, each line names its source.  Names are escaped (lttd.terminal).
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
            losses_text(row.lost, row.gaps_unknown, row.unwanted_events),
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
                losses_text(
                    lost,
                    sum(row.gaps_unknown for row in summaries),
                    sum(row.unwanted_events for row in summaries),
                ),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}"
        f"  {row[3]:>{widths[3]}}  {row[4]}"
        for row in rows
    )


def losses_text(lost: Mapping[str, int], gaps_unknown: int = 0, unwanted_events: int = 0) -> str:
    """Return the losses in words: number, unit and reason; *lost* has the keys of lost_key()."""
    parts = []
    for key, count in lost.items():
        suffix, noun = next(each for each in _NOUNS if key.endswith(each[0]))
        reason = key.removesuffix(suffix)
        parts.append(f"{counted(count, noun)} {_HOW.get(reason, reason)}")
    if gaps_unknown:
        parts.append(f"some, {counted(gaps_unknown, 'time')}")
    words = ", ".join(parts) or "nothing"
    return words + (f"; {counted(unwanted_events, 'event')} not wanted" if unwanted_events else "")


_NOUNS: Final = (("_subbuffers", "sub-buffer"), ("_bytes", "byte"), ("", "event"))
_HOW: Final = {
    "commit_overrun": "overrun while being written",
    "backlog": "abandoned",
    "storage": "not written",
    "rate": "above max-rate and not written",
    "removed": "removed from the disk",
    "abandoned": "left in the ring",
    "killed": "taken and not stored by a killed lttd",
    "foreign_read": "read by another process",
}


def counted(number: int, noun: str) -> str:
    """Return ``1 event``, ``2,000 events``."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def human_bytes(size_bytes: int) -> str:
    """Return a size for people: ``512 B``, ``3.4 KiB``, ``1.2 GiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
