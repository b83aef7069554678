"""Make Prometheus metrics from one snapshot of the counters, at a scrape.

Rule: the recording code calls nothing here; a scrape only reads plain numbers.
Rule: each possible reason of a loss has the value 0 from the first scrape on, so that rate() sees
the first loss.
Invariant: no loss is in two samples of one metric.  Of the lost bytes, damaged + backlog + storage
+ rate are ``refused_bytes`` of the stats.

FAMILIES is the only list of metrics; docs/METRICS.md explains them, and a test compares the two.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Scraped
from prometheus_client.registry import Collector

from lttd.gauges import DaemonGauges
from lttd.health import Trouble
from lttd.metric import Metric, Sample, Table
from lttd.service_metrics import SERVICE_FAMILIES, Parts, service_tables
from lttd.stats import StreamKey, StreamStats
from lttd.subbuffer import KERNEL_EVENT_REASONS, Reason


class Snapshots(Protocol):
    """The source of the numbers."""

    def streams(self) -> Sequence[StreamStats]:
        """Return every stream's counters since lttd started, closed segments' included.

        A stream may come several times (once per segment); then its counters are added up.
        """
        ...

    def gauges(self) -> DaemonGauges:
        """Return the state of the daemon now."""
        ...

    parts: Parts
    """The numbers of store, rolls and triggers."""


_BY_STREAM: Final = ("channel", "cpu", "source")
_BY_REASON: Final = (*_BY_STREAM, "reason")

EVENTS_LOST: Final = Metric(
    "lttd_events_lost_total",
    "counter",
    "Events lost before lttd could read them, as counted by the kernel.",
    _BY_REASON,
)
SUBBUFFERS_LOST: Final = Metric(
    "lttd_subbuffers_lost_total",
    "counter",
    "Sub-buffers lost whole, or taken from the kernel and not stored.",
    _BY_REASON,
)
BYTES_LOST: Final = Metric(
    "lttd_bytes_lost_total",
    "counter",
    "Bytes that the kernel never delivered, that were not stored, or that a crash tore off a file.",
    _BY_REASON,
)
GAPS_UNKNOWN: Final = Metric(
    "lttd_gaps_unknown_total",
    "counter",
    "Losses of unknown size: the kernel does not report it, or a sync failed.",
    _BY_REASON,
)
SUBBUFFERS_READ: Final = Metric(
    "lttd_subbuffers_read_total", "counter", "Sub-buffers taken from the kernel.", _BY_STREAM
)
STORED_BYTES: Final = Metric(
    "lttd_stored_bytes_total",
    "counter",
    "Bytes of sub-buffers written to data files: headers and content.",
    _BY_STREAM,
)
PADDING_BYTES: Final = Metric(
    "lttd_padding_bytes_total",
    "counter",
    "Bytes of padding that the kernel delivered and lttd left out.",
    _BY_STREAM,
)
FILL_RATIO: Final = Metric(
    "lttd_buffer_fill_ratio",
    "gauge",
    "Share of the kernel's ring that is written and not read yet, 0 to 1.",
    _BY_STREAM,
)
LAG: Final = Metric(
    "lttd_reader_lag_seconds",
    "gauge",
    "How long the oldest event not read yet has been waiting in the ring.",
    _BY_STREAM,
)
FOREIGN_READ: Final = Metric(
    "lttd_foreign_read_events_total",
    "counter",
    "Events that another reader consumed from the ring.",
    _BY_STREAM,
)
FLIGHT_OVERWRITTEN: Final = Metric(
    "lttd_flight_overwritten_events_total",
    "counter",
    "Mode flight: events that the ring overwrote while no trigger wanted them; no loss.",
    _BY_STREAM,
)
BACKLOG: Final = Metric(
    "lttd_backlog_bytes", "gauge", "Memory of data that is taken and not written yet."
)
BACKLOG_HIGH_WATER: Final = Metric(
    "lttd_backlog_high_water_bytes", "gauge", "Largest backlog since the start."
)
BACKLOG_LIMIT: Final = Metric(
    "lttd_backlog_limit_bytes", "gauge", "Limit of the backlog; reading stops there."
)
WRITE_ERRORS: Final = Metric(
    "lttd_write_errors_total", "counter", "Writes to the trace directory that failed.", ("errno",)
)
SEGMENTS: Final = Metric(
    "lttd_segments", "gauge", "Segments in the trace directory, open ones included."
)
TURNS: Final = Metric(
    "lttd_read_turns_total", "counter", "Turns of the reading loop; a loop that hangs adds none."
)
UNHEALTHY: Final = Metric(
    "lttd_unhealthy", "gauge", "1 while /healthz gives this reason, else 0.", ("reason",)
)
BUILD_INFO: Final = Metric(
    "lttd_build_info",
    "gauge",
    "Always 1; version of lttd and release of the kernel.",
    ("version", "kernel"),
)

# Losses that can occur, by unit.  One that is not here is shown from its first occurrence on,
# which increase() does not see.
LOSS_REASONS: Final[dict[Metric, tuple[Reason, ...]]] = {
    EVENTS_LOST: (
        Reason.OVERWRITTEN,
        Reason.DROPPED,
        Reason.COMMIT_OVERRUN,
        Reason.DISCARDED,
        Reason.ABANDONED,
        Reason.KILLED,
        Reason.FOREIGN_READ,
    ),
    SUBBUFFERS_LOST: (
        Reason.OVERWRITTEN,
        Reason.COMMIT_OVERRUN,
        Reason.REFUSED,
        Reason.FOREIGN_READ,
        Reason.BACKLOG,
        Reason.STORAGE,
        Reason.RATE,
        Reason.REMOVED,
    ),
    BYTES_LOST: (
        Reason.OVERWRITTEN,
        Reason.REFUSED,
        Reason.FOREIGN_READ,
        Reason.DAMAGED,
        Reason.BACKLOG,
        Reason.STORAGE,
        Reason.RATE,
        Reason.TORN,
        Reason.REMOVED,
    ),
    GAPS_UNKNOWN: (
        Reason.OVERWRITTEN,
        Reason.DISCARDED,
        Reason.ABANDONED,
        Reason.KILLED,
        Reason.FOREIGN_READ,
        Reason.EMPTIED,
        Reason.SWITCHED_OFF,
        Reason.FILTERED,
        Reason.UNSYNCED,
    ),
}
# Usual errors of file systems; others appear with their first occurrence.
WRITE_ERRNOS: Final = ("EDQUOT", "EFBIG", "EIO", "ENOSPC", "EROFS")

FAMILIES: Final = (
    EVENTS_LOST,
    SUBBUFFERS_LOST,
    BYTES_LOST,
    GAPS_UNKNOWN,
    SUBBUFFERS_READ,
    STORED_BYTES,
    PADDING_BYTES,
    FOREIGN_READ,
    FLIGHT_OVERWRITTEN,
    FILL_RATIO,
    LAG,
    BACKLOG,
    BACKLOG_HIGH_WATER,
    BACKLOG_LIMIT,
    WRITE_ERRORS,
    SEGMENTS,
    TURNS,
    UNHEALTHY,
    *SERVICE_FAMILIES,
    BUILD_INFO,
)


class RecorderCollector(Collector):
    """lttd's own metrics, made from the snapshots at each scrape."""

    def __init__(self, snapshots: Snapshots, *, version: str, kernel: str) -> None:
        self._snapshots = snapshots
        self._build = (version, kernel)

    def collect(self) -> Iterator[Scraped]:
        """Yield the metrics as objects of prometheus_client."""
        for family, samples in self._tables(str):
            make = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
            metric = make(family.name, family.help, labels=family.labels)
            for labels, value in samples:
                metric.add_metric(labels, value)
            yield metric

    def text(self) -> str:
        """Return the metrics in Prometheus's text format.

        A test compares the result with generate_latest(), which takes longer: the reading loop
        waits meanwhile (3 instead of 23 ms for 256 streams).
        """
        parts = []
        for family, samples in self._tables(_escape):
            parts.append(
                f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.type}\n"
            )
            names = ",".join(f'{label}="%s"' for label in family.labels)
            line = f"{family.name}{{{names}}} %s\n" if names else f"{family.name} %s\n"
            parts += [line % (*labels, value) for labels, value in samples]
        return "".join(parts)

    def _tables(self, escape: Callable[[str], str]) -> Iterator[Table]:
        gauges = self._snapshots.gauges()
        streams = [
            ((escape(stats.stream.channel), str(stats.stream.cpu), escape(stats.source)), stats)
            for stats in _one_a_stream(self._snapshots.streams())
        ]
        yield from _losses(streams)
        yield SUBBUFFERS_READ, [(labels, stats.subbuffers) for labels, stats in streams]
        yield STORED_BYTES, [(labels, stats.stored_bytes) for labels, stats in streams]
        yield PADDING_BYTES, [(labels, stats.padding_bytes) for labels, stats in streams]
        yield from _gauge_tables(gauges, [(labels, stats.key) for labels, stats in streams])
        yield from service_tables(self._snapshots.parts)
        version, kernel = self._build
        yield BUILD_INFO, [((escape(version), escape(kernel)), 1)]


