"""The process that compresses closed segments beside recording: in order, idle, killed, stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from lttd import compression
from lttd.beneath import OpenDirectory
from lttd.compress import wants_compression
from lttd.compression import Compression
from lttd.compressor import PROCESS_NAME
from lttd.idle import Pauses, idle_io_counts
from lttd.lockfile import Lock
from lttd.manifest import Manifest
from lttd.terminal import Level
from lttd.tracedir import SegmentPaths, segments
from lttd.view.verify import check
from tests.running import (
    PATIENCE_S,
    assert_whole,
    build_load,
    launching,
    loaded,
    lttv,
    needs_kernel,
    until,
)
from tests.segment_builder import segment_at
from tests.test_compressed import make, text

NIGHTLY = bool(os.environ.get("LTTD_NIGHTLY"))
SCHED_IDLE = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "t").directory


@pytest.fixture
def trace(made: Path, tmp_path: Path) -> Path:
    """Return a trace of four segments."""
    trace = tmp_path / "t"
    for number in range(1, 5):
        name = made.name.replace("-000001-", f"-{number:06d}-")
        shutil.copytree(made, trace / name)
    trace.chmod(0o750)
    return trace


def compressed(trace: Path) -> list[int]:
    """Return the numbers of the compressed segments."""
    return [paths.number for paths in segments(trace) if Manifest.read(paths.manifest).compression]


class Watched:
    """A compression, and what it told."""

    def __init__(self, trace: Path, *, earlier: bool = True, level: int = 1) -> None:
        self.pids: list[int] = []
        self.lines: list[str] = []
        self.changed: list[int] = []
        directory = OpenDirectory.open(trace)
        self.work = Compression(directory, level, self._leave_out, self._say)
        self.work._earlier = earlier
        self.work.on_changed.append(self._note)

    async def _leave_out(self, pid: int, _: str) -> None:
        self.pids.append(pid)

    async def _note(self, paths: SegmentPaths) -> None:
        self.changed.append(paths.number)

    def _say(self, line: str, _level: Level) -> None:
        self.lines.append(line)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* is true; another process makes it so."""
        with trio.fail_after(PATIENCE_S):
            while not condition():  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_segments_of_earlier_runs_come_first_and_the_oldest_of_them(trace: Path) -> None:
    watched = Watched(trace)
    newest = segments(trace)[3]
    shutil.move(newest.directory, trace.parent / "later")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.work.run)
        await watched.until(lambda: watched.changed)
        shutil.move(trace.parent / "later", newest.directory)
        watched.work.closed(newest)
        assert watched.work.backlog > 0
        await watched.until(lambda: watched.work.backlog == 0)
        nursery.cancel_scope.cancel()
    assert watched.changed == compressed(trace) == [1, 2, 3, 4]
    assert (watched.lines, len(watched.pids)) == ([], 1)
    with pytest.raises(ProcessLookupError):
        os.kill(watched.pids[0], 0)


async def test_without_a_closed_segment_no_process_runs(trace: Path) -> None:
    watched = Watched(trace, earlier=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.work.run)
        await trio.testing.wait_all_tasks_blocked()
        assert watched.pids == []
        watched.work.closed(segments(trace)[1])
        await watched.until(lambda: watched.work.backlog == 0)
        nursery.cancel_scope.cancel()
    assert compressed(trace) == [2]


async def test_a_segment_in_use_waits_and_a_damaged_or_deleted_one_is_left(trace: Path) -> None:
    first, second, third, fourth = segments(trace)
    lock = Lock(first.base, first.lock)
    os.truncate(second.streams / "fake_0", 100)
    shutil.rmtree(third.directory)
    watched = Watched(trace, earlier=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.work.run)
        for paths in (first, second, third, fourth):
            watched.work.closed(paths)
        await watched.until(lambda: watched.changed == [4])
        assert watched.work.backlog == 1
        nursery.cancel_scope.cancel()
    lock.release()
    assert compressed(trace) == [4]
    assert len(watched.lines) == 2
    assert "in use" in watched.lines[0]
    assert "lttv check --repair" in watched.lines[1]


def assert_gives_way(pid: int) -> None:
    assert Path(f"/proc/{pid}/comm").read_text() == f"{PROCESS_NAME}\n"
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert (int(fields[16]), int(fields[38])) == (19, SCHED_IDLE)
    assert os.listdir(f"/proc/{pid}/task") == [str(pid)]
    session = Path(f"/proc/{pid}/autogroup")
    if session.exists():
        assert session.read_text().endswith(" nice 19\n")
    said = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True)
    assert said.stdout == "idle\n"
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) >= 500


async def test_the_process_gives_way_and_has_a_name_of_its_own(trace: Path) -> None:
    watched = Watched(trace, level=19)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.work.run)
        await watched.until(lambda: list(trace.glob("*/.new-compressed")))
        assert_gives_way(watched.pids[0])
        nursery.cancel_scope.cancel()


def test_the_process_gives_way_before_it_loads_what_takes_time(trace: Path) -> None:
    policies = []
    with compressor(trace) as process:

        def has_numpy() -> bool:
            found = "numpy" in Path(f"/proc/{process.pid}/maps").read_text()
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            policies.append(int(fields[38]))
            return found

        until(has_numpy, "numpy")
    assert policies[-1] == SCHED_IDLE


