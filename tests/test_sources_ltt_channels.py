"""The source ``ltt:DIR`` finds channels, and refuses what is not one."""

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from lttd.errors import LockedError, NothingToRecordError, SourceError, UsageError
from lttd.sources.ltt.channel import Channel
from lttd.sources.ltt.source import open_ltt
from lttd.subbuffer import BufferPool, Reason, StreamId, Unit
from tests.ltt_kernel import Kernel, running_kernel
from tests.ltt_opened import Opened, losses
from tests.running import until

pytestmark = pytest.mark.slow


@pytest.fixture
def opened(ltt_kernel: Kernel) -> Iterator[Opened]:
    """A source on channels kernel_0 and kernel_1."""
    ltt_kernel.add("kernel_0")
    ltt_kernel.add("kernel_1")
    source = Opened(ltt_kernel)
    yield source
    source.source.close()


# -- finding channels


def test_channels_are_found_in_folders_and_named_by_their_path(ltt_kernel: Kernel) -> None:
    for path in ("cpu_0", "control/metadata_0", "control/metadata_12", "control/cpu_0", ".x/y_0"):
        ltt_kernel.add(path, minor=2)
    ltt_kernel.add("control/enabled")
    opened = Opened(ltt_kernel)
    assert opened.names == ["control/cpu_0", "control/metadata_0", "control/metadata_12", "cpu_0"]
    assert [note.split(": ", 1)[1] for note in opened.source.notes()] == [
        "passed over: its name does not end in _CPU"
    ]
    opened.source.close()


def test_a_channel_name_that_no_manifest_can_hold_is_skipped(ltt_kernel: Kernel) -> None:
    ltt_kernel.add("cpu_0", minor=2)
    ltt_kernel.add(f"{'x' * 200}/{'y' * 100}_0")
    opened = Opened(ltt_kernel)
    assert opened.names == ["cpu_0"]
    assert [note.split(": ", 1)[1] for note in opened.source.notes()] == [
        "passed over: its name is not UTF-8, or too long"
    ]
    opened.source.close()


@pytest.mark.parametrize(
    ("channels", "names"),
    [
        ("all", ["flight-fs_0", "kernel_0"]),
        ("flight", ["flight-fs_0"]),
        ("normal", ["kernel_0"]),
    ],
)
def test_only_channels_of_the_requested_kind_are_opened(
    ltt_kernel: Kernel, channels: str, names: list[str]
) -> None:
    ltt_kernel.add("kernel_0")
    ltt_kernel.add("flight-fs_0")
    opened = Opened(ltt_kernel, channels=channels)
    assert opened.names == names
    opened.source.close()
    for one in ("kernel_0", "flight-fs_0"):
        until(lambda one=one: not ltt_kernel.is_open(one), "the close")


def test_channels_that_appear_later_are_recorded_from_their_beginning(opened: Opened) -> None:
    opened.kernel.add("control/flight-fs_1", overwrite=True)
    opened.kernel.lose("control/flight-fs_1", events=3)
    opened.kernel.fill("control/flight-fs_1", 6)
    (stream,) = opened.source.discover()
    assert stream.info.id == StreamId("control/flight-fs", 1)
    assert opened.source.discover() == []
    batches, _ = opened.drain("control/flight-fs_1")
    assert losses(batches) == [
        (0, Reason.OVERWRITTEN, Unit.SUBBUFFERS, 3),
        (0, Reason.DISCARDED, Unit.EVENTS, 3),
    ]


def test_a_busy_channel_is_reported_once_and_opened_when_free(
    opened: Opened,
) -> None:
    opened.kernel.add("fs_0")
    other = Channel(f"{opened.kernel.root}/fs_0")
    assert [*opened.source.discover(), *opened.source.discover()] == []
    (note,) = opened.source.notes()
    assert "fs_0: has a reader" in note
    other.close()
    assert [stream.info.id.name for stream in opened.source.discover()] == ["fs_0"]


def test_a_recreated_channel_continues_its_stream(opened: Opened) -> None:
    opened.kernel.fill("kernel_0", 1)
    opened.kernel.finalize("kernel_0")
    opened.drain("kernel_0")
    assert opened.source.discover() == []  # the same file is still there
    opened.kernel.remove("kernel_0")
    opened.kernel.add("kernel_0")
    assert len(opened.source.discover()) == 1
    opened.kernel.fill("kernel_0", 1)
    (batch,), _ = opened.drain("kernel_0")
    assert batch.rows["sequence"].tolist() == [2]
    assert opened.names == ["kernel_0", "kernel_1"]


def test_a_recreated_channel_of_another_size_is_reported_and_left_alone(
    opened: Opened,
) -> None:
    opened.kernel.finalize("kernel_0")
    opened.drain("kernel_0")
    opened.kernel.remove("kernel_0")
    opened.kernel.add("kernel_0", subbuffer_bytes=16384)
    assert [*opened.source.discover(), *opened.source.discover()] == []
    (note,) = opened.source.notes()
    assert "kernel_0: was recreated with sub-buffers of 16384 bytes, not" in note
    until(lambda: not opened.kernel.is_open("kernel_0"), "the close")


def test_a_channel_without_a_free_descriptor_is_reported(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lttd.sources.ltt.source._allow_descriptors", lambda channels: None)
    opened.kernel.add("fs_0")
    lowest_free = os.dup(0)
    os.close(lowest_free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, before[1]))
    try:
        assert opened.source.discover() == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    (note,) = opened.source.notes()
    assert "fs_0: Too many open files; let lttd open more" in note
    assert [stream.info.id.name for stream in opened.source.discover()] == ["fs_0"]


