"""After kill -9 the next lttd restores the settings of a foreign instance."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from lttd.sources.inotify import Inotify
from lttd.tracedir import segments_below
from tests.instances import mark
from tests.killed_runs import BRIEF, NOW, data_of, records
from tests.running import (
    Launcher,
    assert_whole,
    needs_kernel,
    until,
)

pytestmark = needs_kernel()

IN_MODIFY = 0x2

FILTER = "events/sched/sched_process_hang/filter"


@pytest.fixture
def foreign(foreign: Path) -> Path:
    """The foreign instance with tracing turned off, and a filter."""
    (foreign / "tracing_on").write_text("0")
    (foreign / FILTER).write_text("pid == 2")
    return foreign


# -- settings of a foreign instance


CHANGED = ("tracing_on", "trace_clock", "set_event", "set_event_notrace_pid", "options/overwrite")
CHANGED += ("per_cpu/cpu0/buffer_size_kb", "buffer_percent")
CHANGED += (FILTER, "options/userstacktrace", "options/irq-info")
CHANGED += ("events/sched/sched_process_fork/trigger", "events/sched/sched_process_exec/trigger")
# A trigger turns it on.
CHANGED += ("events/sched/sched_kthread_stop/enable",)


def settings_of(instance: Path) -> dict[str, str]:
    return {name: (instance / name).read_text() for name in CHANGED}


def killed_on(lttd: Launcher, foreign: Path, trace: Path) -> list[str]:
    """Kill an lttd that has changed many settings of *foreign*; return its options."""
    (foreign / "buffer_percent").write_text("0")
    options = ["--source", f"ftrace:{foreign.name}", "--events", "sched:sched_process_hang,oom:*"]
    options += ["--clock", "boot", "--no-overwrite", "--buffer-size", "256K", "--no-trace-self"]
    options += ["--filter", "sched_process_hang: pid == 1", "--user-stack", "--option=noirq-info"]
    trigger = "sched_process_exec: enable_event:sched:sched_kthread_stop if pid != 0"
    options += [
        "--event-trigger",
        trigger,
        "--event-trigger",
        "sched_process_fork: stacktrace:3 if child_pid == 0",
    ]
    run = lttd.start("-t", trace, *options)
    until(lambda: (foreign / "tracing_on").read_text() == "1\n", "it records")
    until((foreign / "set_event_notrace_pid").read_text, "it is left out")
    subprocess.run(["/bin/true"], check=True)
    run.signal(signal.SIGKILL).wait()
    return options


def test_the_next_start_of_any_lttd_undoes_the_changes_of_a_killed_one(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    before = settings_of(foreign)
    before["buffer_percent"] = "0\n"
    killed_on(lttd, foreign, tmp_path / "a")
    assert all(value != before[name] for name, value in settings_of(foreign).items())
    (foreign / "trace").write_text("")  # the ring is empty
    fd = os.open(foreign / "set_event_notrace_pid", os.O_WRONLY)
    os.write(fd, b"4194303")
    os.close(fd)
    (line, *_) = lttd.run("-t", tmp_path / "b", *BRIEF).lines
    assert f"{foreign}: an lttd that was killed" in line
    assert "had changed it; restored: " in line
    before["set_event_notrace_pid"] = "4194303\n"
    assert settings_of(foreign) == before
    assert lttd.run("-t", tmp_path / "c", *BRIEF).stderr == "", "told once"


def test_a_change_that_would_empty_a_ring_is_undone_after_the_drain(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    before = settings_of(foreign)
    killed_on(lttd, foreign, tmp_path / "a")
    mark(foreign, "not to be lost")
    other = lttd.run("-t", tmp_path / "b", *BRIEF)
    assert "trace_clock" in other.stderr
    assert "would lose its" in other.stderr
    now = settings_of(foreign)
    assert (now["tracing_on"], now["set_event"]) == ("0\n", ""), "nothing records any more"
    assert now["trace_clock"] != before["trace_clock"]
    source = ("--source", f"ftrace:{foreign.name}", *NOW, "--duration", "50ms")
    assert lttd.run("-t", tmp_path / "a", "-a", *source).process.returncode == 0
    assert b"not to be lost" in data_of(tmp_path / "a")
    assert settings_of(foreign) == before | {"buffer_percent": "0\n"}


def test_a_start_with_the_same_options_takes_over_without_a_pause(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    before = settings_of(foreign) | {"buffer_percent": "0\n"}
    options = killed_on(lttd, foreign, tmp_path / "a")
    written = Inotify()
    for name in ("tracing_on", "trace_clock", "options/overwrite", "events/oom/enable"):
        assert written.watch(str(foreign / name), IN_MODIFY) >= 0
    written.watch(str(foreign / "events/oom/mark_victim/enable"), IN_MODIFY)
    mark(foreign, "of the killed one")
    again = lttd.start("-t", tmp_path / "a", "--append", *options, *NOW)
    until(lambda: len(segments_below(tmp_path / "a")) == 2, "it records")
    until(lambda: b"of the killed one" in data_of(tmp_path / "a"), "it drained the ring")
    assert not written.heard()
    assert again.end() == 0
    assert settings_of(foreign) == before
    assert_whole(tmp_path / "a", "--events")
    assert records(lttd) == []


def test_a_start_with_fewer_events_turns_the_others_off(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    killed_on(lttd, foreign, tmp_path / "a")
    source = ("--source", f"ftrace:{foreign.name}", "--events", "sched:sched_process_hang")
    run = lttd.start("-t", tmp_path / "a", "--append", *source, *NOW)
    until(lambda: len(segments_below(tmp_path / "a")) == 2, "it records")
    until(lambda: (foreign / "set_event").read_text().split() == ["sched:sched_process_hang"], "")
    assert (foreign / "options/overwrite").read_text() == "1\n"
    assert run.end() == 0
    assert (foreign / "set_event").read_text() == ""


# -- failures while an instance is removed


def test_an_instance_that_another_process_holds_open_is_turned_off_and_reported(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = lttd.start("-t", tmp_path / "a", "--events", "sched:*", *NOW).recording()
    holder = (run.instance / "trace").open("rb")
    assert run.end() == 0
    (line,) = [line for line in run.lines if "stays" in line]
    assert f"{run.instance} stays, because" in line
    assert f"(pid {os.getpid()})" in line
    assert f"then rmdir {run.instance}" in line
    assert (run.instance / "set_event").read_text() == ""
    assert (run.instance / "tracing_on").read_text() == "0\n"
    still = lttd.run("-t", tmp_path / "b", *BRIEF)
    assert f"{run.instance} stays" in still.stderr
    holder.close()
    assert lttd.run("-t", tmp_path / "c", *BRIEF).stderr == ""
    assert lttd.left() == []
    assert records(lttd) == []


@pytest.mark.parametrize("descriptors", [10, 11, 13, 15, 16, 17, 18, 20, 24, 28])
def test_too_few_descriptors_leave_no_instance_and_no_record(
    lttd: Launcher, tmp_path: Path, descriptors: int
) -> None:
    limit = ["prlimit", f"--nofile={descriptors}:{descriptors}"]
    lttd.run("-t", tmp_path / "a", *BRIEF, under=limit)
    assert lttd.left() == []
    assert not lttd.runtime.exists() or records(lttd) == []
