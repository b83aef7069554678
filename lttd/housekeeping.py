"""The periodic work of a run beside reading: attachments, clock snapshots, watches, new streams.

Rule: work that writes to the disk or reads many files is done in threads that are excluded from the
trace (lttd.helper); the reading loop never waits for it.
Rule: work on sources is done one task at a time.  A roll waits for it only while the streams or the
settings of a source change.
Rule: an idle machine is not woken for attachments; while the reader is paused, nothing is written.
"""

from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from typing import Final

import trio

from lttd.clock import ClockWatch
from lttd.config import Config
from lttd.errors import LttdError, StorageError, refusal
from lttd.helper import Helper, Helpers
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.recording import Recording, Served, tell_notes
from lttd.sources.base import Watch, When

FIRST_ATTACH_S: Final = 1.0
"""A short COMMAND has its names and code noted, and a kill loses little of them."""
ATTACH_INTERVAL_S: Final = 10.0
CLOCK_INTERVAL_S: Final = 60.0
# The time of lttd's death is known to this precision; the notes are on a memory file system.
MARK_INTERVAL_S: Final = 10.0


class Housekeeping:
    """The work beside reading, for all recordings of a run."""

    def __init__(
        self,
        config: Config,
        recordings: Sequence[Recording],
        recorder: Recorder,
        reader: Reader,
        on_failure: Callable[[LttdError], None],
    ) -> None:
        """*on_failure* is called with an error that must end the run."""
        self._config = config
        self._recordings = recordings
        self._recorder = recorder
        self._reader = reader
        self._on_failure = on_failure
        self.helpers = Helpers()
        self._due = trio.Event()
        self._ticked = trio.Event()
        self.one_at_a_time = trio.Lock()
        """Held by whoever uses work()."""
        self.changing = trio.Lock()
        """Held while a source gets streams or settings, and while its segments are switched.

        Who needs both locks takes this one last.
        """
        self.at_marks: list[Callable[[], None]] = []
        """Short work that is done as often as progress is noted."""
        now = trio.current_time()
        self._next_attach = now + FIRST_ATTACH_S
        self._next_clock = now + CLOCK_INTERVAL_S
        self._next_mark = now + MARK_INTERVAL_S

    async def run(self) -> None:
        """Do all of this work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work_when_due)
            nursery.start_soon(self._watch_clock)
            nursery.start_soon(self._admit_at_ticks)
            for watch in self._watches():
                nursery.start_soon(self._watch_others, watch)

    def on_tick(self) -> None:
        """Do the short work, and find out which work is due; called at every tick."""
        self._ticked.set()
        now = trio.current_time()
        if now >= self._next_mark:
            self._next_mark = now + MARK_INTERVAL_S
            for recording in self._recordings:
                recording.mark_progress()
            for do in self.at_marks:
                do()
        for watch in self._watches():
            watch.tick()
        is_time = now >= self._next_attach or now >= self._next_clock
        if (is_time and not self._reader.paused) or self._wants_closer_look():
            self._due.set()

    async def admit(self) -> None:
        """Make files for new streams, and let the reader serve them."""
        growing = [recording for recording in self._recordings if recording.source.grows]
        if not growing:
            return
        admitted: list[Served] = []

        def admit(recording: Recording) -> None:
            if recording in growing:
                admitted.extend(recording.admit())

        await self.for_each(admit, self.changing)
        self._reader.add(admitted)

    def _watches(self) -> list[Watch]:
        found = (recording.source.watch for recording in self._recordings)
        return [watch for watch in found if watch is not None]

    def _wants_closer_look(self) -> bool:
        return any(watch.wants_closer_look for watch in self._watches())

    async def _watch_others(self, watch: Watch) -> None:
        """React at once to reports on other tools; the tick finds changes without a report."""
        while watch.fileno() >= 0:
            await trio.lowlevel.wait_readable(watch.fileno())
            watch.heard()
            if watch.wants_closer_look:
                self._due.set()

    async def _work_when_due(self) -> None:
        subbuffers = 0
        while True:
            await self._due.wait()
            self._due = trio.Event()
            now = trio.current_time()
            if self._wants_closer_look():
                await self.for_each(_look_closer)
            if self._reader.paused:
                continue
            if now >= self._next_attach:
                self._next_attach = now + ATTACH_INTERVAL_S
                before, subbuffers = subbuffers, self._subbuffers()
                if subbuffers != before:
                    await self.for_each(_attach)
            if now >= self._next_clock:
                self._next_clock = now + CLOCK_INTERVAL_S
                await self.for_each(Recording.note_clock)

    def _subbuffers(self) -> int:
        """Return the number of sub-buffers taken so far."""
        lanes = (lane for each in self._recordings for lane in each.lanes.values())
        return sum(lane.stats.subbuffers for lane in lanes)

    async def _admit_at_ticks(self) -> None:
        while any(recording.source.grows for recording in self._recordings):
            await self._ticked.wait()
            self._ticked = trio.Event()
            await self.admit()

    async def _watch_clock(self) -> None:
        """Take a clock snapshot when somebody sets the wall clock."""
        try:
            watch = ClockWatch()
        except OSError:
            return  # not permitted: the snapshots of every minute must be enough
        with closing(watch):
            while True:
                await trio.lowlevel.wait_readable(watch.fd)
                if watch.was_set():
                    await self.for_each(Recording.note_clock)

    async def for_each(
        self, do: Callable[[Recording], None], also: trio.Lock | None = None
    ) -> None:
        """Call *do* for each recording in a thread that is excluded from the trace.

        *also* is held meanwhile.  A failure of the disk is counted.
        """

        def work() -> None:
            for recording in self._recordings:
                do(recording)

        trace = self._config.trace_dir
        try:
            async with self.one_at_a_time, also or nullcontext():
                done = await self.work(work)
        except StorageError as error:
            self._recorder.failed(error, trace)
        else:
            if done:
                self._recorder.succeeded(trace)

    async def leave_out(self, process: int, name: str) -> None:
        """Exclude another process of lttd's from the trace, or let viewers know it."""

        def note(recording: Recording) -> None:
            recording.source.leave_out([process])
            recording.note_own_thread(process, name)
            tell_notes(recording.source)

        await self.for_each(note)

    async def work(self, do: Callable[[], object]) -> bool:
        """Call *do* in the thread for sources, and report what they noted; see work_in()."""

        def work() -> None:
            do()
            for recording in self._recordings:
                tell_notes(recording.source)

        return await self.work_in(self.helpers.sources, work)

    async def work_in(self, helper: Helper, do: Callable[[], object]) -> bool:
        """Call *do* in a thread that is excluded from the trace.

        Return False if it failed, so that the run ends.

        Raises:
            StorageError: *do* could not write.
        """

        def work() -> None:
            do()

        try:
            await helper.run(work)
        except StorageError:
            raise
        except (LttdError, OSError, MemoryError) as error:
            self._on_failure(refusal(error) or LttdError(str(error)))
            return False
        return True


def _look_closer(recording: Recording) -> None:
    if recording.source.watch is not None:
        recording.source.watch.look_closer()


def _attach(recording: Recording) -> None:
    _look_closer(recording)
    recording.attach(When.PERIODIC)
