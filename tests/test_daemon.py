"""Run lttd from its command line to its exit status, on the running kernel."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from lttd.cli import main
from lttd.command import GRACE_S
from lttd.index import read_gaps
from lttd.manifest import Manifest
from lttd.sources.ftrace import instance as ftrace_instance
from lttd.subbuffer import Reason
from lttd.tracedir import segments
from tests.fakes import LAYOUT, event, page
from tests.running import (
    PATIENCE_S,
    QUIET,
    Launcher,
    Run,
    assert_whole,
    free_port,
    get,
    info,
    loaded,
    needs_kernel,
    scraped,
    until,
)

pytestmark = needs_kernel()

TRACE = "trace"


def only_line(run: Run) -> str:
    """Return the one line that a run wrote to stderr."""
    assert "Traceback" not in run.stderr
    assert len(run.lines) == 1, run.stderr
    line = run.lines[0]
    assert line.startswith("lttd: ")
    return line


def mark(run: Run, text: str) -> None:
    (run.instance / "trace_marker").write_text(text)


def data_of(trace: Path) -> bytes:
    return b"".join(
        path.read_bytes()
        for segment in segments(trace)
        for path in sorted(segment.streams.iterdir())
        if path.is_file()
    )


@contextmanager
def small_disk(where: Path, size: str) -> Iterator[Path]:
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "lttdtest", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 20)):
            continue
    return filler


# -- impossible requests


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--events", "sched:swich"], 2, r"'sched:swich'.*did you mean .*sched:sched_switch"),
        (["--buffer-size", "0"], 2, r"0 bytes.*write 64K"),
        (["--buffer-size", "4X"], 2, r"'4X' is not a valid size; write 4096"),
        (["--buffer-size", "1023G"], 1, r"buffer_size_kb.*ask for a smaller buffer"),
        (["--subbuffer-size", "0"], 2, r"0 bytes.*write a multiple of 1024"),
        (["--events", ","], 2, r"events ',' names no event; write globs such as 'sched:"),
        (["--clock", "sundial"], 2, r"no trace clock 'sundial'; it has .*mono"),
        (["--layout", "loose"], 2, r"write packed or sparse"),
        (["--source", "disk:/dev/sda"], 2, r"'disk:/dev/sda'.*must be one of ftrace"),
        (
            ["--source", "ftrace,colour=red"],
            2,
            r"'colour' is not a key of ftrace; its keys are events",
        ),
        (["--source", "ftrace:nobodys"], 77, r"no instance 'nobodys'; make it with mkdir"),
        (["--source", "replay:/nonexistent"], 2, r"/nonexistent"),
        (["--source", "ltt:/x"], 77, r"/x: No such file.*; mount debugfs, set a trace up"),
        (["--metrics", "9469"], 2, r"is not ADDR:PORT; write one such as"),
        (["--summary", "json:/nonexistent/file"], 2, r"there is no directory /nonexistent"),
        (["--config", "/nonexistent.toml"], 2, r"/nonexistent.toml: No such file"),
        (["--no-such-option"], 2, r"--no-such-option .*lttd --help"),
        (["--", "nosuchprogram"], 2, r"nosuchprogram: no such program, or not executable"),
        (["--", "/etc/passwd"], 2, r"/etc/passwd: no such program, or not executable"),
    ],
)
def test_an_impossible_request_is_refused_with_a_remedy_and_leaves_nothing(
    lttd: Launcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    says: str,
) -> None:
    monkeypatch.setattr(ftrace_instance, "OWN_PREFIX", lttd.prefix)
    assert main(["-t", str(tmp_path / "new" / TRACE), *arguments]) == status
    told = capsys.readouterr()
    (line,) = told.err.splitlines()
    assert line.startswith("lttd: ")
    assert re.search(says, line), line
    assert told.out == ""
    assert not (tmp_path / "new").exists()
    assert lttd.left() == []


@pytest.mark.parametrize("content", [b"\0" * 4096, b"\xff" * 4096, b"no pages of any kind"])
def test_a_replay_of_garbage_counts_it_and_ends_well(
    lttd: Launcher, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "cpu0").write_bytes(content)
    run = lttd.run("-t", tmp_path / TRACE, "--source", f"replay:{tmp_path}/old,abi=ftrace")
    assert "Traceback" not in run.stderr
    assert run.process.returncode in (0, 1)
    if run.process.returncode == 0:
        assert_whole(tmp_path / TRACE, "--events")


def test_a_directory_with_other_files_is_left_alone(lttd: Launcher, tmp_path: Path) -> None:
    (tmp_path / TRACE).mkdir()
    (tmp_path / TRACE / "thesis.tex").touch()
    run = lttd.run("-t", tmp_path / TRACE)
    assert "holds 'thesis.tex', which is not a segment; name an empty directory" in only_line(run)
    assert run.process.returncode == 2
    assert os.listdir(tmp_path / TRACE) == ["thesis.tex"]


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_cannot_be_a_trace_directory(lttd: Launcher, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    run = lttd.run("-t", tmp_path / "file" / below)
    assert re.search(rf"{tmp_path}/file:? is a file; name a directory", only_line(run))
    assert run.process.returncode == 2


def test_lttd_without_tracefs_asks_to_mount_it(lttd: Launcher, tmp_path: Path) -> None:
    script = 'while umount -l "$(awk \'$3=="tracefs"{print $2; exit}\' /proc/mounts)"; do :; done'
    script += ' 2>/dev/null; umount -l /sys/kernel/debug 2>/dev/null; exec "$@"'
    under = ["unshare", "-m", "sh", "-c", script, "sh"]
    run = lttd.run("-t", tmp_path / TRACE, under=under)
    assert "tracefs is not mounted; mount -t tracefs tracefs /sys/kernel/tracing" in only_line(run)
    assert run.process.returncode == 77
    assert not (tmp_path / TRACE).exists()


def test_a_user_without_permission_to_trace_is_refused_with_the_reason(lttd: Launcher) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    if (
        not os.access(sys.executable, os.X_OK)
        or subprocess.run(
            [*nobody, sys.executable, "-c", "import lttd, numpy, trio"],
            check=False,
            capture_output=True,
        ).returncode
    ):
        pytest.skip("nobody may not run this Python")
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o777)
        run = lttd.run("-t", f"{directory}/{TRACE}", under=nobody)
        assert re.search(r"Permission denied; run lttd as root", only_line(run))
        assert run.process.returncode == 77
        assert os.listdir(directory) == []
        os.chmod(directory, 0o755)
        run = lttd.run("-t", f"{directory}/{TRACE}", under=nobody)
        assert "permission denied: choose a directory that this user may write" in only_line(run)
        assert run.process.returncode == 1


def test_a_busy_port_is_refused_before_anything_is_made(lttd: Launcher, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        run = lttd.run("-t", tmp_path / TRACE, "--metrics", f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port}: the port is in use; choose another" in only_line(run)
    assert run.process.returncode == 2
    assert not (tmp_path / TRACE).exists()


def test_a_request_for_another_host_is_refused_unless_the_option_allows_it(
    lttd: Launcher, tmp_path: Path
) -> None:
    port = free_port()
    options = ["--metrics", f"127.0.0.2:{port}", "--web-allow-host", "db1.example"]
    run = lttd.start("-t", tmp_path / TRACE, *QUIET, *options).recording()

    def status(host: str) -> int:
        with closing(http.client.HTTPConnection("127.0.0.2", port, PATIENCE_S)) as client:
            client.request("GET", "/healthz", headers={"Host": host})
            return client.getresponse().status

    names = ("127.0.0.2", "localhost", "DB1.example.", "db2.example", "evil.db1.example")
    assert [status(f"{name}:{port}") for name in names] == [200, 200, 200, 421, 421]
    assert run.end() == 0


def test_a_toml_file_with_an_unknown_key_is_refused(lttd: Launcher, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('events = ["sched:*"]\ncolour = "red"\n')
    run = lttd.run("-t", tmp_path / TRACE, "--config", tmp_path / "c.toml")
    assert "'colour' is not an option of lttd" in only_line(run)
    assert run.process.returncode == 2


# -- the disk


def test_a_disk_that_is_full_from_the_start_leaves_no_trace(lttd: Launcher, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1M") as disk:
        fill(disk)
        run = lttd.run("-t", disk / TRACE, "--duration", "1s")
        assert "no space left: free some, or record elsewhere" in only_line(run)
        assert run.process.returncode == 1
        assert os.listdir(disk) == ["filler"]


def test_a_disk_that_fills_up_stops_recording_and_leaves_a_whole_trace(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    with small_disk(tmp_path / "disk", "8M") as disk:
        with loaded(syscall_load):
            run = lttd.start("-t", disk / TRACE, "--events", "raw_syscalls:*", "--summary", "none")
            assert run.wait() == 1
        assert "no space left: free some, or record elsewhere" in only_line(run)
        assert os.listdir(next(iter(segments(disk / TRACE))).directory.parent)
        assert_whole(disk / TRACE, "--events")
        assert info(disk / TRACE)["payload_bytes"] > 4 << 20


def test_recording_continues_past_a_full_disk_if_asked_to_and_counts_the_loss(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    # Large enough that the load does not fill it before the test sees lttd healthy again.
    with small_disk(tmp_path / "disk", "768M") as disk:
        filler = disk / "filler"
        options = ["--events", "raw_syscalls:*", "--on-write-error", "continue"]
        options += ["--flush-interval", "100ms", "--summary", "json"]
        port = free_port()
        options += ["--metrics", f"127.0.0.1:{port}"]
        run = lttd.start("-t", disk / TRACE, *options).recording()
        with loaded(syscall_load):
            until(lambda: list(disk.glob("*/*/streams/ftrace_0")), "a stream")
            data = next(iter(disk.glob("*/*/streams/ftrace_0")))
            until(lambda: data.stat().st_size > 1 << 20, "something is written")
            fill(disk)
            until(lambda: re.search(r"write_errors_total.* [1-9]", scraped(port)), "errors")
            until(lambda: get(port, "/healthz")[0] == 503, "lttd is unhealthy")
            told = get(port, "/healthz")[1]
            assert "no space left" in told or told == "ok\n", "a small batch may fit"
            filler.unlink()
            stuck = data.stat().st_size
            until(lambda: data.stat().st_size > stuck + (1 << 20), "writing goes on")
            until(lambda: get(port, "/healthz") == (200, "ok\n"), "lttd is healthy again")
            assert run.end() == 1
        assert "no space left" in run.stderr
        summary = json.loads(run.stdout)
        refused = summary["streams"][0]["lost"]["storage_subbuffers"]
        assert refused > 0
        assert info(disk / TRACE)["streams"] == summary["streams"]
        assert_whole(disk / TRACE, "--events")
        (segment,) = segments(disk / TRACE)
        gaps = read_gaps(segment.stream("ftrace_0").gaps)
        assert sum(gap.count or 0 for gap in gaps if gap.reason is Reason.STORAGE) == refused


def test_a_disk_that_stays_full_has_room_to_close_the_trace(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    with small_disk(tmp_path / "disk", "8M") as disk:
        options = ["--events", "raw_syscalls:*", "--on-write-error", "continue"]
        run = lttd.start("-t", disk / TRACE, *options, "--summary", "json").recording()
        with loaded(syscall_load):
            until(lambda: run.stats()[0]["read events"] > 500_000, "much more than there is room")
            fill(disk)
            assert run.end() == 1
        assert "Traceback" not in run.stderr
        assert "no space left" in run.lines[0]
        assert "no space left" in run.lines[-1], "the status is explained"
        assert info(disk / TRACE)["state"] == "closed"
        assert info(disk / TRACE)["streams"] == json.loads(run.stdout)["streams"]
        assert_whole(disk / TRACE, "--events")
        (segment,) = segments(disk / TRACE)
        assert not segment.reserve.exists()


# -- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
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
    options = ["--events", "raw_syscalls:*", "--buffer-size", "128M", "--summary", "json"]
    # Until the second signal arrives, lttd takes a few turns, as far as the backlog has room.
    options += ["--backlog", "8M"]
    with loaded(syscall_load, (0, 1)):
        run = lttd.start("-t", tmp_path / TRACE, *options).recording()
        # A stopped lttd falls behind, so there is much to drain. Both signals come at once, because
        # the test cannot know how long a drain lasts.
        run.stop()
        until(lambda: run.stats()[0]["bytes"] > 96 << 20, "the ring has filled")
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


# -- several sources, one configuration, one trace after another


def test_the_command_line_wins_over_the_toml_file_in_a_run(lttd: Launcher, tmp_path: Path) -> None:
    config = f"""
