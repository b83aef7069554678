"""Drain the rings that a killed lttd left of this trace, each into a segment of its own."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from lttd.config import Config
from lttd.errors import LttdError
from lttd.helper import Helper
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.recording import Recording, close_source
from lttd.sources.base import Owner, Source
from lttd.sources.registry import open_previous_runs
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
            failures += await self._drain(source, number)
            number += 1
        return number

    async def _drain(self, source: Source, number: int) -> Sequence[LttdError]:
        try:
            recording = self._begin(source, number)
            reader = Reader(self._recorder, self._config.flush_interval_s)
            reader.add(recording.streams_and_lanes())
            await reader.drain()
            await self._helper.run(recording.close)
        finally:
            close_source(source)
        # Counted for the source that the killed lttd recorded: an instance of lttd's own.
        lanes = recording.lanes.values()
        self._observer.also(replace(lane.stats, source=source.info.kind) for lane in lanes)
        summaries = recording.summaries()
        found = sum(summary.subbuffers for summary in summaries)
        say(
            f"{source.info.spec}: {found} sub-buffers of a previous run are kept in "
            f"{recording.segment.paths.directory}" + _killed(summaries),
            Level.WARNING,
        )
        return reader.failures()


def _killed(summaries: Sequence[StreamSummary]) -> str:
    """Return words on the events that a killed lttd took and did not store; empty if none."""
    key = lost_key(Reason.KILLED, Unit.EVENTS)
    count = sum(summary.lost.get(key, 0) for summary in summaries)
    if not count:
        return ""
    return f"; {count:,} events that it had taken before and not stored are counted there as lost"
