"""Convert trace times to wall-clock times, through suspends and changes of the clocks."""

import ctypes
import itertools
import math
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd import clock
from lttd.clock import (
    MOST_SNAPSHOTS,
    ClockWatch,
    Conversion,
    Snapshot,
    take_snapshot,
    thinned,
)
from lttd.index import SeekIndex
from lttd.manifest import Manifest
from lttd.tracedir import segments
from tests.running import QUIET, Launcher, needs_kernel, until

S = 1_000_000_000


@dataclass
class World:
    """A model of running clocks, suspends, and changes of REALTIME."""

    follows: str = "mono"
    units_per_us: int = 1000
    monotonic_ns: int = 5 * S
    boottime_ns: int = 5 * S
    realtime_ns: int = 1_700_000_000 * S
    truth: list[tuple[int, int]] = field(default_factory=list)
    """(trace, realtime_ns) at moments while the machine was awake."""
    snapshots: list[Snapshot] = field(default_factory=list)

    @property
    def trace(self) -> int:
        base_ns = self.boottime_ns if self.follows == "boot" else self.monotonic_ns
        return base_ns * self.units_per_us // 1000

    def snap(self) -> None:
        clocks = self.trace, self.monotonic_ns, self.boottime_ns, self.realtime_ns, 0
        self.snapshots.append(Snapshot(*clocks))

    def run(self, ns: int) -> None:
        for part_ns in (ns // 3, ns // 3, ns - 2 * (ns // 3)):
            self.truth.append((self.trace, self.realtime_ns))
            self.monotonic_ns += part_ns
            self.boottime_ns += part_ns
            self.realtime_ns += part_ns

    def could_tell(self, run_ns: int, suspended_ns: int) -> bool:
        """Return whether the snapshots can show if the trace clock stood still during a suspend.

        If its units are not ns, it must not stand still, and must not seem to by chance.
        """
        if self.units_per_us == 1000:
            return True
        went_on = (run_ns + suspended_ns) * self.units_per_us // 1000
        chance = abs(went_on - run_ns) <= clock.STEP_NS + run_ns // clock.DRIFT + 1
        return self.follows == "boot" and not chance

    def suspend(self, ns: int) -> None:
        self.boottime_ns += ns
        self.realtime_ns += ns


seconds = st.integers(2_000_000, 100 * S)
happenings = st.lists(
    st.tuples(
        seconds,
        st.sampled_from(["nothing", "suspend", "set"]),
        st.integers(-1000 * S, 1000 * S).filter(lambda ns: abs(ns) > 2 * clock.STEP_NS),
    ),
    min_size=1,
    max_size=8,
)


@given(st.sampled_from(["mono", "boot"]), st.sampled_from([1000, 2593, 7]), happenings)
def test_the_snapshots_reveal_suspends_and_clock_changes(
    follows: str, units_per_us: int, story: list[tuple[int, str, int]]
) -> None:
    world = World(follows, units_per_us)
    world.snap()
    for run_ns, what, by_ns in story:
        world.run(run_ns)
        if what == "suspend" and world.could_tell(run_ns, abs(by_ns)):
            world.suspend(abs(by_ns))
        elif what == "set":
            world.realtime_ns += by_ns
        world.snap()
    world.run(1)
    conversion = Conversion(world.snapshots)
    near_ns = 2 + 2000 // units_per_us
    for trace, realtime_ns in world.truth:
        assert abs(conversion.to_realtime_ns(trace) - realtime_ns) <= near_ns
        back = conversion.to_trace(realtime_ns)
        # The wall clock may have shown this time earlier, too.
        assert back <= trace + units_per_us
        assert abs(conversion.to_realtime_ns(back) - realtime_ns) <= near_ns


@given(happenings, st.integers(-100 * S, 2000 * S))
def test_a_skipped_wall_clock_time_maps_to_the_moment_of_the_change(
    story: list[tuple[int, str, int]], after_ns: int
) -> None:
    world = World()
    world.snap()
    for run_ns, _, by_ns in story:
        world.run(run_ns)
        world.realtime_ns += abs(by_ns)
        world.snap()
    conversion = Conversion(world.snapshots)
    realtime_ns = world.snapshots[0].realtime_ns + after_ns
    trace = conversion.to_trace(realtime_ns)
    assert conversion.to_realtime_ns(trace) >= realtime_ns
    assert conversion.to_realtime_ns(trace - 1) < realtime_ns


def test_setting_the_clock_does_not_change_earlier_times() -> None:
    world = World()
    world.snap()
    world.run(60 * S)
    world.realtime_ns += 3600 * S
    world.snap()
    conversion = Conversion(world.snapshots)
    assert conversion.to_realtime_ns(35 * S) == 1_700_000_030 * S
    assert conversion.to_realtime_ns(65 * S) == 1_700_003_660 * S


def at_minute(minute: int, set_at: int, asleep_at: int) -> Snapshot:
    """Return a snapshot of a machine whose clocks drift, are set once, and stand still once."""
    mono = minute * 60_000_000_000
    boot = mono + 7_200_000_000_000 * (minute >= asleep_at)
    wander = int(2_000_000 * math.sin(minute / 3000))
    real = 10**18 + boot + wander + 3_000_000_000 * (minute >= set_at)
    return Snapshot(mono, mono, boot, real, 100)


def test_a_year_of_snapshots_is_bounded_and_converts_alike() -> None:
    kept: list[Snapshot] = []
    set_at, asleep_at, year = 100_001, 200_002, 525_600
    for minute in range(year):
        kept.append(at_minute(minute, set_at, asleep_at))
        if len(kept) > MOST_SNAPSHOTS:
            kept = thinned(kept)
            assert len(kept) <= MOST_SNAPSHOTS // 2
    assert kept[0].trace == 0
    assert kept[-1].trace == (year - 1) * 60_000_000_000
    conversion = Conversion(kept)
    for minute in (5, 77_777, set_at - 1, set_at, set_at + 1, asleep_at - 1, asleep_at, year - 9):
        true = at_minute(minute, set_at, asleep_at)
        assert abs(conversion.to_realtime_ns(true.trace) - true.realtime_ns) < 10_000_000, minute


@pytest.mark.parametrize("what", ["equal", "going back", "random"])
def test_any_snapshots_are_thinned_in_order(what: str) -> None:
    chance = random.Random(what)
    numbers = [chance.randrange(1 << 64) if what == "random" else 7 for _ in range(5000)]
    if what == "going back":
        numbers = list(range(5000, 0, -1))
    snapshots = [Snapshot(number, number, number, number, 0) for number in numbers]
    kept = thinned(snapshots)
    assert 2 <= len(kept) <= MOST_SNAPSHOTS // 2
    rest = iter(snapshots)
    assert all(one in rest for one in kept)


def test_times_beyond_the_snapshots_use_the_offset_of_the_nearest_one() -> None:
    conversion = Conversion(
        [Snapshot(1000, 1000, 1000, 5000, 0), Snapshot(2000, 2000, 2000, 6000, 0)]
    )
    assert conversion.to_realtime_ns(0) == 4000
    assert conversion.to_realtime_ns(9000) == 13000
    assert conversion.to_trace(4500) == 500
    assert conversion.to_trace(13000) == 9000


@given(st.lists(st.tuples(*[st.integers(0, 1 << 62)] * 4), min_size=1, max_size=6), st.integers())
def test_any_snapshots_convert_without_an_exception(
    clocks: list[tuple[int, int, int, int]], moment: int
) -> None:
    conversion = Conversion([Snapshot(*each, uncertainty_ns=0) for each in clocks])
    assert isinstance(conversion.to_realtime_ns(moment), int)
    assert isinstance(conversion.to_trace(moment), int)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The times that REALTIME shows in turn; after them it advances by 10 ns per read."""
    script: list[int] = []
    later = itertools.count(1_000_000, 10)
    real = time.clock_gettime_ns

    def fake(clock_id: int) -> int:
        if clock_id != time.CLOCK_REALTIME:
            return real(clock_id)
        return script.pop(0) if script else next(later)

    monkeypatch.setattr(time, "clock_gettime_ns", fake)
    return script


def test_a_snapshot_keeps_the_tightest_of_several_attempts(scripted: list[int]) -> None:
    scripted[:] = [0, 5000, 6000, 6100, 7000, 7002, 8000, 9000, 9000, 9999]
    assert take_snapshot(lambda: 1).realtime_ns == 7001


def test_an_attempt_is_dropped_if_realtime_was_set_back_during_it(
    scripted: list[int],
) -> None:
    scripted[:] = [9_000_000, 1000]
    snapshot = take_snapshot(lambda: 1)
    assert snapshot.uncertainty_ns == 10
    assert snapshot.realtime_ns < 2_000_000


# -- the kernel's clocks


def on_this_kernel(test: Callable[..., None]) -> Callable[..., None]:
    for mark in needs_kernel():
        test = mark(test)
    return test


CAN_SET: bool = os.geteuid() == 0


class Timex(ctypes.Structure):
    """``struct timex`` up to its time."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("between", ctypes.c_long * 8),
        ("s", ctypes.c_long),
        ("us", ctypes.c_long),
        ("rest", ctypes.c_long * 32),
    ]


