"""A kill right before, during or after a roll loses what it loses anywhere, and that is counted."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from lttd.index import read_gaps
from lttd.manifest import Manifest
from lttd.subbuffer import Reason
from lttd.tracedir import segments_below
from tests.instances import mark, read_events
from tests.running import (
    QUIET,
    Launcher,
    Run,
    assert_whole,
    loaded,
    lttv,
    needs_kernel,
    until,
)

pytestmark = needs_kernel()

NOW = ("--flush-interval", "20ms", "--summary", "none")
NIGHTLY = bool(os.environ.get("LTTD_NIGHTLY"))
KILLS = 100 if NIGHTLY else 2
# Where lttd is at the kill, and whether it has stored all that it took.
STEPS = [("prepared", True), ("switched", True), ("switched", False), ("closing", False)]
STEPS += [("closed", True)]
STEPS += [("prepared", False), ("closing", True)] * NIGHTLY
# lttd hangs at the named step of a roll, and its writers hang, while such a file exists.
HANGING = """
import os, time, trio
from lttd.reader import Reader
from lttd.recording import Ended, Recording
from lttd.writer import StreamFile
def hang(name):
    while os.path.exists(name):
        time.sleep(0.01)
def hanging(function, name):
    def hang_and_call(*arguments):
        hang(name)
        return function(*arguments)
    return hang_and_call
flush_once = Reader.flush_once
async def hang_and_flush(self):
    while os.path.exists("prepared"):
        await trio.sleep(0.01)
    await flush_once(self)
Reader.flush_once = hang_and_flush
Ended.attach = hanging(Ended.attach, "switched")
Ended.close = hanging(Ended.close, "closing")
mark_progress = Recording.mark_progress
def hang_and_mark(self):
    if self.segment.paths.number > 1:
        hang("closed")
    mark_progress(self)
