"""Run mode flight: the rings overwrite themselves, and are read and written for triggers only.

lttd.flight decides; this module pauses and resumes the reader, and closes segments.

Rule: while nothing is wanted, nothing is written to the trace.
Rule: reading ends when the last window does, however long the disk takes to keep it; what the rings
overwrite after that is no loss.
Rule: how far a window reaches back is known after the first takes: a ring that has wrapped has
everything since its first row, any other ring everything since the window before.
"""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import trio

from lttd.clock import COUNTING_CLOCKS, Conversion, take_snapshot
from lttd.config import FLIGHT
from lttd.errors import LttdError, NothingToRecordError, StorageError
from lttd.flight import READS, Event, Reach, Reached, State, after
from lttd.housekeeping import Housekeeping
from lttd.namespaces import kernel_clock_ns
from lttd.reader import Reader
from lttd.recording import Recording
from lttd.rolling import Rolling
from lttd.sources.base import OVERWRITTEN_IDLE, PausableStream

# Clocks are read one after the other.
SLACK_NS: Final = 1_000_000


class _Asked:
    """A trigger that waits until it is known how far back the rings reached."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.reached: Reached | None = None

    def found(self, reached: Reached) -> None:
        """Let the trigger go on."""
        self.reached = reached
        self.event.set()


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
        self._running = trio.CancelScope()
        self._wanted = trio.Event()
        self._asked: list[_Asked] = []
        """The triggers for which it is not known yet how far back the rings reach."""
        self._to_close = trio.Event()
        self._until = -math.inf
        self._to_note = False
        """Whether the manifest still lacks the begin of the window."""
        self._are_kept = False
        """Whether all windows are kept."""
        self._ending = False
        self._overwritten_events: int | None = None

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
        """Read for windows, and close their segments, until cancelled or ended."""
        with self._running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_windows)
                nursery.start_soon(self._close_segments)

    async def _read_windows(self) -> None:
        while True:
            await self._wanted.wait()
            flushed_at = -math.inf
            while flushed_at < self._until or self._wanted.is_set():
                if self._wanted.is_set():
                    await self._find_reach()
                with trio.move_on_at(self._until):
                    await self._wanted.wait()
                    continue
                flushed_at = trio.current_time()
                await self._reader.flush_all()
            self._happened(Event.OVER)
            self._close_if_over()

    async def _find_reach(self) -> None:
        """Take what the rings hold, and tell the triggers that came how far that reaches back."""
        self._wanted = trio.Event()
        asked, self._asked = self._asked, []
        await self._reader.flush_all()
        since_ns = self._since_ns()
        reached = Reached(since_ns, max(kernel_clock_ns(time.CLOCK_BOOTTIME), since_ns))
        # A window that is over by now may have to reach until now: see Pending.begin_at().
        self._until = max(self._until, trio.current_time())
        for recording in self._recordings:
            _want(recording, self._until - trio.current_time())
        if self.state is State.REACHING:
            self._happened(Event.REACHED)
            self._to_note = True
            for recording in self._recordings:
                recording.mark_progress()
        for each in asked:
            each.found(reached)

    def _since_ns(self) -> int:
        """Return since when the rings of all sources had everything; CLOCK_BOOTTIME."""
        return max(map(_complete_since_ns, self._recordings))

    async def _close_segments(self) -> None:
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
        """Change nothing any more: recording ends."""
        self._overwritten_events = self.overwritten_events()
        self._ending = True
        self._running.cancel()

    # -- as triggers need it

    def want(self, until: float) -> Reach:
        """Read until *until*, on trio's clock: a trigger was accepted."""
        self._until = max(self._until, until)
        self._are_kept = False
        for recording in self._recordings:
            _want(recording, math.inf)  # until _find_reach(), however late that comes
        self._happened(Event.ASKED)
        asked = _Asked()
        self._asked.append(asked)
        self._wanted.set()
        return partial(self._reach, asked)

    async def _reach(self, asked: "_Asked") -> Reached | None:
        if not self._ending:
            await asked.event.wait()
            if self._to_note:
                self._to_note = False
                await self._house.for_each(Recording.note_pause_end)
        elif asked.reached is None:  # recording ended at once; all is taken
            since_ns = self._since_ns()
            asked.found(Reached(since_ns, since_ns))
        return asked.reached

    async def flush(self) -> None:
        """Take everything that the rings hold now; while the reader is paused, that was done."""
        await self._reader.flush_all()

    def close(self) -> None:
        """Close the segment of the windows, once they are over."""
        self._are_kept = True
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._are_kept and self.state is State.CLOSING and not self._ending:
            for recording in self._recordings:
                recording.mark_progress()
            self._to_close.set()

    def _happened(self, event: Event) -> None:
        """Follow the table, and let the reader do the same."""
        if self._ending:
            return
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

    def overwritten_events(self) -> int | None:
        """Return the number of events that no trigger wanted in time: no loss.

        None: these rings do not count them.
        """
        if self._ending:
            return self._overwritten_events  # the rings are gone
        counts = []
        for recording in self._recordings:
            for stream in recording.source.streams:
                with suppress(LttdError):  # the reader gets the same error, and reports it
                    counts.append(stream.counters().get(OVERWRITTEN_IDLE))
        known = [count for count in counts if count is not None]
        return sum(known) if known else None


def _want(recording: Recording, within_s: float) -> None:
    """Let the streams of a source take what is written within *within_s*, which may be infinite."""
    source = recording.source
    until = None
    with suppress(LttdError):  # the reader gets the same error, and reports it
        if math.isfinite(within_s) and source.info.clock not in COUNTING_CLOCKS:
            until = source.now() + int(within_s * 1e9) + SLACK_NS
    for stream in source.streams:
        assert isinstance(stream, PausableStream)
        stream.want(until)


def _complete_since_ns(recording: Recording) -> int:
    """Return since when the rings of a source had everything; CLOCK_BOOTTIME.

    If its clock cannot be read, that is now: nothing is certain.
    """
    streams = recording.source.streams
    times = [each.complete_since for each in streams if isinstance(each, PausableStream)]
    try:
        snapshot = take_snapshot(recording.source.now)
    except LttdError:
        return kernel_clock_ns(time.CLOCK_BOOTTIME)
    scale = Conversion([*recording.segment.manifest.clock_snapshots, snapshot])
    # Both on the line before the snapshot: at the snapshot itself the wall clock may have stepped.
    now_ns = scale.to_realtime_ns(snapshot.trace - 1)
    return snapshot.boottime_ns - (now_ns - scale.to_realtime_ns(max(times)))