async def test_the_end_of_a_run_abandons_the_segment_in_work_at_once(trace: Path) -> None:
    watched = Watched(trace, level=19)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.work.run)
        await watched.until(lambda: watched.work.backlog)
        began = time.monotonic()
        nursery.cancel_scope.cancel()
    assert time.monotonic() - began < 3
    found = segments(trace)[0]
    assert not found.compressed.exists()
    assert not found.unfinished.exists()
    assert not (found.directory / ".lock").exists()


async def test_a_killed_process_is_started_again_but_not_forever(
    trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "RESTART_S", 0)
    watched = Watched(trace, level=19)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.work.run)
        for number in range(compression.MOST_STARTS):
            await watched.until(lambda n=number: len(watched.pids) > n and watched.work.backlog)
            os.kill(watched.pids[-1], signal.SIGKILL)
    assert len(watched.pids) == compression.MOST_STARTS
    assert "too often" in watched.lines[-1]
    # What it left of each can be removed at once.
    assert watched.changed == [1, 1, 2, 2]
    assert watched.work.backlog > 0
    for paths in segments(trace):
        assert check(paths).whole


# -- the process alone


# On a busy machine a process that gives way takes half a minute to load its modules.
COMPETES = """
import runpy
from lttd import idle
idle.give_way = lambda: None
runpy.run_module("lttd.compressor", run_name="__main__", alter_sys=True)
"""


@contextmanager
def compressor(
    trace: Path, level: int = 1, *, gives_way: bool = True
) -> Iterator["subprocess.Popen[bytes]"]:
    fd = os.open(trace, os.O_RDONLY | os.O_DIRECTORY)
    program = ["-m", "lttd.compressor"] if gives_way else ["-c", COMPETES]
    words = [sys.executable, "-P", *program, str(fd), str(trace), str(level)]
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[fd],
        start_new_session=True,  # it lowers the priority of its session
    ) as process:
        os.close(fd)
        try:
            yield process
        finally:
            process.kill()


def ask(process: "subprocess.Popen[bytes]", **command: str) -> dict[str, object]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(command).encode() + b"\n")
    process.stdin.flush()
    answer: dict[str, object] = json.loads(process.stdout.readline())
    return answer


def test_a_trace_that_is_renamed_meanwhile_is_still_compressed(trace: Path) -> None:
    with compressor(trace, gives_way=False) as process:
        names = ask(process, do="list")["segments"]
        assert names == [paths.directory.name for paths in segments(trace)]
        moved = trace.rename(trace.with_name("moved"))
        answer = ask(process, do="compress", segment=names[0])  # type: ignore[index]
        assert answer["result"] == "done"
    assert compressed(moved) == [1]


def test_a_segment_that_is_deleted_in_work_is_gone(trace: Path) -> None:
    first = segments(trace)[0]
    with compressor(trace, level=19, gives_way=False) as process:
        ask(process, do="list")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(
            json.dumps({"do": "compress", "segment": first.directory.name}).encode() + b"\n"
        )
        process.stdin.flush()
        until(lambda: list(first.unfinished.glob("*.zst")), "the first file")
        first.directory.rename(first.directory.with_name(".gone-" + first.directory.name))
        assert json.loads(process.stdout.readline())["result"] == "gone"


def test_kills_at_random_instants_leave_whole_traces(made: Path, tmp_path: Path) -> None:
    """The deterministic form is in test_compressed: each operation, one by one.

    The compressor competes for the CPU, so that a kill meets it at work on a busy machine, too.
    """
    rng = random.Random(11)
    seen = text(segment_at(made))
    took_s = 0.1
    for _ in range(300 if NIGHTLY else 8):
        trace = tmp_path / "t"
        shutil.copytree(made, trace / made.name)
        with compressor(trace, gives_way=False) as process:
            ask(process, do="list")
            assert process.stdin is not None
            process.stdin.write(
                json.dumps({"do": "compress", "segment": made.name}).encode() + b"\n"
            )
            process.stdin.flush()
            time.sleep(rng.uniform(0, took_s))
            process.kill()
            process.wait()
        (paths,) = segments(trace)
        assert text(paths) == seen
        assert check(paths, events=True).whole
        with compressor(trace, gives_way=False) as process:
            if wants_compression(paths):
                assert ask(process, do="compress", segment=made.name)["result"] == "done"
        assert compressed(trace) == [1]
        assert text(paths) == seen
        shutil.rmtree(trace)


READERS = (
    ["text", "--jobs", "1"],
    ["text", "--jobs", "2"],
    ["follow", "--from-begin", "--until-closed"],
    ["export", "--to", "trace.dat", "-o", "OUT"],
    ["export", "--to", "parquet", "-o", "OUT"],
    ["check", "--events"],
)


