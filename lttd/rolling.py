"""Close the open segments of a run and go on in new ones, while reading goes on.

    decide      look(): by size, age or request (lttd.roll), at most as often as data comes
    prepare     the next segments, with all they need besides data,    thread for sources
                under hidden names; ahead, when a limit is near
    reveal      give them their numbers and names                      thread for names
    flush       each stream has one turn, so that all end together     reading thread
    switch      an item in each stream's queue: later batches go to    reading thread
                the new files
    attach      the last files beside the streams, once every queue    thread for sources
                is past that item; the manifests of the new segments
    close       the old segments: sync them, close their manifests     thread for closing

Rule: from the limit to the switch nothing waits for a sync, a deletion or the end of a segment: a
prepared segment gets its name by one rename, in a thread that does nothing else.  So a segment
exceeds its size by what comes meanwhile, and by a turn of each stream.
Rule: if the next segment cannot be made, or MOST_UNCLOSED old ones wait to be closed, the present
one grows; lttd tries again at intervals, or when one is closed.
Rule: a segment that is prepared is no part of the trace.  One that is not needed, or no longer has
what is recorded, is removed; the next start removes one that a kill leaves.
Rule: one switch at a time, and one close at a time, in the same order.  Requests that come before
the switch share it; later ones the next roll.
Rule: all segments of a roll have consecutive numbers, in the order of the sources.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import trio

from lttd.errors import LttdError, StorageError
from lttd.health import Health, Trouble
from lttd.housekeeping import Housekeeping
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.recording import Ended, Recording
from lttd.roll import RollLimits, RollReason, SegmentState, is_near, left_until_full, why_roll
from lttd.stream_reader import TURN_BATCHES
from lttd.subbuffer import TAKE_BYTES
from lttd.tracedir import SegmentPaths

RETRY_S: Final = 10.0
"""The time until the next attempt to make a segment, after one failed."""
LEAST_TAKE_BYTES: Final = 128 << 10
"""Smaller takes near a limit would cost more time than they save bytes."""


class _Request:
    """Callers that wait for one roll."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.closed: list[SegmentPaths] = []
        self.error: LttdError | None = None

    def answer(self, error: LttdError | None) -> None:
        """Let the callers go on."""
        self.error = error
        self.done.set()


