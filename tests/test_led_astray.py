"""Nothing in a trace leads lttd or lttv out of it, or makes them wait."""

import gc
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from lttd.abi.formats_file import pack
from lttd.beneath import OpenDirectory
from lttd.errors import LttdError, StorageError, TraceDamagedError, UsageError
from lttd.files import Disk, Lock, is_locked
from lttd.manifest import Manifest
from lttd.open_segment import RESERVE_BYTES, SegmentContents
from lttd.recorder import Recorder
from lttd.recording import Recovered, locked_trace, recover_open_segments
from lttd.recover import recover
from lttd.tracedir import create_segment, prepare_trace, segments
from lttd.view.cli import main as lttv
from lttd.view.commands.cut import cut
from lttd.view.times import EVERYTHING
from lttd.view.trace import Trace
from lttd.view.verify import check
from tests.fakes import info
from tests.segment_builder import SNAPSHOT, Made, segment_at, subbuffer

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def recorded(trace: Path, *, number: int = 1) -> Made:
    made = Made(trace, number=number)
    made.append([subbuffer(0), subbuffer(1)], trailing_loss=3)
    made.sync()
    return made


def left_open(trace: Path, *, number: int = 1) -> Made:
    """A segment of a killed lttd, with more data than its synced record covers."""
    made = recorded(trace, number=number)
    made.append([subbuffer(2)])
    return made.leave()


def with_tracefs(made: Made) -> Made:
    events = made.paths.directory / "tracefs" / "events" / "sched" / "sched_switch"
    events.mkdir(parents=True)
    (events / "format").write_bytes(b'name: sched_switch\nID: 314\nformat:\n\nprint fmt: ""\n')
    (events.parents[2] / "formats.gz").write_bytes(pack({("irq", "irq_entry"): b"ID: 315\n"}))
    (events.parents[2] / "commands").write_bytes(b"1\t1\t1\tinit\n")
    return made


def files_of(made: Made) -> list[str]:
    found = [p for p in sorted(made.paths.directory.rglob("*")) if p.is_file()]
    return [str(path.relative_to(made.paths.directory)) for path in found]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    return path


def lines_of(found: Sequence[Recovered]) -> list[str]:
    return [one.line for one in found]


# -- nothing outside is written to

WRITTEN = ["trace.json", "synced.json", "streams/fake_0", "streams/index/fake_0.idx"]
WRITTEN += ["streams/index/fake_0.gaps"]


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_repair_does_not_write_through_a_link(
    tmp_path: Path, victim: Path, name: str, link: Callable[[Path, Path], None]
) -> None:
    made = left_open(tmp_path / "t")
    made.paths.synced.unlink()
    path = made.paths.directory / name
    if name == "trace.json":
        shutil.copy(path, victim)
    before = victim.read_bytes()
    path.unlink(missing_ok=True)
    link(victim, path)
    with suppress(LttdError):  # repair writes a new synced.json
        recover(made.paths, Disk())
    assert victim.read_bytes() == before


