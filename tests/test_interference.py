"""Other tools change an instance while lttd records: lttd notices, counts and continues."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from lttd.manifest import Manifest
from lttd.stored import StoredStream
from lttd.subbuffer import Gap, Reason
from lttd.tracedir import segments
from tests import running
from tests.running import (
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

# Takes what there is at once: cat waits until a ring is filled, and gets nothing where lttd is
# faster.
READER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
while True:
    try:
        os.read(fd, 65536)
    except BlockingIOError:
        time.sleep(0.001)
"""
EVENTS = ("--events", "raw_syscalls:*", "--buffer-size", "1M", "--flush-interval", "50ms")


class Recording:
    """An lttd that records system calls, its trace, and its endpoint."""

    def __init__(self, run: Run, trace: Path, port: int) -> None:
        self.run = run
        self.trace = trace
        self._port = port

    def write(self, name: str, text: str) -> None:
        """Write a file of the instance, as a shell does."""
        path = self.run.instance / name
        subprocess.run(["sh", "-c", f"echo '{text}' > {path}"], check=True)

    def read(self, name: str) -> str:
        return (self.run.instance / name).read_text().strip()

    def troubles(self) -> set[str]:
        return set(re.findall(r'lttd_unhealthy\{reason="(\w+)"\} 1', scraped(self._port)))

    def health(self) -> str:
        return get(self._port, "/healthz")[1]

    def until_troubles(self, *troubles: str) -> None:
        """Wait until exactly these troubles are reported; the load limits the time."""
        deadline = time.monotonic() + 20
        while (found := self.troubles()) != set(troubles):
            assert time.monotonic() < deadline, f"{found}: {self.run.stderr}"
            time.sleep(0.02)

    def lines_about(self, name: str) -> list[str]:
        return [line for line in self.run.lines if name in line]

    def change_for_a_while(self, name: str, value: str, normal: str | None, trouble: str) -> None:
        """Write a setting, and write it back once it is reported; then end lttd.

        *normal*: the text that undoes it; None: what was there before.
        """
        before = self.read(name)
        self.write(name, value)
        self.until_troubles(trouble)
        self.write(name, before if normal is None else normal)
        self.until_troubles()
        self.end()

    def end(self) -> None:
        """End lttd by a signal and assert that the trace is whole."""
        assert self.run.end() == 0, self.run.stderr
        assert_whole(self.trace, "--events")

    def gaps(self) -> list[Gap]:
        (segment,) = segments(self.trace)
        manifest = Manifest.read(segment.manifest)
        streams = [StoredStream(segment, manifest, record) for record in manifest.streams]
        return [gap for stream in streams for gap in stream.gaps]

    def unknown(self) -> set[Reason]:
        """Return the reasons of the gaps of unknown number, without those of full pages."""
        return {g.reason for g in self.gaps() if g.count is None} - {Reason.OVERWRITTEN}


@pytest.fixture
def recording(lttd: Launcher, tmp_path: Path, syscall_load: Path) -> Iterator[Recording]:
    port = free_port()
    with loaded(syscall_load):
        run = lttd.start("-t", tmp_path / "t", *EVENTS, "--metrics", f"127.0.0.1:{port}")
        found = Recording(run.recording(), tmp_path / "t", port)
        until(lambda: get(port, "/healthz") == (200, "ok\n"), "it is well")
        time.sleep(0.3)  # by now lttd watches the files of its events
        yield found


def test_lttd_reports_nothing_while_nobody_interferes(recording: Recording) -> None:
    subprocess.run(["head", "-c", "100", recording.run.instance / "trace"], check=True)
    for _ in range(10):
        assert recording.troubles() == set()
        time.sleep(0.05)
    recording.end()
    assert recording.unknown() == set()
    assert recording.lines_about("process") == []


def test_turned_off_tracing_is_reported_until_it_is_on_again(recording: Recording) -> None:
    recording.write("tracing_on", "0")
    recording.until_troubles("tracing_off")
    assert "tracing_on: tracing was turned off" in recording.health()
    time.sleep(0.3)
    assert recording.read("tracing_on") == "0", "lttd reports and does not switch back"
    recording.write("tracing_on", "1")
    recording.until_troubles()
    recording.end()
    assert recording.unknown() == {Reason.SWITCHED_OFF}
    assert len(recording.lines_about("tracing was turned off")) == 1
    assert len(recording.lines_about("is 1 again")) == 1


