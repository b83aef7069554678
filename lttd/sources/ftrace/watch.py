"""Notice and report what other tools do to an instance while lttd records from it; undo nothing.

Rule: inotify only says when to look; the state is read back from the files.  The kernel's own acts
make no inotify event, and a watch below ``events`` goes deaf when the kernel drops the file's
dentry (seen on 6.18 after ``drop_caches``).  So all files are also read again from time to time.
Rule: only single files are watched, never a directory and never ``trace_marker``: a watch on the
directory makes every write of a marker 2 to 2.7 times slower.
Rule: from arm() to disarm() lttd itself writes nothing but lists of tasks (watch_tasks.py);
what it reads makes no event of those that are asked for.

A changed setting is a state until it has its first value again.  Something that is over already
(a process cleared ``trace``) is an act.  Each also is a gap of unknown number in every stream that
it concerns.  The number of events that others read is known from the kernel's own count.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

from lttd.health import Health, Trouble
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.listener import Listener, Masks
from lttd.sources.ftrace.other_readers import other_readers
from lttd.sources.ftrace.ring import Ring
from lttd.sources.ftrace.stream import Shared
from lttd.sources.ftrace.task_lists import TASK_LISTS
from lttd.sources.ftrace.watch_events import EventsWatch
from lttd.sources.ftrace.watch_readers import ReadersWatch
from lttd.sources.ftrace.watch_tasks import TasksWatch
from lttd.sources.ftrace.watch_traceoff import TraceoffWatch, utc_ms
from lttd.sources.ftrace.watched_settings import SETTINGS, TRACING_ON, Setting, words_of
from lttd.sources.inotify import IN_MODIFY
from lttd.sources.tracefs import chosen_of
from lttd.subbuffer import Reason

# The time after which all files are read again, without a report of inotify.
LOOK_AGAIN_NS: Final = 10_000_000_000
# Files whose writing may empty the ring, but often does not; the counters show it.
SNAPSHOTS: Final = ("snapshot", "per_cpu/cpu{cpu}/snapshot")
PROBES: Final = ("dynamic_events", "kprobe_events", "uprobe_events", "synthetic_events")


class FtraceWatch:
    """See ``lttd.sources.base.Watch``."""

    def __init__(self, instance: Instance, streams: Sequence[Ring], shared: Shared) -> None:
        self.wants_closer_look = True
        self._wants_readers = True
        """Whether the closer look must find out who has a consuming file open: at first, and when
        one was opened or closed, or the kernel counts reads of others."""
        self.settings: tuple[Setting, ...] = SETTINGS
        """Those that must keep their value; more may be added before arm()."""
        self.looks: list[Callable[[], bool]] = []
        """Further looks from time to time; each tells whether it made a note."""
        self._instance = instance
        self._streams = streams
        self._shared = shared
        self._listener = Listener(instance, streams)
        self._events = EventsWatch(self._listener)
        self._readers = ReadersWatch(self._listener)
        self._tasks = TasksWatch(self._listener)
        self._traceoff = TraceoffWatch(self._listener, shared)
        self.traceoffs = self._traceoff.noted
        """For the files of the segment."""
        self._normal: dict[str, str | None] = {}
        self._sizes: list[str] = []
        """Files with the size of a ring."""
        self._away: set[str] = set()
        """The files that have another value now."""
        self._off_explained: bool | None = None
        """If tracing went off without a write: whether a trigger did it; None: not known yet."""
        self._on_fd = -1
        self._look_again_ns = 0
        self._found: deque[Callable[[], None]] = deque()
        """The results of look_closer(), for the reading thread."""

    # -- from the reading thread

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1."""
        return self._listener.fileno()

    def arm(self, health: Health) -> None:
        """Remember the present state, and report changes from now on."""
        self._listener.open(health)
        if self._listener.fileno() < 0:
            self._instance.notes.append(
                "the kernel refuses inotify, so what other tools do to the buffer is noticed late, "
                "and what they undo soon is not: raise fs.inotify.max_user_instances (sysctl)"
            )
        for setting in self.settings:
            self._normal[setting.file] = self._read_setting(setting)
            self._listener.hear(setting.file, self._on_setting(setting))
        self._tasks.arm()
        self._listener.hear("trace_options", self._on_options)
        self._events.arm()
        self._readers.arm()
        self._listener.hear("trace", self._on_cleared("trace", self._streams))
        self._hear_size("buffer_size_kb")
        # Closing it shrinks all rings after the report of inotify: look at the next tick.
        self._listener.hear("free_buffer", self._look_soon)
        for stream in self._streams:
            cpu = f"per_cpu/cpu{stream.cpu}"
            self._listener.hear(f"{cpu}/trace", self._on_cleared(f"{cpu}/trace", [stream]))
            self._hear_size(f"{cpu}/buffer_size_kb")
        self._hear_what_may_empty()
        self._look_again_ns = time.monotonic_ns() + LOOK_AGAIN_NS
        with suppress(OSError):  # then inotify and the look from time to time must be enough
            self._on_fd = os.open(self._instance.file("tracing_on"), os.O_RDONLY | os.O_CLOEXEC)

    def expect(self, events: Iterable[str], filters: Collection[str] = ()) -> None:
        """Take *events* as those that must stay on: lttd itself changes them.

        *filters*: the events whose filters it changes, too.
        """
        self._events.expect(events, filters)
        self.wants_closer_look = True

    @contextmanager
    def list_changes(self) -> Iterator[None]:
        """Take what happens to the lists of tasks in the block as lttd's own; see expect()."""
        try:
            with self._tasks.changes():
                yield
        finally:
            for file in TASK_LISTS:
                self._normal[file] = self._listener.read(file)

    def disarm(self) -> None:
        """Stop noticing changes: from now on they are lttd's own."""
        self.heard()
        if self._is_off() and self._listener.is_open:
            # Of a recording that ends before the next look.
            self._judge_triggers(self._traceoff.candidates())
        self._listener.close()
        if self._on_fd >= 0:
            os.close(self._on_fd)
            self._on_fd = -1

    def heard(self) -> None:
        """Handle the reports of inotify."""
        if self._listener.handle():
            self._look_again_ns = 0
        self._take_wish()

    def _take_wish(self) -> None:
        self._want_readers(self._readers.wants_closer_look)
        self._readers.wants_closer_look = False

    def _want_readers(self, wanted: bool) -> None:
        """Have the next closer look list all processes: that takes several calls for each."""
        self._wants_readers |= wanted
        self.wants_closer_look |= wanted

    def tick(self) -> None:
        """Look for changes without an inotify event; one short read, or all files if it is time."""
        if not self._listener.is_open:
            return
        with self._tasks.hearing():
            self.heard()
        while self._found:
            self._found.popleft()()
        self._look_whether_on()
        emptied = [stream for stream in self._streams if stream.was_emptied()]
        if emptied:
            self._tell_emptied(self._instance.path, "the kernel's counters ran backwards", emptied)
        self._readers.tick()
        self._take_wish()
        if time.monotonic_ns() >= self._look_again_ns:
            self._look_again_ns = time.monotonic_ns() + LOOK_AGAIN_NS
            for setting in self.settings[1:]:
                self._look_at(setting)
            self._look_at_size("buffer_size_kb")  # X where those of CPUs differ
            self._tasks.look()
            self._events.look()
            for look in self.looks:
                self.wants_closer_look |= look()  # the closer look also prints the notes
            self._want_readers(self._readers.has_readers)

    # -- from a thread beside the reading loop

    def look_closer(self) -> None:
        """Watch the files of events; find other readers, and the reason why tracing is off."""
        self.wants_closer_look = False
        if not self._listener.is_open:
            return
        self._events.hear_filters()
        self._found.append(partial(self._events.judge_filters, self._events.filters()))
        if self._wants_readers or self._listener.fileno() < 0:
            self._wants_readers = False
            with suppress(OSError):  # /proc cannot be listed just now
                readers = other_readers(self._instance.path)
                self._found.append(partial(self._readers.judge, readers))
        if self._listener.read(TRACING_ON.file) != self._normal[TRACING_ON.file]:
            self._found.append(partial(self._judge_triggers, self._traceoff.candidates()))

    # -- settings

    def _on_setting(self, setting: Setting) -> Callable[[Masks], None]:
        return lambda masks: self._look_at(setting, writes=_writes(masks))

    def _on_options(self, _: Masks) -> None:
        for setting in self.settings:
            if setting.file.startswith("options/"):
                self._look_at(setting)

    def _look_at(self, setting: Setting, writes: int = 0) -> None:
        """Compare a setting with its first value; *writes* is the number of reported writes."""
        if setting is TRACING_ON and self._off_explained:
            return  # a shell that writes 1 opens the file first; a look tells that it is on again
        if self._tasks.explains(setting.file, writes, setting.reason):
            return
        value, normal = self._read_setting(setting), self._normal[setting.file]
        if value is None or normal is None:
            return
        path, was_away = self._instance.file(setting.file), setting.file in self._away
        if value != normal:
            self._away.add(setting.file)
            self._listener.health.begins(setting.trouble, words_of(setting, value, normal), path)
            if not was_away or (writes and setting.reason is Reason.EMPTIED):
                self._listener.suspect(setting.reason)
        elif was_away:
            self._away.discard(setting.file)
            self._listener.health.ends(setting.trouble, f"is {normal or 'empty'} again", path)
            self._listener.suspect(setting.reason)
        elif writes:
            self._look_at_rewrite(setting, writes)
        self._shared.paused = any(each.pauses and each.file in self._away for each in self.settings)

    def _look_at_rewrite(self, setting: Setting, writes: int) -> None:
        """Report writes that left the first value: it may have been another one in between."""
        path = self._instance.file(setting.file)
        if setting.reason is Reason.EMPTIED:
            # Writing the same clock empties a ring; so may a refused tracer, which counters show.
            emptied = [stream for stream in self._streams if stream.looks_emptied()]
            if emptied or setting.file == "trace_clock":
                self._tell_emptied(path, "another process wrote it", self._streams)
        elif writes > 1 and setting.reason is not None:
            words = "another process changed it and changed it back"
            self._listener.health.happened(setting.trouble, words, path)
            self._listener.suspect(setting.reason)

    def _look_whether_on(self) -> None:
        """Find out whether tracing went off without a report: the kernel itself can do so."""
        before_ns, is_off, after_ns = time.time_ns(), self._is_off(), time.time_ns()
        if is_off is None:
            return
        if not is_off:
            self._traceoff.seen_on(before_ns)
            if self._off_explained:
                self._note(f"tracing is on again, as seen at {utc_ms(before_ns)}")
            if TRACING_ON.file in self._away or self._off_explained is not None:
                self._off_explained = None
                self._look_at(TRACING_ON)
            return
        self._traceoff.seen_off(after_ns)
        if TRACING_ON.file not in self._away:
            if self._off_explained is None:
                self.wants_closer_look = True
            elif not self._off_explained:
                self._look_at(TRACING_ON)

    def _is_off(self) -> bool | None:
        """Tell whether tracing is off that was on at first; None: the kernel does not tell."""
        try:
            return os.pread(self._on_fd, 8, 0).strip().decode() != self._normal[TRACING_ON.file]
        except OSError:
            return None

    def _judge_triggers(self, names: Sequence[str]) -> None:
        """Tell a traceoff trigger, which is no interference, from other reasons of tracing off."""
        if self._off_explained is not None or TRACING_ON.file in self._away:
            return
        self._off_explained = bool(names)
        if names:
            self._note(self._traceoff.explained(names))

    def _note(self, words: str) -> None:
        self.wants_closer_look = True  # the closer look also prints the notes
        self._instance.notes.append(words)

    # -- the ring

    def _on_cleared(self, name: str, streams: Sequence[Ring]) -> Callable[[Masks], None]:
        path = self._instance.file(name)
        return lambda _: self._tell_emptied(path, "another process wrote it", streams)

    def _hear_what_may_empty(self) -> None:
        """Watch snapshots, which replace the ring, and probes, whose deletion empties it."""
        root, cpus = self._instance.root, [stream.cpu for stream in self._streams]
        names = {name.format(cpu=cpu) for name in SNAPSHOTS for cpu in cpus}
        paths = [self._instance.file(name) for name in sorted(names)]
        for path in paths + [f"{root}/{name}" for name in PROBES]:
            self._listener.hear_path(path, self._on_perhaps_emptied(path))

    def _on_perhaps_emptied(self, path: str) -> Callable[[Masks], None]:
        def written(_: Masks) -> None:
            emptied = [stream for stream in self._streams if stream.looks_emptied()]
            if emptied:
                self._tell_emptied(path, "another process wrote it", emptied)

        return written

    def _tell_emptied(self, path: str, how: str, streams: Sequence[Ring]) -> None:
        words = f"{how}: the events that were in the ring are lost"
        self._listener.health.happened(Trouble.RING_EMPTIED, words, path)
        self._listener.suspect(Reason.EMPTIED, streams)

    def _look_soon(self, _: Masks) -> None:
        self._look_again_ns = 0

    def _hear_size(self, name: str) -> None:
        self._sizes.append(name)
        self._normal[name] = self._listener.read(name)
        self._listener.hear(name, lambda _: self._look_at_size(name))

    def _look_at_size(self, name: str) -> None:
        before, now = self._normal[name], self._listener.read(name)
        if now == before:
            return
        for each in self._sizes:  # one write changes the values of several files
            self._normal[each] = self._listener.read(each)
        if before is None or now is None or "expanded" in before:
            return  # "7 (expanded: 1408)": the kernel makes a ring when the first event is enabled
        words = f"another process changed it from {before} KiB to {now} KiB"
        self._listener.health.happened(Trouble.RING_RESIZED, words, self._instance.file(name))

    def _read_setting(self, setting: Setting) -> str | None:
        text = self._listener.read(setting.file)
        return chosen_of(text) if text and setting.file == "trace_clock" else text


def _writes(masks: Masks) -> int:
    return sum(bool(mask & IN_MODIFY) for mask in masks)
