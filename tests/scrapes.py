"""States of a daemon that a test sets, and the samples of their scrapes."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from lttd.catalogue import StoreState
from lttd.files import Disk
from lttd.gauges import DaemonGauges
from lttd.health import Health
from lttd.metrics import RecorderCollector
from lttd.opening import recover_open_segments
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.retention import Limits
from lttd.service_metrics import Parts
from lttd.stats import Fill, StreamStats
from lttd.status import Observer
from lttd.subbuffer import Gap, Reason, StreamId, Unit
from lttd.triggers import TriggerCounts
from tests.segment_builder import Made, subbuffer

DOCS = Path(__file__).parents[1] / "docs"
RULES = DOCS.parent / "contrib/prometheus/lttd.rules.yml"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Numbers:
    """The state of a daemon, with numbers that the test sets."""

    def __init__(self, *streams: StreamStats, **gauges: object) -> None:
        self.all = list(streams)
        self.parts = Parts()
        self.values: dict[str, Any] = {
            "backlog_bytes": 5 << 20,
            "backlog_limit_bytes": 64 << 20,
            "backlog_high_water_bytes": 9 << 20,
            "segments": 3,
            "turns_total": 1000,
            "last_turn_ns": 7_000_000_000,
        } | gauges

    def streams(self) -> Sequence[StreamStats]:
        return self.all

    def gauges(self) -> DaemonGauges:
        return DaemonGauges(**self.values)


def busy_stream(channel: str = "sched", cpu: int = 0, source: str = "ftrace") -> StreamStats:
    """Return the counters of a stream with a loss of every unit."""
    stats = StreamStats(StreamId(channel, cpu), source, subbuffers=70)
    stats.gaps_unknown[Reason.OVERWRITTEN] = 2
    stats.stored_bytes, stats.padding_bytes = 123_456_789_012, 4096
    for reason, unit, count in (
        (Reason.OVERWRITTEN, Unit.EVENTS, 11),
        (Reason.DROPPED, Unit.EVENTS, 13),
        (Reason.REFUSED, Unit.SUBBUFFERS, 1),
        (Reason.DAMAGED, Unit.BYTES, 4096),
    ):
        stats.lost(Gap(0, reason, unit, count, 0, 0))
    return stats


def busy_numbers(cpus: int = 2) -> Numbers:
    """Return the state of a daemon with a busy stream on each CPU."""
    streams = [busy_stream(cpu=cpu) for cpu in range(cpus)]
    numbers = Numbers(
        *streams,
        write_errors={"ENOSPC": 2, "ENOENT": 1},
        fill={stats.key: Fill(0.25, 0.0125) for stats in streams},
        foreign_read_events={stats.key: 0 for stats in streams},
        overwritten_idle_events={stats.key: 7 for stats in streams},
    )
    numbers.parts = Parts(
        lambda: StoreState(*(12, 190 << 20, 3, 60 << 20), {"size": 44, "kept_size": 1}, 8123.5, 2),
        lambda: Limits(size_bytes=200 << 20),
        lambda: {"asked": 3, "bytes": 40},
        lambda: TriggerCounts({"http": 5, "command": 1}, {"too_many": 7}, 5, 1),
        lambda: True,
    )
    return numbers


def collector(numbers: Numbers) -> RecorderCollector:
    return RecorderCollector(numbers, version="0.1.0", kernel="6.18.0")


TORN_BYTES = 21
"""The bytes that torn_trace() leaves of its last sub-buffer."""


def torn_trace(trace: Path) -> Path:
    """Make an open segment as a killed lttd leaves it: its last sub-buffer is cut in the middle."""
    made = Made(trace)
    made.append([subbuffer(0), subbuffer(1)])
    made.leave()
    data = made.paths.stream(made.records[0].name).data
    last = int(made.stream().index.entries()["offset_bytes"][-1])
    os.truncate(data, last + TORN_BYTES)
    return trace


def recovering(trace: Path) -> Observer:
    """Return the state of a run that has recovered *trace* and not recorded yet."""
    recorder, health = Recorder(), Health()
    observer = Observer(recorder, Reader(recorder, 1.0), health, [], 1.0)
    for recovered in recover_open_segments(Disk(), trace):
        observer.also(recovered.streams)
    return observer


def torn_samples(trace: Path) -> dict[str, float]:
    """Return the torn bytes of a scrape of that run, by labels."""
    text = RecorderCollector(recovering(trace), version="0.1.0", kernel="6.18.0").text()
    found = re.findall(r'^lttd_bytes_lost_total\{(.*,reason="torn")\} (\S+)$', text, re.M)
    return {labels: float(value) for labels, value in found}


def scraped(text: str) -> Samples:
    """Parse an exposition; fail on a repeated sample."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"twice: {key}"
            samples[key] = sample.value
    return samples


def shown(numbers: Numbers) -> Samples:
    """Return the samples of a scrape."""
    return scraped(collector(numbers).text())
