"""Mode flight on this kernel: nothing is written until a trigger, and then everything."""

import argparse
import itertools
import json
import os
import random
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from lttd.clients.base import ask
from lttd.flight import Reach
from lttd.flying import Flying
from lttd.sources.base import OVERWRITTEN_IDLE
from lttd.sources.ftrace import instance as ftrace_instance
from lttd.subbuffer import Reason
from lttd.trigger import Trigger
from lttd.view.trace import Trace
from tests.live_windows import (
    EVENTS,
    FIRST,
    OFTEN,
    InProcess,
    asked,
    assert_windows_are_whole,
    kept,
    lttd_trigger,
    numbering,
    numbers,
)
from tests.running import (
    PATIENCE_S,
    QUIET,
    Launcher,
    Run,
    assert_whole,
    free_port,
    info,
    needs_kernel,
    until,
)
from tests.viewer import run as run_lttv

pytestmark = needs_kernel(alone=True)

TRIGGERS = 60 if os.environ.get("LTTD_NIGHTLY") else 3
# A ring holds the events of the last second or so.
IN_PROCESS = ("--mode", "flight", "--buffer-size", "128K")
PER_SECOND = 3000
# More events than a ring holds.
AT_ONCE = 6000
# A writer that was kept from its CPU makes up for that at once, and may fill the ring; an lttd with
# priority reads it in time.
FLIGHT = (*IN_PROCESS, "--priority", "1")


def until_wrapped(run: Run) -> None:
    """Wait until every ring has overwritten events."""
    until(lambda: all(one["overrun"] for one in run.stats().values()), "overwritten events")


def until_none_waits(trace: Path) -> None:
    """Wait until the windows of all triggers are complete."""
    until(lambda: not waiting(trace), "the windows", lambda: kept(trace))


