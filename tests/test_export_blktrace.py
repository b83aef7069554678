"""Export block traces for blkparse, as a whole and for a window; refuse other traces."""

from pathlib import Path

import pytest

from lttd.errors import NotATraceError, UsageError
from lttd.view.export import export
from lttd.view.times import EVERYTHING, window_of
from lttd.view.trace import Trace
from tests.blk import message, process, record
from tests.blkparse import needs_blkparse, needs_data, parsed, replayed, shown, written
from tests.data import SHARED_BLKTRACE
from tests.tools import replayed as replayed_ftrace


@needs_data
def test_an_export_of_everything_equals_the_recorded_files(tmp_path: Path) -> None:
    replayed(SHARED_BLKTRACE, tmp_path / "trace")
    lines = export(Trace(tmp_path / "trace"), EVERYTHING, "blktrace", tmp_path / "out")
    assert lines == ["3317 records in 2 files"]
    for cpu in (0, 1):
        name = f"cap.blktrace.{cpu}"
        assert (tmp_path / "out" / name).read_bytes() == (SHARED_BLKTRACE / name).read_bytes()


@needs_data
@needs_blkparse
def test_a_block_window_has_its_own_records_and_the_earlier_process_names(tmp_path: Path) -> None:
    replayed(SHARED_BLKTRACE, tmp_path / "trace")
    trace = Trace(tmp_path / "trace")
    window = window_of(trace, "+870ms", "+880ms")
    export(trace, window, "blktrace", tmp_path / "out")
    expected = shown(tmp_path / "trace", "--begin", "+870ms", "--end", "+880ms")
    found = parsed(tmp_path / "out", "cap")
    assert not any("(null)" in line for line in found)
    # blkparse counts times from another first event.
    at = slice(20, 35)
    assert [line.replace(line[at], "") for line in found] == [
        line.replace(line[at], "") for line in expected
    ]


def test_an_idle_cpu_gets_an_empty_file(tmp_path: Path) -> None:
    raw = written(tmp_path / "raw", process(1, 10, "sh") + record(2))
    (raw / "made.blktrace.3").write_bytes(record(5, cpu=3))
    replayed(raw, tmp_path / "trace")
    export(Trace(tmp_path / "trace"), EVERYTHING, "blktrace", tmp_path / "out")
    sizes = {path.name[-1]: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert sizes == {"0": 112, "1": 0, "2": 0, "3": 48}


def test_a_window_cuts_between_records_and_keeps_damage_out(tmp_path: Path) -> None:
    one = process(1, 10, "sh") + record(10) + message(20, b"odd") + b"junk" + record(30)
    replayed(written(tmp_path / "raw", one + record(40)), tmp_path / "trace")
    trace = Trace(tmp_path / "trace")
    # T takes seconds; these are nanoseconds.
    window = window_of(trace, "0.000000020", "0.000000030")
    lines = export(trace, window, "blktrace", tmp_path / "out")
    data = (tmp_path / "out" / "made.blktrace.0").read_bytes()
    assert data == process(1, 10, "sh") + message(20, b"odd") + record(30)
    assert lines == ["2 records in 1 files, 1 losses, which they cannot state"]


def test_a_trace_of_another_kind_is_not_exported_as_a_block_trace(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds ftrace, and --to blktrace takes only"):
        export(replayed_ftrace(tmp_path / "f"), EVERYTHING, "blktrace", tmp_path / "out")
    replayed(written(tmp_path / "raw", record(1)), tmp_path / "b")
    for to in ("ctf", "trace.dat"):
        with pytest.raises(
            UsageError,
            match=r"holds blktrace, and --to .* takes only (ctf, )?ftrace; formats for it: parquet",
        ):
            export(Trace(tmp_path / "b"), EVERYTHING, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_window_without_records_is_not_exported(tmp_path: Path) -> None:
    replayed(written(tmp_path / "raw", record(1000)), tmp_path / "trace")
    trace = Trace(tmp_path / "trace")
    window = window_of(trace, "5", "6")
    with pytest.raises(NotATraceError, match="nothing was recorded within"):
        export(trace, window, "blktrace", tmp_path / "out")


@needs_data
def test_parquet_has_a_table_per_block_action(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    replayed(SHARED_BLKTRACE, tmp_path / "trace")
    export(Trace(tmp_path / "trace"), EVERYTHING, "parquet", tmp_path / "out")
    table = parquet.read_table(tmp_path / "out" / "system=blktrace" / "event=unplug_timer")
    assert table.num_rows == 304
    assert set(table["requests"].to_pylist()) == {1}
    issued = parquet.read_table(tmp_path / "out" / "system=blktrace" / "event=issue")
    assert sum(issued["bytes"].to_pylist()) == (4196 + 4244) << 10  # the totals of blkparse