class Rolling:
    """Rolls the segments of all recordings of a run."""

    def __init__(
        self,
        limits: RollLimits,
        recordings: Sequence[Recording],
        recorder: Recorder,
        reader: Reader,
        house: Housekeeping,
        health: Health,
    ) -> None:
        self._limits = limits
        recorder.segment_bytes = limits.payload_bytes
        self.on_prepared: list[Callable[[SegmentPaths], None]] = []
        """Called after a segment was made, under a hidden name.  None of these calls may wait."""
        self.on_opened: list[Callable[[SegmentPaths], None]] = []
        """Called when data begins to go to a new segment."""
        self.on_closed: list[Callable[[SegmentPaths], None]] = []
        """Called after a segment was closed."""
        self.rolled: Counter[str] = Counter()
        """Segments that were rolled, by the reason's name in lower case."""
        self.want_takes: Callable[[int], None] = lambda _: None
        """Called with the most bytes that one take should bring from now on."""
        self.next_number = 0
        """The number of the next segment of the trace."""
        self._recordings = recordings
        self._recorder = recorder
        self._reader = reader
        self._house = house
        self._health = health
        self._request: _Request | None = None
        self._to_close, self._ended_segments = trio.open_memory_channel[
            tuple[list[Ended], _Request]
        ](math.inf)
        self._over = trio.Event()
        self._due = trio.Event()
        self._look_at_bytes = 0.0
        self._look_at_s = -math.inf
        self._retry_at_s = -math.inf
        self._ahead_at_s = -math.inf
        self._ended = False

    # -- requests

    async def roll(self, reason: RollReason = RollReason.ASKED) -> list[SegmentPaths]:
        """Roll all sources; return the old segments when they are closed on disk.

        Raises:
            StorageError: the next segments could not be made, or an old one could not be closed.
            LttdError: recording ends.
        """
        del reason  # limits are looked at here; every other reason is a request
        request = self.ask()
        await request.done.wait()
        if request.error is not None:
            raise request.error
        return request.closed

    async def answer(self, _request: Mapping[str, Any], _peer: object) -> dict[str, Any]:
        """Roll for a client of the control socket; see ``lttd.control_protocol.Handler``."""
        return {"closed": [str(paths.directory) for paths in await self.roll()]}

    def ask(self) -> _Request:
        """Ask for a roll, without waiting for it."""
        if self._request is None:
            self._request = _Request()
        self._due.set()
        return self._request

    # -- decisions

    def limit(self, limits: RollLimits) -> None:
        """Replace the limits, from now on."""
        self._limits = limits
        self._recorder.segment_bytes = limits.payload_bytes
        self._look_at_bytes = 0
        self._due.set()

    def look(self) -> None:
        """Find out whether a limit is reached; called each time the reading loop comes round."""
        if self._recorder.offered_bytes >= self._look_at_bytes:
            self._look()

    def _look(self) -> None:
        now = trio.current_time()
        left_bytes = ahead_bytes = left_s = math.inf
        for recording in self._recordings:
            state = recording.state(now, asked=False)
            if not recording.may_roll:
                continue  # the end of a close lets this be called again
            due = why_roll(state, self._limits) is not None and now >= self._retry_at_s
            if due or self._is_wanted(recording, state, now):
                self._due.set()
            left = left_until_full(state, self._limits)
            left_bytes, left_s = min(left_bytes, left.payload_bytes), min(left_s, left.age_s)
            ahead_bytes = min(ahead_bytes, left.ahead_bytes)
        # A batch holds at least its payload.  So half of what is left is not exceeded before the
        # next look, nor by the takes of a turn: they become the smaller, the nearer a limit is.
        next_bytes = max(min(left_bytes / 2, ahead_bytes), 1)
        self._look_at_bytes = self._recorder.offered_bytes + next_bytes
        self._look_at_s = max(now + left_s, self._retry_at_s)
        wanted_bytes = min(left_bytes / (4 * TURN_BATCHES), TAKE_BYTES)
        self.want_takes(int(max(wanted_bytes, LEAST_TAKE_BYTES)))

    def _is_wanted(self, recording: Recording, state: SegmentState, now: float) -> bool:
        """Tell whether the next segment is to be prepared now."""
        # is_prepared looks at every stream, so it comes last.
        may = now >= self._ahead_at_s and is_near(state, self._limits)
        return may and not recording.is_prepared

    async def run(self) -> None:
        """Roll whenever it is due, until cancelled or ended; then close what was rolled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_in_turn)
            while not self._ended:
                with trio.move_on_at(self._look_at_s if self._recordings else math.inf):
                    await self._due.wait()
                self._due = trio.Event()
                self._look()
                if due := self._is_due():
                    await self._roll(due)
                elif near := self._near():
                    await self._prepare_ahead(near)
            self._to_close.close()
        self._over.set()

    def _is_due(self) -> list[Recording]:
        now, may = trio.current_time(), [each for each in self._recordings if each.may_roll]
        if now < self._retry_at_s:
            return []
        asked = self._request is not None and len(may) == len(self._recordings)
        states = [(each, each.state(now, asked=asked)) for each in may]
        return [each for each, state in states if why_roll(state, self._limits) is not None]

    def _near(self) -> list[Recording]:
        now = trio.current_time()
        states = [(each, each.state(now, asked=False)) for each in self._recordings]
        return [each for each, state in states if self._is_wanted(each, state, now)]

    def stop(self) -> None:
        """Begin no other roll."""
        self._ended = True

    async def finish(self) -> None:
        """Wait until the segments that were rolled are closed, and begin no other roll."""
        self.stop()
        self._due.set()
        await self._over.wait()
        async with self._house.one_at_a_time:
            await self._house.work(lambda: self._forsake(self._recordings))
        if self._request is not None:
            self._request.answer(LttdError("recording ends"))

    # -- one roll

    async def _prepare_ahead(self, near: Sequence[Recording]) -> None:
        """Make the next segments; a failure is reported only if it lasts until the limit."""
        try:
            await self._prepare(near)
        except StorageError:
            self._ahead_at_s = trio.current_time() + RETRY_S

    async def _prepare(self, those: Sequence[Recording]) -> bool:
        """Make the next segments, as far as they are not made yet; return False if the run ends.

        Raises:
            StorageError: one cannot be made.
        """
        lacking = [recording for recording in those if not recording.is_prepared]
        if not lacking:
            return True

        def prepare() -> None:
            made.extend(recording.prepare() for recording in lacking)

        made: list[SegmentPaths] = []
        try:
            async with self._house.one_at_a_time:
                return await self._house.work(prepare)
        finally:
            _tell(self.on_prepared, made)

    async def _roll(self, due: Sequence[Recording]) -> None:
        # A request is one for all sources.
        asked = self._request if len(due) == len(self._recordings) else None
        request = asked or _Request()
        try:
            ended = await self._switch(due, request)
        except StorageError as error:
            self._put_off(error, request)
            return
        if not ended:
            self._claims(request)
            request.answer(LttdError("recording ends"))
            return
        self._look_at_bytes = 0
        self._health.ends(Trouble.ROLL_FAILED, "segments are rolled again", self._where)
        self._to_close.send_nowait((ended, request))

    def _claims(self, request: _Request) -> bool:
        """Let no more callers share a roll; tell whether any do."""
        is_shared = request is self._request
        if is_shared:
            self._request = None
        return is_shared

    async def _switch(self, due: Sequence[Recording], request: _Request) -> list[Ended]:
        """Let data go to the next segments; return the old ones, or none if the run ends.

        Raises:
            StorageError: a next segment cannot be made; all go on in the present ones.
        """
        names = self._house.helpers.names
        while await self._prepare(due):
            async with self._house.changing:
                if self._ended:
                    break
                if not all(recording.is_prepared for recording in due):
                    continue  # streams or settings have changed
                if not await self._house.work_in(names, lambda: self._reveal(due)):
                    break
                await self._reader.flush_once()
                # No await from here on: all streams switch between the same two turns.
                asked = self._claims(request)
                return [self._switched(recording, asked=asked) for recording in due]
        return []

    def _reveal(self, due: Sequence[Recording]) -> None:
        try:
            for number, recording in enumerate(due, self.next_number):
                recording.reveal(number)
        except BaseException:
            self._forsake(due)
            raise
        self.next_number += len(due)

    def _switched(self, recording: Recording, *, asked: bool) -> Ended:
        why = why_roll(recording.state(trio.current_time(), asked=asked), self._limits)
        # Limits that were lifted meanwhile were lifted by somebody.
        self.rolled[(why or RollReason.ASKED).name.lower()] += 1
        ended = recording.roll(paused=self._reader.paused)
        _tell(self.on_opened, [recording.segment.paths])
        return ended

    @staticmethod
    def _forsake(due: Sequence[Recording]) -> None:
        for recording in due:
            recording.forsake()

    def _put_off(self, error: StorageError, request: _Request) -> None:
        """Let the present segments grow, and try again later."""
        now = trio.current_time()
        self._look_at_s = self._retry_at_s = now + RETRY_S
        if self._claims(request):
            self._request = _Request()
        request.answer(error)
        words = f"the next segment cannot be made, so the present one grows: {error}"
        self._health.begins(Trouble.ROLL_FAILED, words, self._where)

    # -- the old segments

    async def _close_in_turn(self) -> None:
        async for ended, request in self._ended_segments:
            await self._close(ended)
            request.closed += [each.paths for each in ended if each.error is None]
            _tell(self.on_closed, request.closed)
            request.answer(next((each.error for each in ended if each.error), None))
            self._due.set()  # the next roll may have waited for this

    async def _close(self, ended: Sequence[Ended]) -> None:
        def attach() -> None:
            for each in ended:
                self._try(each, each.attach)

        def close() -> None:
            for each in ended:
                self._try(each, each.close)

        closing = self._house.helpers.closing
        await self._house.work_in(closing, self._recorder.drain)
        async with self._house.one_at_a_time:
            await self._house.work(attach)
        await self._house.work_in(closing, close)
        for each in ended:
            each.recording.forget(each)

    def _try(self, ended: Ended, do: Callable[[], None]) -> None:
        try:
            do()
        except StorageError as error:
            ended.error = ended.error or error
            self._recorder.failed(error)

    @property
    def _where(self) -> str:
        return str(self._recordings[0].trace)


def _tell(
    listeners: Sequence[Callable[[SegmentPaths], None]], segments: Sequence[SegmentPaths]
) -> None:
    for paths in segments:
        for listener in listeners:
            listener(paths)
