"""Parse T, a time on the command line."""

from pathlib import Path

import pytest

from lttd.clock import Snapshot
from lttd.errors import UsageError
from lttd.view.times import Moment, Window, parse_moment, window_of
from lttd.view.trace import Trace
from tests.segment_builder import SNAPSHOT, Made, subbuffer

# The trace begins at 1000 on its clock, at 22:13:20 UTC, and ends at 3500.
WALL_NS = SNAPSHOT.realtime_ns


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0), subbuffer(1), subbuffer(2)])
    return made


@pytest.fixture
def trace(made: Made) -> Trace:
    return Trace(made.finish().trace)


@pytest.mark.parametrize(
    ("text", "value", "wall"),
    [
        ("0.000002", 2000, False),
        ("12", 12_000_000_000, False),
        ("3305.4958347391", 3305_495_834_739, False),
        ("+1.5us", 2500, False),
        ("-500ns", 3000, False),
        ("-1h", 0, False),
        ("+2m", 120_000_001_000, False),
        ("+1.5h", 5400_000_001_000, False),
        ("-1d", 0, False),
        ("-1w", None, None),
        ("@1700000000.000001", WALL_NS + 1000, True),
        ("1700000000.000001", WALL_NS + 1000, True),
        ("999999999", 999_999_999 * 10**9, False),
        ("@", None, None),
        ("@-5", None, None),
        ("+0.000001", 2000, False),
        ("-1s", 0, False),  # before the trace clock began
        ("22:13:20.000001", WALL_NS + 1000, True),
        ("22:13", WALL_NS - 20_000_000_000, True),
        ("24:00", None, None),
        ("22:13:60", None, None),
        ("2023-11-14T22:13:20.000000001Z", WALL_NS + 1, True),
        ("2023-11-14 22:13:20", WALL_NS, True),
        ("2023-11-14T23:13:20.5+01:00", WALL_NS + 500_000_000, True),
        ("2023-11-14", WALL_NS - 80_000_000_000_000, True),
        ("2023-13-14", None, None),
        ("yesterday", None, None),
        ("", None, None),
        ("1e3", None, None),
    ],
)
def test_every_documented_form_of_time_is_parsed_exactly(
    trace: Trace, text: str, value: int | None, wall: bool
) -> None:
    if value is None:
        with pytest.raises(UsageError, match="is not a valid time"):
            parse_moment(text, trace)
    else:
        assert parse_moment(text, trace) == Moment(value, wall)


def test_in_a_trace_over_midnight_an_earlier_time_of_day_is_the_next_day(made: Made) -> None:
    made.finish()
    three_hours_ns = 3 * 3600 * 10**9
    made.manifest.clock_snapshots = [
        SNAPSHOT,
        Snapshot(3500, 3500, 3500, WALL_NS + three_hours_ns, 1),
    ]
    made.write_manifest()
    trace = Trace(made.trace)
    midnight_ns = 1_700_006_400 * 10**9
    assert parse_moment("00:30", trace) == Moment(midnight_ns + 1800 * 10**9, wall=True)
    assert parse_moment("22:13:20", trace) == Moment(WALL_NS, wall=True)


def test_wall_clock_times_are_converted_for_each_segment(trace: Trace) -> None:
    window = window_of(trace, "22:13:20.000001", "2023-11-14T22:13:20.000002Z")
    assert window.bounds(trace.segments[0]) == (2000, 3000)
    assert window_of(trace, None, None) == Window()
    assert Window().everything
    with pytest.raises(UsageError, match="is before --begin"):
        window_of(trace, "+2us", "+1us")


def test_without_a_clock_snapshot_only_the_trace_clock_is_known(made: Made) -> None:
    made.finish()
    made.manifest.clock_snapshots = []
    made.write_manifest()
    trace = Trace(made.trace)
    assert window_of(trace, "0.000002", None).bounds(trace.segments[0])[0] == 2000
    for text in ("22:13:20", "2023-11-14T22:13:20Z"):
        with pytest.raises(UsageError, match="no clock snapshot"):
            window_of(trace, text, "3000").bounds(trace.segments[0])


def test_seconds_since_1970_are_the_trace_clocks_own_where_that_counts_so_far(made: Made) -> None:
    made.append([subbuffer(WALL_NS // 1000)])
    trace = Trace(made.finish().trace)
    assert parse_moment("1700000000.5", trace) == Moment(1_700_000_000_500_000_000, wall=False)
    assert parse_moment("@1700000000.5", trace).wall


def test_offsets_of_clocks_without_ns_use_the_wall_clock(made: Made) -> None:
    made.manifest.source["clock"] = "counter"
    trace = Trace(made.finish().trace)
    assert parse_moment("+1us", trace) == Moment(WALL_NS + 1000, wall=True)