trace-dir = "{tmp_path}/elsewhere"
duration = "100ms"
summary = "json"
layout = "sparse"
[[source]]
kind = "ftrace"
events = ["sched:sched_switch", "sched:sched_process_hang"]
buffer-size = "256K"
clock = "boot"
"""
    tomllib.loads(config)
    (tmp_path / "c.toml").write_text(config)
    run = lttd.run("--config", tmp_path / "c.toml", "-t", tmp_path / TRACE, "--layout", "packed")
    assert run.process.returncode == 0, run.stderr
    assert json.loads(run.stdout)["streams"]
    assert not (tmp_path / "elsewhere").exists()
    (segment,) = segments(tmp_path / TRACE)
    manifest = Manifest.read(segment.manifest)
    assert (manifest.layout, manifest.clock) == ("packed", "boot")
    assert manifest.source["settings"]["events"] == [
        "sched:sched_switch",
        "sched:sched_process_hang",
    ]
    assert manifest.source["settings"]["buffer_bytes"] in range(256 << 10, 272 << 10)


def test_each_of_several_sources_has_segments_of_its_own(lttd: Launcher, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    pages = [page(1000 * n, event(b"word%04d" % n)) for n in range(1, 5)]
    (tmp_path / "old" / "cpu0").write_bytes(b"".join(pages))
    run = lttd.start(
        *("-t", tmp_path / TRACE, "--duration", "500ms", "--summary", "json"),
        *("--source", "ftrace,events=sched:sched_switch"),
        *("--source", f"replay:{tmp_path}/old,abi=ftrace,subbuffer-size={LAYOUT.subbuffer_bytes}"),
    )
    assert run.wait() == 0, run.stderr
    kinds = [Manifest.read(each.manifest).source["kind"] for each in segments(tmp_path / TRACE)]
    assert kinds == ["ftrace", "replay"]
    assert b"word0004" in data_of(tmp_path / TRACE)
    names = {stream["name"] for stream in json.loads(run.stdout)["streams"]}
    assert {"ftrace_0"} < names
    assert_whole(tmp_path / TRACE)


def test_a_second_source_that_fails_leaves_nothing_of_the_first(
    lttd: Launcher, tmp_path: Path
) -> None:
    sources = ["--source", "ftrace", "--source", "ftrace:nobodys"]
    run = lttd.run("-t", tmp_path / TRACE, *sources)
    assert "no instance 'nobodys'" in only_line(run)
    assert not (tmp_path / TRACE).exists()
    assert lttd.left() == []


def test_lttd_adds_to_a_trace_only_if_asked_to(lttd: Launcher, tmp_path: Path) -> None:
    again = ["-t", tmp_path / TRACE, "--duration", "100ms", *QUIET, "--summary", "none"]
    assert lttd.run(*again).process.returncode == 0
    refused = lttd.run(*again)
    assert "holds a trace already; --append adds to it" in only_line(refused)
    assert refused.process.returncode == 2
    assert lttd.run(*again, "--append").process.returncode == 0
    assert [each.number for each in segments(tmp_path / TRACE)] == [1, 2]
    assert_whole(tmp_path / TRACE)


def test_a_usage_error_leaves_the_ring_of_a_killed_run_alone(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = lttd.start("-t", tmp_path / TRACE, *QUIET).recording()
    mark(run, "still in the ring")
    run.signal(signal.SIGKILL).wait()
    wrong = lttd.run("-t", tmp_path / "wrong", "--events", "no:such")
    assert not (tmp_path / "wrong").exists()
    assert only_line(wrong)
    good = lttd.run("-t", tmp_path / TRACE, "-a", *QUIET, "--duration", "50ms")
    assert "was left open; recovered" in good.stderr
    assert "of a previous run are kept" in good.stderr
    assert b"still in the ring" in data_of(tmp_path / TRACE)
    assert_whole(tmp_path / TRACE)


# -- exclusion


def test_a_second_lttd_on_the_same_trace_is_refused_with_the_first_named(
    lttd: Launcher, tmp_path: Path
) -> None:
    first = lttd.start("-t", tmp_path / TRACE, *QUIET).recording()
    second = lttd.run("-t", tmp_path / TRACE, "--append", *QUIET)
    assert f"(pid {first.process.pid}); stop it, or choose another" in only_line(second)
    assert second.process.returncode == 1
    assert first.end() == 0
    assert_whole(tmp_path / TRACE)


def test_a_second_lttd_on_the_same_instance_is_refused_with_the_first_named(
    lttd: Launcher, tmp_path: Path
) -> None:
    name = f"{lttd.prefix}shared"
    (lttd.instances / name).mkdir()
    try:
        first = lttd.start("-t", tmp_path / "one", "--source", f"ftrace:{name}")
        until(lambda: list(tmp_path.glob("one/*/trace.json")), "the first records")
        second = lttd.run("-t", tmp_path / "two", "--source", f"ftrace:{name}")
        assert f"(pid {first.process.pid}) reads it; stop that" in only_line(second)
        assert second.process.returncode == 1
        assert not (tmp_path / "two").exists()
        assert first.end() == 0
    finally:
        (lttd.instances / name).rmdir()


def test_only_the_owner_and_the_group_may_read_a_recording(lttd: Launcher, tmp_path: Path) -> None:
    assert lttd.run("-t", tmp_path / TRACE, *QUIET, "--duration", "50ms").process.returncode == 0
    for path in (tmp_path / TRACE).rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o007, path


@pytest.mark.parametrize("late", [False, True])
def test_another_reader_is_found_and_reported_once(
    lttd: Launcher, tmp_path: Path, late: bool
) -> None:
    name = f"{lttd.prefix}shared"
    instance = lttd.instances / name
    instance.mkdir()
    (instance / "buffer_percent").write_text("1")
    other = None
    words = ["cat", str(instance / "per_cpu/cpu0/trace_pipe_raw")]
    port = free_port()
    try:
        options = ["--flush-interval", "20ms", "--metrics", f"127.0.0.1:{port}"]
        if not late:
            other = subprocess.Popen(words, stdout=subprocess.DEVNULL)
            until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "cat\n", "cat runs")
            time.sleep(0.1)
        run = lttd.start("-t", tmp_path / TRACE, "--source", f"ftrace:{name}", *options)
        until(lambda: list(tmp_path.glob("trace/*/trace.json")), "it records")
        until(lambda: "lttd_foreign_read_events_total" in scraped(port), "it is scraped")
        if late:
            other = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        assert other is not None

        def is_counted() -> bool:
            for _ in range(200):
                with suppress(OSError):  # removing an instance may take long
                    subprocess.run(
                        ["taskset", "1", "sh", "-c", f"echo nobody > {instance}/trace_marker"],
                        check=True,
                    )
                if re.search(r'foreign_read_events_total\{.*cpu="0".*\} [1-9]', scraped(port)):
                    return True
            return False

        until(is_counted, "what cat consumed is counted")
        assert run.end() == 0
        told = [line for line in run.lines if f"cat (pid {other.pid})" in line]
        assert len(told) == 1, run.stderr
        assert "record from another instance" in told[0]
    finally:
        if other is not None:
            other.kill()
            other.wait()
        lttd.runs[-1].process.kill()
        lttd.runs[-1].process.wait()
        instance.rmdir()


@pytest.mark.parametrize("mode", ["stop", "continue"])
def test_a_lost_file_is_reported_in_one_line(lttd: Launcher, tmp_path: Path, mode: str) -> None:
    trace = tmp_path / "t"
    options = ("--events", "sched:sched_switch", "--flush-interval", "50ms", "--summary", "none")
    run = lttd.start("-t", trace, *options, "--on-write-error", mode)
    run.recording()
    until(lambda: list(trace.glob("*/streams/ftrace_0")), "it has a file")
    (data,) = trace.glob("*/streams/ftrace_0")
    data.unlink()
    until(lambda: str(data) in run.stderr, "it is noticed")
    assert (run.wait() if mode == "stop" else run.end()) == 1
    assert [line for line in run.lines if str(data) in line] == run.lines
    assert len(run.lines) == 1


# Housekeeping as often as in many days, by threads that trio would end at once.
MANY_DAYS = """
from trio._core import _thread_cache
_thread_cache.IDLE_TIMEOUT = 0.001
from lttd import housekeeping
housekeeping.ATTACH_INTERVAL_S = housekeeping.CLOCK_INTERVAL_S = 0.05
"""


def test_the_kernel_leaves_out_only_threads_that_are_lttds_now(
    lttd: Launcher, tmp_path: Path
) -> None:
    words = lttd.words("-t", tmp_path / "t", "--events", "sched:sched_switch", "--summary", "none")
    words[2] = MANY_DAYS + words[2]
    run = Run(lttd, words, tmp_path)
    lttd.runs.append(run)
    run.recording()
    before = Manifest.read(segments(tmp_path / "t")[0].manifest)

    def snapshots() -> int:
        return len(Manifest.read(segments(tmp_path / "t")[0].manifest).clock_snapshots)

    until(lambda: snapshots() > len(before.clock_snapshots) + 10, "time goes by")
    left_out = (run.instance / "set_event_notrace_pid").read_text().split()
    threads = os.listdir(f"/proc/{run.process.pid}/task")
    assert run.end() == 0
    assert set(left_out) <= set(threads)
