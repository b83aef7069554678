"""Mode flight on this kernel: nothing is written until a trigger, and then everything.

A second lttd records the same events all the time into a trace of its own, and is the judge.
"""

import argparse
import json
import os
import random
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trio

from lttd.clients.base import ask
from lttd.sources.ftrace import instance as ftrace_instance
from lttd.trigger import Trigger
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
from tests.test_triggers_live import (
    EVENTS,
    OFTEN,
    InProcess,
    asked,
    assert_windows_are_whole,
    kept,
    lttd_trigger,
    numbering,
    numbers,
)

pytestmark = needs_kernel()

TRIGGERS = 60 if os.environ.get("LTTD_NIGHTLY") else 3
# The ring is full after a second.
IN_PROCESS = ("--mode", "flight", "--buffer-size", "128K")
PER_SECOND = 3000
# A writer that was kept from its CPU makes up for that at once, and may fill the ring; an lttd with
# priority reads it in time.
FLIGHT = (*IN_PROCESS, "--priority", "1")


def wrapped(run: Run) -> bool:
    return all(stats["overrun"] for stats in run.stats().values())


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
    lttd: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, judge, chance = tmp_path / "t", tmp_path / "judge", random.Random(11)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(lttd.runtime))
    other = lttd.start("-t", judge, *EVENTS, *OFTEN).recording()
    run = lttd.start("-t", trace, *EVENTS, *FLIGHT, "--summary", "json").recording()
    with numbering(PER_SECOND):
        until(lambda: wrapped(run), "overwritten events")
        run.signal(signal.SIGUSR2)  # its window ends 5 s later
        for number in range(TRIGGERS):
            if number % 3 == 1:
                until(lambda: not waiting(trace), "the windows so far")
                time.sleep(1.5 + chance.random())
            # Some triggers come while a window lasts, or while its segment is being closed.
            before, after = f"{chance.randrange(1, 3000)}ms", f"{chance.randrange(400)}ms"
            asked(trace, before=before, after=after, wait=number % 3 == 1)
            time.sleep(chance.random() / 3)
        until(lambda: not waiting(trace), "the windows")
        time.sleep(1.5)
        assert run.end() == other.end() == 0
    assert [one.by for one in kept(trace)] == ["signal", *["socket"] * TRIGGERS]
    assert kept(trace)[0].note.startswith("the trace reached back ")
    assert_whole(trace, "--events")
    assert info(trace)["events_lost"] == info(judge)["events_lost"] == 0
    assert summary(run)["flight_overwritten_events"] > 0
    assert_windows_are_whole(trace, judge)
    found, expected = numbers(trace), numbers(judge)
    # Each window has events; what came after the last one was never asked for.
    assert len(expected) - 2 * PER_SECOND > len(found) > PER_SECOND
    assert max(found.values()) < max(expected.values()) - 1_000_000_000


