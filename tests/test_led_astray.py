"""Nothing in a trace leads lttd or lttv out of it, or makes them wait."""

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from lttd.compress import compress, decompress, tidy
from lttd.errors import LttdError, StorageError, TraceDamagedError, UsageError
from lttd.files import Disk
from lttd.lockfile import Lock, is_locked
from lttd.manifest import Manifest
from lttd.opening import locked_trace, recover_open_segments
from lttd.recover import recover
from lttd.tracedir import SegmentPaths, create_segment, segment_name, segments
from lttd.view.cli import main as lttv
from lttd.view.commands.cut import cut
from lttd.view.times import EVERYTHING
from lttd.view.trace import Trace
from lttd.view.verify import check
from tests.left_segments import left_open, lines_of, recorded, with_tracefs
from tests.segment_builder import Made, segment_at, subbuffer

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


def files_of(made: Made) -> list[str]:
    found = [p for p in sorted(made.paths.directory.rglob("*")) if p.is_file()]
    return [str(path.relative_to(made.paths.directory)) for path in found]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    return path


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


@needs_root
@pytest.mark.parametrize("name", ["compressed", "compressed/index", ".new-compressed", "streams"])
@pytest.mark.parametrize("act", ["owner", "mode", "link"])
@pytest.mark.parametrize("change", [compress, decompress, recover, tidy])
def test_a_compressed_segment_with_a_directory_of_others_is_not_written_to(
    tmp_path: Path, name: str, act: str, change: Callable[[SegmentPaths, Disk], object]
) -> None:
    made = recorded(tmp_path / "t").finish()
    compress(made.paths, Disk())
    path = made.paths.directory / name
    path.mkdir(exist_ok=True)
    if act == "owner":
        os.chown(path, NOBODY, NOBODY)
    elif act == "mode":
        path.chmod(0o757)
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    says = "belongs to user 65534|other users may write to it|Not a directory"
    with pytest.raises(StorageError, match=f"{path}: ({says})"):
        change(made.paths, Disk())
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


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
        create_segment(disk, trace, segment_name(number, "fake"))
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
        paths = create_segment(disk, tmp_path / "t", segment_name(number, "fake"))
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
        create_segment(disk, parent / "new" / "t", segment_name(number, "fake"))
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


FILE_TYPES: dict[str, Callable[[Path], None]] = {
    "fifo": os.mkfifo,
    "socket": a_socket,
    "directory": os.mkdir,
    "link": lambda path: os.symlink("/proc/self/maps", path),
}


@pytest.mark.parametrize("file_type", sorted(FILE_TYPES))
def test_a_wrong_kind_of_file_in_place_of_a_lock_is_refused_with_a_remedy(
    tmp_path: Path, file_type: str
) -> None:
    trace = tmp_path / "t"
    trace.mkdir(mode=0o750)
    FILE_TYPES[file_type](trace / ".lock")
    with (
        pytest.raises(StorageError, match=r"\.lock: .*; it is not a lock file of lttd: remove it"),
        locked_trace(Disk(), trace, append=False),
    ):
        pass


FILES = ["trace.json", "synced.json", "streams/fake_0", "streams/index/fake_0.idx"]
FILES += ["streams/index/fake_0.gaps", "tracefs/commands"]


FILES += ["tracefs/events/sched/sched_switch/format", "tracefs/formats.gz"]


@pytest.mark.parametrize("file_type", FILE_TYPES)
@pytest.mark.parametrize("name", FILES)
def test_every_command_ends_whatever_kind_of_file_is_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, file_type: str
) -> None:
    made = with_tracefs(recorded(tmp_path / "t")).finish()
    path = made.paths.directory / name
    path.unlink()
    FILE_TYPES[file_type](path)
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
