"""Viewers find the last event before a traceoff trigger turned tracing off."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.view.cli import main
from lttd.view.commands.cut import cut
from lttd.view.ftrace.traceoffs import MOST_SHOWN, Traceoff, traceoffs_of
from lttd.view.times import Moment, Window
from lttd.view.trace import Trace
from tests.segment_builder import SNAPSHOT, Made, subbuffer

EXIT = "sched:sched_process_exit"
LAST = 30
"""The last event of a sub-buffer is so long after its begin, of 10, 20 and 30 ns."""


def segment(trace: Path, number: int = 1, *, instance: str = "lttd-7") -> Made:
    made = Made(trace, cpus=2, number=number)
    made.manifest.source["settings"] = {"instance": instance}
    made.write_manifest()
    return made


def noted(made: Made, *lines: str) -> None:
    tracefs = made.paths.directory / "tracefs"
    tracefs.mkdir()
    (tracefs / "traceoffs").write_text("".join(f"{line}\n" for line in lines))


def times_of(trace: Path) -> list[tuple[int | None, int]]:
    return [(one.last, one.off_by) for one in traceoffs_of(Trace(trace))]


def test_the_last_event_of_all_cpus_before_the_stop_is_found(tmp_path: Path) -> None:
    made = segment(tmp_path / "t")
    made.append([subbuffer(0), subbuffer(1)])
    made.append([subbuffer(0), subbuffer(4)], cpu=1)
    noted(made.finish(), f"2500\t{EXIT}", f"9000\t{EXIT}")
    wall_ns = SNAPSHOT.realtime_ns - SNAPSHOT.trace
    assert traceoffs_of(Trace(tmp_path / "t")) == [
        Traceoff(EXIT, 2000 + LAST, wall_ns + 2000 + LAST, 2500, wall_ns + 2500),
        Traceoff(EXIT, 5000 + LAST, wall_ns + 5000 + LAST, 9000, wall_ns + 9000),
    ]


@pytest.mark.parametrize(
    ("off_by", "last"), [(2029, 2020), (2030, 2030), (2005, 1030), (1005, None), (1 << 70, None)]
)
def test_events_that_were_recorded_once_tracing_was_on_again_do_not_count(
    tmp_path: Path, off_by: int, last: int | None
) -> None:
    made = segment(tmp_path / "t")
    made.append([subbuffer(0), subbuffer(1)])
    noted(made.finish(), f"{off_by}\t{EXIT}")
    assert times_of(tmp_path / "t") == ([] if off_by >= 1 << 63 else [(last, off_by)])


def test_the_event_may_be_in_an_earlier_segment_than_the_note(tmp_path: Path) -> None:
    first, others, last = (
        segment(tmp_path / "t", number, instance=instance)
        for number, instance in ((1, "lttd-7"), (2, "other"), (3, "lttd-7"))
    )
    first.append([subbuffer(0)])
    first.finish()
    others.append([subbuffer(1)])
    others.finish()
    last.append([subbuffer(8)])
    noted(last.finish(), f"5000\t{EXIT}")
    assert times_of(tmp_path / "t") == [(1000 + LAST, 5000)]


def test_a_cut_says_nothing_of_a_stop_after_it(tmp_path: Path) -> None:
    made = segment(tmp_path / "t")
    made.append([subbuffer(number) for number in range(4)])
    noted(made.finish(), f"2500\t{EXIT}", f"4500\t{EXIT}")
    window = Window(Moment(0, wall=False), Moment(3000, wall=False))
    cut(Trace(tmp_path / "t"), window, tmp_path / "part")
    assert times_of(tmp_path / "part") == [(2000 + LAST, 2500)]


def test_a_cut_without_a_possible_end_leaves_no_stop_out(tmp_path: Path) -> None:
    made = segment(tmp_path / "t")
    made.manifest.source["cut"] = {"end": 1 << 80}
    made.write_manifest()
    made.append([subbuffer(0)])
    noted(made.finish(), f"2500\t{EXIT}", f"{1 << 64}\t{EXIT}")
    assert times_of(tmp_path / "t") == [(1000 + LAST, 2500)]


def test_info_prints_the_newest_stops(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = segment(tmp_path / "t")
    made.append([subbuffer(0)])
    noted(made.finish(), *(f"{2000 + n}\tx\x1b[2J:y" for n in range(MOST_SHOWN + 9)))
    assert main(["info", str(tmp_path / "t")]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("traceoff ")]
    assert len(lines) == MOST_SHOWN
    assert lines[-1].startswith(
        r"traceoff    by x\x1b[2J:y, after the event at 0.000001030  2023-11-14T22:13:20.000000030Z"
        "; seen at 0.000002072  2023-"
    )
    assert main(["info", "--json", str(tmp_path / "t")]) == 0
    stops = json.loads(capfd.readouterr().out)["traceoffs"]
    assert [stops[-1][key] for key in ("last_event", "off_by")] == [1030, 2072]


@given(st.binary(max_size=60) | st.from_regex(rb"\A[0-9]{1,30}\t[^\n]{0,9}\n?\Z"))
def test_no_bytes_of_the_file_are_an_error(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    trace = tmp_path_factory.mktemp("t")
    made = segment(trace)
    made.append([subbuffer(0)])
    noted(made.finish())
    (made.paths.directory / "tracefs/traceoffs").write_bytes(text)
    assert len(traceoffs_of(Trace(trace))) <= 1 + text.count(b"\n")
