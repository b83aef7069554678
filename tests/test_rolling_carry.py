"""Each segment of a run has what decoding needs, also when all earlier segments are gone."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lttd.config import SourceSpec
from lttd.files import Disk
from lttd.open_segment import OpenSegment
from lttd.recorder import Recorder
from lttd.recording import Recording
from lttd.sources.base import Source
from lttd.sources.registry import open_source
from lttd.subbuffer import Batch, BufferPool
from lttd.tracedir import segments_below
from lttd.view.verify import check
from tests.fakes import info
from tests.recorders import rolled, segment_of
from tests.running import lttv
from tests.segment_builder_ltt import LttBuffer, Marker, Tracer, describe, write_trace


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder(sync_interval_s=100)
    made.start()
    yield made
    made.close()


def take(recorder: Recorder, recording: Recording, part: str = "") -> None:
    """Take all of the streams whose name contains *part*."""
    for stream, lane in recording.streams_and_lanes():
        while part in stream.info.id.name and isinstance(batch := stream.take(flush=True), Batch):
            recorder.offer(lane, batch)


def roll(recorder: Recorder, recording: Recording, number: int) -> None:
    recording.prepare()
    recording.reveal(number)
    ended = recording.roll()
    recorder.drain()
    ended.attach()
    ended.close()
    recording.forget(ended)


@pytest.fixture
def ltt_trace(tmp_path: Path) -> Path:
    """A directory of an LTTng 0.x trace: metadata, and 300 events that it declares."""
    tracer, directory = Tracer(), tmp_path / "ltt"
    metadata, kernel = LttBuffer(tracer), LttBuffer(tracer, subbuffer_bytes=4096, count=64)
    describe(metadata, Marker("kernel", "tick", 3, "n %u"), tracer.start_tsc + 1)
    for number in range(300):
        kernel.log(3, tracer.pack(("u4", number)), tracer.start_tsc + 1000 + number, 4)
    kernel.flush(tracer.start_tsc + 2000)
    write_trace(directory, {"metadata_0": metadata, "kernel_0": kernel})
    return directory


def rolled_after_metadata(recorder: Recorder, source: Source, trace: Path) -> None:
    """Record the metadata into the first two segments, and all else into the third."""
    trace.mkdir()
    recording = Recording.begin(recorder, trace, 1, source, "packed", Disk())
    roll(recorder, recording, 2)
    take(recorder, recording, "metadata")
    roll(recorder, recording, 3)
    take(recorder, recording)
    recording.close()
    source.close()


def test_the_markers_of_an_ltt_trace_outlive_the_segment_with_its_metadata(
    recorder: Recorder, tmp_path: Path, ltt_trace: Path
) -> None:
    source = open_source(SourceSpec("replay", str(ltt_trace), {}), BufferPool())
    trace = tmp_path / "t"
    rolled_after_metadata(recorder, source, trace)
    whole = lttv("text", trace)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.count("kernel.tick") == 300
    for segment in segments_below(trace)[:2]:
        shutil.rmtree(segment.directory)
    done = lttv("text", "--event", "kernel.tick", trace)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert "complete on all CPUs since" in line
    assert done.stdout.count("kernel.tick") == 300
    assert check(segments_below(trace)[0], events=True).findings == []


def test_an_export_for_lttv_has_the_metadata_from_before_its_first_segment(
    recorder: Recorder, tmp_path: Path, ltt_trace: Path
) -> None:
    source = open_source(SourceSpec("replay", str(ltt_trace), {}), BufferPool())
    trace = tmp_path / "t"
    rolled_after_metadata(recorder, source, trace)
    for name in ("all", "last"):
        done = lttv("export", trace, "--to", "ltt", "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        for segment in segments_below(trace)[:2]:
            shutil.rmtree(segment.directory)
    for file in ("metadata_0", "kernel_0"):
        exported = [(tmp_path / name / file).read_bytes() for name in ("all", "last")]
        assert exported[0] == exported[1]


# -- files that segments share


def content(segment: OpenSegment, name: str) -> bytes:
    return (segment.paths.directory / name).read_bytes()


@pytest.mark.parametrize("append", [True, False])
def test_a_file_that_segments_share_is_replaced_not_changed(
    recorder: Recorder, tmp_path: Path, *, append: bool
) -> None:
    first = segment_of(recorder, tmp_path / "t", info())
    first.attach("tracefs/formats.gz", b"old ", append=True)
    second = rolled(recorder, first)
    second.share("tracefs/formats.gz", first.paths)
    path = first.paths.directory / "tracefs/formats.gz"
    assert path.stat().st_nlink == 2
    second.attach("tracefs/formats.gz", b"new", append=append)
    assert content(first, "tracefs/formats.gz") == b"old "
    assert content(second, "tracefs/formats.gz") == (b"old new" if append else b"new")
    assert path.stat().st_nlink == 1
    first.attach("tracefs/formats.gz", b"more", append=True)
    assert content(first, "tracefs/formats.gz") == b"old more"
    for segment in (first, second):
        segment.close(None)


def test_a_file_system_without_links_gets_a_copy(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # as FAT does

    first = segment_of(recorder, tmp_path / "t", info())
    first.attach("tracefs/formats.gz", b"old", append=True)
    second = rolled(recorder, first)
    monkeypatch.setattr("os.link", refuse)
    second.share("tracefs/formats.gz", first.paths)
    assert content(second, "tracefs/formats.gz") == b"old"
    assert (first.paths.directory / "tracefs/formats.gz").stat().st_nlink == 1
    for segment in (first, second):
        segment.close(None)
