"""Removing a segment: whole or not at all for a reader, and nothing beside it."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lttd.beneath import OpenDirectory
from lttd.errors import StorageError
from lttd.files import Disk
from lttd.removal import hide, measure, remove_hidden, remove_in_place
from lttd.tracedir import create_segment, segment_directories, segment_name, segments_below

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts, or gives files away")
MIB = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


class Killed(BaseException):
    """The process was killed."""


class Trace:
    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o750)
        self.path, self.disk = path, Disk()
        self.directory = self.disk.hold(path)

    def segment(self, number: int, size_bytes: int = MIB) -> Path:
        paths = create_segment(self.disk, self.path, segment_name(number, "ftrace"))
        (paths.streams / "cpu_0").write_bytes(b"x" * size_bytes)
        (paths.index / "cpu_0.idx").write_bytes(b"x" * 100)
        paths.manifest.write_text("{}")
        return paths.directory

    def remove(self, path: Path) -> None:
        remove_hidden(self.directory, hide(self.disk, self.directory, path.name))


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return Trace(tmp_path / "t")


def du(path: Path) -> int:
    """Return the blocks of everything in a directory, as du(1) counts them."""
    whole = [path, *path.rglob("*")]
    return sum(each.lstat().st_blocks for each in whole) * 512


def test_bytes_are_those_of_the_blocks_of_all_files_hidden_and_sparse_ones_too(
    trace: Trace,
) -> None:
    path = trace.segment(1)
    (path / ".reserve").write_bytes(b"x" * 70_000)
    with (path / "streams" / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with (path / "streams" / "preallocated").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 5 * MIB)
        file.truncate(5 * MIB)
    found = measure(trace.directory, path.name)
    assert found == (du(path), None)
    assert 6 * MIB <= found.allocated_bytes < 7 * MIB


def test_a_removed_segment_is_gone_and_its_neighbours_are_as_they_were(trace: Trace) -> None:
    first, second = trace.segment(1), trace.segment(2)
    (first / "streams" / "out").symlink_to(second)
    (trace.path / "notes").write_text("mine")
    before = du(second)
    trace.remove(first)
    assert sorted(os.listdir(trace.path)) == [second.name, "notes"]
    assert du(second) == before


def test_a_reader_that_has_a_file_open_reads_on(trace: Trace) -> None:
    path = trace.segment(1)
    with (path / "streams" / "cpu_0").open("rb") as file:
        trace.remove(path)
        assert len(file.read()) == MIB


def test_a_kill_at_any_step_leaves_a_whole_segment_or_a_hidden_one(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each system call that changes a name is one step; the next start ends the removal."""
    for at in range(20):
        path = trace.segment(at + 1)
        steps = iter(range(at))

        def step(call: object, *args: object, **more: object) -> object:
            if next(steps, None) is None:  # noqa: B023
                raise Killed
            return call(*args, **more)  # type: ignore[operator]

        with monkeypatch.context() as patched:
            for name in ("rename", "unlink", "rmdir", "fsync"):
                real = getattr(os, name)
                patched.setattr(os, name, lambda *a, real=real, **m: step(real, *a, **m))
            try:
                trace.remove(path)
            except Killed:
                pass
            else:
                assert at > 5
                assert os.listdir(trace.path) == []
                return
        names, hidden = segment_directories(trace.directory)
        if names:
            assert sum(each.is_file() for each in path.rglob("*")) == 3
            trace.remove(path)
        for name in hidden:
            assert not segments_below(trace.directory)
            remove_hidden(trace.directory, name)
        assert os.listdir(trace.path) == []
    pytest.fail("the removal has no end")


def test_a_segment_that_cannot_be_renamed_for_want_of_space_loses_its_manifest_first(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, removed = trace.segment(1), []
    real = os.unlink

    def unlink(name: str, *, dir_fd: int) -> None:
        removed.append(name)
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    remove_in_place(trace.disk, trace.directory, path.name)
    assert removed[0] == "trace.json"
    assert os.listdir(trace.path) == []


@pytest.fixture
def mounted(trace: Trace) -> Iterator[tuple[Path, Path]]:
    """Mount a directory of the same file system into a segment."""
    path, outside = trace.segment(1), trace.path.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x" * MIB)
    point = path / "streams" / "mounted"
    point.mkdir()
    bind = 4096  # MS_BIND
    if _libc.mount(os.fsencode(outside), os.fsencode(point), None, bind, None):
        pytest.skip("this process may not mount")
    yield path, point
    for name in (point, path.with_name(f".gone-{path.name}") / "streams" / "mounted"):
        _libc.umount2(os.fsencode(name), 2)


@needs_root
def test_a_bind_mount_in_a_segment_is_neither_counted_nor_crossed(
    trace: Trace, mounted: tuple[Path, Path]
) -> None:
    path, point = mounted
    found = measure(trace.directory, path.name)
    assert found.allocated_bytes < 2 * MIB
    assert found.obstacle is not None
    assert found.obstacle.filename == str(point)
    name = hide(trace.disk, trace.directory, path.name)
    with pytest.raises(OSError, match="another file system is mounted there"):
        remove_hidden(trace.directory, name)
    assert (trace.path.parent / "outside" / "precious").stat().st_size == MIB
    assert [each.name for each in (trace.path / name).rglob("*")] == [
        "streams",
        "mounted",
        "precious",
    ]


@needs_root
def test_a_directory_of_another_user_is_counted_and_not_entered_for_removal(trace: Trace) -> None:
    path = trace.segment(1)
    theirs = path / "streams" / "theirs"
    theirs.mkdir()
    (theirs / "file").write_bytes(b"x" * MIB)
    os.chown(theirs, 12345, 12345)
    found = measure(trace.directory, path.name)
    assert found.allocated_bytes == du(path)
    assert str(found.obstacle).endswith(f"belongs to user 12345: '{theirs}'")
    name = hide(trace.disk, trace.directory, path.name)
    with pytest.raises(OSError, match="belongs to user 12345"):
        remove_hidden(trace.directory, name)
    assert (trace.path / name / "streams" / "theirs" / "file").exists()


def test_a_symbolic_link_to_a_directory_with_the_name_of_a_segment_is_not_one(
    trace: Trace,
) -> None:
    outside = trace.path.parent / "outside"
    outside.mkdir()
    name = "20261127T201535Z-000001-ftrace"
    (trace.path / name).symlink_to(outside)
    (trace.path / f".gone-{name}").symlink_to(outside)
    assert segment_directories(trace.directory) == ([], [])
    with pytest.raises(OSError, match="Not a directory"):
        remove_hidden(trace.directory, f".gone-{name}")


def test_a_segment_that_is_gone_already_is_no_failure_to_remove(trace: Trace) -> None:
    remove_hidden(trace.directory, ".gone-20261127T201535Z-000001-ftrace")
    with pytest.raises(FileNotFoundError):
        measure(trace.directory, "20261127T201535Z-000001-ftrace")
    with pytest.raises(StorageError):
        hide(trace.disk, trace.directory, "20261127T201535Z-000001-ftrace")


def test_only_names_of_segments_are_hidden_segments(trace: Trace) -> None:
    for name in (".gone-notes", ".gone-", ".gone-20261127T201535Z-000001-ftrace", ".goneX"):
        (trace.path / name).mkdir()
    assert segment_directories(OpenDirectory.open(trace.path)) == (
        [],
        [".gone-20261127T201535Z-000001-ftrace"],
    )