def scraped(port: int, name: str) -> list[float]:
    """Return the samples of a metric."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)]


def written(run: Run, trace: Path) -> tuple[str, dict[str, int]]:
    """Return how much a process has written to disks, and when each file changed."""
    lines = Path(f"/proc/{run.process.pid}/io").read_text().splitlines()
    files = {str(path): path.stat().st_mtime_ns for path in sorted(trace.rglob("*"))}
    return next(line for line in lines if line.startswith("write_bytes")), files


def waiting(trace: Path) -> int:
    """Return the number of triggers whose windows are not complete."""
    state = ask(argparse.Namespace(trace_dir=str(trace)), {"do": "status"}, PATIENCE_S)
    return int(state["triggers"]["waiting"])


def summary(run: Run) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(run.stdout)
    return value


def test_each_window_has_every_event_between_its_bounds_and_nothing_else_is_stored(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace, judge, chance = tmp_path / "t", tmp_path / "judge", random.Random(11)
    other = lttd.start("-t", judge, *EVENTS, *OFTEN)
    run = lttd.start("-t", trace, *EVENTS, *FLIGHT, "--summary", "json").recording()
    other.recording()
    with numbering(PER_SECOND, AT_ONCE):
        until_wrapped(run)
        asked(trace, before="1h", after="800ms", wait=False)
        for number in range(TRIGGERS):
            if number % 3 == 1:
                until_none_waits(trace)
                time.sleep(1 + chance.random())
            # Some triggers come while a window lasts, or while its segment is being closed.
            before, after = f"{chance.randrange(1, 3000)}ms", f"{chance.randrange(400)}ms"
            asked(trace, before=before, after=after, wait=number % 3 == 1)
            time.sleep(chance.random() / 3)
        until_none_waits(trace)
        time.sleep(1)
        assert run.end() == other.end() == 0
    assert len(kept(trace)) == 1 + TRIGGERS
    assert kept(trace)[0].note.startswith("the trace reached back ")
    assert_whole(trace, "--events")
    assert info(trace)["events_lost"] == info(judge)["events_lost"] == 0
    assert summary(run)["flight_overwritten_events"] > 0
    assert_windows_are_whole(trace, judge)
    found, expected = numbers(trace), numbers(judge)
    # Each window has events; what came after the last one was never asked for.
    assert len(expected) - 2 * PER_SECOND > len(found) > PER_SECOND
    assert max(found.values()) < max(expected.values()) - 700_000_000


def test_nothing_is_written_before_a_trigger_and_what_its_window_lacks_is_lost(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace, port = tmp_path / "t", free_port()
    options = ("--metrics", f"127.0.0.1:{port}", "--flush-interval", "50ms", "--summary", "json")
    run = lttd.start("-t", trace, *EVENTS, *FLIGHT, *options).recording()
    with numbering(PER_SECOND, AT_ONCE):
        until(lambda: scraped(port, "lttd_flight_waiting") == [1], "the metrics")
        until_wrapped(run)
        before, turns = written(run, trace), scraped(port, "lttd_read_turns_total")
        time.sleep(1)
        assert written(run, trace) == before
        assert scraped(port, "lttd_read_turns_total") > turns
        assert sum(scraped(port, "lttd_flight_overwritten_events_total")) > 0
        for lost in ("events", "subbuffers", "bytes"):
            assert sum(scraped(port, f"lttd_{lost}_lost_total")) == 0
        assert sum(scraped(port, "lttd_unhealthy")) == 0
        assert scraped(port, "lttd_buffer_fill_ratio") == scraped(port, "lttd_reader_lag") == []
        assert scraped(port, "lttd_store_reach_seconds") == []
        assert info(trace)["subbuffers"] == info(trace)["events_lost"] == 0
        asked(trace, before="500ms", after="1h", wait=False)
        lost_events = overwritten_while_stopped(run)
        assert run.end() == 0
    found = summary(run)
    # The counters are read a moment after the stop.
    assert lost_events - 50 <= found["events_lost"] <= lost_events + 50
    assert info(trace)["events_lost"] == found["events_lost"]
    assert "recording ended" in kept(trace)[0].note
    assert_whole(trace, "--events")


def overwritten_while_stopped(run: Run) -> int:
    """Stop lttd until every ring has lost events, and let it go on; return the number of these."""
    before = run.stop().stats()

    def lost() -> list[int]:
        after = run.stats()
        return [after[cpu]["overrun"] - before[cpu]["overrun"] for cpu in before]

    with numbering(0, AT_ONCE):
        until(lambda: min(lost()) > 99, "losses", lost)
    run.signal(signal.SIGCONT)
    until(lambda: all(one["entries"] < 1000 for one in run.stats().values()), "reads")
    return sum(lost())


def test_a_kill_leaves_the_windows_whole_and_a_ring_that_no_trigger_wanted_is_discarded(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    options = ["-t", trace, *EVENTS, *FLIGHT, *OFTEN, "--append"]
    with numbering(PER_SECOND, AT_ONCE):
        run = lttd.start(*options).recording()
        until_wrapped(run)
        done = lttd_trigger(run, trace, "--after", "100ms")
        assert done.returncode == 0, done.stderr
        until(lambda: len(info(trace)["segments"]) == 2, "the next segment")
        first = numbers(trace)
        run.signal(signal.SIGKILL)
        run.process.wait()
        again = lttd.start(*options).recording()
        assert "while no trigger asked for its events: removed" in again.stderr
        assert not run.instance.exists()
        assert numbers(trace) == first
        again.signal(signal.SIGUSR2)  # its window ends 5 s later
        until(lambda: len(numbers(trace)) > len(first) + PER_SECOND, "events of the second window")
        again.signal(signal.SIGKILL)
        again.process.wait()
    last = lttd.start("-t", trace, *QUIET, *FLIGHT, *OFTEN, "--append").recording()
    until(lambda: kept(trace)[1].complete, "the window", lambda: kept(trace))
    assert last.end() == 0
    assert [one.by for one in kept(trace)] == ["command", "signal"]
    assert "a kill" in kept(trace)[1].note
    assert numbers(trace, 1)
    assert numbers(trace, 2)
    assert_whole(trace, "--events")


async def test_reading_ends_with_the_window_although_the_disk_hangs_and_a_hole_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(ftrace_instance, "OWN_PREFIX", f"lttdtest{os.getpid()}hole-")
    trace = tmp_path / "t"
    of_run = InProcess("-t", trace, *EVENTS, *IN_PROCESS, *OFTEN)
    reader = of_run.daemon._reader
    found: list[Trigger] = []
    overwritten: list[int] = []

    def overwritten_now() -> list[int]:
        streams = of_run.daemon._recordings[0].source.streams
        return [stream.counters().get(OVERWRITTEN_IDLE, 0) for stream in streams]

    def have_wrapped() -> bool:
        pairs = zip(overwritten_now(), overwritten or itertools.repeat(0), strict=False)
        return all(now > before for now, before in pairs)

    async def until_(condition: Callable[[], bool], what: str) -> None:
        await trio.to_thread.run_sync(until, condition, what)

    def trigger() -> Trigger:
        return asked(trace, before="1h", after="300ms", wait=True)

    async def window() -> None:
        found.append(await trio.to_thread.run_sync(trigger))

    with of_run.signals, numbering(PER_SECOND, AT_ONCE) as burst, trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(of_run.run)
            await of_run.ready.wait()
            of_run.disk.works.clear()
            async with trio.open_nursery() as asking:
                for _ in range(2):
                    await until_(have_wrapped, "overwritten events")
                    asking.start_soon(window)
                    await until_(lambda: not reader.paused, "the window")
                    await until_(lambda: reader.paused, "its end")
                    overwritten[:] = overwritten_now()
                    burst(AT_ONCE)
                await until_(have_wrapped, "events that nobody wants")
                assert found == []
                of_run.disk.works.set()
            os.kill(os.getpid(), signal.SIGTERM)
    assert of_run.status == 0
    (segment,) = Trace(trace).segments  # the empty one that waited is removed
    assert segment.paths.number == 1
    window_2, stored = numbers(trace, 2), numbers(trace)
    assert max(stored.values()) - max(window_2.values()) < 500_000_000
    for stream in segment.streams:
        first, second = stream.gaps
        assert {gap.reason for gap in stream.gaps} == {Reason.UNWANTED}
        assert first.row == 0 < second.row
        of_cpu = FIRST * (stream.info.id.cpu + 1)
        there = {number for number in stored if of_cpu <= number < of_cpu + FIRST}
        assert second.count == max(there) - min(there) + 1 - len(there)
        assert stream.summary().unwanted_events == (first.count or 0) + second.count > 0
    assert info(trace)["events_lost"] == 0
    assert_whole(trace, "--events")
    _, out, _ = run_lttv(capfdbinary, "text", trace)
    assert out.count(b"[NOT WANTED ") == 2 * len(segment.streams)


async def test_a_trigger_without_time_after_it_has_a_window_although_lttd_was_kept_from_the_rings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ftrace_instance, "OWN_PREFIX", f"lttdtest{os.getpid()}late-")
    trace, want = tmp_path / "t", Flying.want
    of_run = InProcess("-t", trace, *EVENTS, *IN_PROCESS, *OFTEN)

    def want_late(flying: Flying, deadline: float) -> Reach:
        """Return when every event in the rings is younger than the trigger."""
        reach = want(flying, deadline)
        source = of_run.daemon._recordings[0].source
        now, streams = source.now(), source.streams
        burst(AT_ONCE)
        until(lambda: all(one.counters()["oldest event ts"] > now for one in streams), "a burst")
        return reach

    def trigger() -> Trigger:
        return asked(trace, before="1h", after="0s", wait=True)

    monkeypatch.setattr(Flying, "want", want_late)
    with of_run.signals, numbering(PER_SECOND, AT_ONCE) as burst, trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(of_run.run)
            await of_run.ready.wait()
            one = await trio.to_thread.run_sync(trigger)
            os.kill(os.getpid(), signal.SIGTERM)
    assert of_run.status == 0
    assert one.complete
    assert one.at_ns < (one.begin_ns or 0) < (one.end_ns or 0)
    window = set(numbers(trace, 1))
    missing = [number for number in window if number + 1 not in window]
    assert len(missing) == len(Trace(trace).segments[0].streams)  # the last one of each CPU
    assert_whole(trace, "--events")