def test_inotify_reports_new_channels_before_the_rescan(ltt_kernel: Kernel, tmp_path: Path) -> None:
    # The emulated files make no inotify events, but links to them in a real directory do.
    for path in ("kernel_0", "kernel_1", "fs_0"):
        ltt_kernel.add(path)
    root = tmp_path / "names"
    root.mkdir()
    (root / "kernel_0").symlink_to(ltt_kernel.root / "kernel_0")
    source = open_ltt(root, BufferPool(), rescan_s=3600)
    assert source.discover() == []
    (root / "kernel_1").symlink_to(ltt_kernel.root / "kernel_1")
    assert [stream.info.id.name for stream in source.discover()] == ["kernel_1"]
    (root / "folder").mkdir()
    assert source.discover() == []
    (root / "folder" / "fs_0").symlink_to(ltt_kernel.root / "fs_0")
    assert [stream.info.id.name for stream in source.discover()] == ["folder/fs_0"]
    source.close()


def test_folders_that_link_back_are_walked_once(ltt_kernel: Kernel, tmp_path: Path) -> None:
    ltt_kernel.add("kernel_0")
    root = tmp_path / "names"
    root.mkdir()
    (root / "kernel_0").symlink_to(ltt_kernel.root / "kernel_0")
    (root / "again").symlink_to(root)
    source = open_ltt(root, BufferPool())
    assert len(source.streams) == 1
    source.close()


def test_the_first_metadata_sub_buffer_gives_the_wall_clock(ltt_kernel: Kernel) -> None:
    ltt_kernel.add("metadata_0")
    opened = Opened(ltt_kernel)
    assert opened.source.info.snapshot is None
    ltt_kernel.fill("metadata_0", 1)
    (batch,), _ = opened.drain("metadata_0")
    snapshot = opened.source.info.snapshot
    assert snapshot is not None
    assert snapshot.trace == batch.rows["begin"][0]
    assert snapshot.realtime_ns == 1_262_715_366_408_819_000
    assert opened.source.now() == batch.rows["end"][0]
    opened.source.close()


# -- impossible requests


def test_a_second_reader_is_refused_and_takes_nothing_from_the_first(opened: Opened) -> None:
    with pytest.raises(LockedError, match="kernel_0: has a reader, and can have only one"):
        open_ltt(opened.kernel.root, BufferPool())
    opened.kernel.fill("kernel_1", 1)
    assert len(opened.drain("kernel_1")[0]) == 1


def test_a_directory_without_channels_gives_the_status_for_nothing_to_record(
    ltt_kernel: Kernel, tmp_path: Path
) -> None:
    with pytest.raises(NothingToRecordError, match="no channel available for reading; name the"):
        open_ltt(tmp_path, BufferPool())
    ltt_kernel.add("kernel_0")
    with pytest.raises(NothingToRecordError, match="1 are there that are not asked for; -f takes"):
        open_ltt(ltt_kernel.root, BufferPool(), channels="flight")
    with pytest.raises(UsageError, match="all, flight, normal"):
        open_ltt(ltt_kernel.root, BufferPool(), channels="both")


def test_a_file_in_place_of_the_directory_is_nothing_to_record(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(NothingToRecordError, match="lttctl -c NAME"):
            open_ltt(path, BufferPool())


def test_a_file_that_is_not_a_channel_is_named(tmp_path: Path) -> None:
    (tmp_path / "kernel_0").write_bytes(bytes(8192))
    with pytest.raises(NothingToRecordError, match=r"kernel_0: no LTTng 0\.x channel"):
        open_ltt(tmp_path, BufferPool())


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EPERM, r"kernel_0: Operation not permitted; .*\broot"),
        (errno.EACCES, r"kernel_0: Permission denied; .*\broot"),
    ],
)
def test_an_unopenable_channel_is_reported_with_its_reason(
    ltt_kernel: Kernel, number: int, says: str
) -> None:
    ltt_kernel.add("kernel_0")
    ltt_kernel.fault("kernel_0", open_errno=number)
    with pytest.raises(NothingToRecordError, match=says):
        open_ltt(ltt_kernel.root, BufferPool())


def test_impossible_channel_sizes_are_refused(ltt_kernel: Kernel) -> None:
    ltt_kernel.add("kernel_0")
    ltt_kernel.fault("kernel_0", no_subbuffers=1)
    with pytest.raises(SourceError, match="impossible sizes: 0 sub-buffers"):
        Channel(f"{ltt_kernel.root}/kernel_0")
    until(lambda: not ltt_kernel.is_open("kernel_0"), "the close")


@pytest.mark.usefixtures("ltt_kernel")  # it shows whether /dev/fuse is usable
def test_a_kernel_that_dies_raises_an_error_and_does_not_hang_lttd(tmp_path: Path) -> None:
    with running_kernel(tmp_path) as kernel:
        kernel.add("kernel_0")
        opened = Opened(kernel)
        kernel.die()
        with pytest.raises(SourceError, match="kernel_0"):
            opened.stream("kernel_0").take(flush=False)
        opened.source.close()


def test_no_file_is_left_open(ltt_kernel: Kernel) -> None:
    ltt_kernel.add("kernel_0")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        Opened(ltt_kernel).source.close()
        until(lambda: not ltt_kernel.is_open("kernel_0"), "the close")
    assert os.listdir("/proc/self/fd") == before
