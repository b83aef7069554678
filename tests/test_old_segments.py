"""Recording and repair begin whatever segments an earlier run left."""

import gc
import json
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lttd.beneath import OpenDirectory
from lttd.errors import StorageError, UsageError
from lttd.files import Disk
from lttd.lockfile import Lock, is_locked
from lttd.open_segment import RESERVE_BYTES, SegmentContents
from lttd.opening import locked_trace, prepare_trace, recover_open_segments
from lttd.recorder import Recorder
from lttd.tracedir import create_segment, segment_name
from lttd.view.cli import main as lttv
from tests.fakes import info
from tests.left_segments import left_open, lines_of, recorded, with_tracefs
from tests.segment_builder import SNAPSHOT, Made

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


# -- recording starts whatever the old files contain


def garbage(made: Made) -> None:
    made.paths.manifest.write_bytes(b"\0garbage")


def missing(made: Made) -> None:
    made.paths.manifest.unlink()


def newer(made: Made) -> None:
    value = json.loads(made.paths.manifest.read_bytes()) | {"format_version": 99}
    made.paths.manifest.write_text(json.dumps(value))


def unreadable(made: Made) -> None:
    shutil.rmtree(made.paths.directory)
    made.paths.directory.symlink_to("/nonexistent")


def file_instead(made: Made) -> None:
    shutil.rmtree(made.paths.directory)
    made.paths.directory.touch()


def foreign(made: Made) -> None:
    os.chown(made.paths.directory, NOBODY, NOBODY)


OLD = [garbage, missing, newer, unreadable, file_instead]


@pytest.mark.parametrize("damage", [*OLD, pytest.param(foreign, marks=needs_root)])
@pytest.mark.parametrize("closed", [True, False])
def test_an_old_segment_is_reported_and_left_and_recording_starts(
    tmp_path: Path, damage: Callable[[Made], None], closed: bool
) -> None:
    trace = tmp_path / "t"
    made = recorded(trace).finish() if closed else left_open(trace)
    damage(made)
    before = sorted(trace.rglob("*"))
    disk = Disk()
    with locked_trace(disk, trace, append=True) as number:
        lines = lines_of(recover_open_segments(disk, trace))
        assert sorted(p for p in trace.rglob("*") if p.name != ".lock") == before
        create_segment(disk, trace, segment_name(number, "fake"))
    assert number == 2
    if damage is foreign and closed:
        assert lines == []  # repair need not write to it
    else:
        (line,) = lines
        assert line.startswith(str(made.paths.directory))
        assert line.endswith("; left as it is")


def notes(segment: Path) -> None:
    shutil.rmtree(segment / "streams")
    (segment / "notes.txt").write_text("of somebody's own")


def only_losses(segment: Path) -> None:
    (segment / "streams" / made_stream(segment)).write_bytes(b"")


def only_an_index(segment: Path) -> None:
    only_losses(segment)
    for path in segment.glob("streams/index/*.gaps"):
        path.unlink()


def somebodys_directory(segment: Path) -> None:
    shutil.rmtree(segment / "streams")
    (segment / "streams" / "backup").mkdir(parents=True)


def made_stream(segment: Path) -> str:
    (path,) = (path for path in (segment / "streams").iterdir() if path.is_file())
    return path.name


