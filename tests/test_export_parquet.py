"""``lttv export --to parquet`` writes files that query engines read."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="no pyarrow here: pip install 'lttd[parquet]'")
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from lttd.errors import NotATraceError, UsageError
from lttd.view.export import export, parquet
from lttd.view.times import EVERYTHING, Moment, Window
from lttd.view.trace import Trace
from tests.every_type import common, every_type, made_of
from tests.segment_builder import SNAPSHOT, Made, subbuffer
from tests.tools import decoded, replayed


def test_every_event_is_in_the_partition_of_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "GROUP_ROWS", 100)
    monkeypatch.setattr(parquet, "PENDING_ROWS", 300)
    trace = replayed(tmp_path / "t")
    lines = export(trace, EVERYTHING, "parquet", tmp_path / "pq")
    events = decoded(trace)
    total = sum(map(len, events.values()))
    assert lines[-1].startswith(f"{total} events and 2 losses in ")
    found = ds.dataset(tmp_path / "pq", partitioning="hive").to_table(
        columns=["time", "cpu", "event", "system"], filter=ds.field("system") != "lttd"
    )
    assert found.num_rows == total
    for cpu, ours in events.items():
        rows = [row for row in found.to_pylist() if row["cpu"] == cpu]
        assert sorted((row["time"], row["event"]) for row in rows) == sorted(ours)


def test_a_parquet_file_is_ordered_by_time_and_names_its_trace(tmp_path: Path) -> None:
    trace = replayed(tmp_path / "t")
    export(trace, EVERYTHING, "parquet", tmp_path / "pq")
    files = sorted((tmp_path / "pq").rglob("*.parquet"))
    assert {path.name for path in files} == {f"{trace.segments[0].paths.directory.name}.parquet"}
    for path in files:
        file = pq.ParquetFile(path)
        times = file.read(columns=["time"])["time"].to_pylist()
        assert times == sorted(times)
        told = file.schema_arrow.metadata
        assert told[b"lttd.clock"] == trace.segments[0].manifest.clock.encode()
        assert b"lttd.boot_id" in told


def test_every_type_of_field_has_its_arrow_type(tmp_path: Path) -> None:
    events = [
        every_type(b"hello\0", [1, 2, 3], 0b101, b"by\0"),
        every_type(b"\xff\0\0\0\0\0", [], 1 << 63, b"\0\0\0"),
        common(77) + b"\1\2\3\4",
        common(301),
    ]
    lines = export(made_of(tmp_path, events), EVERYTHING, "parquet", tmp_path / "pq")
    assert any("no format of event id 77" in line for line in lines)
    (path,) = (tmp_path / "pq/system=made/event=every_type").iterdir()
    one, other = pq.ParquetFile(path).read().to_pylist()
    assert one | {"timestamp": None} == {
        "time": 5010,
        "timestamp": None,
        "cpu": 0,
        "common_pid": 42,
        "small": -5,
        "large": 1 << 63,
        "pointer": 0xFFFF800000001000,
        "comm": "bash",
        "list": [-1, 0, 7],
        "thing": b"\1\2\3",
        "text": "hello",
        "numbers": [1, 2, 3],
        "mask": [0b101],
        "near": "by",
    }
    assert (other["text"], other["numbers"], other["near"]) == ("\ufffd", [], "")
    (path,) = (tmp_path / "pq/system=unknown/event=unknown-77").iterdir()
    assert pq.ParquetFile(path).read()["raw"][0].as_py()[8:] == b"\1\2\3\4"
    assert (tmp_path / "pq/system=made/event=printed_undecoded").is_dir()


def test_losses_are_rows_at_their_times(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0), subbuffer(1, missed=7)], trailing_loss=5)
    made.finish()
    export(Trace(made.trace), EVERYTHING, "parquet", tmp_path / "pq")
    (path,) = (tmp_path / "pq/system=lttd/event=lost").iterdir()
    rows = pq.ParquetFile(path).read().to_pylist()
    assert [(row["lost"], row["unit"], row["reason"]) for row in rows] == [
        (7, "events", "overwritten"),
        (5, "events", "dropped"),
    ]
    assert rows[0]["time"] == 2000


def test_a_parquet_window_is_exact_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    trace = replayed(tmp_path / "t")
    middle = decoded(trace)[0][300:700]
    window = Window(Moment(middle[0][0], wall=False), Moment(middle[-1][0], wall=False))
    export(trace, window, "parquet", tmp_path / "pq")
    found = ds.dataset(tmp_path / "pq", partitioning="hive").to_table()
    assert sum(cpu == 0 for cpu in found["cpu"].to_pylist()) == len(middle)
    window = Window(Moment(1, wall=False), Moment(2, wall=False))
    with pytest.raises(NotATraceError):
        export(trace, window, "parquet", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_parquet_has_no_timestamp_without_clock_snapshots(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0)])
    made.finish()
    made.manifest.clock_snapshots = []
    made.write_manifest()
    export(Trace(made.trace), EVERYTHING, "parquet", tmp_path / "pq")
    found = ds.dataset(tmp_path / "pq", partitioning="hive").to_table()
    assert found["timestamp"].null_count == 3


def test_parquet_is_written_to_any_url(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    made = Made(tmp_path / "t")
    made.append([subbuffer(0)])
    made.finish()
    trace = Trace(made.trace)
    export(trace, EVERYTHING, "parquet", "memory://bucket/traces")
    files = fsspec.filesystem("memory")
    (path,) = files.glob("/bucket/traces/**/*.parquet")
    with files.open(path) as file:
        assert pq.ParquetFile(file).metadata.num_rows == 3
    with pytest.raises(UsageError, match="exists already"):
        export(trace, EVERYTHING, "parquet", "memory://bucket/traces")
    with pytest.raises(UsageError, match="nosuch"):
        export(trace, EVERYTHING, "parquet", "nosuch://bucket")
    with pytest.raises(UsageError, match="not to a URL"):
        export(trace, EVERYTHING, "trace.dat", "memory://bucket/t.dat")


@pytest.mark.parametrize("drift_ns", [0, 700, -40, 3 * 3600 * 10**9])
def test_the_timestamps_of_columns_equal_the_converted_times(tmp_path: Path, drift_ns: int) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0)])
    minute_ns = 60 * 10**9
    made.manifest.clock_snapshots = [
        type(SNAPSHOT)(at, at, at, SNAPSHOT.realtime_ns + at + drift, 1)
        for at, drift in ((minute_ns, 0), (2 * minute_ns, drift_ns), (3 * minute_ns, drift_ns))
    ]
    made.finish()
    segment = Trace(made.trace).segments[0]
    conversion = segment.conversion
    assert conversion
    for first, last in ((0, 4 * minute_ns), (0, 1000), (minute_ns, 2 * minute_ns)):
        times = np.linspace(first, last, 1001).astype(np.uint64)
        found = parquet.timestamps(times, segment).cast(pa.int64()).to_pylist()
        wanted = [conversion.to_realtime_ns(time) // 1000 for time in times.tolist()]
        assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 1
