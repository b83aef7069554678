"""Run lttd from its command line to its exit status, on the running kernel."""

import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pytest

from lttd.cli import main
from lttd.manifest import Manifest
from lttd.sources.ftrace import instance as ftrace_instance
from lttd.tracedir import segments
from tests.daemon_runs import TRACE, data_of, mark, only_line
from tests.fakes import LAYOUT, event, page
from tests.running import (
    PATIENCE_S,
    QUIET,
    Launcher,
    Run,
    assert_whole,
    free_port,
    needs_kernel,
    scraped,
    until,
)

pytestmark = needs_kernel()


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


def test_a_trace_that_another_lttd_records_is_refused_with_status_1_until_it_is_free(
    lttd: Launcher, tmp_path: Path
) -> None:
    """A service tries again after 1, and not after 2 and 77."""
    trace = tmp_path / TRACE
    first = lttd.start("-t", trace, *QUIET).recording()
    second = tmp_path / "second"
    second.mkdir()
    words = lttd.words("-t", trace, *QUIET, "--append", "--duration", "50ms")
    own = {**os.environ, "RUNTIME_DIRECTORY": str(lttd.runtime)}
    again = partial(subprocess.run, words, cwd=second, env=own, capture_output=True, check=False)
    refused = again(text=True)
    assert refused.returncode == 1
    says = rf"lttd: \S+/{TRACE}: in use by \S+ \(pid {first.process.pid}\); stop it, or choose.*\n"
    assert re.fullmatch(says, refused.stderr)
    assert first.end() == 0, first.stderr
    assert again().returncode == 0
    assert_whole(trace)


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
    options = ("--events", "sched:sched_switch", "--summary", "none", "--flush-interval", "50ms")
    words = lttd.words("-t", tmp_path / "t", *options, "--no-trace-self")
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