def read_by(words: list[str], trace: Path, place: Path) -> tuple[str, dict[str, bytes]]:
    """Run a reader of *trace*; return what it printed and what it wrote."""
    place.mkdir()
    out = str(place / "out")
    done = lttv(*(out if word == "OUT" else word for word in words), trace)
    assert done.returncode == 0, (words, done.stderr)
    written = {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    return (done.stdout + done.stderr).replace(out, "OUT"), written


def test_every_reader_finds_the_same_while_segments_change_their_form(
    made: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    shutil.copytree(made, trace / made.name)
    wanted = [read_by(words, trace, tmp_path / f"wanted{n}") for n, words in enumerate(READERS)]
    seen = text(segment_at(trace / made.name))
    with subprocess.Popen(
        [sys.executable, "-c", CHANGES, str(trace)], stdin=subprocess.PIPE
    ) as changing:
        try:
            for again in range(20 if NIGHTLY else 1):
                for number, words in enumerate(READERS):
                    place = tmp_path / f"found{again}-{number}"
                    assert read_by(words, trace, place) == wanted[number], words
                assert text(segment_at(trace / made.name)) == seen
            assert changing.poll() is None
        finally:
            changing.kill()


CHANGES = """
import sys
from pathlib import Path
from lttd.compress import compress, decompress
from lttd.files import Disk
from lttd.tracedir import segments
disk = Disk()
while True:
    for change in (compress, decompress):
        for paths in segments(Path(sys.argv[1])):
            change(paths, disk)
"""


# -- pauses


def test_pauses_are_as_long_as_the_io_was(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    pauses = Pauses()
    for _ in range(10):
        pauses.after(0.002)
    pauses.after(0.5)
    assert sum(slept) == pytest.approx(0.52)
    assert len(slept) < 6


def test_a_device_that_no_block_layer_serves_has_no_idle_class(tmp_path: Path) -> None:
    assert not idle_io_counts(os.makedev(0, 999))
    node = Path("/sys/dev/block")
    for device in node.iterdir() if node.is_dir() else ():
        queue = device / "queue/scheduler"
        if queue.exists():
            major, minor = map(int, device.name.split(":"))
            known = any(name in queue.read_text() for name in ("[bfq]", "[mq-deadline]"))
            assert idle_io_counts(os.makedev(major, minor)) == known


# -- within a recording


@pytest.mark.parametrize("_", [pytest.param("", marks=needs_kernel())])
def test_a_recording_compresses_its_closed_segments_and_names_the_compressor_in_its_manifest(
    tmp_path: Path, _: str
) -> None:
    trace = tmp_path / "t"
    options = ["--events", "raw_syscalls:*,sched:sched_process_exec", "--buffer-size", "4M"]
    with launching(tmp_path) as lttd:
        run = lttd.start("-t", trace, *options, "--segment-size", "2M", "--compress", "zstd:3")
        with loaded(build_load(tmp_path)):
            until(lambda: len(list(trace.glob("*-ftrace"))) > 4, "closed segments")
        # An idle process gets no time while others keep all CPUs busy.
        until(lambda: len(compressed_so_far(trace)) >= 3, "three compressed")
        tasks = Path(f"/proc/{run.process.pid}/task").glob("*/children")
        children = {pid for each in tasks for pid in each.read_text().split()}
        assert len(children) == 1
        assert (run.instance / "set_event_notrace_pid").read_text() == ""
        assert run.end() == 0, run.stderr
    (compressor,) = children
    newest = Manifest.read(segments(trace)[-1].manifest)
    assert newest.own_threads[compressor] == PROCESS_NAME
    report = assert_whole(trace, "--events")
    assert len(report["segments"]) > 3
    assert run.stderr.count("not compressed") == 0
    done = compressed(trace)
    assert done == list(range(1, len(done) + 1))
    again = lttd_again(tmp_path, trace)
    assert again == ""


def compressed_so_far(trace: Path) -> list[str]:
    return [path.parent.name for path in trace.glob("*-ftrace/compressed")]


def lttd_again(tmp_path: Path, trace: Path) -> str:
    """Let the next run compress what the first one left; return what it told besides."""
    (tmp_path / "again").mkdir()
    with launching(tmp_path / "again", "b") as lttd:
        run = lttd.start("-t", trace, "--append", "--events", "sched:sched_process_hang",
            "--segment-size", "1G", "--compress", "zstd", "--summary", "none")  # fmt: skip
        run.recording()
        left = [paths for paths in segments(trace)[:-1] if wants_compression(paths)]
        until(lambda: not any(map(wants_compression, left)), "the earlier segments")
        assert run.end() == 0, run.stderr
    assert_whole(trace)
    return run.stderr


def test_an_unknown_method_or_level_is_refused() -> None:
    from lttd.config import parse_command_line  # noqa: PLC0415
    from lttd.errors import UsageError  # noqa: PLC0415

    common = ["-t", "/x", "--source", "ftrace"]
    assert parse_command_line([*common, "--compress", "zstd"]).compress_level == 1
    assert parse_command_line([*common, "--compress", "zstd:19"]).compress_level == 19
    for value in ("gzip", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:x", "zstd:1:2", ""):
        with pytest.raises(UsageError, match="write zstd, or zstd:LEVEL"):
            parse_command_line([*common, "--compress", value])
