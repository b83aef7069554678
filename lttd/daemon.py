"""Run lttd once: sources, reader, recorder, signals, and the orderly end.

Rule: the order of the end is: stop producers, drain rings, last losses, drain backlog, sync, close
manifests, close the sources, end metrics, report to systemd, print the summary.
A second signal abandons the backlog and counts it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import trio

from lttd.beginning import Beginning
from lttd.beneath import OpenDirectory
from lttd.command import Command
from lttd.config import FLIGHT, Config
from lttd.control import Control
from lttd.control_protocol import STATUS, Handler, Peer
from lttd.control_socket import socket_name
from lttd.errors import LttdError, UsageError, refusal
from lttd.files import Disk
from lttd.flight import AlwaysRead
from lttd.flying import Flying
from lttd.health import Health
from lttd.helper import lasting_threads
from lttd.housekeeping import Housekeeping
from lttd.mark_requests import MARK, MarkRequests
from lttd.memory import pool_of, spare_memory
from lttd.notify import READY, STOPPING, Heart, Notifier
from lttd.opening import locked_trace, owner_of, recover_open_segments
from lttd.previous_runs import PreviousRuns
from lttd.priority import raise_priority, thread_ids
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.recording import Recording, tell_notes
from lttd.reloading import Reloading
from lttd.retaining import Retaining
from lttd.rolling import Rolling
from lttd.servers import serve_control, serve_metrics
from lttd.signals import Meaning, Signals
from lttd.sources.base import Source, child_of
from lttd.state import RunState
from lttd.stats import events_lost
from lttd.status import Observer
from lttd.summary import Outcome
from lttd.takers import takers_of_reading, takers_of_retention, takers_of_writing
from lttd.terminal import Level, say
from lttd.trigger import Refusal, Trigger, TriggerRefusedError
from lttd.trigger_requests import TRIGGER
from lttd.trigger_service import TriggerService


class Daemon:
    """A run, from configuration to exit status."""

    def __init__(
        self,
        config: Config,
        on_ready: Callable[[], None] = lambda: None,
        disk: Disk | None = None,
        signals: Signals | None = None,
        command: Command | None = None,
    ) -> None:
        """*signals* are taken over already, and *command* is spawned."""
        self._config = config
        self._on_ready = on_ready
        self._disk = disk or Disk()
        self._signals = signals or Signals()
        self._command = command or Command(())
        self._pool = pool_of(config.backlog_bytes)
        self._outcome = Outcome()
        self._health = Health(self._outcome.say)
        self._notifier = Notifier()
        self._heart = Heart(self._notifier, self._status)
        self._recordings: list[Recording] = []
        self._unrunnable: UsageError | None = None
        self._ends_heard = 0
        self._stop = trio.Event()
        self._draining = trio.CancelScope()
        self._token = trio.lowlevel.current_trio_token()
        self._recorder = Recorder(
            backlog_bytes=config.backlog_bytes,
            policy=config.disk_policy,
            on_failure=lambda: self._token.run_sync_soon(self._stop.set),
            health=self._health,
        )
        self._reader = Reader(
            self._recorder,
            config.flush_interval_s,
            self._on_tick,
            self._on_beat,
            self._notifier.beat_interval_s,
            self._health,
        )
        self._recorder.limit_rate(config.max_rate_bytes)
        recordings, recorder, reader = self._recordings, self._recorder, self._reader
        self._beginning = Beginning(config, self._disk, recorder, recordings)
        self._observer = Observer(
            recorder, reader, self._health, recordings, config.flush_interval_s
        )
        self._house = Housekeeping(config, recordings, recorder, reader, self._fail)
        self._house.at_marks.append(self._pool.give_back)
        self._rolling = Rolling(
            config.roll_limits, recordings, recorder, reader, self._house, self._health
        )
        self._rolling.want_takes = self._pool.want
        self._flying: Flying | None = None
        self._observer.parts.rolls = lambda: self._rolling.rolled
        self._state = RunState(config, self._observer, self._health, self._recordings)
        self._retaining: Retaining  # set once the trace is locked
        self._triggers: TriggerService | None = None
        self._reloading = Reloading(
            config, recordings, self._house, self._notifier, self._take_config
        )
        self._reloading.takers |= takers_of_reading(reader, self._observer, self._rolling)
        self._reloading.takers |= takers_of_writing(recorder)
        if config.mode == FLIGHT:
            self._flying = self._fly(Flying(recordings, reader, self._rolling, self._house))
        self._handlers: dict[str, Handler] = {
            STATUS: self._answer_status,
            MARK: MarkRequests(self._recordings),
            "reload": self._reloading.answer,
            "roll": self._rolling.answer,
        }
        self._control = Control(self._handlers)

    # -- the run as a whole

    async def run(self) -> int:
        """Record until the requested end; return the exit status.

        Raises:
            LttdError: nothing was recorded, and nothing half-made stays.
        """
        for note in self._config.notes:
            say(note, Level.NOTICE)
        # From here on a signal sets a flag.  It interrupts no step half-way, such as the start of
        # threads that must be ended.
        with ExitStack() as stack, self._signals.delivered_to(self._hear):
            stack.callback(self._notifier.close)
            stack.callback(self._house.helpers.close)
            stack.callback(self._command.give_up)
            async with trio.open_nursery() as nursery:
                self._reloading.takers |= await serve_metrics(
                    *(nursery, self._config, self._observer, self._health, self._state),
                    self._accept_alert,
                )
                number = stack.enter_context(
                    locked_trace(self._disk, self._config.trace_dir, append=self._config.append)
                )
                stack.callback(self._recorder.close)
                self._recorder.start()
                self._house.helpers.start()
                self._raise_priority(thread_ids())
                for recovered in recover_open_segments(self._disk, self._config.trace_dir):
                    say(recovered.line, Level.WARNING)
                    self._observer.also(recovered.streams)
                self._retaining = retaining = self._retain()
                owner = owner_of(self._disk, self._config.trace_dir)
                previous = PreviousRuns(
                    *(self._config, self._pool, self._recorder, self._observer),
                    *(self._house.helpers.sources, self._beginning.begin),
                )
                number = await previous.drain_boots(number, owner, self._outcome.failures)
                # Open sources before: if the request is impossible, rings of a kill stay untouched.
                child = child_of(self._command.pid, self._command.words)
                sources = self._beginning.open_sources(self._pool, owner, stack, child)
                number = await previous.drain(number, owner, self._outcome.failures)
                retaining.store.close_all()
                self._begin_all(sources, number)
                name = socket_name(owner.device, owner.inode)
                await serve_control(nursery, stack, self._control, name)
                nursery.start_soon(self._rolling.run)
                nursery.start_soon(retaining.run)
                if self._flying is not None:
                    nursery.start_soon(self._flying.run)
                self._compress(nursery, self._disk.hold(self._config.trace_dir))
                nursery.start_soon(self._serve_triggers().run)
                await self._read()
                await self._end()
                await retaining.finish()
                nursery.cancel_scope.cancel()
        self._tell()
        return 1 if self._outcome.failures else 0

    def _retain(self) -> Retaining:
        """Make the store of the trace, before it has a segment of this run."""
        config = self._config
        retaining = Retaining(self._disk, config.trace_dir, config.limits, self._house)
        self._recorder.make_room = retaining.store.make_room
        self._beginning.on_opened.append(retaining.store.opened)
        self._rolling.on_prepared.append(retaining.prepared)
        self._rolling.on_opened.append(retaining.opened)
        self._rolling.on_closed.append(retaining.closed)
        self._handlers |= retaining.handlers
        self._reloading.takers |= takers_of_retention(retaining, self._recorder, self._rolling)
        retaining.store.catalogue.has_holes = self._flying is not None
        self._observer.parts.store = retaining.store.state
        self._observer.parts.limits = lambda: retaining.store.limits
        self._state.parts |= retaining.state_parts
        return retaining

    def _fly(self, flying: Flying) -> Flying:
        self._observer.parts.flight_waits = lambda: self._reader.paused
        self._state.parts["flight"] = flying.state_json
        return flying

    def _compress(self, nursery: trio.Nursery, trace: OpenDirectory) -> None:
        level, retaining = self._config.compress_level, self._retaining
        store = retaining.store
        if level is not None:
            from lttd.compression import Compression  # noqa: PLC0415  (other runs start without)

            work = Compression(trace, level, self._house.leave_out, self._outcome.say)
            work.on_changed.append(lambda paths: retaining.work(lambda: store.changed(paths)))
            store.catalogue.compression_backlog = lambda: work.backlog
            self._rolling.on_closed.append(work.closed)
            nursery.start_soon(work.run, retaining.has_read.wait)

    def _serve_triggers(self) -> TriggerService:
        """Make what serves triggers; recording has begun."""
        rings = self._flying or AlwaysRead(self._reader.flush_all)
        recorded = self._recordings, self._recorder, self._house
        self._triggers = TriggerService(self._retaining.store, *recorded, rings)
        self._handlers[TRIGGER] = self._triggers.handler
        self._observer.parts.triggers = self._triggers.triggers.counts
        self._state.parts["triggers"] = self._triggers.state_json
        return self._triggers

    async def _accept_alert(self, trigger: Trigger) -> Trigger | None:
        if self._triggers is None:
            raise TriggerRefusedError(Refusal.NOT_NOW)
        return await self._triggers.triggers.accept_alert(trigger)

    def _raise_priority(self, threads: Sequence[int]) -> None:
        if self._config.priority is not None:
            raise_priority(threads, self._config.priority)

    def _begin_all(self, sources: Sequence[Source], number: int) -> None:
        self._recorder.own_threads = lasting_threads()
        try:
            self._rolling.next_number = self._beginning.begin_all(sources, number)
            if self._flying is not None:
                self._flying.begin()
            for recording in self._recordings:
                recording.source.leave_out(self._recorder.own_threads)
                self._reader.add(recording.streams_and_lanes())
                self._reader.open_ended |= recording.source.open_ended
                if self._reader.paused:
                    recording.mark_progress()
                recording.source.start()
                if recording.source.watch is not None:
                    recording.source.watch.arm(self._health)
        except BaseException:
            self._beginning.discard_all()
            raise

    async def _read(self) -> None:
        with trio.CancelScope() as reading:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._reader.run)
                nursery.start_soon(self._house.run)
                nursery.start_soon(self._reloading.run)
                nursery.start_soon(self._end_when_drained)
                if self._config.duration_s is not None:
                    nursery.start_soon(self._end_after, self._config.duration_s)
                nursery.start_soon(self._begin_work)
                await self._stop.wait()
                # Recording continues while COMMAND ends.
                await self._command.end()
                reading.cancel()

    async def _begin_work(self) -> None:
        await self._reader.first_cycle.wait()
        self._notifier.send(READY)
        self._on_ready()
        if not self._config.command or self._stop.is_set():
            return
        try:
            await self._command.run()
        except OSError as error:
            words = f"{self._config.command[0]}: cannot be run: {error.strerror}"
            self._unrunnable = UsageError(words)
        self._stop.set()

    async def _end(self) -> None:
        if self._unrunnable is not None:
            self._beginning.discard_all()
            raise self._unrunnable
        self._notifier.send(STOPPING)
        self._state.ending = True
        self._control.end()
        self._notifier.status(self._status())
        await self._reloading.finish()
        self._rolling.stop()
        if self._flying is not None:
            self._flying.end()
        if self._triggers is not None:
            self._triggers.triggers.stop()
        for recording in self._recordings:
            recording.source.stop()
        await self._house.admit()
        with self._draining:
            await self._reader.drain()
        await self._rolling.finish()
        for recording in self._recordings:
            try:
                paused = self._reader.paused
                close = partial(recording.close, paused=paused)
                await self._house.helpers.sources.run(close)
            except LttdError as error:
                self._outcome.failures.append(error)
            tell_notes(recording.source)
            self._outcome.summaries += recording.summaries()
        if self._triggers is not None:
            await self._triggers.triggers.finish()
        self._notifier.status(self._status())
        self._outcome.failures += self._reader.failures()
        write_error = self._recorder.failure or self._recorder.last_write_error
        if write_error is not None:
            self._outcome.failures.append(write_error)

    # -- what ends it

    def _hear(self, number: int) -> None:
        """Pass a signal to the loop; this runs in the signal handler."""
        self._token.run_sync_soon(self._signalled, number)

    def _signalled(self, number: int) -> None:
        meaning = self._signals.meaning(number)
        if meaning is Meaning.NONE:
            if line := self._signals.report(number):
                say(line, Level.NOTICE)
            return
        if meaning is Meaning.ROLL:
            self._rolling.ask()
            return
        if meaning is Meaning.RELOAD:
            self._reloading.ask()
            return
        if meaning is Meaning.TRIGGER:
            if self._triggers is not None:
                self._triggers.signalled()
            return
        self._ends_heard += 1
        if self._ends_heard > 1:
            words = "a second signal: data that is not written yet is abandoned and counted"
            say(words, Level.WARNING)
            self._draining.cancel()
            self._recorder.abandon_backlog()
        self._command.signalled(number)
        self._stop.set()

    async def _end_after(self, duration_s: float) -> None:
        await trio.sleep(duration_s)
        self._stop.set()

    def _on_tick(self) -> None:
        self._house.on_tick()
        self._state.sample()

    def _on_beat(self) -> None:
        self._heart.beat(trio.current_time())
        self._rolling.look()

    def _fail(self, error: LttdError) -> None:
        self._outcome.failures.append(error)
        self._stop.set()

    async def _end_when_drained(self) -> None:
        await self._reader.all_ended.wait()
        self._stop.set()

    # -- the state of the run

    def _status(self) -> str:
        """Return the state of recording in words, for ``systemctl status``."""
        stats = self._observer.streams()
        taken = sum(each.subbuffers for each in stats)
        lost = sum(events_lost(each.lost_so_far()) for each in stats)
        doing = "waiting for a trigger; recorded" if self._reader.paused else "recording"
        doing = "stopping; recorded" if self._stop.is_set() else doing
        text = f"{doing} to {self._config.trace_dir}, {taken} sub-buffers, {lost} events lost"
        return text + ("; the backlog is full" if self._reader.pulse.backlog_full else "")

    def _take_config(self, config: Config) -> None:
        self._config = self._state.config = config

    async def _answer_status(self, _request: Mapping[str, Any], _peer: Peer) -> dict[str, Any]:
        return self._state.to_json()

    def _tell(self) -> None:
        """Write the lines and the summary of the end."""
        status = self._command.status
        if status:
            say(f"{self._config.command[0]}: ended with status {status}", Level.NOTICE)
        about = {"command_status": status} if self._config.command else {}
        if self._flying is not None:
            about["flight_overwritten_events"] = self._flying.overwritten_events()
        self._outcome.tell(self._config.summary, about)


def run(
    config: Config, on_ready: Callable[[], None], signals: Signals, command: Command | None
) -> int:
    """Run a daemon to its end; return the exit status.

    Raises:
        LttdError: nothing was recorded.
    """

    async def main() -> int:
        # Trio needs memory to end a run, and waits for ever where one of its tasks gets none.
        with spare_memory():
            return await Daemon(config, on_ready, signals=signals, command=command).run()

    try:
        with spare_memory():
            pass  # trio gets as much to begin with
        return trio.run(main, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        error = _only_error(group)
    except (OSError, MemoryError, RuntimeError) as alone:
        error = alone
    raise refusal(error) or error from None


def _only_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the single error that a nursery wrapped; a group of several stays a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
