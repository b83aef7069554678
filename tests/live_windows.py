"""Numbered events on this kernel, the windows of a trace that have them, and its judge.

A judge is a second lttd that records the same events all the time into a trace of its own.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from lttd.clients.base import ask
from lttd.config import parse_command_line
from lttd.daemon import Daemon
from lttd.signals import Signals
from lttd.trigger import Trigger
from lttd.view.filters import Filter
from lttd.view.library import EventWindow
from lttd.view.times import window_of
from lttd.view.trace import Trace
from lttd.view.triggers import triggers_of, window_of_trigger
from lttd.view.window import PIECE_BYTES
from tests.failing_disk import FailingDisk
from tests.running import PATIENCE_S, Run

EVENTS = ("--events", "syscalls:sys_enter_getpgid")
OFTEN = ("--flush-interval", "50ms", "--summary", "none")
# The two lttd read the clock for their own copies of an event one after the other.
APART_NS = 2_000_000
# The argument of getpgid() is the number of the event; no process has such an id.
FIRST = 10_000_000
# Usage: CPU EVENTS_PER_S; a number on stdin asks for as many at once, and the end of stdin ends it.
WRITER = f"""
import os, select, sys, time
cpu, rate = (int(word) for word in sys.argv[1:])
os.sched_setaffinity(0, {{cpu}})
number, at_once, first, begin = 0, 0, {FIRST} * (cpu + 1), time.monotonic()
while True:
    if select.select([0], [], [], 0.002)[0]:
        asked = os.read(0, 4096)
        if not asked:
            break
        at_once += sum(map(int, asked.split()))
    while number < at_once + (time.monotonic() - begin) * rate:
        try:
            os.getpgid(first + number)
        except OSError:
            number += 1
"""


@contextmanager
def numbering(per_second: int = 1000, at_once: int = 0) -> Iterator[Callable[[int], None]]:
    """Make numbered events on every CPU during the block; begin with *at_once* of them.

    The result makes as many more at once as it is called with.
    """
    words = [sys.executable, "-S", "-E", "-c", WRITER]
    writers = [
        subprocess.Popen([*words, str(cpu), str(per_second)], stdin=subprocess.PIPE, bufsize=0)
        for cpu in sorted(os.sched_getaffinity(0))
    ]

    def burst(count: int) -> None:
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"%d\n" % count)

    try:
        burst(at_once)
        yield burst
    finally:
        for writer in writers:
            writer.communicate()


def numbers(path: Path, trigger: int | None = None) -> dict[int, int]:
    """Return the time of each numbered event of a trace, or of a trigger's window."""
    trace = Trace(path)
    span = window_of(trace, None, None) if trigger is None else window_of_trigger(trace, trigger)
    window = EventWindow([trace], span, Filter(None, None, f"pid >= {FIRST}"), PIECE_BYTES)
    found: dict[int, int] = {}
    for batch in window:
        assert list(batch.notes) == []
        for rows in batch.by_type():
            found.update(zip(rows["pid"].tolist(), rows.time.tolist(), strict=True))
    assert window.notes.take() == []
    return found


def asked(trace: Path, **request: object) -> Trigger:
    """Ask the recorder of *trace* for a window; return the accepted trigger."""
    given = argparse.Namespace(trace_dir=str(trace))
    return Trigger.from_json(ask(given, {"do": "trigger", **request}, PATIENCE_S)["trigger"])


def kept(trace: Path) -> list[Trigger]:
    """Return the triggers whose windows the trace keeps."""
    triggers, damaged = triggers_of(Trace(trace))
    assert damaged == []
    return triggers


def assert_windows_are_whole(trace: Path, judge: Path) -> None:
    """Assert that each window has every event that the judge has between its true bounds."""
    (segment,) = Trace(judge).segments
    assert segment.conversion is not None
    real_ns = segment.conversion.to_realtime_ns
    times = [(real_ns(time), number) for number, time in numbers(judge).items()]
    assert times
    for one in kept(trace):
        assert one.complete, one
        assert one.begin_ns is not None
        assert one.end_ns is not None
        begin_ns, end_ns = one.begin_ns + APART_NS, one.end_ns - APART_NS
        expected = {number for at_ns, number in times if begin_ns <= at_ns <= end_ns}
        found = numbers(trace, one.number)
        assert expected <= found.keys(), one


def lttd_trigger(run: Run, trace: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``lttd trigger``."""
    return client(run, "trigger", trace, *words)


def client(run: Run, name: str, trace: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a client, which finds the recorder by its runtime directory."""
    own = {"RUNTIME_DIRECTORY": str(run.launcher.runtime)}
    command = [sys.executable, "-m", "lttd", name, "-t", str(trace), *words]
    return subprocess.run(
        command, env={**os.environ, **own}, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip


class InProcess:
    """An lttd within this process, whose disk can hang."""

    def __init__(self, *words: str | Path) -> None:
        self.disk, self.ready, self.status = FailingDisk(), trio.Event(), -1
        self.signals = Signals()
        config = parse_command_line([str(word) for word in words])
        self.daemon = Daemon(config, self.ready.set, self.disk, signals=self.signals)

    async def run(self) -> None:
        self.status = await self.daemon.run()
