"""A segment that is deleted while lttv reads is left out with one note; the others are whole.

The segment vanishes just before the n-th file is opened, as retention deletes it: by night for each
n and segment.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lttd
from lttd.beneath import OpenDirectory
from lttd.cli import main
from lttd.files import Disk
from lttd.kept import BY_PERSON, write_kept
from lttd.removal import hide, remove_hidden
from lttd.tracedir import segments_below
from lttd.view.commands.follow import follow
from lttd.view.commands.text import Show
from lttd.view.filters import Filter
from tests.data import FTRACE
from tests.viewer import run

NIGHTLY = bool(os.environ.get("LTTD_NIGHTLY"))
NOTE = "was deleted while it was read; left out"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of three segments of the same recording."""
    trace = tmp_path_factory.mktemp("whole") / "t"
    for _ in range(3):
        words = ["-t", str(trace), "--append", "--source", f"replay:{FTRACE}", "--summary", "none"]
        assert main(words) == 0
    return trace


@pytest.fixture
def trace(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "t"))


def delete(trace: Path, number: int) -> None:
    """Delete a segment as retention does."""
    disk = Disk()
    directory = disk.hold(trace)
    for segment in segments_below(directory):
        if segment.number == number:
            remove_hidden(directory, hide(disk, directory, segment.directory.name))


class Opened:
    """Counts the openings of files in segments, and calls *at* before the n-th one."""

    def __init__(self, at: Callable[[], None], nth: int) -> None:
        self.count, self._at, self._nth = 0, at, nth

    def opens(self) -> None:
        self.count += 1
        if self.count == self._nth:
            self._at()


@contextmanager
def vanishing(trace: Path, number: int, nth: int) -> Iterator[Opened]:
    """Delete a segment before the n-th file is opened during the block."""
    opened = Opened(lambda: delete(trace, number), nth)
    real = OpenDirectory.open_file

    def open_file(self: OpenDirectory, path: str | Path) -> int:
        opened.opens()
        return real(self, path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(OpenDirectory, "open_file", open_file)
        yield opened


@pytest.mark.parametrize(
    "words",
    [
        ["text"],
        ["text", "--begin", "+1ms"],
        ["info"],
        ["info", "--json"],
        ["check", "--events"],
        ["formats"],
        ["plot", "-o", "OUT.svg"],
        ["cut", "-o", "OUT"],
        ["export", "--to", "trace.dat", "-o", "OUT.dat"],
        ["export", "--to", "ctf", "-o", "OUT"],
        ["export", "--to", "parquet", "-o", "OUT"],
        ["export", "--to", "perfetto", "-o", "OUT.pftrace"],
        ["export", "--to", "systrace", "-o", "OUT.txt"],
    ],
    ids=lambda words: "-".join(words[:3]),
)
@pytest.mark.parametrize("number", [1, 2, 3] if NIGHTLY else [2])
def test_a_segment_that_vanishes_at_any_opening_costs_one_note_and_no_status(
    whole: Path,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    words: list[str],
    number: int,
) -> None:
    nth, count = 0, 1
    while nth < count:
        nth += 1 if NIGHTLY or nth < 3 else 9
        trace = Path(shutil.copytree(whole, tmp_path / f"t{nth}"))
        place = tmp_path / f"out{nth}"
        place.mkdir()
        options = [word.replace("OUT", str(place / "out")) for word in words[1:]]
        with vanishing(trace, number, nth) as opened:
            status, out, err = run(capfdbinary, words[0], trace, *options)
        count = opened.count
        told = [line for line in err.splitlines() if NOTE in line]
        where = f"{words} at opening {nth} of {count}: {err}"
        assert status == 0, where
        others = [line for line in err.splitlines() if f"-{number:06d}-" in line]
        assert len(told) <= 1, where
        assert others == told, where
        if words[0] == "text" and len(words) == 1:
            assert out.count(b"sched_switch") >= 1
        shutil.rmtree(trace)
        shutil.rmtree(place)


def test_the_library_leaves_out_a_segment_that_is_gone(trace: Path) -> None:
    count = len(list(lttd.open(trace).events()))
    opened = lttd.open(trace)
    delete(trace, 2)
    batches = list(opened.window())
    assert sum(map(len, batches)) == count * 2 // 3
    (note,) = {note for batch in batches for note in batch.notes}
    assert note.endswith(NOTE)


def test_follow_goes_on_when_a_segment_is_gone(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    show = Show(Filter())
    status = follow(trace, show, from_begin=True, until_closed=True, sleep=lambda _: None)
    whole_lines = capfdbinary.readouterr().out.splitlines()
    for nth in range(1, 40, 1 if NIGHTLY else 6):
        with vanishing(trace, 1, nth):
            status = follow(trace, show, from_begin=True, until_closed=True, sleep=lambda _: None)
        assert status == 0
        assert set(capfdbinary.readouterr().out.splitlines()) <= set(whole_lines)


def test_info_lists_kept_segments_also_those_whose_reasons_cannot_be_read(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    one, _, three = segments_below(trace)
    write_kept(one, BY_PERSON, Disk(trace))
    three.kept.write_text("{")
    assert b"kept        2 segments: 1, 3\n" in run(capfdbinary, "info", trace)[1]
    assert b'"kept_segments": [\n  1,\n  3\n ]' in run(capfdbinary, "info", "--json", trace)[1]


@pytest.mark.parametrize("at", range(1, 4))
def test_follow_goes_on_when_the_segment_that_it_follows_is_deleted(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes], at: int
) -> None:
    """It was closed, and deleted, since follow looked last."""
    first, *_ = segments_below(trace)
    as_closed = first.manifest.read_bytes()
    first.manifest.write_bytes(as_closed.replace(b'"closed"', b'"open"'))
    sleeps = iter(range(1, 1000))

    def sleep(_: float) -> None:
        if next(sleeps) == at:
            delete(trace, 1)

    show = Show(Filter())
    assert follow(trace, show, from_begin=True, until_closed=True, sleep=sleep) == 0
    out, err = capfdbinary.readouterr()
    assert err.decode().splitlines() == [f"lttv: {first.directory}: {NOTE}"]
    assert out.count(b"sched_switch") >= 2
