"""Drain the rings that killed lttds and earlier boots left, each into a segment of its own.

Rule: a ring that survived a reboot is drained before its source is opened, because enabling an
event empties it.  The others follow the sources: if those cannot be opened, they stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from lttd.config import Config
from lttd.errors import LttdError
from lttd.helper import Helper
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.recording import Recording, close_source
from lttd.sources.base import Owner, Source
from lttd.sources.registry import open_previous_boots, open_previous_runs
from lttd.stats import StreamSummary, lost_key
from lttd.status import Observer
from lttd.subbuffer import BufferPool, Reason, Unit
from lttd.terminal import Level, say


class PreviousRuns:
    """The rings of killed runs, for one start of lttd."""

    def __init__(
        self,
        config: Config,
        pool: BufferPool,
        recorder: Recorder,
        observer: Observer,
        helper: Helper,
        begin: Callable[[Source, int], Recording],
    ) -> None:
        """*begin* opens a segment of a number for a source."""
        self._config = config
        self._pool = pool
        self._recorder = recorder
        self._observer = observer
        self._helper = helper
        self._begin = begin

    async def drain(self, number: int, owner: Owner, failures: list[LttdError]) -> int:
        """Drain them into segments from *number* on; return the next number.

        *failures* gets the errors of streams that could not be drained.
        """
        sources, lines = open_previous_runs(self._config.sources, self._pool, owner)
        for line in lines:
            say(line, Level.WARNING)
        for source in sources:
            recording = await self._drain(source, number, failures)
            number += 1
            # Counted for the source that the killed lttd recorded: an instance of lttd's own.
            lanes = recording.lanes.values()
            self._observer.also(replace(lane.stats, source=source.info.kind) for lane in lanes)
            _say_kept(recording, "a previous run", _killed(recording.summaries()))
        return number

    async def drain_boots(self, number: int, owner: Owner, failures: list[LttdError]) -> int:
        """Do the same for what earlier boots left in the rings of the requested sources."""
        for source in open_previous_boots(self._config.sources, self._pool, owner):
            recording = await self._drain(source, number, failures)
            number += 1
            is_earlier = source.info.previous_boot
            of = "a previous boot" if is_earlier else "this boot, from before lttd came,"
            _say_kept(recording, of)
        return number

    async def _drain(self, source: Source, number: int, failures: list[LttdError]) -> Recording:
        try:
            recording = self._begin(source, number)
            reader = Reader(self._recorder, self._config.flush_interval_s)
            reader.add(recording.streams_and_lanes())
            await reader.drain()
            await self._helper.run(recording.close)
        finally:
            close_source(source)
        failures += reader.failures()
        return recording


def _say_kept(recording: Recording, of: str, more: str = "") -> None:
    found = sum(summary.subbuffers for summary in recording.summaries())
    what = f"{found} sub-buffers of {of} are kept in {recording.segment.paths.directory}"
    say(f"{recording.source.info.spec}: {what}{more}", Level.WARNING)


def _killed(summaries: Sequence[StreamSummary]) -> str:
    """Return words on the events that a killed lttd took and did not store; empty if none."""
    key = lost_key(Reason.KILLED, Unit.EVENTS)
    count = sum(summary.lost.get(key, 0) for summary in summaries)
    if not count:
        return ""
    return f"; {count:,} events that it had taken before and not stored are counted there as lost"
