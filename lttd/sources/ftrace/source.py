"""Source ``ftrace``: an instance of lttd's own, a named instance, or the top-level buffer.

Rule: lttd removes what it made and undoes what it changed, whatever goes wrong.  If a killed lttd
could not remove its instance, the next lttd that records into the same trace drains it; it changes
nothing in that instance except that it turns tracing off.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from lttd.abi.ftrace import PageLayout
from lttd.controls import controls_of
from lttd.errors import LttdError, UsageError
from lttd.sources.base import NO_OWNER, Attachments, Change, Owner, Request, SourceInfo
from lttd.sources.ftrace import markers, pids
from lttd.sources.ftrace.asked import FtraceSettings
from lttd.sources.ftrace.attachments import FtraceFiles
from lttd.sources.ftrace.counts import RingCounts
from lttd.sources.ftrace.instance import Instance, make_own, open_named
from lttd.sources.ftrace.killed import unstored
from lttd.sources.ftrace.left import Leftovers
from lttd.sources.ftrace.left_out import LeftOut
from lttd.sources.ftrace.loss import Mark
from lttd.sources.ftrace.maps import BuildIds, Maps
from lttd.sources.ftrace.marks import ProgressMarks
from lttd.sources.ftrace.probes import has_kernel_probes
from lttd.sources.ftrace.raw import RawFile
from lttd.sources.ftrace.record import InstanceRecord
from lttd.sources.ftrace.reload import EventsChange
from lttd.sources.ftrace.ring import Ring
from lttd.sources.ftrace.setup import (
    clock_of,
    configure_foreign,
    configure_own,
    described,
    enabled_events,
    overwrites,
    page_layout,
    stores_addresses,
    stores_user_stacks,
    wakes_sensibly,
    wanted,
)
from lttd.sources.ftrace.stream import FtraceStream, Shared
from lttd.sources.ftrace.survived import open_previous_boots
from lttd.sources.ftrace.tasks_change import TasksChange
from lttd.sources.ftrace.tracer import has_tracer
from lttd.sources.ftrace.triggers import renew_counts
from lttd.sources.ftrace.watch import FtraceWatch
from lttd.sources.ftrace.watched_settings import settings_of_tasks
from lttd.sources.mounts import find_tracefs
from lttd.sources.pipe import Pipe
from lttd.sources.tracefs import StatsFile, TraceClock, read_text, write_text
from lttd.subbuffer import BufferPool, StreamId

__all__ = [
    "FtraceSettings",
    "FtraceSource",
    "open_ftrace",
    "open_left_by_kill",
    "open_previous_boots",
]

_OWN_CHANNEL: Final = "ftrace"
_OF_TASKS: Final = ("pid", "comm")
_RELOADED: Final = ("events", "preset", "exclude", "filter", "event_trigger", *_OF_TASKS)


def open_source(request: Request) -> "FtraceSource":
    """Open the source of a SPEC; see open_ftrace()."""
    target = request.target or None
    settings = FtraceSettings(instance=target, command=request.command, **request.options)
    return open_ftrace(settings, request.pool, request.owner)


def open_ftrace(
    settings: FtraceSettings, pool: BufferPool, owner: Owner = NO_OWNER
) -> "FtraceSource":
    """Make and configure an instance, or take over the one that *settings* names.

    Raises:
        NothingToRecordError: there is no tracefs or no such instance, or this user may not use it.
        LockedError: another recorder reads it.
        UsageError: an event, a clock or a size is not possible.
    """
    root = str(find_tracefs(settings.instance))
    if settings.instance is None:
        instance, configure = make_own(root, owner), configure_own
    else:
        instance, configure = open_named(root, settings.instance, owner), configure_foreign
    try:
        configure(instance, settings)
        source = FtraceSource(instance, settings, pool)
    except BaseException:
        instance.close(drained=False)
        raise
    try:
        source.tell_unstored(owner)
    except BaseException:
        source.close()
        raise
    return source


def open_left_by_kill(
    pool: BufferPool, owner: Owner, instance: str | None = None, *, report_unknown: bool = False
) -> "tuple[list[FtraceSource], list[str]]":
    """Open the rings that killed lttds left of the trace *owner*; close() removes a drained one.

    Also deal with rings of other traces and with changed settings; the returned lines report this.
    *instance* is the one that this user records; None: a new one.
    """
    sources: list[FtraceSource] = []
    left = Leftovers(str(find_tracefs(instance)), owner)
    try:
        for found in left.own_instances():
            try:
                found.events = enabled_events(found.path)
                named = has_kernel_probes(found.root, found.path)
                spec = FtraceSettings(found.name, kallsyms=named)
                source = FtraceSource(found, spec, pool, previous_run=True)
            except BaseException as error:
                found.leave()
                if not isinstance(error, LttdError):
                    raise
                left.lines.append(str(error))
                continue
            if source.tell_unstored(owner) or source.holds_data():
                sources.append(source)
            else:
                source.close()
                left.lines += source.notes()
        if report_unknown:
            left.report_unknown()
    except BaseException:
        for source in sources:
            source.close()
        raise
    return sources, left.lines


class FtraceSource:
    """See ``lttd.sources.base.Source``."""

    _next_files: FtraceFiles | None = None
    """The files of the segment that was made last."""

    def __init__(
        self,
        instance: Instance,
        settings: FtraceSettings,
        pool: BufferPool,
        *,
        previous_run: bool = False,
    ) -> None:
        """Make the streams of *instance*, which is locked and configured; close() closes it."""
        layout = page_layout(instance)
        if layout.subbuffer_bytes > pool.least_bytes:
            raise UsageError(
                f"sub-buffers of {layout.subbuffer_bytes} bytes: at most {pool.least_bytes} go"
            )
        self._instance = instance
        self._settings = settings
        self._previous_run = previous_run
        self._left_out = LeftOut(instance, settings, previous_run=previous_run)
        self._marks = ProgressMarks()
        self._is_marked_idle = False
        self._started = False
        self._notes_told = 0
        self._files: FtraceFiles | None = None
        """Those of the present segment."""
        self._names_since_ns = 0
        """When the source was rolled or stopped, on CLOCK_MONOTONIC: later names hold for it."""
        self._closed = False
        self._needs_symbols = (
            settings.kallsyms or stores_addresses(instance, settings) or has_tracer(instance)
        )
        self._build_ids = BuildIds()
        self._mark_failed = False
        name = clock_of(instance)
        with ExitStack() as stack:
            self._clock = TraceClock(name, instance.file("per_cpu/cpu0/stats"))
            stack.callback(self._clock.close)
            self._shared = _shared(instance, layout, pool, self._clock.now)
            stack.callback(self._shared.pipe.close)
            self._shared.previous_run = previous_run
            self._shared.same_clock = lambda: clock_of(instance) == name
            if previous_run:
                self._shared.producers_stopped = True
                self._shared.stopped_at = self.now()
            self.streams = _streams(instance, self._shared)
            for stream in self.streams:
                stack.callback(stream.close)
            self.info = _info(instance, settings, name, self._shared)
            stack.pop_all()
        self.watch = FtraceWatch(instance, [each.ring for each in self.streams], self._shared)
        self._ended = pids.Ended(instance, settings)
        self.watch.looks.append(self._ended.look)
        self.watch.settings += settings_of_tasks(instance, settings)

    @property
    def grows(self) -> bool:
        """Return False: each possible CPU has its files from the start."""
        return False

    @property
    def open_ended(self) -> bool:
        """Return False: no stream appears later."""
        return False

    def discover(self) -> Sequence[FtraceStream]:
        """Return nothing."""
        return ()

    def leave_out(self, thread_ids: Iterable[int]) -> None:
        """Exclude these threads from the trace if the user asks for it and nobody uses the list.

        If that fails during recording (tracefs was unmounted, say), they are recorded, too.
        """
        try:
            self._left_out.add(thread_ids)
        except LttdError as error:
            if not self._started:
                raise
            self._instance.notes.append(str(error))

    def start(self) -> None:
        """Turn tracing on; the ring of a killed lttd stays off."""
        if self._instance.triggers:
            renew_counts(self._instance)
        if self._instance.own and not self._previous_run:
            write_text(self._instance.file("tracing_on"), "1")
        elif not self._instance.own:
            self._instance.undo.change("tracing_on", "1")
        self._started = True

    def stop(self) -> None:
        """Turn tracing off in lttd's own instance; in others only what lttd turned on.

        If that fails (tracefs was unmounted, say), the rings are drained all the same.
        """
        shared = self._shared
        if shared.stopped_at is not None:
            return
        self.watch.disarm()
        path = self._instance.file("tracing_on")
        try:
            if self._instance.own:
                write_text(path, "0")
            else:
                self._instance.notes += self._instance.undo.stop_producing()
            shared.producers_stopped = self._instance.own or read_text(path) == "0"
        except LttdError as error:
            self._instance.notes.append(str(error))
        for stream in self.streams:
            stream.ring.sample()
        shared.stopped_at = self.now()
        self._names_since_ns = time.monotonic_ns()

    def now(self) -> int:
        """Read the trace clock."""
        return self._clock.now()

    def attachments(self) -> Attachments:
        """Return format files, commands, and at the end the kernel's counters."""
        self._next_files = FtraceFiles(
            *(self._instance, self.now, self.streams, self._files),
            kallsyms=self._needs_symbols,
            names_since_ns=lambda: self._names_since_ns,
        )
        self._next_files.command = self._settings.command
        self._next_files.traceoffs = self.watch.traceoffs
        if stores_user_stacks(self._instance):
            self._next_files.maps = Maps(self.now, self._build_ids)
        self._files = self._files or self._next_files
        return self._next_files.due

    def changed(self, options: Mapping[str, Any]) -> Change:
        """Decide what to record from now on; see Reloadable.changed()."""
        old = self._settings
        new = old._replace(**{key: options.get(key, ()) for key in _RELOADED})
        asked = wanted(self._instance, new)
        change = EventsChange(self._instance, self.watch, asked, lambda: self._follow(new))
        if all(getattr(new, key) == getattr(old, key) for key in _OF_TASKS):
            return change
        return TasksChange(change, self._instance, self.watch, old, new)

    def _follow(self, new: FtraceSettings) -> None:
        """Take over what a reload changed."""
        self._settings = new
        self._ended.follow(new)
        kept = {key: each for key, each in self.info.settings.items() if key not in _RELOADED}
        settings = {**kept, **controls_of(new), "events": list(self._instance.events)}
        self.info = replace(self.info, settings=settings)

    def mark(self, text: str) -> str:
        """Write *text* into the ring; see Markable.mark()."""
        markers.write_mark(self._instance, text)
        return self._instance.name

    def notes(self) -> Sequence[str]:
        """Return lines on settings that the kernel changed or refused, each once."""
        told, self._notes_told = self._notes_told, len(self._instance.notes)
        return self._instance.notes[told:]

    def mark_progress(self, segment: str) -> None:
        """Note that lttd lives, and how far each stream was read; see Source.mark_progress()."""
        record = self._instance.record
        if record is None or self._closed:
            return
        try:
            if all(stream.is_paused for stream in self.streams):
                self._mark_idle(record)
                return
            self._is_marked_idle = False
            self._marks.follow(segment, self.streams)
            record.mark(segment, self._marks.by_stream)
            self._instance.progress = None
        except LttdError as error:
            if not self._mark_failed:
                self._instance.notes.append(str(error))
            self._mark_failed = True

    def _mark_idle(self, record: InstanceRecord) -> None:
        """Note, once, that nobody wants what the rings hold."""
        if not self._is_marked_idle:
            record.mark_idle()
        self._is_marked_idle = True

    def roll(self, segment: str) -> Mapping[StreamId, int]:
        """Note that *segment* begins; see Source.roll()."""
        self._files, self._names_since_ns = self._next_files, time.monotonic_ns()
        read: dict[StreamId, int] = {}
        for stream in self.streams:
            try:
                if not stream.over:
                    read[stream.info.id] = self._marks.rolled(segment, stream).read_events
            except LttdError:  # the next take reports it
                continue
        return read

    def tell_unstored(self, owner: Owner) -> bool:
        """Count the events of these rings that a killed lttd lost; see lttd.sources.ftrace.killed.

        Return whether there were any.
        """
        progress = self._instance.progress
        any_lost = False
        for stream in self.streams if progress is not None and progress.segment else ():
            assert progress is not None
            now = Mark(0, stream.info.read_events_before, stream.ring.lost_before)
            missing = unstored(stream.info.id.name, now, progress, owner)
            if missing is not None:
                stream.inherit(missing)
                any_lost |= missing.is_loss
        return any_lost

    def holds_data(self) -> bool:
        """Tell whether a ring still holds events."""
        return any(not stream.over and stream.counters().get("entries") for stream in self.streams)

    def close(self) -> None:
        """Close the streams; restore changed settings, or remove lttd's own instance.

        The ring of a killed lttd stays if it was not drained.
        """
        if self._closed:
            return
        self._closed = True
        self.watch.disarm()
        keep = self._previous_run and self.holds_data()
        for stream in self.streams:
            stream.close()
        self._clock.close()
        self._shared.pipe.close()
        if keep:
            self._instance.leave()
        else:
            self._instance.close()