def make_render(
    snapshots: Snapshots, *, version: str, kernel: str | None = None
) -> Callable[[], bytes]:
    """Return the function that makes one scrape: lttd's metrics and those of its process.

    Call it on the reading thread, so that no counter of the reader changes meanwhile.
    """
    recorder = RecorderCollector(snapshots, version=version, kernel=kernel or os.uname().release)
    process = CollectorRegistry()
    ProcessCollector(registry=process)
    return lambda: recorder.text().encode() + generate_latest(process)


def _escape(label: str) -> str:
    return label.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _one_a_stream(streams: Sequence[StreamStats]) -> list[StreamStats]:
    """Add up the counters of streams that came several times, without changing the originals."""
    merged: dict[StreamKey, StreamStats] = {}
    for stats in streams:
        before = merged.get(stats.key)
        merged[stats.key] = stats if before is None else _sum(before, stats)
    return list(merged.values())


def _sum(one: StreamStats, other: StreamStats) -> StreamStats:
    return StreamStats(
        one.stream,
        one.source,
        subbuffers=one.subbuffers + other.subbuffers,
        padding_bytes=one.padding_bytes + other.padding_bytes,
        events_lost=one.events_lost + other.events_lost,
        unplaced=Counter(one.unplaced) + Counter(other.unplaced),
        subbuffers_lost=one.subbuffers_lost + other.subbuffers_lost,
        bytes_lost=one.bytes_lost + other.bytes_lost,
        gaps_unknown=one.gaps_unknown + other.gaps_unknown,
        stored_bytes=one.stored_bytes + other.stored_bytes,
        unwritten_bytes=one.unwritten_bytes + other.unwritten_bytes,
        unwritten_subbuffers=one.unwritten_subbuffers + other.unwritten_subbuffers,
        unsynced=one.unsynced + other.unsynced,
        removed_bytes=one.removed_bytes + other.removed_bytes,
        removed_subbuffers=one.removed_subbuffers + other.removed_subbuffers,
    )