def test_a_traceoff_trigger_is_not_reported_as_interference(
    recording: Recording,
) -> None:
    begin_ns = time.time_ns()
    recording.write("events/raw_syscalls/sys_enter/trigger", "traceoff:1")
    until(lambda: recording.read("tracing_on") == "0", "it fired")
    fired_ns = begin_ns, time.time_ns()
    until(lambda: recording.lines_about("traceoff trigger"), "it is explained")
    assert recording.troubles() == set()
    time.sleep(0.3)
    (line,) = recording.lines_about("traceoff trigger")
    bounds = (
        r"\(raw_syscalls:sys_enter\), since at least at (2\S*Z), at most at (2\S*Z): write 1 to"
    )
    found = re.search(bounds, line)
    assert found, line
    at_least_ns, at_most_ns = (
        1e9 * datetime.fromisoformat(each).timestamp() for each in found.groups()
    )
    # The times are cut to milliseconds.
    assert at_least_ns <= fired_ns[1]
    assert at_most_ns >= fired_ns[0] - 1_000_000
    assert at_most_ns <= time.time_ns()
    recording.write("tracing_on", "1")
    until(lambda: recording.lines_about("tracing is on again, as seen at 2"), "it is on again")
    recording.end()
    assert recording.unknown() == set()


def test_an_event_with_a_trigger_is_missed_although_set_event_still_names_it(
    recording: Recording,
) -> None:
    recording.write("events/raw_syscalls/sys_enter/trigger", "stacktrace if id == 4194303")
    recording.write("events/raw_syscalls/sys_enter/enable", "0")
    assert "raw_syscalls:sys_enter" in recording.read("set_event")
    recording.until_troubles("events_off")
    recording.write("events/raw_syscalls/sys_enter/enable", "1")
    recording.until_troubles()
    recording.end()
    assert recording.unknown() == {Reason.SWITCHED_OFF}


@pytest.mark.parametrize("name", ["set_event", "events/enable", "events/raw_syscalls/enable"])
def test_turned_off_events_are_reported_until_they_are_on_again(
    recording: Recording, name: str
) -> None:
    recording.write(name, "" if name == "set_event" else "0")
    recording.until_troubles("events_off")
    assert "2 of 2 events were turned off" in recording.health()
    recording.write("events/raw_syscalls/sys_enter/enable", "1")
    until(lambda: "1 of 2 events were turned off" in recording.health(), "one is back")
    recording.write("events/raw_syscalls/sys_exit/enable", "1")
    recording.until_troubles()
    recording.end()
    assert recording.unknown() == {Reason.SWITCHED_OFF}


@pytest.mark.parametrize(
    ("name", "value", "normal"),
    [
        ("events/raw_syscalls/sys_enter/filter", "id == 0", "0"),
        ("events/raw_syscalls/filter", "id == 0", "0"),
        ("set_event_pid", "1", ""),
        ("tracing_cpumask", "2", None),
    ],
)
def test_a_filter_is_reported_until_it_is_gone(
    recording: Recording, name: str, value: str, normal: str | None
) -> None:
    recording.change_for_a_while(name, value, normal, "filter_set")
    assert recording.unknown() == {Reason.FILTERED}


@pytest.mark.parametrize("name", ["trace", "per_cpu/cpu0/trace"])
def test_emptying_the_ring_makes_a_gap_each_time_and_one_line(
    recording: Recording, name: str
) -> None:
    for _ in range(20):
        recording.write(name, "")
        time.sleep(0.02)
    assert recording.troubles() == {"ring_emptied"}
    recording.end()
    assert recording.unknown() == {Reason.EMPTIED}
    on_cpu_0 = [gap for gap in recording.gaps() if gap.reason is Reason.EMPTIED]
    assert len(on_cpu_0) >= 10
    assert len(recording.lines_about("another process wrote it")) == 1


@pytest.mark.parametrize("clock", ["local", "counter", "boot"])
def test_another_clock_pauses_reading_until_the_first_one_is_back(
    recording: Recording, clock: str
) -> None:
    recording.write("trace_clock", clock)
    until(lambda: "setting_changed" in recording.troubles(), "it is noticed")
    assert f"trace_clock: is {clock} now and was mono" in recording.health()
    time.sleep(0.5)
    recording.write("trace_clock", "mono")
    until(lambda: "setting_changed" not in recording.troubles(), "it is over")
    taken = info(recording.trace)["subbuffers"]
    until(lambda: info(recording.trace)["subbuffers"] > taken, "it records again")
    recording.end()
    assert Reason.EMPTIED in recording.unknown()


