"""``lttv text -r`` prints the last event first, and otherwise the same lines."""

import json
import re
from pathlib import Path

import pytest

from lttd.view import window
from lttd.view.commands import text as show
from lttd.view.opened import open_trace
from tests.ftraced import Traced, opened, pages_of, tick
from tests.tools import replayed
from tests.viewer import run

HEAD = re.compile(rb"^(?=.{16}-\d+ +\[|CPU:)", re.MULTILINE)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backwards") / "t"
    replayed(path)
    return path


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "PIECE_BYTES", 4096)
    monkeypatch.setattr(window, "STREAM_BYTES", 1)


def events_in(text: bytes) -> list[bytes]:
    """Return the events, each with the lines that follow it, such as those of a stack."""
    return HEAD.split(text)[1:]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "options",
    [(), ("--jobs", 3), ("--begin", "+10ms", "--end", "+30ms"), ("--where", "id == 110"),
     ("--event", "sched_switch", "--cpu", 1), ("--ns", "--fields", "id"), ("--comm", "sys*")],
    ids=lambda words: " ".join(map(str, words)),
)  # fmt: skip
def test_the_events_are_those_of_the_usual_order_the_last_one_first(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes], options: tuple[object, ...]
) -> None:
    _, usual, notes = run(capfdbinary, "text", trace, *options)
    status, backwards, more = run(capfdbinary, "text", "-r", trace, *options)
    assert (status, sorted(more.splitlines())) == (0, sorted(notes.splitlines()))
    assert events_in(backwards) == events_in(usual)[::-1]
    assert len(events_in(usual)) > 30


@pytest.mark.usefixtures("small_pieces")
def test_pieces_are_made_from_the_end_and_only_as_many_as_are_shown(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, usual, _ = run(capfdbinary, "text", trace)
    decoded = []
    batch = window.Piece._replace
    monkeypatch.setattr(
        window.Piece, "_replace", lambda piece, **new: decoded.append(piece) or batch(piece, **new)
    )
    _, last, _ = run(capfdbinary, "text", trace, "-r", "-n", 3)
    assert events_in(last) == events_in(usual)[:-4:-1]
    assert len(decoded) < 10


def test_json_comes_backwards_too(trace: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    _, out, _ = run(capfdbinary, "text", trace, "-r", "--json", "-n", 50)
    times = [json.loads(line)["time"] for line in out.splitlines()]
    assert len(times) == 50
    assert times == sorted(times, reverse=True)
    assert times[0] == open_trace(trace).end


@pytest.mark.parametrize("pieces", ["one", "many"])
def test_a_loss_stays_between_the_events_around_it(
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    pieces: str,
) -> None:
    if pieces == "many":
        monkeypatch.setattr(show, "PIECE_BYTES", 1)
        monkeypatch.setattr(window, "STREAM_BYTES", 1)
    made = Traced(tmp_path / "t")
    for begin in (1000, 2000, 3000):
        made.append([pages_of(begin, [tick(1), opened("/a", 3), tick(2)])], trailing_loss=7)
    made.finish()
    _, usual, _ = run(capfdbinary, "text", made.trace)
    _, backwards, _ = run(capfdbinary, "text", made.trace, "-r")
    assert backwards.splitlines() == usual.splitlines()[::-1]
    assert usual.count(b"LOST") == 3


@pytest.mark.parametrize("form", ["--style babeltrace", "--syscalls"])
def test_a_form_whose_lines_depend_on_those_before_is_refused(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes], form: str
) -> None:
    status, out, err = run(capfdbinary, "text", trace, "-r", *form.split())
    assert (status, out, err) == (2, b"", f"lttv: {form} is without --reverse: leave one out\n")
