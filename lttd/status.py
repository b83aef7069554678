"""Collect the state of a running daemon from recorder, reader and sources, for metrics and health.

Rule: values are read for each answer; without a request nothing here runs.
Rule: a scrape never touches the disk, which may hang: the loop that answers it also reads rings.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from lttd.errors import LttdError
from lttd.gauges import DaemonGauges
from lttd.health import Condition, Health, Trouble
from lttd.lane import Lane
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.recording import Recording
from lttd.service_metrics import Parts
from lttd.sources.base import OVERWRITTEN_IDLE, Stream
from lttd.stats import Fill, StreamKey, StreamStats

# The loop comes round at every tick.  This many missed ticks, and at least this time, are a stall.
STALLED_TICKS: Final = 3
STALLED_S: Final = 5.0


class Observer:
    """See ``lttd.metrics.Snapshots``."""

    def __init__(
        self,
        recorder: Recorder,
        reader: Reader,
        health: Health,
        recordings: Sequence[Recording],
        flush_interval_s: float,
    ) -> None:
        self._recorder = recorder
        self._reader = reader
        self._health = health
        self._recordings = recordings
        self.parts = Parts()
        self._recovered: list[StreamStats] = []
        self.expect_ticks(flush_interval_s)
        health.ask(self._look_at_loops)

    def expect_ticks(self, interval_s: float) -> None:
        """Call the loop stalled after several intervals without a tick."""
        self._stalled_ns = int(max(STALLED_TICKS * interval_s, STALLED_S) * 1e9)

    def also(self, recovered: Iterable[StreamStats]) -> None:
        """Add the recovered losses of an earlier run, also for streams that this run lacks."""
        self._recovered += recovered

    def streams(self) -> Sequence[StreamStats]:
        """Return every stream's counters, with the kernel's losses up to now."""
        for recording in self._recordings:
            for stream in recording.source.streams:
                self._ask(stream, recording.segment.lanes.get(stream.info.id))
        return self._recovered + [
            lane.stats
            for recording in self._recordings
            for lane in recording.segment.lanes.values()
        ]

    def _ask(self, stream: Stream, lane: Lane | None) -> None:
        if lane is None:
            return  # a new stream that has no files yet
        try:
            lane.stats.unplaced = stream.unplaced()
        except LttdError:
            return  # the reader gets the same error, and reports it

    def gauges(self) -> DaemonGauges:
        """Return the gauges of the daemon, as of now."""
        recorder, pulse = self._recorder, self._reader.pulse
        fill: dict[StreamKey, Fill] = {}
        foreign: dict[StreamKey, int] = {}
        idle: dict[StreamKey, int] = {}
        for recording in self._recordings:
            ring_bytes = recording.source.info.settings.get("buffer_bytes")
            for stream in recording.source.streams:
                key = recording.segment.manifest.source_name, stream.info.id
                self._look_at(stream, key, ring_bytes, fill, foreign, idle)
        return DaemonGauges(
            backlog_bytes=recorder.backlog_bytes,
            backlog_limit_bytes=recorder.backlog_limit_bytes,
            backlog_high_water_bytes=recorder.backlog_high_water_bytes,
            segments=self.parts.store().segments if self.parts.store else 0,
            turns_total=pulse.turns,
            last_turn_ns=pulse.last_turn_ns,
            troubles=frozenset(each.trouble for each in self._health.conditions()),
            write_errors=dict(recorder.write_errors),
            fill=fill,
            foreign_read_events=foreign,
            overwritten_idle_events=idle,
        )

    def _look_at(
        self,
        stream: Stream,
        key: StreamKey,
        ring_bytes: int | None,
        fill: dict[StreamKey, Fill],
        foreign: dict[StreamKey, int],
        idle: dict[StreamKey, int],
    ) -> None:
        try:
            counters = stream.counters()
        except LttdError:
            return  # other code reports its end
        if "foreign read events" in counters:
            foreign[key] = counters["foreign read events"]
        if OVERWRITTEN_IDLE in counters:
            idle[key] = counters[OVERWRITTEN_IDLE]
        if self._reader.paused:
            return  # a full ring that nobody wants to read is no sign of delay
        if ring_bytes and "bytes" in counters and "now ts" in counters:
            waiting = counters["now ts"] - counters["oldest event ts"] if counters["entries"] else 0
            fill[key] = Fill(counters["bytes"] / ring_bytes, max(waiting, 0) / 1e9)

    def _look_at_loops(self) -> Iterator[Condition]:
        """Yield the conditions that the reading loop and the writers cannot report themselves."""
        recorder, pulse = self._recorder, self._reader.pulse
        idle_ns = time.monotonic_ns() - pulse.last_turn_ns
        if idle_ns > self._stalled_ns:
            words = f"reading stalled: no turn for {idle_ns / 1e9:.1f} s"
            yield Condition(Trouble.READING_STALLED, "", words)
        if pulse.backlog_full:
            held, limit = recorder.backlog_bytes, recorder.backlog_limit_bytes
            yield Condition(Trouble.BACKLOG_FULL, "", f"backlog full: {held} of {limit} bytes")
        if recorder.failure is not None:
            yield Condition(Trouble.WRITER_FAILED, "", f"a writer failed: {recorder.failure}")
