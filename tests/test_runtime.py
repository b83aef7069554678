"""The runtime directory: its owner, its notes, and whether their writer lives."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lttd.errors import LockedError, LttdError, NothingToRecordError
from lttd.limits import NOTE
from lttd.runtime import (
    ROOTS_DIRECTORY,
    Note,
    Recorder,
    RuntimeDirectory,
    directory_path,
    known_notes,
    remove_half_made,
)


@pytest.fixture
def directory() -> RuntimeDirectory:
    return RuntimeDirectory()


def held(directory: RuntimeDirectory, name: str) -> Note:
    note = directory.hold(name)
    assert note is not None
    return note


def test_root_and_users_have_directories_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/first:/run/second")
    assert directory_path() == "/run/first"
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert directory_path() == ROOTS_DIRECTORY
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert directory_path() == "/run/user/1000/lttd"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(NothingToRecordError, match="XDG_RUNTIME_DIR is not set"):
        directory_path()


def test_the_runtime_directory_and_its_notes_are_private(
    directory: RuntimeDirectory, runtime_directory: Path
) -> None:
    directory.create("note", b"text").release()
    assert stat.S_IMODE(runtime_directory.stat().st_mode) & 0o027 == 0
    assert stat.S_IMODE((runtime_directory / "note").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o770, 0o757, 0o1777])
def test_a_runtime_directory_that_others_can_write_to_is_refused(
    runtime_directory: Path, mode: int
) -> None:
    runtime_directory.mkdir()
    runtime_directory.chmod(mode)
    with pytest.raises(NothingToRecordError, match="others can write in it"):
        RuntimeDirectory()
    assert known_notes() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_a_runtime_directory_of_another_user_is_refused(runtime_directory: Path) -> None:
    runtime_directory.mkdir(0o700)
    os.chown(runtime_directory, 65534, 65534)
    with pytest.raises(NothingToRecordError, match="others can write in it"):
        RuntimeDirectory()


def test_a_symlink_in_place_of_the_runtime_directory_is_refused(
    runtime_directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    runtime_directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NothingToRecordError):
        RuntimeDirectory()


def test_a_note_is_held_by_its_maker_until_it_dies(
    directory: RuntimeDirectory,
) -> None:
    note = directory.create("note", b"one\n")
    with pytest.raises(LockedError):
        directory.hold("note")
    with pytest.raises(FileExistsError):
        directory.create("note", b"")
    note.append(b"two\n")
    note.release()  # as the end of a process closes it
    again = held(directory, "note")
    assert again.content() == b"one\ntwo\n"
    again.append(b"three\n")
    assert again.content() == b"one\ntwo\nthree\n"
    again.remove()
    assert directory.hold("note") is None
    assert directory.names() == []


def test_a_replaced_note_is_held_at_once_by_the_replacer(
    directory: RuntimeDirectory,
) -> None:
    old = directory.create("note", b"old")
    new = directory.replace("note", b"new")
    with pytest.raises(LockedError):
        directory.hold("note")
    old.release()
    with pytest.raises(LockedError):
        directory.hold("note")
    new.release()
    assert held(directory, "note").content() == b"new"


@pytest.mark.parametrize("file_type", ["link", "fifo", "directory", "giant", "others"])
def test_a_file_that_lttd_did_not_write_is_not_a_note(
    directory: RuntimeDirectory, runtime_directory: Path, tmp_path: Path, file_type: str
) -> None:
    path = runtime_directory / "note"
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    if file_type == "link":
        path.symlink_to(victim)
    elif file_type == "fifo":
        os.mkfifo(path, 0o600)
    elif file_type == "directory":
        path.mkdir()
    else:
        path.touch(0o600)
        if file_type == "giant":
            os.truncate(path, NOTE.most + 1)
        else:
            path.chmod(0o666)
    assert directory.hold("note") is None
    assert directory.read("note") is None
    with pytest.raises(NothingToRecordError):
        directory.open_claim("note")
    assert victim.read_text() == "untouched"


def test_a_killed_process_releases_its_note(directory: RuntimeDirectory) -> None:
    program = (
        "import os, signal; from lttd.runtime import RuntimeDirectory;"
        "note = RuntimeDirectory().create('note', b'x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", program], check=False, env=environment)
    assert held(directory, "note").content() == b"x"
    assert directory.names() == ["note"]


def test_a_note_that_a_kill_left_without_its_name_is_removed(
    directory: RuntimeDirectory, runtime_directory: Path
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".new-{dead.pid}-0", f".new-{os.getpid()}-7", ".new-x", ".other"):
        (runtime_directory / name).touch(0o600)
    remove_half_made()
    assert sorted(os.listdir(runtime_directory)) == [f".new-{os.getpid()}-7", ".new-x", ".other"]


def test_a_recorder_is_known_by_pid_start_and_namespace() -> None:
    this = Recorder.this()
    assert this.pid == os.getpid()
    assert this.start_ticks > 0
    assert this.pid_namespace == Path("/proc/self/ns/pid").stat().st_ino


@pytest.mark.parametrize(
    ("number", "status"), [(errno.ENOSPC, 1), (errno.EMFILE, 1), (errno.EACCES, 77)]
)
def test_a_passing_failure_gives_a_status_that_allows_another_start(
    directory: RuntimeDirectory, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(LttdError, match=os.strerror(number)) as raised:
        directory.create("note", b"text")
    assert raised.value.exit_status == status
    assert directory.names() == []