@pytest.mark.parametrize("name", [".trace.json.new", ".synced.json.new", ".reserve", ".lock"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_temporary_that_is_a_link_is_removed_or_refused_and_not_written_through(
    tmp_path: Path, victim: Path, name: str, link: Callable[[Path, Path], None]
) -> None:
    made = left_open(tmp_path / "t")
    link(victim, made.paths.directory / name)
    before = victim.stat()
    if name == ".lock":
        with pytest.raises(StorageError, match=r"symbolic link|2 names"):
            recover(made.paths, Disk())
    else:
        recover(made.paths, Disk())
        assert check(made.paths).whole
        assert not (made.paths.directory / name).exists()
    assert victim.read_bytes() == b"precious"
    assert victim.stat().st_mode == before.st_mode


@pytest.mark.parametrize("name", ["streams", "streams/index"])
def test_a_linked_directory_is_not_followed_by_repair(tmp_path: Path, name: str) -> None:
    made = left_open(tmp_path / "t")
    path = made.paths.directory / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    before = {p: p.read_bytes() for p in (tmp_path / "elsewhere").rglob("*") if p.is_file()}
    with pytest.raises(LttdError):
        recover(made.paths, Disk())
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
@pytest.mark.parametrize("name", ["streams", "streams/index"])
@pytest.mark.parametrize("act", ["owner", "mode"])
def test_a_directory_of_a_segment_that_others_can_write_to_is_not_written_to(
    tmp_path: Path, name: str, act: str
) -> None:
    made = left_open(tmp_path / "t")
    path = made.paths.directory / name
    if act == "owner":
        os.chown(path, 65534, 65534)
    else:
        path.chmod(0o770)
    before = {p: p.read_bytes() for p in made.paths.directory.rglob("*") if p.is_file()}
    with pytest.raises(StorageError, match=r"belongs to user 65534|other users may write to it"):
        recover(made.paths, Disk())
    assert {p: p.read_bytes() for p in made.paths.directory.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_trace_path_that_is_a_dangling_link_is_refused_with_a_remedy(
    tmp_path: Path, below: str
) -> None:
    (tmp_path / "link").symlink_to("missing")
    says = "link is a symbolic link, and what it leads to is not a directory; make that, or name"
    with (
        pytest.raises(UsageError, match=says),
        locked_trace(Disk(), Path(f"{tmp_path}/link{below}"), append=False),
    ):
        pass
    assert os.listdir(tmp_path) == ["link"]


def test_append_reports_links_in_one_line_and_records(tmp_path: Path, victim: Path) -> None:
    trace = tmp_path / "t"
    made = left_open(trace)
    data = made.paths.stream("fake_0").data
    data.unlink()
    data.symlink_to(victim)
    disk = Disk()
    with locked_trace(disk, trace, append=True) as number:
        (line,) = lines_of(recover_open_segments(disk, trace))
        create_segment(disk, trace, number, "fake")
    assert "a symbolic link" in line
    assert line.endswith("left as it is")
    assert victim.read_bytes() == b"precious"


def test_a_closed_segment_with_hard_links_is_left_alone_and_recording_starts(
    tmp_path: Path,
) -> None:
    trace = tmp_path / "t"
    made = recorded(trace).finish()
    for name in files_of(made):
        os.link(made.paths.directory / name, tmp_path / name.replace("/", "-"))
    disk = Disk()
    with locked_trace(disk, trace, append=True) as number:
        assert recover_open_segments(disk, trace) == []
        assert number == 2
    assert check(made.paths).whole


def test_a_trace_may_be_named_by_a_link_which_is_resolved_once(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o750)
    (tmp_path / "t").symlink_to("real")
    (tmp_path / "other").mkdir()
    disk = Disk()
    with locked_trace(disk, tmp_path / "t", append=False) as number:
        (tmp_path / "t").unlink()
        (tmp_path / "t").symlink_to("other")
        paths = create_segment(disk, tmp_path / "t", number, "fake")
        disk.replace(paths.manifest, b"{}")
    assert os.listdir(tmp_path / "other") == []
    assert (tmp_path / "real" / paths.directory.name / "trace.json").read_bytes() == b"{}"


def test_a_live_segment_keeps_its_writes_after_a_rename_and_replacement(
    tmp_path: Path, victim: Path
) -> None:
    trace = tmp_path / "t"
    made = recorded(trace)
    there = made.paths.directory.rename(tmp_path / "moved")
    hostile = made.paths.directory
    (hostile / "streams" / "index").mkdir(parents=True)
    for name in ("trace.json", "synced.json", ".synced.json.new", "streams/index/fake_0.gaps"):
        (hostile / name).symlink_to(victim)
    made.append([subbuffer(2)])
    made.finish()
    assert victim.read_bytes() == b"precious"
    assert all((hostile / name).is_symlink() for name in ("trace.json", "synced.json"))
    assert Manifest.read(there / "trace.json").state == "closed"


# -- who may write where


@needs_root
def test_a_trace_of_another_user_is_not_written_to(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    made = left_open(trace)
    os.chown(trace, NOBODY, NOBODY)
    with pytest.raises(UsageError, match=rf"t: belongs to user {NOBODY}"):
        locked_trace(Disk(), trace, append=True).__enter__()
    with pytest.raises(StorageError, match=rf"belongs to user {NOBODY}"):
        recover(segments(trace)[0], Disk())
    assert Trace(trace).state == "open"
    assert not made.paths.lock.exists()


@pytest.mark.parametrize("mode", [0o770, 0o757])
def test_a_trace_that_others_may_write_to_is_not_written_to(tmp_path: Path, mode: int) -> None:
    trace = tmp_path / "t"
    left_open(trace)
    trace.chmod(mode)
    with pytest.raises(UsageError, match="chmod go-w"):
        locked_trace(Disk(), trace, append=True).__enter__()


@needs_root
def test_the_parents_of_a_trace_may_belong_to_anybody(tmp_path: Path) -> None:
    parent = tmp_path / "home"
    parent.mkdir(mode=0o777)
    os.chown(parent, NOBODY, NOBODY)
    disk = Disk()
    with locked_trace(disk, parent / "new" / "t", append=False) as number:
        (parent / "new").rename(parent / "away")
        (parent / "new").symlink_to("/etc")
        create_segment(disk, parent / "new" / "t", number, "fake")
    assert len(os.listdir(parent / "away" / "t")) == 1


# -- locks


@needs_root
def test_a_user_with_read_permission_cannot_lock_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    recorded(trace).finish()
    trace.chmod(0o755)
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(path.stat().st_mode | 0o055)
    code = (
        "import fcntl, os, sys, time\n"
        f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        f"for path in ({str(trace)!r}, {str(segments(trace)[0].directory)!r}):\n"
        "    try: fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)\n"
        "    except PermissionError: pass\n"
        "print('locked', flush=True); sys.stdin.read()\n"
    )
    attacker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert attacker.stdout is not None
    try:
        assert attacker.stdout.readline() == "locked\n"
        with locked_trace(Disk(), trace, append=True) as number:
            assert number == 2
            assert stat.S_IMODE((trace / ".lock").stat().st_mode) == 0o600
    finally:
        attacker.communicate("")


def test_a_lock_file_that_a_kill_left_is_taken_over_and_removed(tmp_path: Path) -> None:
    base = segment_at(tmp_path).base
    path = tmp_path / ".lock"
    path.touch(mode=0o644)
    assert not is_locked(base.place(path))
    lock = Lock(base, path)
    assert is_locked(base.place(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lock.release()
    assert not path.exists()


# -- files that are not regular are neither read nor waited for


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "socket": a_socket,
    "directory": os.mkdir,
    "link": lambda path: os.symlink("/proc/self/maps", path),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_wrong_kind_of_file_in_place_of_a_lock_is_refused_with_a_remedy(
    tmp_path: Path, kind: str
) -> None:
    trace = tmp_path / "t"
    trace.mkdir(mode=0o750)
    KINDS[kind](trace / ".lock")
    with (
        pytest.raises(StorageError, match=r"\.lock: .*; it is not a lock file of lttd: remove it"),
        locked_trace(Disk(), trace, append=False),
    ):
        pass


FILES = ["trace.json", "synced.json", "streams/fake_0", "streams/index/fake_0.idx"]
FILES += ["streams/index/fake_0.gaps", "tracefs/commands"]
FILES += ["tracefs/events/sched/sched_switch/format", "tracefs/formats.gz"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_every_command_ends_whatever_kind_of_file_is_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    made = with_tracefs(recorded(tmp_path / "t")).finish()
    path = made.paths.directory / name
    path.unlink()
    KINDS[kind](path)
    trace, out = str(tmp_path / "t"), str(tmp_path / "out")
    for words in (
        ["info", trace], ["text", trace], ["check", trace], ["formats", trace],
        ["cut", trace, "-o", out], ["export", trace, "--to", "trace.dat", "-o", f"{out}.dat"],
        ["export", trace, "--to", "ctf", "-o", f"{out}.ctf"], ["check", "--repair", trace],
    ):  # fmt: skip
        assert lttv(words) in (0, 1, 2), words
        told = capfd.readouterr()
        assert "Traceback" not in told.err
        assert "[vdso]" not in told.out
    found = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_symlink()]
    assert not any(b"[vdso]" in each.read_bytes() for each in found)


def test_check_names_the_kind_of_file_in_place_of_data(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t").finish()
    data = made.paths.stream("fake_0").data
    data.unlink()
    os.mkfifo(data)
    assert [str(one) for one in check(made.paths).findings] == [
        f"{data}: byte 0: a FIFO, not a regular file"
    ]


def test_cut_refuses_to_copy_the_target_of_a_link(tmp_path: Path, victim: Path) -> None:
    made = with_tracefs(recorded(tmp_path / "t")).finish()
    (made.paths.directory / "tracefs" / "saved_tgids").symlink_to(victim)
    with pytest.raises(TraceDamagedError, match="saved_tgids: byte 0: a symbolic link"):
        cut(Trace(tmp_path / "t"), EVERYTHING, tmp_path / "c")
    assert not (tmp_path / "c").exists()


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
        create_segment(disk, trace, number, "fake")
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
    paths = create_segment(Disk(), trace, 1, "fake")
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