Recording.mark_progress = hang_and_mark
StreamFile.append = hanging(StreamFile.append, "writing")
"""


def events_of(trace: Path) -> int:
    """Return the number of events in a trace that is whole."""
    reports = assert_whole(trace, "--events")["segments"]
    return sum(stream["events"] for one in reports for stream in one["streams"])


def killed_events(trace: Path) -> int:
    gaps = (gap for one in segments_below(trace) for path in one.index.glob("*.gaps")
            for gap in read_gaps(path))  # fmt: skip
    return sum(gap.count or 0 for gap in gaps if gap.reason is Reason.KILLED)


def stored_bytes(trace: Path) -> int:
    files = (path for one in segments_below(trace) for path in one.streams.iterdir())
    return sum(path.stat().st_size for path in files if path.is_file())


def hanging_at(lttd: Launcher, trace: Path, *steps: str) -> Run:
    cwd = lttd.cwd / f"run{len(lttd.runs)}"
    cwd.mkdir()
    for step in steps:
        (cwd / step).touch()
    words = lttd.words("-t", trace, *QUIET, *NOW)
    words[2] = HANGING + words[2]
    lttd.runs.append(Run(lttd, words, cwd))
    return lttd.runs[-1].recording()


@pytest.mark.parametrize(("step", "stored"), STEPS)
def test_a_kill_at_each_step_of_a_roll_is_repaired_and_counted(
    lttd: Launcher, tmp_path: Path, step: str, stored: bool
) -> None:
    trace = tmp_path / "t"
    run = hanging_at(lttd, trace, step)
    mark(run.instance, "before", 100)
    until(lambda: read_events(run.instance) == 100 and stored_bytes(trace), "they are stored")
    run.signal(signal.SIGUSR1)
    until(lambda: len(list(trace.glob("*/trace.json"))) == 2, "the next segment is there")
    if step == "closed":
        until(lambda: not (segments_below(trace)[0].lock).exists(), "the old one is closed")
    before_bytes = stored_bytes(trace)
    if not stored:  # from now on
        (run.out_path.parent / "writing").touch()
    mark(run.instance, "after", 57)
    if step != "closed":  # there the reading loop hangs
        until(lambda: read_events(run.instance) == 157, "they are taken")
    if stored and step != "closed":
        until(lambda: stored_bytes(trace) > before_bytes, "they are stored, too")
        time.sleep(0.05)
    run.signal(signal.SIGKILL).wait()
    again = lttd.run("-t", trace, "--append", *QUIET, *NOW, "--duration", "50ms")
    assert again.process.returncode == 0, again.stderr
    lost = 0 if stored else 57
    assert killed_events(trace) == lost
    assert events_of(trace) == 157 - lost
    manifests = [Manifest.read(one.manifest) for one in segments_below(trace)]
    assert {one.state for one in manifests} == {"closed"}
    # A stream that stored nothing may not have been told where it goes on.
    records = [record for one in manifests for record in one.streams]
    assert all(
        r.subbuffers_before is not None for r in records if r.summary and r.summary.subbuffers
    )


@pytest.mark.parametrize("stored", [True, False])
def test_a_kill_while_two_segments_wait_to_be_closed_is_repaired_and_counted(
    lttd: Launcher, tmp_path: Path, stored: bool
) -> None:
    trace = tmp_path / "t"
    run = hanging_at(lttd, trace, "closing")
    for number in (1, 2, 3):
        if number == 3 and not stored:
            (run.out_path.parent / "writing").touch()
        mark(run.instance, f"part {number}", 50)
        until(lambda n=number: read_events(run.instance) == 50 * n, "they are taken")
        if number < 3:
            until(lambda n=number: stored_bytes(trace) >= 50 * n, "they are stored")
            run.signal(signal.SIGUSR1)
            until(lambda n=number: len(segments_below(trace)) == n + 1, "a roll")
    time.sleep(0.1)
    run.signal(signal.SIGKILL).wait()
    assert [Manifest.read(one.manifest).state for one in segments_below(trace)] == ["open"] * 3
    again = lttd.run("-t", trace, "--append", *QUIET, *NOW, "--duration", "50ms")
    assert again.process.returncode == 0, again.stderr
    lost = 0 if stored else 50
    assert (killed_events(trace), events_of(trace)) == (lost, 150 - lost)
    assert {Manifest.read(one.manifest).state for one in segments_below(trace)} == {"closed"}


def test_a_segment_that_was_made_ahead_of_a_kill_is_removed_by_the_next_start(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    options = [*QUIET, *NOW, "--segment-size", "64K"]
    run = lttd.start("-t", trace, *options).recording()
    mark(run.instance, "x" * 400, 100)
    until(lambda: list(trace.glob(".next-*")), "the next segment is made")
    assert len(segments_below(trace)) == 1
    run.signal(signal.SIGKILL).wait()
    again = lttd.run("-t", trace, "--append", *options, "--duration", "50ms")
    assert again.process.returncode == 0, again.stderr
    assert list(trace.glob(".*")) == []
    assert events_of(trace) + killed_events(trace) == 100
    assert [one.number for one in segments_below(trace)] == [1, 2]


def test_kills_at_random_while_lttd_rolls_leave_whole_traces(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    chance = random.Random(11)
    options = ["--events", "raw_syscalls:*", "--buffer-size", "1M", "--segment-size", "1M", *NOW]
    with loaded(syscall_load, [0]):
        for number in range(KILLS):
            trace = tmp_path / f"t{number}"
            run = lttd.start("-t", trace, *options).recording()
            time.sleep(chance.uniform(0.1, 1.0))
            run.signal(signal.SIGKILL).wait()
            taken = read_events(run.instance)
            if number % 2:
                done = lttv("check", "--repair", trace)
                assert done.returncode == 0, done.stdout + done.stderr
            again = lttd.run("-t", trace, "--append", *options, "--duration", "1ms")
            assert again.process.returncode == 0, again.stderr
            own = [
                stream["events"]
                for report in assert_whole(trace, "--events")["segments"]
                for stream in report["streams"]
                if is_of_first_run(Path(report["path"]))
            ]
            assert sum(own) + killed_events(trace) == taken
            for path in sorted(trace.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()


def is_of_first_run(directory: Path) -> bool:
    source = Manifest.read(directory / "trace.json").source
    first = directory.name.split("-")[1] == "000001"
    return first or bool(source.get("rolled_from"))
