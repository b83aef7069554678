"""Run lttd with signals, with COMMAND and in the background, on the running kernel."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lttd.command import GRACE_S
from lttd.manifest import Manifest
from lttd.tracedir import segments
from tests.daemon_runs import TRACE, data_of, mark, only_line
from tests.running import (
    PATIENCE_S,
    QUIET,
    Launcher,
    assert_whole,
    info,
    loaded,
    needs_kernel,
    until,
)

pytestmark = needs_kernel()


# -- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_recording_in_order(lttd: Launcher, tmp_path: Path, number: int) -> None:
    run = lttd.start("-t", tmp_path / TRACE, *QUIET).recording()
    mark(run, "the last word")
    assert run.signal(number).wait() == 0
    assert b"the last word" in data_of(tmp_path / TRACE)
    assert_whole(tmp_path / TRACE, "--events")


def test_a_signal_before_recording_leaves_nothing(lttd: Launcher, tmp_path: Path) -> None:
    for after_s in (0.0, 0.05, 0.15, 0.3):
        run = lttd.start("-t", tmp_path / "new" / TRACE, *QUIET)
        until((run.out_path.parent / "begun").exists, "the interpreter has started")
        time.sleep(after_s)
        run.signal(signal.SIGINT).wait()
        if run.process.returncode == 0:
            assert_whole(tmp_path / "new" / TRACE)
            shutil.rmtree(tmp_path / "new")
        else:
            assert only_line(run) == "lttd: interrupted before anything was recorded"
            assert run.process.returncode == 1
            assert not (tmp_path / "new").exists()
        assert lttd.left() == []


def test_a_second_signal_abandons_the_ring_and_the_backlog_and_counts_both(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    options = ["--events", "raw_syscalls:*", "--buffer-size", "64M", "--summary", "json"]
    # Until the second signal arrives, lttd takes a few turns, as far as the backlog has room.
    options += ["--backlog", "4M"]
    with loaded(syscall_load, (0, 1)):
        run = lttd.start("-t", tmp_path / TRACE, *options).recording()
        # A stopped lttd falls behind, so there is much to drain. Both signals come at once, because
        # the test cannot know how long a drain lasts.
        run.stop()
        until(lambda: run.stats()[0]["bytes"] > 48 << 20, "the ring has filled")
        run.signal(signal.SIGINT).signal(signal.SIGTERM).signal(signal.SIGCONT)
        assert run.wait() == 0
    assert "a second signal" in run.stderr
    assert "Traceback" not in run.stderr
    summary = json.loads(run.stdout)
    assert info(tmp_path / TRACE)["streams"] == summary["streams"]
    lost = [stream["lost"] for stream in summary["streams"]]
    (segment,) = segments(tmp_path / TRACE)
    left = [stream.counters["entries"] for stream in Manifest.read(segment.manifest).streams]
    assert sum(left) > 0
    assert [each.get("abandoned", 0) for each in lost] == left
    assert summary["events_lost"] >= sum(left)
    assert_whole(tmp_path / TRACE, "--events")


# -- COMMAND


def test_command_is_recorded_from_its_first_to_its_last_moment(
    lttd: Launcher, tmp_path: Path
) -> None:
    options = ["--events", "sched:sched_process_exec,sched:sched_process_exit"]
    options += ["--summary", f"json:{tmp_path}/summary"]
    run = lttd.run("-t", tmp_path / TRACE, *options, "--", "sh", "-c", "echo its own; exit 3")
    assert run.process.returncode == 0
    assert run.stdout == "its own\n"
    assert only_line(run) == "lttd: sh: ended with status 3"
    assert json.loads((tmp_path / "summary").read_text())["command_status"] == 3
    names = re.findall(rb"/bin/sh\0", data_of(tmp_path / TRACE))
    assert names, "its exec is not in the trace"
    assert_whole(tmp_path / TRACE, "--events")


def test_a_command_that_cannot_be_executed_is_a_usage_error_that_leaves_nothing(
    lttd: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "script").write_text("#!/nonexistent\n")
    (tmp_path / "script").chmod(0o755)
    run = lttd.run("-t", tmp_path / TRACE, "--", tmp_path / "script")
    assert "script: cannot be run: No such file" in only_line(run)
    assert run.process.returncode == 2
    assert not (tmp_path / TRACE).exists()
    assert lttd.left() == []


@pytest.mark.parametrize("program", ["wait", "dies"])
def test_sigterm_is_forwarded_and_recording_ends_after_command(
    lttd: Launcher, tmp_path: Path, program: str
) -> None:
    ends = "exit 7" if program == "wait" else "kill -9 $$"
    trap = f"trap 'sleep 0.3; echo told >> told; {ends}' TERM"
    script = f"{trap}; touch started; while :; do sleep 0.02; done"
    options = [*QUIET, "--summary", f"json:{tmp_path}/summary"]
    run = lttd.start("-t", tmp_path / TRACE, *options, "--", "sh", "-c", script).recording()
    cwd = run.out_path.parent
    until((cwd / "started").exists, "COMMAND runs")
    assert run.signal(signal.SIGTERM).wait() == 0
    assert (cwd / "told").read_text() == "told\n"
    status = 7 if program == "wait" else 128 + signal.SIGKILL
    assert json.loads((tmp_path / "summary").read_text())["command_status"] == status


def test_sigint_is_not_forwarded_and_recording_ends_after_command(
    lttd: Launcher, tmp_path: Path
) -> None:
    script = "trap 'touch int' INT; trap 'touch term' TERM; touch started; sleep 1; touch over"
    run = lttd.start("-t", tmp_path / TRACE, *QUIET, "--", "sh", "-c", script)
    cwd = run.out_path.parent
    until((cwd / "started").exists, "COMMAND runs")
    assert run.signal(signal.SIGINT).wait() == 0
    assert (cwd / "over").exists()
    assert not (cwd / "int").exists()
    assert not (cwd / "term").exists()


def test_a_second_signal_kills_command_at_once(lttd: Launcher, tmp_path: Path) -> None:
    script = "trap '' TERM INT; touch started; while :; do sleep 0.05; done"
    run = lttd.start("-t", tmp_path / TRACE, *QUIET, "--", "sh", "-c", script)
    until((run.out_path.parent / "started").exists, "COMMAND runs")
    begin = time.monotonic()
    run.signal(signal.SIGINT)
    time.sleep(0.3)  # two signals at once may merge into one
    assert run.process.poll() is None
    run.signal(signal.SIGINT)
    assert run.wait() == 0
    assert time.monotonic() - begin < 2 * GRACE_S, "a first signal alone leaves it so much"
    assert "ended with status 137" in run.stderr


def test_a_duration_ends_a_command_that_lasts_longer(lttd: Launcher, tmp_path: Path) -> None:
    run = lttd.run("-t", tmp_path / TRACE, *QUIET, "--duration", "300ms", "--", "sleep", "60")
    assert run.process.returncode == 0
    assert "sleep: ended with status 143" in run.stderr


# -- the background


def children_of(pattern: str) -> list[int]:
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def test_the_parent_of_a_daemon_exits_once_it_records_and_holds_nothing(
    lttd: Launcher, tmp_path: Path
) -> None:
    # If the daemon kept the pipe, run() would wait for its end.
    words = lttd.words("-t", tmp_path / TRACE, "-d", "--duration", "60s", *QUIET)
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    (pid,) = children_of(str(tmp_path / TRACE))
    try:
        assert os.getsid(pid) == pid
        (name,) = lttd.left()
        assert (lttd.instances / name / "tracing_on").read_text() == "1\n"
    finally:
        os.kill(pid, signal.SIGTERM)
        until(lambda: not children_of(str(tmp_path / TRACE)), "the daemon has ended")
    assert_whole(tmp_path / TRACE)


def test_a_daemon_that_cannot_record_passes_its_error_to_its_parent(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = lttd.run("-t", tmp_path / TRACE, "-d", "--source", "ftrace:nobodys")
    assert "no instance 'nobodys'" in only_line(run)
    assert run.process.returncode == 77
    assert not (tmp_path / TRACE).exists()


def test_the_log_file_of_a_daemon_is_kept(lttd: Launcher, tmp_path: Path) -> None:
    run = lttd.run("-t", tmp_path / TRACE, "-d", "--duration", "300ms", *QUIET)
    assert run.process.returncode == 0
    until(lambda: not children_of(str(tmp_path / TRACE)), "the daemon has ended")
    assert "sub-buffers" in run.stderr
