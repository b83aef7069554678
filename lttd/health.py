"""Keep the reasons why lttd is not healthy; /healthz and lttd_unhealthy both ask this module.

A condition is a trouble, its place (a stream or a file; empty: lttd as a whole), and words.  A
*state* lasts from begins() to ends().  An *act* that cannot be undone (a process emptied a ring)
lasts ACT_NS after it happened.  A *probe* is a function that is called for each answer; it finds
troubles that no code could report, such as a reading loop that hangs.

Rule: begins(), ends() and happened() write one line each, but at most one a minute for each
trouble; the next line says how many were left out.
Thread-safe.  The caller passes the clock, so that tests need no real one.
"""

import enum
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from typing import Final, NamedTuple

from lttd.terminal import Level

ACT_NS: Final = 60_000_000_000
LINE_INTERVAL_NS: Final = 60_000_000_000


class Trouble(enum.StrEnum):
    """Reasons why a running daemon is not healthy: values of ``lttd_unhealthy``'s label."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> "Trouble":
        """Make the member *value*; docs/METRICS.md has the same *meaning*."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    READING_STALLED = "reading_stalled", "The reading loop has not finished a turn for too long."
    BACKLOG_FULL = (
        "backlog_full",
        "The disk is slower than the kernel: reading waits, the kernel loses.",
    )
    STREAM_FAILING = (
        "stream_failing",
        "A stream cannot be read now; lttd tries again, and the kernel counts what it loses.",
    )
    STREAM_LOST = "stream_lost", "A stream can never be read again; the others are read."
    TRACING_OFF = "tracing_off", "Tracing was turned off while lttd records; lttd leaves it so."
    EVENTS_OFF = "events_off", "Events that lttd records were turned off by another process."
    FILTER_SET = "filter_set", "Another process set a filter: of events, pids or CPUs."
    SETTING_CHANGED = (
        "setting_changed",
        "Another process changed the clock, the sub-buffer size, the tracer, the overwrite mode, "
        "pause-on-trace or buffer_percent; "
        "with another clock or size nothing is read.",
    )
    FOREIGN_READER = (
        "foreign_reader",
        "Another process has a file open that consumes from the ring, or had one within the last "
        "minute.",
    )
    RING_EMPTIED = "ring_emptied", "Another process emptied the ring within the last minute."
    RING_RESIZED = "ring_resized", "Another process resized the ring within the last minute."
    WRITER_FAILED = (
        "writer_failed",
        "A file could not be written; the data before that is whole.",
    )
    FILE_LOST = (
        "file_lost",
        "Somebody removed, replaced or truncated a file of the trace: its content is lost.",
    )
    TRACE_MOVED = (
        "trace_moved",
        "The trace directory, a segment in it or its lock is no longer where recording began.",
    )
    ROLL_FAILED = (
        "roll_failed",
        "The next segment could not be made, so the present one grows; lttd tries again.",
    )
    RATE_LIMITED = (
        "rate_limited",
        "The kernel delivered more than max-rate within the last minute; the rest is not written.",
    )
    UNSYNCED = (
        "unsynced",
        "A sync failed: some of the data since the last sync may not be on the disk.",
    )


class Condition(NamedTuple):
    """One reason why lttd is not healthy now."""

    trouble: Trouble
    where: str
    """A stream or a file; empty: lttd as a whole."""
    words: str

    def __str__(self) -> str:
        return f"{self.where}: {self.words}" if self.where else self.words


Probe = Callable[[], Iterable[Condition]]


Say = Callable[[str, Level], None]
"""Writes one line."""


def _silent(_line: str, _level: Level) -> None:
    return None


class Limiter:
    """Writes at most one line of a kind per interval, with the number of those left out."""

    def __init__(
        self,
        say: Say,
        now_ns: Callable[[], int] = time.monotonic_ns,
        interval_ns: int = LINE_INTERVAL_NS,
    ) -> None:
        self._say = say
        self._now_ns = now_ns
        self._interval_ns = interval_ns
        self._lock = threading.Lock()
        self._not_before: dict[Hashable, int] = {}
        self._held_back: dict[Hashable, int] = {}

    def say(self, key: Hashable, text: str, level: Level) -> None:
        """Write *text*, unless a line of this kind was written less than an interval ago."""
        now = self._now_ns()
        with self._lock:
            if now < self._not_before.get(key, now):
                self._held_back[key] = self._held_back.get(key, 0) + 1
                return
            self._not_before[key] = now + self._interval_ns
            more = self._held_back.pop(key, 0)
        if more:
            text += f" ({more} more of these since the last such line)"
        self._say(text, level)


class Health:
    """All conditions that hold now."""

    def __init__(
        self,
        say: Say = _silent,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """*say* writes a line; *now_ns* reads a clock that never goes back."""
        self._limiter = Limiter(say, now_ns)
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._states: dict[tuple[Trouble, str], str] = {}
        self._acts: dict[tuple[Trouble, str], tuple[str, int]] = {}
        self._probes: list[Probe] = []

    def begins(self, trouble: Trouble, words: str, where: str = "") -> None:
        """Begin a state, or give a state that lasts new words."""
        with self._lock:
            new = (trouble, where) not in self._states
            self._states[trouble, where] = words
        if new:
            self._warn(Condition(trouble, where, words))

    def ends(self, trouble: Trouble, words: str, where: str = "") -> None:
        """End a state, and write *words* unless empty; do nothing if it never began."""
        with self._lock:
            known = self._states.pop((trouble, where), None)
        if known is not None and words:
            line = str(Condition(trouble, where, words))
            self._limiter.say((trouble, "over"), line, Level.NOTICE)

    def happened(self, trouble: Trouble, words: str, where: str = "") -> None:
        """Report an act that is over already; it counts for a minute."""
        with self._lock:
            self._acts[trouble, where] = words, self._now_ns() + ACT_NS
        self._warn(Condition(trouble, where, words))

    def _warn(self, condition: Condition) -> None:
        self._limiter.say(condition.trouble, str(condition), Level.WARNING)

    def ask(self, probe: Probe) -> None:
        """Add a probe, which is called for each answer."""
        self._probes.append(probe)

    def conditions(self) -> list[Condition]:
        """Return the conditions that hold now, in the order of Trouble."""
        now = self._now_ns()
        with self._lock:
            self._acts = {key: act for key, act in self._acts.items() if act[1] > now}
            found = [Condition(*key, words) for key, words in self._states.items()]
            found += [Condition(*key, words) for key, (words, _) in self._acts.items()]
        for probe in self._probes:
            found += probe()
        order = list(Trouble)
        return sorted(found, key=lambda each: order.index(each.trouble))

    def verdict(self) -> tuple[bool, str]:
        """Return whether lttd is healthy, and the reasons in one line if not."""
        found = self.conditions()
        return not found, "; ".join(map(str, found)) or "ok"