def test_writing_the_same_clock_again_empties_the_ring(recording: Recording) -> None:
    recording.write("trace_clock", "mono")
    recording.until_troubles("ring_emptied")
    recording.end()
    assert recording.unknown() == {Reason.EMPTIED}


def test_another_subbuffer_size_pauses_reading_until_the_first_one_is_back(
    recording: Recording,
) -> None:
    recording.write("buffer_subbuf_size_kb", "8")
    until(lambda: "setting_changed" in recording.troubles(), "it is noticed")
    time.sleep(0.3)
    recording.write("buffer_subbuf_size_kb", "4")
    until(lambda: "setting_changed" not in recording.troubles(), "it is over")
    recording.end()
    assert Reason.EMPTIED in recording.unknown()


@pytest.mark.parametrize("name", ["buffer_size_kb", "per_cpu/cpu0/buffer_size_kb"])
def test_a_ring_that_is_resized_is_reported(recording: Recording, name: str) -> None:
    recording.write(name, "256")
    recording.until_troubles("ring_resized")
    recording.end()
    assert recording.unknown() == set()


@pytest.mark.parametrize(
    ("name", "value", "normal"),
    [
        ("options/pause-on-trace", "1", "0"),
        ("trace_options", "pause-on-trace", "nopause-on-trace"),
        ("buffer_percent", "0", None),
    ],
)
def test_a_setting_that_makes_lttd_lose_or_spin_is_reported_until_it_is_gone(
    recording: Recording, name: str, value: str, normal: str | None
) -> None:
    recording.change_for_a_while(name, value, normal, "setting_changed")
    paused = "pause" in name or "pause" in value
    assert recording.unknown() == ({Reason.SWITCHED_OFF} if paused else set())


def test_another_overwrite_mode_is_reported_and_its_losses_are_counted(
    recording: Recording,
) -> None:
    recording.write("options/overwrite", "0")
    recording.until_troubles("setting_changed")
    recording.end()


@pytest.mark.parametrize("name", ["trace_pipe", "per_cpu/cpu0/trace_pipe_raw"])
def test_the_events_that_another_reader_takes_are_counted(recording: Recording, name: str) -> None:
    path = recording.run.instance / name
    reader = subprocess.Popen([sys.executable, "-c", READER, path])
    name = Path(sys.executable).name
    try:
        until(lambda: "foreign_reader" in recording.troubles(), "it is noticed")
        until(lambda: f"{name[:15]} (pid {reader.pid})" in recording.health(), "it is named")

        def counted() -> int:
            line = r'^lttd_events_lost_total\{.*reason="foreign_read"\} (\d+)'
            return sum(map(int, re.findall(line, scraped(recording._port), re.M)))

        until(lambda: counted() > 0, "what it takes is counted")
        assert "foreign_reader" in recording.troubles()
    finally:
        reader.kill()
        reader.wait()
    recording.until_troubles()
    recording.end()
    found = sum(gap.count or 0 for gap in recording.gaps() if gap.reason is Reason.FOREIGN_READ)
    assert found > 0
    assert info(recording.trace)["events_lost"] >= found


def test_another_lttd_that_inspects_the_instance_is_not_a_reader(
    recording: Recording, lttd: Launcher, tmp_path: Path
) -> None:
    other = lttd.run("-t", tmp_path / "other", *EVENTS, "--duration", "100ms")
    assert other.process.returncode == 0, other.stderr
    assert recording.troubles() == set()
    recording.end()
    assert recording.unknown() == set()


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let lttd look at all settings every second instead of every ten."""
    words = "from lttd.sources.ftrace import watch\nwatch.LOOK_AGAIN_NS = 10**9\n"
    monkeypatch.setattr(running, "LAUNCHER", words + running.LAUNCHER)


@pytest.mark.alone
@pytest.mark.usefixtures("looks_often")
def test_changes_are_found_after_watches_have_gone_deaf(recording: Recording) -> None:
    Path("/proc/sys/vm/drop_caches").write_text("2")
    recording.write("events/raw_syscalls/sys_exit/enable", "0")
    recording.until_troubles("events_off")
    with suppress(OSError):
        recording.write("events/raw_syscalls/sys_exit/enable", "1")
    recording.end()
    assert os.listdir(recording.trace)