@pytest.mark.parametrize("damage", [notes, only_losses, only_an_index, somebodys_directory])
def test_a_segment_without_a_manifest_is_removed_only_if_nothing_but_lttds_beginning_is_in_it(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    trace = tmp_path / "t"
    segment = left_open(trace).paths.directory
    (segment / "trace.json").unlink()
    (segment / "synced.json").unlink()
    damage(segment)
    before = sorted(trace.rglob("*"))
    disk = Disk()
    with locked_trace(disk, trace, append=True):
        (line,) = lines_of(recover_open_segments(disk, trace))
    assert line.startswith(str(segment))
    assert line.endswith("; left as it is")
    assert sorted(trace.rglob("*")) == before


@needs_root
@pytest.mark.parametrize("act", ["owner", "mode"])
def test_an_unused_segment_with_a_directory_of_others_is_left_whole(
    tmp_path: Path, act: str
) -> None:
    trace = tmp_path / "t"
    segment = with_tracefs(Made(trace)).paths.directory
    manifest = json.loads((segment / "trace.json").read_text())
    manifest["source"]["rolled_from"] = "20261127T000000Z-000001-fake"  # prepared, and never used
    manifest["streams"] = []
    (segment / "trace.json").write_text(json.dumps(manifest))
    directory = segment / "tracefs" / "events"
    if act == "owner":
        os.chown(directory, NOBODY, NOBODY)
    else:
        directory.chmod(0o770)
    before = sorted(trace.rglob("*"))
    disk = Disk()
    with locked_trace(disk, trace, append=True):
        (line,) = lines_of(recover_open_segments(disk, trace))
    assert line.startswith(f"{directory}: ")
    assert line.endswith("; left as it is")
    assert sorted(trace.rglob("*")) == before


@pytest.mark.parametrize("where", ["tracefs", "tracefs/events"])
def test_cut_reports_a_directory_that_is_too_deep_in_one_line(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = with_tracefs(recorded(tmp_path / "t")).finish()
    at = os.open(made.paths.directory / where, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    assert lttv(["cut", str(tmp_path / "t"), "-o", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "at most 16 levels of directories of a segment are read" in line
    assert not (tmp_path / "out").exists()
    subprocess.run(["rm", "-rf", tmp_path / "t"], check=True)


@pytest.mark.parametrize(
    "name", ["notes.txt", ".cut.k2j3h4", "20261127T000000Z-1000000000000-ftrace"]
)
def test_a_directory_that_is_not_a_segment_is_reported_and_recording_starts(
    tmp_path: Path, name: str
) -> None:
    trace = tmp_path / "t"
    recorded(trace).finish()
    (trace / name).mkdir()
    disk = Disk()
    with locked_trace(disk, trace, append=True) as number:
        assert number == 2
        (line,) = lines_of(recover_open_segments(disk, trace))
    assert line == f"{trace / name}: is not a segment; left as it is"


def test_files_that_a_file_system_makes_itself_do_not_stop_a_recording(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    (trace / "lost+found").mkdir(parents=True)
    (trace / ".nfs0000000000c0ffee").touch()
    trace.chmod(0o750)
    disk = Disk()
    with locked_trace(disk, trace, append=False) as number:
        assert number == 1
        assert recover_open_segments(disk, trace) == []


def test_many_old_segments_are_reported_in_few_lines(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    for number in range(1, 31):
        (trace / f"20261127T000000Z-{number:06d}-ftrace" / "streams").mkdir(parents=True)
        (trace / f"20261127T000000Z-{number:06d}-ftrace" / "trace.json").write_bytes(b"no")
    trace.chmod(0o750)
    disk = Disk()
    with locked_trace(disk, trace, append=True) as number:
        lines = lines_of(recover_open_segments(disk, trace))
    assert (number, len(lines)) == (31, 9)
    assert lines[-1] == f"{trace}: 22 more are left as they are"


def test_a_free_number_follows_the_last_segment_number(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    trace.mkdir(mode=0o750)
    for number in (1, 999_999_999):
        (trace / f"20261127T000000Z-{number:06d}-ftrace").mkdir()
    assert prepare_trace(Disk(), trace, append=True) == 2


# -- nothing half-made is left


def test_a_start_without_enough_descriptors_leaves_no_segment(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    trace.mkdir(mode=0o750)
    source = {"kind": "fake", "spec": "fake", "clock": "mono", "settings": {}}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def made_with(descriptors: int) -> bool:
        disk = Disk(trace)
        streams = (info("fake", 0), info("fake", 1))
        contents = SegmentContents(source, "packed", streams, SNAPSHOT, disk)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
        try:
            segment = Recorder().open_segment(trace, 1, contents)
        except StorageError as error:
            assert error.reason.startswith("too many open files: let lttd open")  # noqa: PT017
            return False
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        segment._close_files()
        return True

    gc.collect()  # so that no file of another test is closed during this one
    before = os.listdir("/proc/self/fd")
    failed = 0
    while not made_with(failed):
        assert os.listdir(trace) == []
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == len(before)
        failed += 1
    assert failed > len({"trace", "segment", "lock", "data", "index"})
    assert len(os.listdir(trace)) == 1


@pytest.mark.parametrize("repairing", [[], ["--repair"]])
def test_an_unreadable_segment_does_not_stop_check_and_repair_of_others(
    tmp_path: Path, repairing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t"
    (recorded(trace, number=1).finish().paths.manifest).write_bytes(b"garbage")
    left_open(trace, number=2)
    assert lttv(["check", *repairing, "--json", str(trace)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert "no manifest" in told["findings"][0]["reason"]
    after = "closed" if repairing else "open"
    assert [each["state"] for each in told["segments"]] == ["unreadable", after]
    assert len(told["findings"]) == (1 if repairing else 2)


def test_repair_frees_the_room_that_a_segment_had_before_it_held_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t"
    trace.mkdir(mode=0o750)
    paths = create_segment(Disk(), trace, segment_name(1, "fake"))
    reserve = Disk(paths.directory).open(paths.reserve)
    reserve.preallocate(0, RESERVE_BYTES)
    reserve.close()
    assert lttv(["check", str(trace)]) == 0
    assert paths.reserve.exists(), "check alone changes nothing"
    assert lttv(["check", "--repair", str(trace)]) == 0
    assert not paths.reserve.exists()
    assert "recording ended before anything was recorded" in capsys.readouterr().out


def test_a_read_only_segment_does_not_stop_repair_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t"
    made = left_open(trace, number=1)
    stream = made.paths.streams / made_stream(made.paths.directory)
    os.link(stream, tmp_path / "elsewhere")
    left_open(trace, number=2)
    assert lttv(["check", "--repair", str(trace)]) == 1
    printed = capsys.readouterr().out
    assert f"{stream}: byte 0: has 2 names" in printed
    assert "damaged, 1 finding: 2 segments" in printed


def test_follow_leaves_out_a_segment_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t"
    (recorded(trace, number=1).finish().paths.manifest).write_bytes(b"garbage")
    recorded(trace, number=2).finish()
    assert lttv(["follow", "--until-closed", str(trace)]) == 0
    assert "its segment is left out" in capsys.readouterr().err


def test_a_viewer_that_asks_for_the_holder_of_a_lock_does_not_block_it(tmp_path: Path) -> None:
    trace, ended = OpenDirectory.open(tmp_path), threading.Event()
    path = tmp_path / ".lock"
    path.touch(0o600)

    def ask() -> None:
        while not ended.is_set():
            is_locked(trace.place(path))

    viewers = [threading.Thread(target=ask) for _ in range(2)]
    for viewer in viewers:
        viewer.start()
    try:
        for _ in range(1000):
            Lock(trace, path).release()
            path.touch(0o600)
    finally:
        ended.set()
        for viewer in viewers:
            viewer.join()


def test_a_path_through_a_missing_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / ".." / "t"
    with (
        pytest.raises(UsageError, match=r"missing does not exist, so \.\. leads nowhere"),
        locked_trace(Disk(), missing, append=False),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_trace_is_made_with_all_its_missing_parents(tmp_path: Path) -> None:
    far = tmp_path.joinpath(*"d" * 1200)
    with locked_trace(Disk(), far, append=False) as number:
        assert number == 1
    assert list(tmp_path.iterdir()) == []
