"""A real recording within limits: the bound holds, and readers see whole segments."""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lttd import open as open_trace
from lttd.clients.base import ask
from lttd.tracedir import segments_below
from tests.numbered import numbering
from tests.running import (
    PATIENCE_S,
    QUIET,
    Launcher,
    Run,
    assert_whole,
    lttv,
    needs_kernel,
    until,
)

pytestmark = needs_kernel()

MIB = 1 << 20
DELETED = "was deleted while it was read; left out"
FAST = ("--flush-interval", "20ms", "--summary", "none")
# A CPU fills some four segments of 128K a second.
MARKS_PER_S, MARK_BYTES = 5000, 64


def du_bytes(path: Path) -> int:
    """Return the blocks of a directory, as far as nothing vanishes meanwhile."""
    total = 0
    for root, _, names in os.walk(path, onerror=None):
        for name in (".", *names):
            try:
                total += os.lstat(f"{root}/{name}").st_blocks * 512
            except FileNotFoundError:
                continue
    return total


class Sizes:
    """The largest sizes of a trace and of its segments during a recording."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace
        self.most_bytes = self.most_segment_bytes = 0
        self.seen: set[str] = set()

    def look(self) -> None:
        self.most_bytes = max(self.most_bytes, du_bytes(self._trace))
        for segment in segments_below(self._trace):
            self.seen.add(segment.directory.name)
            size = du_bytes(segment.directory)
            self.most_segment_bytes = max(self.most_segment_bytes, size)


@contextmanager
def watched(trace: Path) -> Iterator[Sizes]:
    """Measure *trace* again and again during the block."""
    sizes, done = Sizes(trace), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            sizes.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


@contextmanager
def writing(run: Run, number: int = 1) -> Iterator[dict[int, int]]:
    """Write the marks of run *number* during the block; then the result has their count by CPU."""
    with numbering(run, number, MARKS_PER_S, MARK_BYTES) as written:
        yield written


def client(run: Run, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a client of the recorder *run*."""
    program = "import sys; from lttd.cli import main; sys.exit(main())"
    call = [sys.executable, "-c", program, *map(str, words)]
    environment = {**os.environ, "RUNTIME_DIRECTORY": str(run.launcher.runtime)}
    return subprocess.run(
        call, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.alone  # the bound holds if lttd gets its CPU time
def test_a_trace_stays_within_its_size_over_a_kill_and_a_kept_segment_stays(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    limits = ("--max-size", "1M", "--segment-size", "128K", "--max-kept-size", "768K")
    run = lttd.start("-t", trace, *QUIET, *FAST, *limits).recording()
    with watched(trace) as sizes:
        with writing(run):
            until(lambda: len(sizes.seen) > 3, "rolls")
            number = segments_below(trace)[-2].number
            done = client(run, "keep", "-t", trace, str(number))
            assert (done.returncode, done.stdout) == (0, f"kept segment {number}\n")
            until(lambda: len(sizes.seen) > 12, "rolls")
            run.signal(signal.SIGKILL).wait()
        again = lttd.start("-t", trace, "--append", *QUIET, *FAST, *limits).recording()
        with writing(again, 2):
            until(lambda: len(sizes.seen) > 22, "rolls")
        assert again.end() == 0
    assert sizes.most_bytes <= 1.75 * MIB + sizes.most_segment_bytes
    assert_whole(trace, "--events")
    left = segments_below(trace)
    assert left[0].number == number
    assert left[0].kept.exists()
    assert not [name for name in os.listdir(trace) if name.startswith(".")]
    kept = du_bytes(left[0].directory)
    assert du_bytes(trace) - kept - os.stat(trace).st_blocks * 512 <= MIB


def store_of(trace: Path) -> dict[str, Any]:
    state = ask(argparse.Namespace(trace_dir=str(trace)), {"do": "status"}, PATIENCE_S)
    store: dict[str, Any] = state["store"]
    return store


def test_a_start_that_has_to_delete_says_so_and_a_released_segment_goes(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    run = lttd.start("-t", trace, *QUIET, *FAST, "--segment-size", "128K").recording()
    with writing(run):
        until(lambda: len(segments_below(trace)) > 12, "rolls")
    assert run.end() == 0
    before = len(segments_below(trace))
    limits = ("--max-size", "1M", "--segment-size", "128K")
    again = lttd.start("-t", trace, "--append", *QUIET, *FAST, *limits).recording()
    until(lambda: "deleting" in again.stderr, "the line")
    until(lambda: len(segments_below(trace)) < before / 2, "deletions")
    until(lambda: store_of(trace)["allocated_bytes"] <= MIB, "the last deletion")
    (oldest, *_) = [segment.number for segment in segments_below(trace)]
    for words in (("keep", str(oldest)), ("release", f"{oldest}-{oldest}")):
        assert client(again, words[0], "-t", trace, words[1]).returncode == 0
    refused = client(again, "release", "-t", trace, "1")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"lttd: segment 1: there is none in {trace}\n"
    status = store_of(trace)
    assert status["deletions"]["size"] == before + 1 - status["segments"]
    assert status["limit_bytes"] == MIB
    assert again.end() == 0
    assert_whole(trace)


@pytest.mark.alone  # readers have to begin before all that they saw is deleted
def test_readers_leave_out_what_is_deleted_while_they_read(lttd: Launcher, tmp_path: Path) -> None:
    trace = tmp_path / "t"
    limits = ("--max-size", "2M", "--segment-size", "128K", "--compress", "zstd")
    run = lttd.start("-t", trace, *QUIET, *FAST, *limits).recording()
    with writing(run) as written, following(trace) as follow:
        until(lambda: segments_below(trace)[0].number > 1, "deletions")
        for command in (["text"], ["info"], ["check", "--events"], ["info", "--json"]):
            found = lttv(*command, trace)
            assert found.returncode == 0, (command, found.stderr)
        for target in ("trace.dat", "parquet"):
            found = lttv("export", trace, "--to", target, "-o", tmp_path / f"out.{target}")
            assert found.returncode == 0, (target, found.stderr)
        batches = list(open_trace(trace).window())
        assert sum(map(len, batches))
    assert run.end() == 0
    lines, notes = follow.communicate(timeout=60)
    assert follow.returncode == 0, notes
    for note in [note for batch in batches for note in batch.notes] + notes.splitlines():
        assert DELETED in note
    assert 0 < len(lines.splitlines()) <= sum(written.values())


@contextmanager
def following(trace: Path) -> Iterator["subprocess.Popen[str]"]:
    """Follow *trace* until its recorder has ended; kill the viewer if the block fails."""
    words = [sys.executable, "-m", "lttd.view", "follow", "--until-closed", str(trace)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, text=True, **pipes)
    try:
        yield process
    except BaseException:
        process.kill()
        process.wait()
        raise
