"""``lttv follow`` shows events as they come, and says why it waits or ends."""

import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lttd.beneath import OpenDirectory
from lttd.errors import LttdError
from lttd.lockfile import Lock
from lttd.tracedir import LOCK
from lttd.view.commands.follow import follow
from lttd.view.commands.text import Show
from lttd.view.filters import Filter
from tests.ftraced import Traced, pages_of, tick
from tests.running import PATIENCE_S
from tests.viewer import run


def following(trace: Path, enough: Callable[[str], bool], *options: str) -> str:
    """Run ``lttv follow`` until *enough* accepts its output; return the output."""
    words = [sys.executable, "-m", "lttd.view.cli", "follow", str(trace), *options]
    output = ""
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(PATIENCE_S, process.kill)
        watchdog.start()
        for line in process.stdout:
            output += line
            if enough(output):
                process.send_signal(2)
        assert process.wait() in (0, 130)
        watchdog.cancel()
    return output


@pytest.mark.slow
def test_follow_shows_new_events_and_new_segments(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    first = Traced(trace)
    first.append([pages_of(1000, [tick(1), tick(2)])])

    def add_and_wait(output: str) -> bool:
        if output.endswith("count=2 flags=\n"):  # it has read all of it, and goes on
            first.append([pages_of(2000, [tick(3)])])
            first.finish()
            second = Traced(trace, number=2)
            second.append([pages_of(3000, [tick(4)])])
            second.finish()
        return "count=4" in output

    output = following(trace, add_and_wait, "--from-begin")
    assert re.findall(r"count=(\d)", output) == ["1", "2", "3", "4"]


def test_follow_shows_every_segment_that_is_being_written(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    both = [Traced(tmp_path / "t", number=number) for number in (1, 2)]
    for at, made in enumerate(both, 1):
        made.append([pages_of(1000, [tick(at)])])
    added: list[Traced] = []

    def add(_: float) -> None:
        for at, made in enumerate(both, 3):
            if made not in added:
                made.append([pages_of(2000, [tick(at)])])
                made.finish()
                added.append(made)

    wanted = Show(Filter())
    assert follow(tmp_path / "t", wanted, until_closed=True, sleep=add) == 0
    assert re.findall(rb"count=(\d)", capfdbinary.readouterr().out) == [b"3", b"4"]


def test_follow_of_an_ended_recording_says_what_it_waits_for(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1)])])
    made.finish()

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(tmp_path / "t", Show(Filter()), sleep=interrupt)
    out, err = capfdbinary.readouterr()
    assert out == b""
    assert b"recording has ended; waiting for more" in err


def test_follow_ends_with_a_line_if_the_recorder_was_killed(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1)])])
    polls: list[float] = []
    with pytest.raises(LttdError, match="ended without closing it; lttd --append or lttv check"):
        follow(
            tmp_path / "t", Show(Filter()), until_closed=True, from_begin=True, sleep=polls.append
        )
    assert b"count=1" in capfdbinary.readouterr().out
    assert sum(polls) == pytest.approx(3, abs=0.5)


def test_follow_waits_while_a_process_records_or_recovers(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1)])])
    directory = OpenDirectory.open(tmp_path / "t")
    locks = [Lock(directory, made.paths.lock)]
    polls = 0

    def poll(_: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 50:  # the first was killed, and the next one starts
            locks.append(Lock(directory, tmp_path / "t" / LOCK))
            locks.pop(0).release()
        if polls == 100:
            made.finish()

    assert follow(tmp_path / "t", Show(Filter()), until_closed=True, sleep=poll) == 0
    locks.pop().release()
    assert capfdbinary.readouterr() == (b"", b"")


def test_follow_says_once_that_the_recorder_was_killed_and_waits(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1)])])
    polls = 0

    def poll(_: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(tmp_path / "t", Show(Filter()), sleep=poll)
    assert capfdbinary.readouterr().err.count(b"ended without closing it") == 1


def test_follow_begins_before_there_is_a_stream(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1), tick(2)])])
    streams, made.manifest.streams = made.manifest.streams, []
    made.write_manifest()

    def add(_: float) -> None:
        if not made.manifest.streams:
            made.manifest.streams = streams
            made.finish()

    assert follow(tmp_path / "t", Show(Filter()), until_closed=True, sleep=add) == 0
    assert re.findall(rb"count=(\d)", capfdbinary.readouterr().out) == [b"1", b"2"]


@pytest.mark.slow
def test_follow_reports_data_that_it_cannot_decode(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1)])])
    made.finish()
    text_ = made.paths.manifest.read_text().replace('"abi": "ftrace"', '"abi": "other"')
    made.paths.manifest.write_text(text_)
    status, out, err = run(capfdbinary, "follow", tmp_path / "t", "--until-closed")
    assert (status, out) == (0, b"")
    assert "other events cannot be decoded" in err


@pytest.mark.slow
def test_follow_ends_when_the_trace_is_closed(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1), tick(2)])])
    made.finish()
    told = following(tmp_path / "t", lambda _: False, "--from-begin", "--until-closed")
    assert re.findall(r"count=(\d)", told) == ["1", "2"]
