"""Traces of many segments: a window costs those that it touches, and memory does not grow."""

import random
import re
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lttd
from lttd.abi.formats_file import pack
from lttd.beneath import OpenDirectory
from lttd.view.window import STREAM_BYTES
from tests.segment_builder import Made, page, record_at, subbuffer
from tests.viewer import run

PER_SEGMENT = 20
SUBBUFFER_EVENTS = 3
FORMAT = b"""name: mark
ID: 7
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:u32 a;	offset:8;	size:4;	signed:0;

print fmt: "a=%u", REC->a
"""


def marks(number: int) -> bytes:
    """Return a sub-buffer of three events that begins at 1000 * (number + 1)."""
    event = record_at(10, struct.pack("<HBBiI", 7, 0, 0, number, 1))
    return page(1000 * (number + 1), SUBBUFFER_EVENTS * event)


def made(trace: Path, count: int) -> Path:
    """Make a trace of *count* segments of two CPUs, one after the other."""
    for number in range(count):
        one = Made(trace, cpus=2, number=number + 1)
        for cpu in (0, 1):
            first = PER_SEGMENT * number
            one.append([marks(first + at) for at in range(PER_SEGMENT)], cpu=cpu)
        one.finish()
        tracefs = one.paths.directory / "tracefs"
        tracefs.mkdir()
        (tracefs / "formats.gz").write_bytes(pack({("test", "mark"): FORMAT}))
        (tracefs / "commands").write_bytes(b"%d\t%d\t\tname%d\n" % (number, number, number))
    return trace


@contextmanager
def opened() -> Iterator[list[str]]:
    """Note the files that are opened during the block."""
    names: list[str] = []
    real = OpenDirectory.open_file

    def open_file(self: OpenDirectory, path: str | Path) -> int:
        names.append(str(path))
        return real(self, path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(OpenDirectory, "open_file", open_file)
        yield names


@pytest.mark.parametrize("words", [[], ["--event", "mar*"], ["--where", "a == 1"], ["--json"]])
def test_a_window_reads_formats_and_names_of_the_segments_that_it_touches_and_their_neighbours(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], words: list[str]
) -> None:
    trace = made(tmp_path / "t", 12)
    begin_ns = 1000 * (PER_SEGMENT * 5 + 3)
    times = [f"0.{at:09}" for at in (begin_ns, begin_ns + 2000)]
    with opened() as names:
        status, _, err = run(
            capfdbinary, "text", trace, "--begin", times[0], "--end", times[1], *words
        )
    assert (status, err) == (0, "")
    read = {"formats.gz": set[int](), "commands": set[int]()}
    for name in names:
        found = re.search(r"-(\d{6})-fake/tracefs/(formats.gz|commands)$", name)
        if found:
            read[found[2]].add(int(found[1]))
    assert read["formats.gz"] == {6}
    assert read["commands"] <= {5, 6, 7}


def test_the_pieces_of_many_segments_have_each_event_once_in_order_and_stay_small(
    tmp_path: Path,
) -> None:
    count = 60
    trace = lttd.open(made(tmp_path / "t", count))
    batches = list(trace.window(piece_bytes=1))
    times = [time for batch in batches for time in batch.time.tolist()]
    assert len(times) == 2 * count * PER_SEGMENT * SUBBUFFER_EVENTS
    assert times == sorted(times)
    # A stream's share and half of it, for each of the two CPUs; and the sub-buffers that reach over
    # an end.
    assert max(len(batch.data) for batch in batches) <= 3 * STREAM_BYTES + 8192


def test_windows_of_overlapping_segments_have_what_the_whole_has_there(tmp_path: Path) -> None:
    chance = random.Random(3)
    path = tmp_path / "t"
    for number in range(1, 16):
        one = Made(path, cpus=2, number=number)
        for cpu in (0, 1):
            first = chance.randrange(60)
            pages = [subbuffer(first + at) for at in range(chance.randrange(1, 30))]
            one.append(pages, cpu=cpu)
        one.finish()
    trace = lttd.open(path)

    def events(begin: int | None = None, end: int | None = None) -> list[tuple[int, int]]:
        window = trace.window(begin, end, piece_bytes=1)
        return [
            (time, cpu)
            for batch in window
            for time, cpu in zip(batch.time.tolist(), batch.cpu.tolist(), strict=True)
        ]

    whole = events()
    assert [time for time, _ in whole] == sorted(time for time, _ in whole)
    for _ in range(100):
        begin = chance.randrange(95_000)
        end = begin + chance.randrange(20_000)
        assert events(begin, end) == [one for one in whole if begin <= one[0] <= end]


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of 30 segments, whose streams have 120 files."""
    return made(tmp_path_factory.mktemp("thirty") / "t", 30)


@pytest.mark.parametrize("words", [["text"], ["export", "--to", "perfetto"], ["plot"]])
def test_a_window_of_a_trace_of_many_segments_needs_few_descriptors(
    thirty: Path, tmp_path: Path, words: list[str]
) -> None:
    begin_ns = 1000 * (PER_SEGMENT * 20 + 3)
    window = ["--begin", f"0.{begin_ns:09}", "--end", f"0.{begin_ns + 2000:09}"]
    out = ["-o", str(tmp_path / "out.svg")] if words[0] != "text" else []
    done = subprocess.run(
        [sys.executable, "-m", "lttd.view", *words, thirty, *window, *out],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Too many open files" in done.stderr) == (0, False)