def _shared(
    instance: Instance, layout: PageLayout, pool: BufferPool, now: Callable[[], int]
) -> Shared:
    return Shared(
        layout,
        pool,
        Pipe(pool.take_bytes),
        now,
        channel=_OWN_CHANNEL if instance.own else instance.name,
        overwrite=overwrites(instance),
        pollable=wakes_sensibly(instance),
    )


def _streams(instance: Instance, shared: Shared) -> list[FtraceStream]:
    """Make a stream of each locked descriptor; the streams then own the descriptors."""
    streams: list[FtraceStream] = []
    with ExitStack() as stack:
        for cpu in sorted(instance.raw_fds):
            stats = StatsFile(instance.file(f"per_cpu/cpu{cpu}/stats"))
            stack.callback(stats.close)
            ring = Ring(cpu, RingCounts(stats), shared.now, previous_run=shared.previous_run)
            size_bytes = shared.layout.subbuffer_bytes
            raw = RawFile(cpu, instance.raw_fds[cpu], size_bytes, shared.pipe)
            streams.append(FtraceStream(raw, ring, shared))
        instance.raw_fds.clear()
        stack.pop_all()
    return streams


def _info(instance: Instance, settings: FtraceSettings, clock: str, shared: Shared) -> SourceInfo:
    made = described(instance, shared.layout, overwrite=shared.overwrite)
    made |= {"events": list(instance.events), "instance": settings.instance or instance.name}
    made |= controls_of(settings)
    spec = "ftrace" if settings.instance is None else f"ftrace:{settings.instance}"
    continues = instance.progress.segment if instance.progress is not None else ""
    return SourceInfo(
        "ftrace", spec, clock, made, previous_run=shared.previous_run, continues=continues
    )
