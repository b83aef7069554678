"""Run mode flight: the rings overwrite themselves, and are read and written for triggers only.

lttd.flight decides; this module pauses and resumes the reader, and closes segments.

Rule: while nothing is wanted, nothing is written to the trace.
Rule: how far a window reaches back is known after the first takes: a ring that has wrapped has
everything since its first row, any other ring everything since the window before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import trio

from lttd.clock import Conversion, take_snapshot
from lttd.config import FLIGHT
from lttd.errors import LttdError, NothingToRecordError, StorageError
from lttd.flight import READS, Event, State, after
from lttd.housekeeping import Housekeeping
from lttd.reader import Reader
from lttd.recording import Recording
from lttd.rolling import Rolling
from lttd.sources.base import OVERWRITTEN_IDLE, PausableStream


class Flying:
    """Reads the rings of a run while triggers want that; see ``lttd.flight.Rings``."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        reader: Reader,
        rolling: Rolling,
        house: Housekeeping,
    ) -> None:
        self.state = State.WAITING
        self._recordings = recordings
        self._reader = reader
        self._rolling = rolling
        self._house = house
        self._to_close = trio.Event()
        self._ending = False
        self._overwritten_events = 0

    def begin(self) -> None:
        """Pause the reader, before tracing begins.

        Raises:
            NothingToRecordError: a ring does not overwrite itself.
            StorageError: the manifest could not be written.
        """
        for recording in self._recordings:
            if not recording.source.info.settings.get("overwrite"):
                where = recording.source.info.spec
                reason = f"{where}: the kernel does not let this ring overwrite itself"
                raise NothingToRecordError(reason, "record without --mode flight")
            recording.note_mode(FLIGHT)
        self._reader.pause()

    async def run(self) -> None:
        """Close the segments of windows, until cancelled."""
        while True:
            await self._to_close.wait()
            self._to_close = trio.Event()
            try:
                await self._rolling.roll()
            except StorageError:
                self._to_close.set()  # the present segment grows, and the roll is tried again
            except LttdError:
                return  # recording ends
            else:
                self._happened(Event.CLOSED)

    def end(self) -> None:
        """Flush nothing any more: recording ends."""
        self._overwritten_events = self.overwritten_events()
        self._ending = True

    # -- as triggers need it

    def want(self) -> None:
        """Read from now on: a trigger was accepted."""
        self._happened(Event.ASKED)

    async def reach_ns(self) -> int | None:
        """Return since when the rings had everything; CLOCK_BOOTTIME."""
        if self.state is State.REACHING and not self._ending:
            await self._reader.flush_all()
            self._happened(Event.REACHED)
            for recording in self._recordings:
                recording.mark_progress()
            await self._house.for_each(Recording.note_pause_end)
        return max(map(_complete_since_ns, self._recordings))

    async def flush(self) -> None:
        """Take everything that the rings hold now."""
        await self._reader.flush_all()

    def leave(self) -> None:
        """Read no more: no window lasts any longer."""
        if not self._ending:
            self._happened(Event.OVER)

    def close(self) -> None:
        """Close the segment of the windows."""
        if self.state is State.CLOSING and not self._ending:
            for recording in self._recordings:
                recording.mark_progress()
            self._to_close.set()

    def _happened(self, event: Event) -> None:
        """Follow the table, and let the reader do the same."""
        self.state = after(self.state, event)
        if self.state in READS:
            self._reader.resume()
        else:
            self._reader.pause()

    # -- the numbers

    def state_json(self) -> Mapping[str, Any]:
        """Return what ``lttd status`` and the page show of this mode."""
        waiting, overwritten = self._reader.paused, self.overwritten_events()
        return {"waiting": waiting, "overwritten_events": overwritten}

    def overwritten_events(self) -> int:
        """Return the number of events that no trigger wanted in time: no loss."""
        if self._ending:
            return self._overwritten_events  # the rings are gone
        streams = (stream for each in self._recordings for stream in each.source.streams)
        return sum(stream.counters().get(OVERWRITTEN_IDLE, 0) for stream in streams)


def _complete_since_ns(recording: Recording) -> int:
    """Return since when the rings of a source had everything; CLOCK_BOOTTIME."""
    streams = recording.source.streams
    times = [each.complete_since for each in streams if isinstance(each, PausableStream)]
    snapshot = take_snapshot(recording.source.now)
    scale = Conversion([*recording.segment.manifest.clock_snapshots, snapshot])
    # Both on the line before the snapshot: at the snapshot itself the wall clock may have stepped.
    now_ns = scale.to_realtime_ns(snapshot.trace - 1)
    return snapshot.boottime_ns - (now_ns - scale.to_realtime_ns(max(times)))
