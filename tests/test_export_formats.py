"""FORMATS: what a format takes, what it leaves out, and what it refuses."""

from pathlib import Path

import pytest

from lttd.cli import main as record_main
from lttd.errors import TraceDamagedError, UsageError
from lttd.view.cli import main
from lttd.view.export import FORMATS, export
from lttd.view.times import EVERYTHING, Moment, Window
from lttd.view.trace import Trace
from tests.blk import record
from tests.ftraced import Traced, pages_of, tick
from tests.segment_builder import Made, subbuffer
from tests.test_blktrace_text import written

PAST_BLOCKS = Window(begin=Moment(500, wall=False))


def two_kinds(directory: Path) -> Trace:
    """Make a trace of a segment of ftrace (1,000 ns on) and one of the block layer (10 ns on)."""
    made = Traced(directory / "t")
    made.append([pages_of(1000, [tick(1), tick(2)])])
    made.finish()
    raw = written(directory / "raw", record(10) + record(20))
    words = ["-t", str(directory / "t"), "--append", "--source", f"replay:{raw}"]
    assert record_main([*words, "--summary", "none"]) == 0
    return Trace(directory / "t")


def test_a_segment_of_another_kind_is_refused_where_it_lies_in_the_window(tmp_path: Path) -> None:
    trace = two_kinds(tmp_path)
    for to, other in (("trace.dat", "blktrace"), ("ctf", "blktrace"), ("blktrace", "ftrace")):
        with pytest.raises(UsageError, match=f"0000.*: holds {other}, and --to {to} takes only"):
            export(trace, EVERYTHING, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for to in ("trace.dat", "ctf"):
        lines = export(trace, PAST_BLOCKS, to, tmp_path / f"out.{to}")
        assert lines[-1].startswith("2 events of 1 sub-buffers")


def test_a_format_that_mixes_kinds_leaves_out_the_others_with_a_note(tmp_path: Path) -> None:
    trace = two_kinds(tmp_path)
    lines = export(trace, EVERYTHING, "perfetto", tmp_path / "out")
    assert lines == ["blktrace does not fit into perfetto: left out", "2 events"]


def test_a_stream_of_another_kind_in_the_same_segment_is_left_out(tmp_path: Path) -> None:
    made = Made(tmp_path / "t", cpus=2)
    made.append([subbuffer(0)])
    made.append([subbuffer(0)], cpu=1)
    made.finish()
    object.__setattr__(made.records[1].info, "abi", "lttng")
    made.write_manifest()
    trace = Trace(made.trace)
    lines = export(trace, EVERYTHING, "perfetto", tmp_path / "out")
    assert lines[0] == "lttng does not fit into perfetto: left out"
    assert lines[-1] == "3 events"
    with pytest.raises(UsageError, match="holds ftrace and lttng, and --to ctf takes only ctf, f"):
        export(trace, EVERYTHING, "ctf", tmp_path / "ctf")


@pytest.mark.parametrize("to", ["trace.dat", "ctf"])
def test_sub_buffers_that_cannot_be_are_damage_of_the_manifest(tmp_path: Path, to: str) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0)])
    made.finish()
    object.__setattr__(made.records[0].info, "header_bytes", 11)
    made.write_manifest()
    with pytest.raises(TraceDamagedError, match=r"trace\.json.*states impossible sub-buffers"):
        export(Trace(made.trace), EVERYTHING, to, tmp_path / "out")


def test_help_says_who_opens_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name, row in FORMATS.items():
        assert f"{name} ({row.help})" in told
