"""After kill -9 the events that were taken and not stored are counted."""

import re
import signal
from pathlib import Path

import pytest

from lttd.manifest import Manifest
from lttd.subbuffer import Reason
from lttd.tracedir import segments
from tests.instances import mark, read_events
from tests.killed_runs import BRIEF, HANGING, NOW, data_of, gaps_of, hanging, records
from tests.running import (
    QUIET,
    Launcher,
    Run,
    assert_whole,
    free_port,
    get,
    info,
    lttv,
    needs_kernel,
    scraped,
    until,
)

pytestmark = needs_kernel()


@pytest.fixture
def foreign(foreign: Path) -> Path:
    """The foreign instance with tracing turned off."""
    (foreign / "tracing_on").write_text("0")
    return foreign


def lose(lttd: Launcher, trace: Path, instance: Path, run: Run) -> None:
    """Write 100 marks that are stored, 50 that are only taken, and 7 that stay in the ring."""
    before = read_events(instance)
    mark(instance, "stored", 100)
    until(lambda: data_of(trace).count(b"stored") == 100, "they are stored")
    (lttd.cwd / f"run{len(lttd.runs) - 1}" / "hang").touch()
    mark(instance, "taken", 50)
    until(lambda: read_events(instance) == before + 150, "they are taken")
    run.stop()
    mark(instance, "left", 7)


def assert_loss_is_told(lttd: Launcher, trace: Path, gap_segment: int) -> None:
    report = assert_whole(trace, "--events")
    assert not report["findings"]
    (gap,) = [gap for gap in gaps_of(trace) if gap.reason is Reason.KILLED]
    assert gap.count == 50
    assert gap.begin <= gap.end
    (stream,) = [one for one in info(trace)["streams"] if one["lost"].get("killed")]
    assert stream["lost"]["killed"] == 50
    assert info(trace)["events_lost"] == 50
    assert "50 events taken and not stored by a killed lttd" in lttv("info", trace).stdout
    manifest = Manifest.read(segments(trace)[gap_segment].manifest)
    assert manifest.source["continues"] == segments(trace)[0].directory.name
    data = data_of(trace)
    assert [data.count(text) for text in (b"stored", b"taken", b"left")] == [100, 0, 7]


def test_a_gap_counts_the_events_that_a_killed_lttd_took_and_did_not_store(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with hanging(lttd, trace, *QUIET) as run:
        run.recording()
        lose(lttd, trace, run.instance, run)
    port = free_port()
    metrics = ("--metrics", f"127.0.0.1:{port}")
    again = lttd.start("-t", trace, "--append", *QUIET, *NOW, *metrics)
    again.recording()
    until(lambda: get(port, "/healthz")[0] == 200, "it answers")
    lost = re.findall(r'^lttd_events_lost_total\{.*reason="killed".*\} (\d+)', scraped(port), re.M)
    assert sorted(map(int, lost))[-2:] == [0, 50]
    assert again.end() == 0
    assert "50 events that it had taken before and not stored are counted there" in again.stderr
    assert_loss_is_told(lttd, trace, 1)


def test_in_a_foreign_instance_the_next_segment_has_the_gap_of_a_kill(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    trace, source = tmp_path / "t", ("--source", f"ftrace:{foreign.name}", "--no-trace-self")
    (foreign / "tracing_on").write_text("1")
    mark(foreign, "somebody else's", 3)
    with (foreign / "per_cpu/cpu0/trace_pipe_raw").open("rb", buffering=0) as ring:
        ring.read(4096)
    with hanging(lttd, trace, *source) as run:
        until(lambda: Path(foreign / "set_event_notrace_pid").read_text(), "it records")
        lose(lttd, trace, foreign, run)
    wrong = lttd.run("-t", trace, "-a", *source, "--events", "no:such")
    assert wrong.process.returncode == 2
    again = lttd.run("-t", trace, "-a", *source, *NOW, "--duration", "50ms")
    assert again.process.returncode == 0
    assert_loss_is_told(lttd, trace, 1)
    # Counted once: a later run, killed or not, does not add to it.
    assert lttd.run("-t", trace, "-a", *source, *NOW, "--duration", "50ms").process.returncode == 0
    assert_loss_is_told(lttd, trace, 1)


def test_a_loss_that_no_gap_can_hold_is_reported_in_a_line(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    trace, source = tmp_path / "t", ("--source", f"ftrace:{foreign.name}", "--no-trace-self")
    (foreign / "tracing_on").write_text("1")
    with hanging(lttd, trace, *source) as run:
        until((foreign / "set_event_notrace_pid").read_text, "it records")
        lose(lttd, trace, foreign, run)
    again = lttd.run("-t", trace, "-a", *BRIEF)
    assert "of 50 events that a killed lttd took of it and did not store" in again.stderr
    assert records(lttd) == []


def test_a_kill_after_everything_was_stored_is_not_a_loss(lttd: Launcher, tmp_path: Path) -> None:
    run = lttd.start("-t", tmp_path / "t", *QUIET, *NOW).recording()
    mark(run.instance, "stored", 100)
    until(lambda: data_of(tmp_path / "t").count(b"stored") == 100, "they are stored")
    run.signal(signal.SIGKILL).wait()
    again = lttd.run("-t", tmp_path / "t", "-a", *BRIEF)
    assert "not stored" not in again.stderr
    assert not gaps_of(tmp_path / "t")
    assert_whole(tmp_path / "t", "--events")
    assert lttd.left() == []


def test_a_second_kill_during_the_drain_counts_nothing_twice(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with hanging(lttd, trace, *QUIET) as run:
        run.recording()
        lose(lttd, trace, run.instance, run)
    number = len(lttd.runs)
    (lttd.cwd / f"run{number}").mkdir()
    words = lttd.words("-t", trace, "--append", *QUIET, *NOW)
    words[2] = HANGING + words[2]
    (lttd.cwd / f"run{number}" / "hang").touch()
    second = Run(lttd, words, lttd.cwd / f"run{number}")
    lttd.runs.append(second)
    until(lambda: read_events(run.instance) == 157, "the ring is drained, and nothing stored")
    second.signal(signal.SIGKILL).wait()
    assert lttd.run("-t", trace, "-a", *BRIEF).process.returncode == 0
    assert_whole(trace, "--events")
    assert sum(gap.count or 0 for gap in gaps_of(trace)) == 57
    assert lttd.left() == []