ADJ_SETOFFSET = 0x0100


def set_realtime_by_us(us: int) -> None:
    """Step CLOCK_REALTIME by so little that only a watch notices."""
    seconds, rest = divmod(us, 1_000_000)
    timex = Timex(modes=ADJ_SETOFFSET, s=seconds, us=rest)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.clock_adjtime(time.CLOCK_REALTIME, ctypes.byref(timex)) < 0:
        pytest.skip(f"clock_adjtime: {os.strerror(ctypes.get_errno())}")


@pytest.mark.alone
@pytest.mark.skipif(not CAN_SET, reason="not root")
def test_the_watch_reports_every_change_of_realtime() -> None:
    def told() -> list[bool]:
        with closing(ClockWatch()) as watch:
            answers = [watch.was_set()]
            for us in (1, -1):
                set_realtime_by_us(us)
                answers += [watch.was_set(), watch.was_set()]
            return answers

    # Another process may set the clock between two reads, but not every time.
    assert any(told() == [False, True, False, True, False] for _ in range(5))


@pytest.mark.alone
@pytest.mark.skipif(not CAN_SET, reason="not root")
def test_the_watch_stays_armed_after_thousands_of_changes() -> None:
    def step() -> None:
        for _ in range(5000):
            set_realtime_by_us(1)
            set_realtime_by_us(-1)

    stepping = threading.Thread(target=step)
    with closing(ClockWatch()) as watch:
        stepping.start()
        answers = 0
        while stepping.is_alive():
            answers += watch.was_set()
        assert answers > 0
        watch.was_set()
        set_realtime_by_us(1)
        assert watch.was_set()
        set_realtime_by_us(-1)


