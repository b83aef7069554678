"""A segment of relay data; only its index knows the places of its rows."""

from pathlib import Path

import pytest

from lttd.errors import UsageError
from lttd.files import Disk
from lttd.manifest import StreamRecord
from lttd.recover import recover
from lttd.subbuffer import Gap, Reason, Unit
from lttd.tracedir import segments
from lttd.view.cli import main
from lttd.view.verify import check
from lttd.writer import StreamFile
from tests.relay_streams import ModelStream
from tests.segment_builder import Made, Ring

ROW_BYTES = 200


def recorded(trace: Path, rows: int = 6) -> Made:
    """A segment: row n has ten records from time 1000 n + 100; two are missing before row 3."""
    stream = ModelStream(time=8)
    stream.clock.time = 1 << 40
    made = Made(trace, make_ring=lambda cpu: Ring(stream.stream.info))
    for row in range(rows):
        first = row * 10 + (2 if row >= 3 else 0)
        for number in range(first, first + 10):
            stream.write(number, time=1000 * row + 100 + number - first)
        stream.model.flush()
        made.files[0].append(stream.take())
        stream.stream.take(flush=True)
    return made


def test_check_finds_a_relay_segment_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "t").finish()
    assert main(["check", "--events", str(tmp_path / "t")]) == 0
    assert main(["info", str(tmp_path / "t")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "chan_0" in line)
    assert line.split()[:3] == ["chan_0", "6", "1.2"]
    assert line.endswith("2 events dropped")


def test_a_cut_of_a_relay_segment_keeps_the_loss_within(tmp_path: Path) -> None:
    recorded(tmp_path / "t").finish()
    words = ["cut", str(tmp_path / "t"), "-o", str(tmp_path / "cut")]
    assert main([*words, "--begin", "0.0000021", "--end", "0.0000031"]) == 0
    (segment,) = segments(tmp_path / "cut")
    assert check(segment).whole
    data = segment.stream("chan_0").data.read_bytes()
    whole = segments(tmp_path / "t")[0].stream("chan_0").data.read_bytes()
    assert data == whole[2 * ROW_BYTES : 4 * ROW_BYTES]


def test_recovery_cuts_and_counts_relay_bytes_without_an_entry(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t").leave()
    with made.paths.stream("chan_0").data.open("ab") as file:
        file.write(b"half a row")
    (done,) = recover(made.paths, Disk())
    assert (done.entries, done.torn_bytes) == (6, 10)
    stream = made.stream()
    assert stream.gaps[-1] == Gap(
        6, Reason.TORN, Unit.BYTES, 10, stream.gaps[-1].begin, stream.gaps[-1].end
    )
    assert check(made.paths).whole


def test_recovery_cuts_a_relay_entry_without_its_bytes(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t").leave()
    data = made.paths.stream("chan_0").data
    data.write_bytes(data.read_bytes()[: 5 * ROW_BYTES + 7])
    (done,) = recover(made.paths, Disk())
    assert done.entries == 5
    assert data.stat().st_size == 5 * ROW_BYTES
    assert check(made.paths).whole


def test_the_sparse_layout_is_refused_for_relay_in_one_line(tmp_path: Path) -> None:
    info = ModelStream().stream.info
    paths = recorded(tmp_path / "t").leave().paths.stream("other_0")
    with pytest.raises(UsageError, match="varying size cannot be sparse"):
        StreamFile(Disk(tmp_path), paths, StreamRecord(info), "sparse")


def test_export_and_formats_refuse_a_relay_segment_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, out = str(tmp_path / "t"), str(tmp_path / "out")
    recorded(tmp_path / "t").finish()
    told = []
    for words in (["formats", trace], ["export", trace, "--to", "trace.dat", "-o", out]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        told.append(line)
    assert told[0].endswith("no event formats, which only ftrace has")
    assert told[1].endswith(
        "holds relay, and --to trace.dat takes only ftrace; formats for it: parquet"
    )
