"""Take batches from the kernel's streams and offer them to the recorder, without awaiting the disk.

Rule: wait *or* tick: lttd takes from a stream when poll reports it, and flushes it at every tick,
because poll on trace_pipe_raw does not report partly filled sub-buffers, and is broken in some
kernels (Linux ffe3986fece6, v6.9).  One tick serves all streams; turns are bounded.
Rule: while paused, nothing is taken and the rings overwrite themselves; the tick goes on.
Rule: the loop calls on_beat() each time it comes round, and every beat_interval_s while it sleeps
or waits for room.  No other task calls it, so a loop that hangs sends no beat.
Invariant: between two awaits at most one stream's turn runs, so there are no locks.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import trio

from lttd.errors import SourceError
from lttd.health import Health
from lttd.lane import Lane
from lttd.recorder import Recorder
from lttd.sources.base import Stream
from lttd.stream_reader import LAST_ATTEMPTS, State, StreamReader


@dataclass(slots=True)
class Pulse:
    """The state of the reading loop, for the watchdog, /healthz and the metrics."""

    turns: int = 0
    last_turn_ns: int = 0
    """CLOCK_MONOTONIC."""
    backlog_full: bool = False


class Reader:
    """Serves all streams of all sources in one trio task tree."""

    def __init__(
        self,
        recorder: Recorder,
        flush_interval_s: float,
        on_tick: Callable[[], None] = lambda: None,
        on_beat: Callable[[], None] = lambda: None,
        beat_interval_s: float = math.inf,
        health: Health | None = None,
    ) -> None:
        self.pulse = Pulse(last_turn_ns=time.monotonic_ns())
        self.first_cycle = trio.Event()
        """Set when every stream has been read once."""
        self.all_ended = trio.Event()
        """Set when every stream has ended for good."""
        self.open_ended = False
        """True: streams may appear even then, so all_ended stays unset."""
        self._nursery: trio.Nursery | None = None
        self._readers: list[StreamReader] = []
        self._recorder = recorder
        self.flush_interval_s = flush_interval_s
        """The longest time until an event is taken; it may change at any time."""
        self._on_tick = on_tick
        self._on_beat = on_beat
        self._beat_interval_s = beat_interval_s
        self._health = health or Health()
        self._ticked = trio.Event()
        self.paused = False
        """Whether nothing is taken; see pause()."""
        self._resumed = trio.Event()
        self._unhurried = False
        """Whether this is a drain that waits for the writers, though the backlog is not full."""
        self._room_queue = trio.StrictFIFOLock()

    def add(self, streams: Sequence[tuple[Stream, Lane]]) -> None:
        """Serve these streams, too; at once if run() is running."""
        for stream, lane in streams:
            # An ended stream that a new one continues need not be asked for losses any more.
            self._readers = [one for one in self._readers if one.lane is not lane or not one.closed]
            reader = StreamReader(stream, lane, self._recorder, self._health)
            self._readers.append(reader)
            if self.paused:
                reader.pause()
            if self._nursery is not None:
                self._serve(reader, self._nursery)

    def failures(self) -> list[SourceError]:
        """Return the errors of streams that can never be read again; their states are DONE."""
        return [reader.failure for reader in self._readers if reader.failure is not None]

    async def run(self) -> None:
        """Read until cancelled; then call drain()."""
        async with trio.open_nursery() as nursery:
            for reader in self._readers:
                self._serve(reader, nursery)
            nursery.start_soon(self._tick)
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def pause(self) -> None:
        """Take nothing until resume(): the rings overwrite themselves, which is no loss.

        All streams are PausableStreams.
        """
        if not self.paused:
            self.paused = True
            for reader in self._readers:
                reader.pause()

    def resume(self) -> None:
        """Take again, first all that the rings hold."""
        if not self.paused:
            return
        self.paused = False
        self._resumed.set()
        self._resumed = trio.Event()
        for reader in self._readers:
            reader.wake()
        if self._nursery is not None:
            self._nursery.start_soon(partial(self._turns, list(self._readers), flush=True))

    async def flush_once(self) -> None:
        """Give every stream one turn that flushes it, and offer the losses of those then empty.

        Streams that have more get further turns after the next await of the caller.
        """
        present = self._to_flush()
        for reader in present:
            await trio.lowlevel.checkpoint()
            if self.paused:
                return
            reader.wake()
            reader.turn(flush=True)
            if not reader.has_more():
                reader.tell_losses()
            self._turned()
            self._on_beat()
        more = [reader for reader in present if reader.has_more()]
        if more and self._nursery is not None:
            self._nursery.start_soon(partial(self._turns, more, flush=False))

    async def flush_all(self) -> None:
        """Take all that the rings hold now, partly filled sub-buffers included, and the losses."""
        present = self._to_flush()
        # The first round ends turns that were flushed earlier; the second begins new ones.
        for _ in range(2):
            left = present
            while left:
                for reader in left:
                    await trio.lowlevel.checkpoint()
                    if self.paused:
                        return
                    reader.wake()
                    reader.turn(flush=True)
                    self._on_beat()
                left = [reader for reader in left if reader.has_more()]
                if left and not self._recorder.has_room():
                    await self._room_in_turn()
        for reader in present:
            reader.tell_losses()

    def _to_flush(self) -> list[StreamReader]:
        if self.paused:
            return []
        return [each for each in self._readers if each.state is not State.FLUSHING]

    async def drain(self) -> None:
        """Take all remaining data, partly filled sub-buffers included, and the last losses.

        When cancelled, it takes no more; the rest then counts as lost.  While paused, nobody wants
        what the rings hold.
        """
        if self.paused:
            for reader in self._readers:
                reader.let_go()
            return
        for reader in self._readers:
            reader.stop()
        self._unhurried = all(reader.at_rest() for reader in self._readers)
        try:
            with self._recorder.one_at_a_time() if self._unhurried else nullcontext():
                await self._turns(self._readers, flush=True)
        finally:
            for reader in self._readers:
                reader.tell_losses(attempts=LAST_ATTEMPTS)

    def _serve(self, reader: StreamReader, nursery: trio.Nursery) -> None:
        if reader.stream.fileno() >= 0:
            nursery.start_soon(self._serve_polled, reader)

    async def _serve_polled(self, reader: StreamReader) -> None:
        while reader.state is not State.DONE:
            if self.paused:
                await self._resumed.wait()
            try:
                await trio.lowlevel.wait_readable(reader.stream.fileno())
            except trio.ClosedResourceError:
                return  # the stream has ended
            if self.paused:
                continue
            batches = reader.batches
            reader.wake()
            await self._turns([reader], flush=False)
            if reader.batches == batches:
                # Poll reports data, but there is none: another poll would spin.
                await self._ticked.wait()

    async def _tick(self) -> None:
        next_tick = trio.current_time()
        while True:
            present = list(self._readers)
            if self.paused:
                self._turned()
            else:
                for reader in present:
                    reader.wake()
                await self._turns(present, flush=True)
            for reader in present:
                reader.tell_losses()
                if reader.state is State.DONE and not (reader.failure or reader.closed):
                    # The kernel keeps a removed ring as long as its file is open.
                    reader.close()
            self.first_cycle.set()
            self._ticked.set()
            self._ticked = trio.Event()
            ended = all(reader.state is State.DONE for reader in self._readers)
            if ended and not self.open_ended:
                self.all_ended.set()
            self._on_tick()
            # Missed ticks are not made up for.
            next_tick = max(next_tick + self.flush_interval_s, trio.current_time())
            await self._sleep_until(next_tick)

    async def _sleep_until(self, deadline: float) -> None:
        while (now := trio.current_time()) + self._beat_interval_s < deadline:
            self._on_beat()
            await trio.sleep_until(now + self._beat_interval_s)
        await trio.sleep_until(deadline)

    async def _turns(self, readers: Sequence[StreamReader], *, flush: bool) -> None:
        """Give each of *readers* turns, urgent ones first, until all are empty."""
        busy = [reader for reader in readers if reader.has_more()]
        while busy and not self.paused:
            busy = sorted(busy, key=lambda each: not each.stream.urgent())
            for at, reader in enumerate(busy):
                if not self._recorder.has_room():
                    busy = busy[at:] + busy[:at]  # a stream without a turn is first next time
                    break
                reader.turn(flush=flush)
                self._turned()
            self._on_beat()
            busy = [reader for reader in busy if reader.has_more()]
            if busy and (self._room_queue.locked() or not self._recorder.has_room()):
                # In order of arrival, one at a time: a release makes room for one take, not for
                # all waiting streams, and no later stream may get it first.
                await self._room_in_turn()
            else:
                await trio.lowlevel.checkpoint()

    def _turned(self) -> None:
        self.pulse.turns += 1
        self.pulse.last_turn_ns = time.monotonic_ns()

    async def _room_in_turn(self) -> None:
        async with self._room_queue:
            if not self._recorder.has_room():
                await self._room()

    async def _room(self) -> None:
        """Wait until the backlog has room.  Meanwhile the kernel counts its losses."""
        room = trio.Event()
        token = trio.lowlevel.current_trio_token()
        self.pulse.backlog_full = not self._unhurried
        self._recorder.call_when_room(lambda: token.run_sync_soon(room.set))
        while not room.is_set():
            self._on_beat()
            with trio.move_on_after(self._beat_interval_s):
                await room.wait()
        self.pulse.backlog_full = False
