"""Times of earlier boots: an age never exceeds the true one, whatever the wall clock says."""

from hypothesis import given
from hypothesis import strategies as st

from lttd.boot_times import BootTimes, Span
from lttd.clock import Snapshot
from lttd.manifest import Manifest

SECOND = 1_000_000_000


def manifest(boot: str, *times_s: float, realtime_s: int = 0, live: bool = True) -> Manifest:
    return Manifest(
        source={"kind": "ftrace", "clock": "mono", "live": live},
        layout="packed",
        machine={"boot_id": boot},
        clock_snapshots=[
            Snapshot(0, 0, int(time_s * SECOND), realtime_s * SECOND, 0) for time_s in times_s
        ],
    )


def seconds(span: Span) -> tuple[float, float]:
    return span.begin_ns / SECOND, span.end_ns / SECOND


def test_the_times_of_earlier_boots_come_before_the_present_one() -> None:
    times = BootTimes("c", 500 * SECOND)
    assert seconds(times.place(manifest("c", 400, 450))) == (400, 450)
    assert seconds(times.place(manifest("b", 8000, 9000))) == (-1000, 0)
    assert seconds(times.place(manifest("b", 7000, 8000))) == (-2000, -1000)
    assert seconds(times.place(manifest("a", 10, 70))) == (-9060, -9000)
    # A copied directory; its boot is known.
    assert seconds(times.place(manifest("b", 100, 200))) == (-8900, -8800)


def test_a_segment_without_times_of_its_own_ended_when_the_next_one_began() -> None:
    times = BootTimes("c", 500 * SECOND)
    assert seconds(times.place(None)) == (500, 500)
    assert seconds(times.place(manifest("c", 400, 450))) == (400, 450)
    assert seconds(times.place(None)) == (400, 400)
    assert seconds(times.place(manifest("x", 1, 2, live=False))) == (400, 400)
    assert seconds(times.place(manifest("c"))) == (400, 400)


@given(
    st.lists(
        st.tuples(st.integers(1, 10**6), st.lists(st.integers(0, 10**6), min_size=1, max_size=5)),
        min_size=1,
        max_size=6,
    ),
    st.integers(-(10**9), 10**9),
)
def test_no_age_exceeds_the_true_one_and_the_wall_clock_does_not_matter(
    boots: list[tuple[int, list[int]]], step_s: int
) -> None:
    """Each boot is (seconds the machine was off before it, ends of its segments since boot)."""
    now, true_ends = 0, list[tuple[str, int, int]]()
    for number, (off_s, ends) in enumerate(boots):
        now += off_s
        start = now
        true_ends += ((str(number), end, start + end) for end in sorted(ends))
        now = start + max(ends)
    last = str(len(boots) - 1)
    times = BootTimes(last, max(boots[-1][1]) * SECOND)
    for boot, end, true_end in reversed(true_ends):
        placed = times.place(manifest(boot, end, realtime_s=abs(step_s)))
        age_s = max(boots[-1][1]) - placed.end_ns / SECOND
        assert 0 <= age_s <= now - true_end
