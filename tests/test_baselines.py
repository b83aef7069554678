"""From which count of lost events each stream of a new segment counts on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lttd.files import Disk
from lttd.index import SeekIndex
from lttd.manifest import MOST_MANIFESTS, Manifest
from lttd.open_segment import OpenSegment, SegmentContents
from lttd.recorder import Recorder
from lttd.subbuffer import Gap, Reason, StreamInfo, Unit
from tests.fakes import batch_of, event, info, page
from tests.segment_builder import SNAPSHOT


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder(sync_interval_s=100)
    made.start()
    yield made
    made.close()


class Recording:
    """Segments of several sources in one trace."""

    def __init__(self, recorder: Recorder, trace: Path) -> None:
        self.recorder = recorder
        self.trace = trace
        self.number = 0
        trace.mkdir()

    def open(self, spec: str, *streams: StreamInfo, previous_run: bool = False) -> OpenSegment:
        kind = spec.partition(":")[0]
        source = {"kind": kind, "spec": spec, "clock": "mono", "settings": {}}
        source |= {"live": True, "previous_run": previous_run, "continues": ""}
        self.number += 1
        contents = SegmentContents(source, "packed", streams, SNAPSHOT, Disk())
        return self.recorder.open_segment(self.trace, self.number, contents)

    def record(self, spec: str, *lost: int, previous_run: bool = False) -> list[int]:
        """Record one sub-buffer a stream after losses; return the totals in the indexes."""
        streams = [info("fake", cpu) for cpu in range(len(lost))]
        segment = self.open(spec, *streams, previous_run=previous_run)
        for stream, count in zip(streams, lost, strict=True):
            gaps = (Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, count, 1, 2),) if count else ()
            batch = batch_of(stream, [page(1, event(b"abcd"))], gaps=gaps)
            self.recorder.offer(segment.lanes[stream.id], batch)
        segment.close(SNAPSHOT)
        paths = [segment.paths.stream(f"fake_{cpu}") for cpu in range(len(lost))]
        return [int(SeekIndex(each.index).entries()["events_discarded"][0]) for each in paths]


@pytest.fixture
def recording(recorder: Recorder, tmp_path: Path) -> Recording:
    return Recording(recorder, tmp_path / "t")


def test_sources_of_one_kind_count_on_from_their_own_losses(recording: Recording) -> None:
    assert recording.record("ftrace:a", 7) == [7]
    assert recording.record("ftrace:b", 100) == [100]
    assert recording.record("ftrace:a", 1) == [8]
    assert recording.record("ftrace:b,events=sched", 1) == [101]
    assert recording.record("ftrace:c", 0) == [0]


def test_a_stream_that_the_newest_segment_lacks_counts_on_from_an_older_one(
    recording: Recording,
) -> None:
    assert recording.record("ftrace:a", 1, 20) == [1, 20]
    assert recording.record("ftrace:a", 2) == [3]
    assert recording.record("ftrace:a", 4, 5) == [7, 25]


def test_the_ring_of_a_killed_lttd_counts_as_what_it_recorded(recording: Recording) -> None:
    assert recording.record("ftrace", 7) == [7]
    assert recording.record("ftrace:lttd-17", 2, previous_run=True) == [9]
    assert recording.record("ftrace", 1) == [10]


def test_the_next_segment_of_a_run_counts_on_without_reading_the_trace(
    recording: Recording,
) -> None:
    stream = info()
    first = recording.open("ftrace:a", stream)
    gap = Gap(0, Reason.OVERWRITTEN, Unit.EVENTS, 7, 1, 2)
    recording.recorder.offer(first.lanes[stream.id], batch_of(stream, [page(1, b"")], gaps=(gap,)))
    first.close(SNAPSHOT)
    first.paths.manifest.unlink()
    assert first.baselines.of("fake_0") == 7


def test_a_source_that_is_new_reads_few_of_many_manifests(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(MOST_MANIFESTS + 6):
        recording.open("ftrace:a").close(SNAPSHOT)
    read: list[object] = []
    original = Manifest.read
    monkeypatch.setattr(Manifest, "read", lambda where: read.append(where) or original(where))
    assert recording.record("ftrace:b", 0) == [0]
    assert len(read) == MOST_MANIFESTS
