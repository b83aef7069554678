"""A loss at the end of a rolled segment is reported once, in its place, by every command."""

import itertools
import json
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import lttd
from lttd.errors import NotATraceError
from lttd.index import GAPS_HEADER, encode_gaps
from lttd.subbuffer import Gap, Reason, Unit
from lttd.view import window
from lttd.view.commands.cut import cut
from lttd.view.commands.follow import HOLD_POLLS, follow
from lttd.view.commands.text import Show
from lttd.view.export import export
from lttd.view.filters import Filter
from lttd.view.times import ALWAYS_END, EVERYTHING, Moment, Window
from lttd.view.trace import Trace
from tests.ftraced import Traced, pages_of, tick
from tests.fuzz_traces import blocks, markers
from tests.viewer import run

LINE = re.compile(rb"count=(\d+)|CPU:\d (\[LOST \d+) EVENTS\]")
# Events by their times, and losses: 5 of CPU 0 after 2500, 7 of CPU 1 after 2501, 3 after 6500.
FIRST = ["1010", "2010", "2011", "[LOST 5", "[LOST 7"]
SECOND = ["5010", "5011", "6010", "[LOST 3", "7011"]


def page_at(begin: int) -> bytes:
    """Return a sub-buffer with one event; the segment builder lets it end 500 after *begin*."""
    return pages_of(begin, [tick(begin + 10)])


def first_segment(trace: Path) -> Traced:
    made = Traced(trace, cpus=2)
    made.append([page_at(1000), page_at(2000)], trailing_loss=5)
    made.append([page_at(2001)], cpu=1, trailing_loss=7)
    return made


def second_segment(first: Traced) -> Traced:
    """Return the segment after *first*, as a roll makes it."""
    made = Traced(first.trace, cpus=2, number=2)
    for one, other, record in zip(first.rings, made.rings, made.records, strict=True):
        other.book = one.book
        record.baseline_discarded = one.book.discarded_total
        record.subbuffers_before = one.book.sequence
    made.write_manifest()
    made.append([page_at(5000), page_at(6000)], trailing_loss=3)
    made.append([page_at(5001), page_at(7001)], cpu=1)
    return made


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    first = first_segment(tmp_path / "t")
    second_segment(first).finish()
    first.finish()
    return first.trace


def lines(out: bytes) -> list[str]:
    return [(count or lost).decode() for count, lost in LINE.findall(out)]


Text = Callable[..., list[str]]


@pytest.fixture
def text(trace: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Text:
    def shown(*words: object) -> list[str]:
        status, out, _ = run(capfdbinary, "text", trace, *words)
        assert status == 0
        return lines(out)

    return shown


def between(begin: int, end: int) -> tuple[str, ...]:
    return "--begin", f"0.{begin:09}", "--end", f"0.{end:09}"


def test_the_whole_trace_shows_each_loss_once_in_the_order_of_time(text: Text) -> None:
    assert text() == FIRST + SECOND
    assert text("--jobs", 2) == FIRST + SECOND


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (0, 2500, FIRST[:3]),  # before it
        (2400, 4000, FIRST[3:]),  # from the end of the last sub-buffer to the seam
        (2011, 5010, [*FIRST[2:], SECOND[0]]),  # around the seam
        (2501, 2501, ["[LOST 5"]),
        (2600, 4000, []),  # between the losses and the next segment
        (3000, 6020, SECOND[:3]),  # after it, with a sub-buffer of each stream
        (6005, 6006, []),
        (6400, 9000, SECOND[3:]),
        (8000, 9000, []),  # after all
    ],
)  # fmt: skip
def test_a_window_shows_the_losses_that_touch_it_and_no_others(
    text: Text, begin: int, end: int, expected: list[str]
) -> None:
    assert text(*between(begin, end)) == expected


def test_a_selected_cpu_shows_its_own_losses(text: Text) -> None:
    assert text("--cpu", 1) == ["2011", "[LOST 7", "5011", "7011"]
    assert text("--cpu", 0, *between(2400, 9000)) == ["[LOST 5", "5010", "6010", "[LOST 3"]


