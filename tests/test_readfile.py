"""A file that is cut while lttv reads it is reported: no signal ends the process."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lttd
from lttd.errors import TraceDamagedError
from lttd.files import Disk
from lttd.readfile import ReadFile
from lttd.recover import recover
from lttd.stored import StoredStream
from lttd.view.export.ctf import export
from lttd.view.opened import OpenedTrace
from lttd.view.times import EVERYTHING
from lttd.view.verify import check
from tests.confined import confined
from tests.ftraced import Traced, pages_of, tick

PAGES = 400
EVENTS = 89


@pytest.fixture
def trace(tmp_path: Path) -> OpenedTrace:
    made = Traced(tmp_path / "t", cpus=1)
    for number in range(PAGES):
        times = range(1000 * number + 10, 1000 * number + 10 * (EVENTS + 1), 10)
        made.append([pages_of(1000 * number, [tick(time) for time in times])])
    made.finish()
    return lttd.open(tmp_path / "t")


def stream_of(trace: OpenedTrace) -> StoredStream:
    return trace.segments[0].streams[0]


def survives(act: Callable[[], object]) -> str:
    """Run *act* in a child process, which no signal may end; return its result as text."""
    ended = confined(act)
    assert ended.well, ended.told
    return ended.told


def test_a_window_shows_what_is_left_of_data_that_is_cut_meanwhile(trace: OpenedTrace) -> None:
    stream = stream_of(trace)
    cut = int(stream.index[PAGES // 2]["offset_bytes"])

    def read() -> tuple[int, bool]:
        events, notes = 0, set[str]()
        for batch in trace.window(piece_bytes=1):
            events += len(batch)
            notes |= set(batch.notes)
            os.truncate(stream.paths.data, cut)
        wanted = f"{stream.paths.data}: byte {cut}: the file was cut here while it was read"
        return events, wanted in notes

    assert survives(read) == str((EVENTS * PAGES // 2, True))


@pytest.mark.parametrize("left", [0, 16, 500])
def test_a_window_ends_with_an_error_when_its_index_is_cut_meanwhile(
    trace: OpenedTrace, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lttd.view.window._LOOK_AHEAD", 3)
    path = stream_of(trace).paths.index

    def read() -> str:
        try:
            for _ in trace.window(piece_bytes=1):
                os.truncate(path, left)
        except TraceDamagedError as error:
            return str(error)
        return "no error"

    told = survives(read)
    assert str(path) in told
    assert "the file was cut here while it was read" in told


def test_check_reports_data_that_are_cut_meanwhile(
    trace: OpenedTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = StoredStream.blocks

    def cut_first(stream: StoredStream, *chosen: object) -> object:
        os.truncate(stream.paths.data, 5000)
        return blocks(stream, *chosen)  # type: ignore[arg-type]

    monkeypatch.setattr(StoredStream, "blocks", cut_first)
    told = survives(
        lambda: [str(one) for one in check(trace.segments[0].paths, events=True).findings]
    )
    assert "no sub-buffer begins here" in told


def test_an_export_leaves_out_data_that_are_cut_meanwhile(
    trace: OpenedTrace, tmp_path: Path
) -> None:
    stream = stream_of(trace)
    assert stream.data_bytes > 5000
    assert len(stream.index) == PAGES
    os.truncate(stream.paths.data, 5000)
    disk = Disk()
    disk.hold(tmp_path)
    told = survives(lambda: export(trace, EVERYTHING, tmp_path / "out", disk))
    assert "no sub-buffer begins here; left out" in told


def test_recovery_ends_with_no_signal_when_data_are_cut_meanwhile(
    trace: OpenedTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = StoredStream.read

    def cut_first(stream: StoredStream, *chosen: int) -> memoryview:
        os.truncate(stream.paths.data, 5000)
        return read(stream, *chosen)

    monkeypatch.setattr(StoredStream, "read", cut_first)
    stream_of(trace).paths.index.unlink()
    assert "StreamRecovery" in survives(lambda: recover(trace.segments[0].paths, Disk()))


def test_a_file_is_read_up_to_where_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    file = ReadFile(path)
    os.truncate(path, 30)
    assert bytes(file.read(10, 90)) == bytes(range(10, 30))
    with pytest.raises(TraceDamagedError, match="byte 30: the file was cut here while it was read"):
        file.read_all_of(10, 90)


def test_what_a_file_gains_after_it_was_opened_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    file = ReadFile(path)
    path.write_bytes(b"abcdef")
    assert bytes(file.read(0, 6)) == b"abc"


def test_damaged_entries_make_no_one_read_what_lies_between(trace: OpenedTrace) -> None:
    stream = stream_of(trace)
    os.truncate(stream.paths.data, 1 << 40)
    entries = stream.index.entries()
    entries["offset_bytes"][7] = (1 << 40) - 5000
    fresh = lttd.open(trace.path).segments[0].streams[0]
    blocks = list(fresh.blocks(entries))
    assert sum(len(block.data) for block in blocks) < 2 << 20
    rows = np.concatenate([block.rows for block in blocks])
    assert rows.tolist() == [row for row in range(PAGES) if row != 7]
    (wrong,) = (one for block in blocks for one in block.left_out)
    assert (wrong.row, wrong.reason) == (7, "no sub-buffer begins here")