@pytest.mark.alone
@on_this_kernel
def test_setting_realtime_makes_lttd_take_a_snapshot(lttd: Launcher, tmp_path: Path) -> None:
    run = lttd.start("-t", tmp_path / "t", *QUIET, "--flush-interval", "1h").recording()
    (segment,) = segments(tmp_path / "t")
    before = len(Manifest.read(segment.manifest).clock_snapshots)

    def is_noted() -> bool:
        # Repeat the change: nothing shows when the watch has begun.
        set_realtime_by_us(1)
        set_realtime_by_us(-1)
        return len(Manifest.read(segment.manifest).clock_snapshots) > before

    until(is_noted, "one more snapshot")
    assert run.end() == 0


@on_this_kernel
@pytest.mark.parametrize(
    ("name", "within_ns"),
    [("tai", 2_000_000), ("local", 2_000_000), ("x86-tsc", 5_000_000), ("uptime", 50_000_000)],
)  # fmt: skip
def test_every_trace_clock_converts_to_wall_clock_time(
    lttd: Launcher, tmp_path: Path, name: str, within_ns: int
) -> None:
    run = lttd.start("-t", tmp_path / "t", *QUIET, "--clock", name)
    until(lambda: run.process.poll() is not None or run.instance.exists(), "a beginning")
    if run.process.poll() is not None:
        assert "no trace clock" in run.stderr
        pytest.skip(run.stderr)
    run.recording()
    time.sleep(0.1)
    marked_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    (run.instance / "trace_marker").write_text("now")
    took_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) - marked_ns
    time.sleep(0.1)
    assert run.end() == 0
    (segment,) = segments(tmp_path / "t")
    snapshots = Manifest.read(segment.manifest).clock_snapshots
    assert len(snapshots) >= 2
    (begin,) = [
        int(entry["begin"])
        for path in segment.index.glob("*.idx")
        for entry in SeekIndex(path).entries()
    ]
    told_ns = Conversion(snapshots).to_realtime_ns(begin)
    # Each snapshot states its own uncertainty, which is larger on a busy machine.
    within_ns += max(snapshot.uncertainty_ns for snapshot in snapshots)
    assert -within_ns < told_ns - marked_ns < within_ns + took_ns