def test_while_no_trigger_comes_lttd_is_healthy_and_writes_nothing(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace, port = tmp_path / "t", free_port()
    metrics = ("--metrics", f"127.0.0.1:{port}", "--flush-interval", "50ms")
    run = lttd.start("-t", trace, *EVENTS, *FLIGHT, *metrics).recording()
    with numbering(PER_SECOND):
        until(lambda: scraped(port, "lttd_flight_waiting") == [1], "the metrics")
        until(lambda: wrapped(run), "overwritten events")
        before, turns = written(run, trace), scraped(port, "lttd_read_turns_total")
        time.sleep(1.5)
        assert written(run, trace) == before
        assert scraped(port, "lttd_read_turns_total") > turns
        assert sum(scraped(port, "lttd_flight_overwritten_events_total")) > 0
        for lost in ("events", "subbuffers", "bytes"):
            assert sum(scraped(port, f"lttd_{lost}_lost_total")) == 0
        assert sum(scraped(port, "lttd_unhealthy")) == 0
        assert scraped(port, "lttd_buffer_fill_ratio") == scraped(port, "lttd_reader_lag") == []
        assert scraped(port, "lttd_store_reach_seconds") == []
        assert run.end() == 0
    assert info(trace)["subbuffers"] == info(trace)["events_lost"] == 0
    assert_whole(trace, "--events")


def test_events_that_are_overwritten_inside_a_window_are_lost_there(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    run = lttd.start("-t", trace, *EVENTS, *FLIGHT, "--summary", "json").recording()
    with numbering(PER_SECOND):
        until(lambda: wrapped(run), "overwritten events")
        done = lttd_trigger(run, trace, "--before", "500ms", "--after", "1h", "--no-wait")
        assert done.returncode == 0, done.stderr
        run.stop()
        before = run.stats()
        until(
            lambda: all(
                run.stats()[cpu]["overrun"] > before[cpu]["overrun"] + 99 for cpu in before
            ),
            "losses",
        )
        run.signal(signal.SIGCONT)
        time.sleep(1)
        after = run.stats()
        assert run.end() == 0
    lost = sum(after[cpu]["overrun"] - before[cpu]["overrun"] for cpu in after)
    found = summary(run)
    assert (
        lost - 50 <= found["events_lost"] <= lost + 50
    )  # before[] is a moment later than the stop
    assert info(trace)["events_lost"] == found["events_lost"]
    assert "recording ended" in kept(trace)[0].note
    assert_whole(trace, "--events")


def test_a_kill_leaves_the_windows_whole_and_a_ring_that_no_trigger_wanted_is_discarded(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    options = ["-t", trace, *EVENTS, *FLIGHT, *OFTEN, "--append"]
    with numbering(PER_SECOND):
        run = lttd.start(*options).recording()
        until(lambda: wrapped(run), "overwritten events")
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
        done = lttd_trigger(again, trace, "--before", "300ms", "--after", "1h", "--no-wait")
        assert done.returncode == 0, done.stderr
        time.sleep(0.5)
        again.signal(signal.SIGKILL)
        again.process.wait()
    last = lttd.start("-t", trace, *QUIET, *FLIGHT, *OFTEN, "--append").recording()
    until(lambda: kept(trace)[1].complete, "the window")
    assert last.end() == 0
    assert "a kill" in kept(trace)[1].note
    assert numbers(trace, "--trigger", "1")
    assert numbers(trace, "--trigger", "2")
    assert_whole(trace, "--events")


async def test_reading_ends_with_the_window_although_the_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ftrace_instance, "OWN_PREFIX", f"lttdtest{os.getpid()}hang-")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "runtime"))
    trace = tmp_path / "t"
    of_run = InProcess("-t", trace, *EVENTS, *IN_PROCESS, *OFTEN)
    reader = of_run.daemon._reader

    def trigger() -> Trigger:
        return asked(trace, before="500ms", after="300ms", wait=True)

    found: list[Trigger] = []

    async def window() -> None:
        found.append(await trio.to_thread.run_sync(trigger))

    with of_run.signals, numbering(PER_SECOND), trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(of_run.run)
            await of_run.ready.wait()
            await trio.sleep(0.5)
            of_run.disk.works.clear()
            async with trio.open_nursery() as asking:
                asking.start_soon(window)
                await trio.to_thread.run_sync(until, lambda: not reader.paused, "the window")
                await trio.to_thread.run_sync(until, lambda: reader.paused, "its end")
                await trio.sleep(1)
                assert found == []
                of_run.disk.works.set()
            os.kill(os.getpid(), signal.SIGTERM)
    assert of_run.status == 0
    (one,) = found
    (segment,) = info(trace)["segments"]  # the empty one that waited is removed
    assert segment.endswith("-000001-ftrace")
    window, stored = numbers(trace, "--trigger", str(one.number)), numbers(trace)
    assert max(stored.values()) - max(window.values()) < 500_000_000
    assert_whole(trace, "--events")