Labels = tuple[str, str, str]
Streams = list[tuple[Labels, StreamStats]]
Counts = Mapping[Reason, int]


def _losses(streams: Streams) -> Iterator[Table]:
    events: list[tuple[Labels, Counts]] = []
    subbuffers: list[tuple[Labels, Counts]] = []
    bytes_: list[tuple[Labels, Counts]] = []
    unknown: list[tuple[Labels, Counts]] = []
    for labels, stats in streams:
        events.append((labels, stats.lost_so_far()))
        subbuffers.append((labels, stats.all_subbuffers_lost))
        bytes_.append((labels, stats.all_bytes_lost))
        unknown.append((labels, stats.unknown))
    yield EVENTS_LOST, _by_reason(EVENTS_LOST, events, only=KERNEL_EVENT_REASONS)
    yield SUBBUFFERS_LOST, _by_reason(SUBBUFFERS_LOST, subbuffers)
    yield BYTES_LOST, _by_reason(BYTES_LOST, bytes_)
    yield GAPS_UNKNOWN, _by_reason(GAPS_UNKNOWN, unknown)


def _by_reason(
    family: Metric,
    losses: list[tuple[Labels, Counts]],
    *,
    only: Collection[Reason] = frozenset(Reason),
) -> list[Sample]:
    always = [(reason, reason.name.lower()) for reason in LOSS_REASONS[family]]
    seldom = [(r, r.name.lower()) for r in only if r not in LOSS_REASONS[family]]
    samples: list[Sample] = []
    for labels, counts in losses:
        get = counts.get
        samples += [((*labels, name), get(reason, 0)) for reason, name in always]
        if counts:
            samples += [((*labels, name), get(r, 0)) for r, name in seldom if get(r, 0)]
    return samples


def _gauge_tables(gauges: DaemonGauges, streams: list[tuple[Labels, StreamKey]]) -> Iterator[Table]:
    foreign, fill = gauges.foreign_read_events, gauges.fill
    yield FOREIGN_READ, [(labels, foreign[key]) for labels, key in streams if key in foreign]
    idle = gauges.overwritten_idle_events
    yield FLIGHT_OVERWRITTEN, [(labels, idle[key]) for labels, key in streams if key in idle]
    yield FILL_RATIO, [(labels, fill[key].ratio) for labels, key in streams if key in fill]
    yield LAG, [(labels, fill[key].lag_seconds) for labels, key in streams if key in fill]
    yield BACKLOG, [((), gauges.backlog_bytes)]
    yield BACKLOG_HIGH_WATER, [((), gauges.backlog_high_water_bytes)]
    yield BACKLOG_LIMIT, [((), gauges.backlog_limit_bytes)]
    errors = dict.fromkeys(WRITE_ERRNOS, 0) | dict(gauges.write_errors)
    yield WRITE_ERRORS, [((errno,), count) for errno, count in errors.items()]
    yield SEGMENTS, [((), gauges.segments)]
    yield TURNS, [((), gauges.turns_total)]
    yield UNHEALTHY, [((each.value,), int(each in gauges.troubles)) for each in Trouble]