def test_json_lines_have_the_losses_in_the_order_of_time(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    _, out, _ = run(capfdbinary, "text", trace, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    times = [one["time"] for one in found]
    assert times == sorted(times)
    assert [one["lost"] for one in found if "lost" in one] == [5, 7, 3]


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
def test_pieces_of_a_window_have_each_loss_once(
    trace: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(window, "STREAM_BYTES", 1)
    monkeypatch.setattr(window, "_LOOK_AHEAD", 1)
    batches = list(lttd.open(trace).window(piece_bytes=piece_bytes))
    for batch in batches:
        assert all(batch.begin <= loss.time < batch.end for loss in batch.losses)
    found = [(loss.time, loss.lost) for batch in batches for loss in batch.losses]
    assert found == [(2501, 5), (2502, 7), (6501, 3)]
    # Windows that adjoin have each loss once, too, where its time is known.
    edges = [0, *range(400, 9000, 700)]
    found = [
        (loss.time, loss.lost)
        for begin, behind in itertools.pairwise(edges)
        for batch in lttd.open(trace).window(begin, behind - 1, piece_bytes=piece_bytes)
        for loss in batch.losses
    ]
    assert found == [(2501, 5), (2502, 7), (6501, 3)]


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (1000, 1400, ["1010"]),
        (1000, 8000, ["1010", "[LOST 77"]),
        (3000, 4000, ["[LOST 77"]),
        (3000, 9500, ["[LOST 77", "9010"]),
        (9005, 9500, ["9010"]),
    ],
)
def test_a_window_without_events_of_a_cpu_shows_that_they_were_lost_there(
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    begin: int,
    end: int,
    expected: list[str],
) -> None:
    made = Traced(tmp_path / "t")
    made.append([page_at(1000)], trailing_loss=77)  # between 1500 and 9000
    made.append([page_at(9000)])
    made.finish()
    _, out, _ = run(capfdbinary, "text", made.trace, *between(begin, end))
    assert lines(out) == expected


def test_follow_shows_the_loss_at_the_end_of_a_segment_before_the_next_one(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    first = first_segment(tmp_path / "t")
    polls = 0

    def go_on(_: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 2 * HOLD_POLLS:
            second = second_segment(first)
            first.finish()
            second.finish()

    status = follow(tmp_path / "t", Show(Filter()), from_begin=True, until_closed=True, sleep=go_on)
    assert status == 0
    assert lines(capfdbinary.readouterr().out) == FIRST + SECOND


def test_follow_shows_the_last_losses_although_no_event_comes_any_more(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    first = first_segment(tmp_path / "t")
    polls = 0

    def close(_: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 3 * HOLD_POLLS:
            raise KeyboardInterrupt
        if polls == HOLD_POLLS:
            first.finish()

    with pytest.raises(KeyboardInterrupt):
        follow(tmp_path / "t", Show(Filter()), from_begin=True, sleep=close)
    assert lines(capfdbinary.readouterr().out) == FIRST


def test_follow_shows_no_loss_of_a_segment_that_was_closed_before(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(trace, Show(Filter()), sleep=stop)
    assert lines(capfdbinary.readouterr().out) == []


def test_all_counts_of_the_losses_agree(
    trace: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    status, out, _ = run(capfdbinary, "info", trace, "--json")
    assert (status, json.loads(out)["events_lost"]) == (0, 15)
    status, out, err = run(capfdbinary, "check", "--events", trace)
    assert (status, err) == (0, ""), out
    assert sum(loss.lost or 0 for one in lttd.open(trace).window() for loss in one.losses) == 15
    for name, words in (
        ("parquet", "3 losses"),
        ("perfetto", "3 losses"),
        ("systrace", "3 losses"),
        ("ctf", "15 events lost"),
    ):
        told = export(Trace(trace), EVERYTHING, name, tmp_path / name)
        assert any(words in line for line in told), told


def losses(trace: Path, begin: int, end: int) -> list[tuple[int, int | None]]:
    batches = lttd.open(trace).window(begin, end)
    return [(loss.time, loss.lost) for batch in batches for loss in batch.losses]


def test_a_cut_has_the_losses_of_its_window(trace: Path, tmp_path: Path) -> None:
    cuts = 0
    for begin, end in itertools.combinations(range(900, 8000, 750), 2):
        ends = Moment(begin, wall=False), Moment(end, wall=False)
        with suppress(NotATraceError):  # there is nothing in the window
            made = cut(Trace(trace), Window(*ends), tmp_path / f"{begin}-{end}")
            assert losses(made.path, begin, end) == losses(trace, begin, end)
            cuts += 1
    assert cuts > 30


def test_a_trace_dat_flags_the_loss_at_the_seam_on_the_next_page(
    trace: Path, tmp_path: Path
) -> None:
    (told,) = export(Trace(trace), EVERYTHING, "trace.dat", tmp_path / "t.dat")
    assert "15 events lost" in told
    # Of each page of the file: what is missing before it, behind its content.
    data = (tmp_path / "t.dat").read_bytes()
    for begin, lost in ((5000, 5), (5001, 7), (6000, None)):
        at = data.index(struct.pack("<Q", begin))
        (commit,) = struct.unpack_from("<Q", data, at + 8)
        content_bytes = commit & (1 << 30) - 1
        (count,) = struct.unpack_from("<Q", data, at + 16 + content_bytes)
        assert (commit >> 30, count) == ((3, lost) if lost else (0, 0))


@pytest.mark.parametrize("make", [blocks, markers])
def test_events_of_other_families_come_before_the_loss_at_their_end(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], make: Callable[[Path], Path]
) -> None:
    trace = make(tmp_path / "t")
    (segment,) = Trace(trace).segments
    stream = next(one for one in segment.streams if one.info.id.channel != "metadata")
    last, cpu = stream.index.entries()[-1], stream.info.id.cpu
    end = int(last["end"])
    gap = Gap(len(stream.index), Reason.DROPPED, Unit.EVENTS, 5, 0, 0)
    stream.paths.gaps.write_bytes(GAPS_HEADER + encode_gaps([gap], 0))
    for begin, until, found in ((0, ALWAYS_END, 1), (0, end, 0), (end + 2, ALWAYS_END, 0)):
        assert losses(trace, begin, until) == [(end + 1, 5)] * found
    _, out, _ = run(capfdbinary, "text", trace, "--cpu", cpu)
    *events, loss = out.splitlines()
    assert (len(events) > 1, b"LOST 5 EVENTS" in loss) == (True, True)
    assert b"LOST" not in b"".join(events)


def test_gaps_in_another_order_than_their_rows_are_no_traceback(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trace = tmp_path / "t"
    made = Traced(trace)
    made.append([page_at(1000 * at) for at in range(1, 5)])
    made.finish()
    gaps = [Gap(row, Reason.DROPPED, Unit.EVENTS, 5, 0, 0) for row in (3, 1, 9, 0, 2, 4, 0)]
    path = made.paths.stream("fake_0").gaps
    path.write_bytes(GAPS_HEADER + encode_gaps(gaps, 0))
    for begin in range(0, 6000, 500):
        losses(trace, begin, begin + 500)
    assert run(capfdbinary, "check", trace)[0] == 1
