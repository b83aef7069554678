"""Write the files of a stream, on a good disk and on a failing one."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.errors import UsageError
from lttd.files import Disk
from lttd.index import ENTRY_BYTES, INDEX_HEADER, SeekIndex, read_gaps
from lttd.manifest import StreamRecord
from lttd.subbuffer import Batch, StreamId, StreamInfo
from lttd.tracedir import StreamPaths
from lttd.writer import KEPT_SHARE, PREALLOCATE_FROM_BYTES, StreamFile
from tests.failing_disk import FailingDisk
from tests.segment_builder import Made, Ring, segment_at, subbuffer


def paths_in(directory: Path) -> StreamPaths:
    (directory / "streams" / "index").mkdir(parents=True, exist_ok=True)
    segment = segment_at(directory)
    return segment.stream("fake_0")


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6), min_size=1, max_size=5))
def test_packed_data_are_exactly_headers_and_content(
    tmp_path_factory: pytest.TempPathFactory, takes: list[list[int]]
) -> None:
    made = Made(tmp_path_factory.mktemp("packed"))
    wanted = bytearray()
    for take in takes:
        pages = [subbuffer(0, events=events) for events in take]
        made.append(pages)
        for page, events in zip(pages, take, strict=True):
            wanted += page[: 16 + events * 12]
    made.finish()
    assert bytes(made.stream().read()) == wanted
    entries = made.stream().index.entries()
    assert len(entries) == sum(map(len, takes))
    assert int((entries["packet_bits"] // 8).sum()) == len(wanted)
    assert entries["sequence"].tolist() == list(range(len(entries)))


def test_packed_headers_are_written_and_do_not_change_the_buffer(tmp_path: Path) -> None:
    ring = Ring()
    heads = np.arange(5 * 12, dtype=np.uint8).reshape(5, 12)
    batch = replace(ring.batch([subbuffer(number) for number in range(5)]), heads=heads)
    before = bytes(batch.buffer)
    file = StreamFile(Disk(tmp_path), paths_in(tmp_path), StreamRecord(ring.info), "packed")
    file.append(batch)
    file.close()
    size = int(batch.rows["payload_bytes"][0])
    written = paths_in(tmp_path).data.read_bytes()
    for row, head in enumerate(heads):
        rest = bytes(batch.buffer)[row * 4096 + 12 : row * 4096 + size]
        assert written[row * size :][:size] == head.tobytes() + rest
    # The fallback after a short write.
    assert b"".join(batch.pieces()) == b"".join(batch.pieces()[:]) == written
    assert bytes(batch.buffer) == before


BIG = StreamInfo(StreamId("fake", 0), "other", 65536, 16)


def big_batch(first: int, stored: list[int]) -> Batch:
    buffer = memoryview(os.urandom(65536 * len(stored)))
    rows = np.zeros(len(stored), Ring().batch([subbuffer(0)]).rows.dtype)
    rows["offset_bytes"] = np.arange(len(stored)) * 65536
    rows["kernel_bytes"] = 65536
    rows["payload_bytes"] = stored
    rows["content_bits"] = rows["payload_bytes"] * np.uint64(8)
    rows["sequence"] = np.arange(first, first + len(stored))
    return Batch(BIG.id, buffer, rows)


def test_sparse_sub_buffers_fill_their_slots_and_padding_is_a_hole(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    file = StreamFile(Disk(tmp_path), paths, StreamRecord(BIG), "sparse")
    batches = [big_batch(0, [65536, 4096, 4096, 60_000]), big_batch(4, [8192, 4096])]
    for batch in batches:
        file.append(batch)
    file.close()
    data = paths.data.read_bytes()
    assert len(data) == 6 * 65536
    slot = 0
    for batch in batches:
        for row in batch.rows:
            start, stored = int(row["offset_bytes"]), int(row["payload_bytes"])
            at = slot * 65536
            assert data[at : at + stored] == batch.buffer[start : start + stored]
            hole = -(-stored // 4096) * 4096
            assert not any(data[at + hole : at + 65536])
            slot += 1
    entries = SeekIndex(paths.index).entries()
    assert entries["offset_bytes"].tolist() == [n * 65536 for n in range(6)]
    assert set(entries["packet_bits"].tolist()) == {65536 * 8}
    with paths.data.open("rb") as opened:
        os.fsync(opened.fileno())  # noqa: TID251  (so that st_blocks is final)
    payload_bytes = sum(batch.payload_bytes for batch in batches)
    assert payload_bytes <= os.stat(paths.data).st_blocks * 512 <= payload_bytes + 6 * 4096


def test_sub_buffers_of_varying_size_are_refused_in_the_sparse_layout(tmp_path: Path) -> None:
    info = StreamInfo(StreamId("fake", 0), "other", 0, 16)
    with pytest.raises(UsageError):
        StreamFile(Disk(tmp_path), paths_in(tmp_path), StreamRecord(info), "sparse")


def contents(paths: StreamPaths) -> tuple[bytes, bytes, int]:
    return paths.data.read_bytes(), paths.index.read_bytes(), len(read_gaps(paths.gaps))


@pytest.mark.parametrize("layout", ["packed", "sparse"])
@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("full", ["", "fake_0", "fake_0.idx", "fake_0.gaps"])
def test_a_full_disk_keeps_the_sub_buffers_that_fit(
    tmp_path: Path, layout: str, lost: bool, full: str
) -> None:
    first = [subbuffer(0), subbuffer(1, missed=3 if lost else None)]
    second = [subbuffer(2), subbuffer(3, missed=4), subbuffer(4)]
    whole = Made(tmp_path / "whole", layout)
    whole.append(first)
    whole.append(second)
    data, index, _ = contents(whole.leave().paths.stream("fake_0"))
    ends = [*whole.stream().index.entries()["offset_bytes"].tolist()[1:], len(data)]
    kept: list[int] = []
    room = 0
    while True:
        ring = Ring()
        paths = paths_in(tmp_path / str(room))
        disk = FailingDisk(room_bytes=1 << 20, is_limited=lambda path: full in ("", path.name))
        disk.hold(tmp_path)
        file = StreamFile(disk, paths, StreamRecord(ring.info), layout)
        file.append(ring.batch(first))
        disk.room_bytes = room
        done = file.append(ring.batch(second))
        kept.append(done.rows)
        if done.error is None:
            break
        position = file.position
        assert position.entries == 2 + done.rows
        assert position.data_bytes == ends[position.entries - 1]
        # The gap is before the second sub-buffer.
        assert position.gaps == lost + (done.rows > 0)
        assert contents(paths) == (
            data[: position.data_bytes],
            index[: len(INDEX_HEADER) + position.entries * ENTRY_BYTES],
            position.gaps,
        )
        disk.room_bytes = 1 << 20
        file.append(ring.batch([subbuffer(5, missed=1)]))
        assert len(SeekIndex(paths.index)) == 3 + done.rows
        assert len(read_gaps(paths.gaps)) == 1 + position.gaps
        file.close()
        room += 7 if layout == "packed" or full not in ("", "fake_0") else 501
    file.close()
    in_part = full in ("fake_0", "fake_0.idx") or (not full and layout == "packed")
    assert sorted(set(kept)) == ([0, 1, 2, 3] if in_part else [0, 3])
    assert kept == sorted(kept)


@contextmanager
def files_no_larger_than(size_bytes: int) -> Iterator[None]:
    # Python ignores SIGXFSZ: the write fails with EFBIG.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_size_limit_is_handled_like_a_full_disk(tmp_path: Path) -> None:
    ring, paths = Ring(), paths_in(tmp_path)
    file = StreamFile(Disk(tmp_path), paths, StreamRecord(ring.info), "packed")
    file.append(ring.batch([subbuffer(0)]))
    # The data reach the limit with the third sub-buffer, the index with its second entry.
    with files_no_larger_than(150):
        done = file.append(ring.batch([subbuffer(n) for n in range(1, 9)]))
        assert (done.rows, "ulimit" in str(done.error)) == (0, True)
        assert len(SeekIndex(paths.index)) == 1
    file.append(ring.batch([subbuffer(9)]))
    file.close()
    assert len(SeekIndex(paths.index)) == 2


def test_a_sync_covers_everything_appended_before_it(tmp_path: Path) -> None:
    ring = Ring()
    file = StreamFile(Disk(tmp_path), paths_in(tmp_path), StreamRecord(ring.info), "packed")
    file.append(ring.batch([subbuffer(0), subbuffer(1)], trailing_loss=4))
    position = file.sync()
    file.append(ring.batch([subbuffer(2)]))
    file.close()
    assert (position.entries, position.data_bytes, position.gaps) == (2, 104, 1)
    assert (file.position.entries, file.position.data_bytes) == (3, 156)


def test_discarded_totals_continue_from_the_earlier_segment(tmp_path: Path) -> None:
    ring, paths = Ring(), paths_in(tmp_path)
    record = StreamRecord(ring.info, baseline_discarded=1000)
    file = StreamFile(Disk(tmp_path), paths, record, "packed")
    file.append(ring.batch([subbuffer(0), subbuffer(1, missed=7)]))
    file.close()
    assert SeekIndex(paths.index).entries()["events_discarded"].tolist() == [1000, 1007]


def test_a_large_file_has_blocks_ahead_while_it_grows_and_none_at_its_end(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    page = subbuffer(0, events=330)
    made.append([page] * (PREALLOCATE_FROM_BYTES // 4096 + 200))
    made.append([page])
    data = made.paths.stream("fake_0").data
    written_bytes = data.stat().st_size
    assert data.stat().st_blocks * 512 > written_bytes + PREALLOCATE_FROM_BYTES // 2
    made.leave()
    assert data.stat().st_size == written_bytes
    assert data.stat().st_blocks * 512 < written_bytes + PREALLOCATE_FROM_BYTES // 2


def test_a_closed_stream_holds_no_descriptor(tmp_path: Path) -> None:
    made = Made(tmp_path / "t", cpus=2)
    made.append([subbuffer(0)], trailing_loss=1)
    opened = len(os.listdir("/proc/self/fd"))
    made.leave()
    assert len(os.listdir("/proc/self/fd")) == opened - 5  # two streams, and one file of gaps


def is_cached(path: Path, at: int) -> bool:
    """Tell whether a byte of a file is in the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(fd, [bytearray(1)], at, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def test_synced_data_leave_the_page_cache_but_for_the_first_part(tmp_path: Path) -> None:
    ring, paths = Ring(), paths_in(tmp_path)
    kept_bytes = 256 << 10
    file = StreamFile(
        Disk(tmp_path), paths, StreamRecord(ring.info), "packed", kept_bytes * KEPT_SHARE
    )
    for _ in range(8):
        file.append(ring.batch([subbuffer(0, events=300) for _ in range(200)]))
    middle = paths.data.stat().st_size // 2
    assert kept_bytes * 4 < middle
    assert is_cached(paths.data, middle)
    file.sync()
    if is_cached(paths.data, middle):
        data = os.open(paths.data, os.O_RDONLY)
        os.posix_fadvise(data, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(data)
        assert is_cached(paths.data, middle), "sync() left it in the page cache"
        pytest.skip("a file system that drops no pages, such as tmpfs")
    assert is_cached(paths.data, kept_bytes // 2)
    file.close()
