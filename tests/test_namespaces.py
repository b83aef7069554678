"""Process ids and clocks that differ between the kernel and a process in a container."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from lttd.clock import Conversion
from lttd.errors import UsageError
from lttd.lockfile import Lock
from lttd.manifest import Manifest
from lttd.namespaces import (
    PID_INITIAL,
    TIME_INITIAL,
    kernel_clock_ns,
    kernel_knows_our_pids,
    offsets_ns,
)
from lttd.sources.blktrace.device import BlktraceSettings, BlockTrace
from lttd.tracedir import segments
from tests.running import QUIET, Launcher, assert_whole, lttv, needs_kernel
from tests.segment_builder import Made, subbuffer

OFFSETS = "monotonic      100000         5\nboottime       -3000         7\n"
NOW = ("--flush-interval", "20ms", "--summary", "none")
PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")
TIME_NAMESPACE = ("unshare", "--time", "--fork", "--monotonic", "100000", "--boottime", "200000")


def namespaces(tmp_path: Path, **inodes: int) -> Path:
    """Return a directory like /proc/self/ns, with hard links, since inodes cannot be chosen."""
    directory = tmp_path / "ns"
    directory.mkdir()
    (directory / "a").touch()
    for name in inodes:
        (directory / name).hardlink_to(directory / "a")
    return directory


def may(*words: str) -> bool:
    return subprocess.run([*words, "true"], check=False, capture_output=True).returncode == 0


def test_the_initial_namespaces_are_known_by_their_inodes() -> None:
    assert (PID_INITIAL, TIME_INITIAL) == (4026531836, 4026531834)


def test_the_offsets_of_a_time_namespace_are_read_by_clock(tmp_path: Path) -> None:
    directory = namespaces(tmp_path, time=1, time_for_children=1)
    (tmp_path / "offsets").write_text(OFFSETS)
    found = offsets_ns(directory, tmp_path / "offsets")
    assert found == {
        time.CLOCK_MONOTONIC: 100_000_000_000_005,
        time.CLOCK_MONOTONIC_RAW: 100_000_000_000_005,
        time.CLOCK_BOOTTIME: -2_999_999_999_993,
    }


def test_time_offsets_for_children_only_are_ignored(tmp_path: Path) -> None:
    directory = namespaces(tmp_path, time=1)
    (directory / "time_for_children").write_text("another inode")
    (tmp_path / "offsets").write_text(OFFSETS)
    assert offsets_ns(directory, tmp_path / "offsets") == {}


def test_no_clock_is_shifted_without_time_namespaces(tmp_path: Path) -> None:
    assert offsets_ns(tmp_path, tmp_path / "none") == {}
    assert abs(kernel_clock_ns(time.CLOCK_TAI) - time.clock_gettime_ns(time.CLOCK_TAI)) < 10**9


def test_pids_are_not_used_without_proc(tmp_path: Path) -> None:
    assert not kernel_knows_our_pids(tmp_path)


def test_a_block_trace_by_pid_is_refused_in_a_pid_namespace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("lttd.sources.blktrace.device.kernel_knows_our_pids", lambda: False)
    with pytest.raises(UsageError, match=r"pid=7: .* leave pid out"):
        BlockTrace(BlktraceSettings("/dev/null", pid=7), debugfs=str(tmp_path))


def command_lines(trace: Path) -> list[Mapping[str, str]]:
    path = segments(trace)[-1].directory / "tracefs/commands"
    names = ("time", "pid", "tgid", "command")
    lines = path.read_text().splitlines() if path.exists() else []
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines]


@pytest.mark.kernel
@pytest.mark.slow
@needs_kernel()[-1]
@pytest.mark.skipif(not may(*PID_NAMESPACE), reason="no pid namespaces here")
def test_lttd_in_a_pid_namespace_uses_no_pid_and_reports_it(lttd: Launcher, tmp_path: Path) -> None:
    arguments = ("-t", tmp_path / "t", "--events", "sched:sched_process_exec", *NOW)
    seen = f"cat {lttd.instances}/{lttd.prefix}*/set_event_notrace_pid > {tmp_path}/pids"
    command = ("--", "sh", "-c", f"{seen}; exec sleep 0.1")
    run = lttd.run(*arguments, *command, under=PID_NAMESPACE)
    assert run.process.returncode == 0, run.stderr
    assert (tmp_path / "pids").read_text() == ""
    (line,) = run.lines
    assert "in a pid namespace, whose process ids the kernel's trace does not know" in line
    # In the container lttd has a small pid; outside, such pids are of init and kernel threads.
    init = Path("/proc/1/comm").read_text().strip()
    names = {each["command"] for each in command_lines(tmp_path / "t") if each["pid"] == "1"}
    assert names <= {init}
    assert_whole(tmp_path / "t", "--events")


@pytest.mark.kernel
@pytest.mark.slow
@needs_kernel()[-1]
@pytest.mark.skipif(not may(*TIME_NAMESPACE), reason="no time namespaces here")
@pytest.mark.parametrize("clock", ["mono", "boot", "mono_raw"])
def test_lttd_in_a_time_namespace_records_correct_times(
    lttd: Launcher, tmp_path: Path, clock: str
) -> None:
    trace = tmp_path / "t"
    mark = f"echo here | tee {lttd.instances}/{lttd.prefix}*/trace_marker"
    before_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    arguments = ("-t", trace, *QUIET, *NOW, "--clock", clock, "--", "sh", "-c", f"{mark}; sleep 1")
    run = lttd.run(*arguments, under=TIME_NAMESPACE)
    after_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    assert run.process.returncode == 0, run.stderr
    manifest = Manifest.read(segments(trace)[-1].manifest)
    text = lttv("text", trace).stdout
    ((seconds, micros),) = re.findall(r" (\d+)\.(\d+): .*here", text)
    happened = int(seconds) * 1_000_000_000 + int(micros.ljust(9, "0"))
    assert before_ns <= Conversion(manifest.clock_snapshots).to_realtime_ns(happened) <= after_ns
    assert_whole(trace, "--events")


# Whoever may not open the lock of another user, and does not see that user's locks either.
AS_NOBODY = """
import os, sys
from pathlib import Path
from lttd.tracedir import segments
from lttd.view.verify import check
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(check(segments(Path(sys.argv[1]))[0]).state)
"""


@pytest.mark.skipif(not may(*PID_NAMESPACE), reason="no pid namespaces here")
@pytest.mark.parametrize("age_s", [0, 200])
def test_a_viewer_in_another_pid_namespace_goes_by_the_age_of_the_manifest(age_s: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        os.chmod(directory, 0o755)
        made = Made(Path(directory) / "t")
        made.append([subbuffer(0)])
        made.sync()
        for path in (made.trace, *made.trace.rglob("*")):
            path.chmod(0o755)
        moment_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - age_s * 1_000_000_000
        os.utime(made.paths.manifest, ns=(moment_ns, moment_ns))
        lock = Lock(made.paths.base, made.paths.lock)
        words = [*PID_NAMESPACE, sys.executable, "-c", AS_NOBODY, made.trace]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        lock.release()
    assert done.stdout == ("open\n" if age_s else "live\n")
