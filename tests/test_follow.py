"""``lttv follow`` shows events as they come, and says why it waits or ends."""

import itertools
import random
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
from lttd.view.commands.follow import HOLD_POLLS, POLL_S, SETTLE_S, follow
from lttd.view.commands.text import Show
from lttd.view.filters import Filter
from tests.ftraced import Traced, pages_of, tick
from tests.running import PATIENCE_S
from tests.viewer import run


def following(trace: Path, enough: Callable[[str], bool], *options: str) -> str:
    """Run ``lttv follow`` until *enough* accepts its output; return the output."""
    words = [sys.executable, "-m", "lttd.view", "follow", str(trace), *options]
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


def test_follow_prints_events_in_order_over_a_roll(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """lttd flushes CPU 0 before CPU 1, and then rolls: both segments have events of that time."""
    first, later = Traced(tmp_path / "t", cpus=2), list[Traced]()
    first.append([pages_of(1000, [tick(1)])], cpu=0)
    first.append([pages_of(1100, [tick(2), tick(4)], delta=220)], cpu=1)

    def roll(_: float) -> None:
        if not later:
            later.append(Traced(tmp_path / "t", cpus=2, number=2))
            first.finish()
        elif first.manifest.state == "closed" and later[0].manifest.state == "open":
            later[0].append([pages_of(1500, [tick(3)], delta=20)], cpu=0)
            later[0].finish()

    wanted = Show(Filter())
    assert follow(tmp_path / "t", wanted, from_begin=True, until_closed=True, sleep=roll) == 0
    out = capfdbinary.readouterr().out
    assert re.findall(rb"count=(\d)", out) == [b"1", b"2", b"3", b"4"]


def test_follow_holds_no_event_for_long(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t", cpus=2)
    made.append([pages_of(1000, [tick(1)])], cpu=0)
    made.append([pages_of(1400, [tick(2)], delta=200)], cpu=1)
    waited_s, out = 0.0, b""

    def wait(seconds: float) -> None:
        nonlocal waited_s, out
        waited_s += seconds
        out += capfdbinary.readouterr().out
        if b"count=2" in out:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(tmp_path / "t", Show(Filter()), from_begin=True, sleep=wait)
    assert re.findall(rb"count=(\d)", out) == [b"1", b"2"]
    assert waited_s <= (HOLD_POLLS + 1) * POLL_S + SETTLE_S


@pytest.mark.parametrize("seed", range(12))
def test_follow_prints_every_event_once_whenever_it_comes(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], seed: int
) -> None:
    chance, count = random.Random(seed), itertools.count()
    made = [Traced(tmp_path / "t", cpus=2)]
    times = [1000, 1000]

    def append() -> None:
        cpu = chance.randrange(2)
        events, delta = chance.randint(1, 3), chance.choice([0, 10, 100])
        made[-1].append([pages_of(times[cpu], [tick(next(count)) for _ in range(events)], delta)],
                        cpu=cpu)  # fmt: skip
        times[cpu] += events * delta

    steps = 0

    def poll(_: float) -> None:
        nonlocal steps
        steps += 1
        for _ in range(chance.randint(0, 3) if steps < 40 else 0):
            append()
        if steps in (15, 30):
            made.append(Traced(tmp_path / "t", cpus=2, number=len(made) + 1))
            made[-2].finish()
        if steps == 45:
            made[-1].finish()

    wanted = Show(Filter())
    assert follow(tmp_path / "t", wanted, from_begin=True, until_closed=True, sleep=poll) == 0
    out = capfdbinary.readouterr().out
    assert sorted(map(int, re.findall(rb"count=(\d+)", out))) == list(range(next(count)))


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
