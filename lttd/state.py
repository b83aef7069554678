"""The state of a run as plain JSON values: ``lttd status --json`` prints it.

Rule: to read it touches no disk, which may hang: the loop that answers also reads rings.
Rule: without a request only the samples for the rates are taken, one a second at a tick.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

from lttd.config import Config
from lttd.controls import control_lines
from lttd.gauges import DaemonGauges
from lttd.health import Health
from lttd.recording import Recording
from lttd.stats import StreamKey, StreamStats, summarize
from lttd.status import Observer
from lttd.version import VERSION

SAMPLE_INTERVAL_NS: Final = 1_000_000_000
# Rates are means over this many seconds, or since the begin of the run.
SAMPLES: Final = 10

_Counts = tuple[int, int]
"""Sub-buffers and bytes that were delivered so far."""


class RunState:
    """Collects the state of a run when somebody asks for it."""

    def __init__(
        self,
        config: Config,
        observer: Observer,
        health: Health,
        recordings: Sequence[Recording],
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """*now_ns* reads a clock that never goes back."""
        self.config = config
        """The configuration in force; a reload replaces it."""
        self.ending = False
        self.parts: dict[str, Callable[[], Any]] = {}
        """Further keys of the state; each function returns JSON values and never waits."""
        self._observer = observer
        self._health = health
        self._recordings = recordings
        self._now_ns = now_ns
        self._began_ns = now_ns()
        self._began_wall_ns = time.time_ns()
        self._samples: deque[tuple[int, dict[StreamKey, _Counts]]] = deque(maxlen=SAMPLES)

    def sample(self) -> None:
        """Remember the counters, from which rates are made, if it is time; called at each tick."""
        now = self._now_ns()
        if self._samples and now < self._samples[-1][0] + SAMPLE_INTERVAL_NS:
            return
        stats = (lane.stats for each in self._recordings for lane in each.segment.lanes.values())
        self._samples.append((now, {each.key: _counts(each) for each in stats}))

    def to_json(self) -> dict[str, Any]:
        """Return the state as of now."""
        streams = {each.key: each for each in self._observer.streams()}
        gauges = self._observer.gauges()
        conditions = self._health.conditions()
        return {
            "version": VERSION,
            "host": os.uname().nodename,
            "kernel": os.uname().release,
            "pid": os.getpid(),
            "trace_dir": os.path.abspath(self.config.trace_dir),  # noqa: PTH100  (no links)
            "doing": "ending" if self.ending else "recording",
            "now_ns": time.time_ns(),
            "began_ns": self._began_wall_ns,
            "uptime_seconds": (self._now_ns() - self._began_ns) / 1e9,
            "healthy": not conditions,
            "conditions": [
                {"trouble": each.trouble, "where": each.where, "words": each.words}
                for each in conditions
            ],
            "backlog": {
                "bytes": gauges.backlog_bytes,
                "limit_bytes": gauges.backlog_limit_bytes,
                "high_water_bytes": gauges.backlog_high_water_bytes,
            },
            "write_errors": dict(gauges.write_errors),
            "segments": gauges.segments,
            "sources": [self._source(each, streams, gauges) for each in self._recordings],
            **{name: part() for name, part in self.parts.items()},
            "config": config_json(self.config),
        }

    def _source(
        self,
        recording: Recording,
        streams: Mapping[StreamKey, StreamStats],
        gauges: DaemonGauges,
    ) -> dict[str, Any]:
        info = recording.source.info
        stats = [lane.stats for lane in recording.segment.lanes.values()]
        return {
            "source": recording.segment.manifest.source_name,
            "kind": info.kind,
            "spec": info.spec,
            "clock": info.clock,
            "settings": dict(info.settings),
            "controls": control_lines(info.settings),
            "segment": recording.segment.paths.directory.name,
            "streams": [self._stream(streams.get(each.key, each), gauges) for each in stats],
        }

    def _stream(self, stats: StreamStats, gauges: DaemonGauges) -> dict[str, Any]:
        found = summarize(replace(stats, events_lost=stats.lost_so_far())).to_json()
        del found["source"]
        fill = gauges.fill.get(stats.key)
        return {
            **found,
            **self._rates(stats),
            "ring_fill_ratio": fill.ratio if fill else None,
            "lag_seconds": fill.lag_seconds if fill else None,
            "flight_overwritten_events": gauges.overwritten_idle_events.get(stats.key, 0),
            "foreign_read_events": gauges.foreign_read_events.get(stats.key, 0),
        }

    def _rates(self, stats: StreamStats) -> dict[str, float]:
        then, counts = self._samples[0] if self._samples else (self._began_ns, {})
        seconds = max(self._now_ns() - then, 1) / 1e9
        subbuffers, delivered_bytes = _counts(stats)
        before = counts.get(stats.key, (0, 0))
        return {
            "subbuffers_per_second": (subbuffers - before[0]) / seconds,
            "bytes_per_second": (delivered_bytes - before[1]) / seconds,
        }


def _counts(stats: StreamStats) -> _Counts:
    return stats.subbuffers, stats.delivered_bytes - stats.padding_bytes


def config_json(config: Config) -> dict[str, Any]:
    """Return a configuration as JSON values, by the names of its fields."""
    return {each.name: _plain(getattr(config, each.name)) for each in fields(config)}


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(map(str, value))
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return os.fspath(value) if isinstance(value, Path) else str(value)
