"""After kill -9 the next lttd takes over the rings, the settings and the losses that are left."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lttd.runtime import RuntimeDirectory
from lttd.sources.base import NO_OWNER
from lttd.sources.ftrace.record import InstanceRecord, record_name
from tests.instances import mark
from tests.killed_runs import BRIEF, age, data_of, killed, notes, records
from tests.running import (
    Launcher,
    assert_whole,
    needs_kernel,
)

pytestmark = needs_kernel()
# As the shipped unit, which cannot ask the kernel for a file handle.
UNABLE = ("setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-all")


def step_wall_clock(lttd: Launcher, seconds: float) -> None:
    """Set the files' own times back, as if the wall clock had been set ahead since."""
    moment = time.clock_gettime(time.CLOCK_REALTIME) - seconds
    for path in notes(lttd):
        os.utime(path, (moment, moment))


@pytest.fixture
def foreign(foreign: Path) -> Path:
    """The foreign instance with tracing turned off."""
    (foreign / "tracing_on").write_text("0")
    return foreign


# -- to which trace a ring belongs


def test_the_ring_of_a_killed_run_is_drained_into_its_own_trace_only(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = killed(lttd, tmp_path / "a", "of a alone")
    other = lttd.run("-t", tmp_path / "b", *BRIEF)
    assert other.process.returncode == 0
    (line,) = other.lines
    assert f"{run.instance}: left by an lttd that was killed (pid {run.process.pid})" in line
    assert f"it holds 3 events of {tmp_path}/a and records on" in line
    assert f"lttd --append -t {tmp_path}/a keeps them, rmdir {run.instance} discards them" in line
    assert b"of a alone" not in data_of(tmp_path / "b")
    assert (run.instance / "tracing_on").read_text() == "1\n"
    again = lttd.run("-t", tmp_path / "a", "--append", *BRIEF)
    assert again.process.returncode == 0
    assert data_of(tmp_path / "a").count(b"of a alone") == 3
    assert_whole(tmp_path / "a", "--events")
    assert lttd.left() == []
    assert records(lttd) == []


def test_a_renamed_trace_gets_its_ring(lttd: Launcher, tmp_path: Path) -> None:
    killed(lttd, tmp_path / "a", "renamed")
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    other = lttd.run("-t", tmp_path / "b", *BRIEF)
    assert "removed, and" not in other.stderr, "it is there under another name"
    assert lttd.run("-t", tmp_path / "elsewhere", "-a", *BRIEF).process.returncode == 0
    assert b"renamed" in data_of(tmp_path / "elsewhere")
    assert records(lttd) == []


@pytest.mark.parametrize("under", [(), UNABLE], ids=["root", "as-the-service"])
def test_a_trace_that_was_moved_anywhere_on_its_disk_gets_its_ring(
    lttd: Launcher, tmp_path: Path, under: Sequence[str]
) -> None:
    run = killed(lttd, tmp_path / "a", "moved")
    (tmp_path / "archive" / "old").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "archive" / "old" / "a")
    other = lttd.run("-t", tmp_path / "b", *BRIEF, under=under)
    assert other.process.returncode == 0
    assert f"events of {tmp_path}/a, which is not there now (moved, removed" in other.stderr
    assert run.instance.is_dir()
    moved = tmp_path / "archive" / "old" / "a"
    assert lttd.run("-t", moved, "-a", *BRIEF).process.returncode == 0
    assert b"moved" in data_of(moved)
    assert records(lttd) == []


@pytest.mark.parametrize("capabilities", ["all", "without CAP_DAC_READ_SEARCH"])
def test_a_start_with_another_tmp_does_not_consider_a_trace_there_gone(
    lttd: Launcher, tmp_path: Path, capabilities: str
) -> None:
    """PrivateTmp= of systemd mounts another directory of the same file system on /tmp."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "private").mkdir()
    run = killed(lttd, tmp_path / "tmp" / "a", "hidden")
    around = ["unshare", "--mount", "sh", "-c"]
    around += [f'mount --bind {tmp_path}/private {tmp_path}/tmp && exec "$@"', "sh"]
    if capabilities != "all":
        around += UNABLE
    other = lttd.run("-t", tmp_path / "b", *BRIEF, under=around)
    assert other.process.returncode == 0
    (line,) = other.lines
    assert "removed, and" not in line
    assert run.instance.exists()
    lttd.run("-t", tmp_path / "tmp" / "a", "-a", *BRIEF)
    assert b"hidden" in data_of(tmp_path / "tmp" / "a")


def test_a_copied_trace_does_not_get_the_ring_of_the_original(
    lttd: Launcher, tmp_path: Path
) -> None:
    killed(lttd, tmp_path / "a", "original")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    lttd.run("-t", tmp_path / "copy", "-a", *BRIEF)
    assert b"original" not in data_of(tmp_path / "copy")
    lttd.run("-t", tmp_path / "a", "-a", *BRIEF)
    assert b"original" in data_of(tmp_path / "a")


def test_a_ring_whose_recorder_is_long_dead_is_switched_off_and_keeps_its_data(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = killed(lttd, tmp_path / "a", "kept")
    age(lttd, 61)
    (line,) = lttd.run("-t", tmp_path / "b", *BRIEF).lines
    assert "its tracing was on and is off now" in line
    assert (run.instance / "tracing_on").read_text() == "0\n"
    (line,) = lttd.run("-t", tmp_path / "c", *BRIEF).lines
    assert "it holds 3 events" in line
    assert " off now" not in line
    lttd.run("-t", tmp_path / "a", "-a", *BRIEF)
    assert data_of(tmp_path / "a").count(b"kept") == 3


def test_the_wall_clock_does_not_say_how_long_a_recorder_has_been_dead(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = killed(lttd, tmp_path / "a")
    step_wall_clock(lttd, 86_400)
    (line,) = lttd.run("-t", tmp_path / "b", *BRIEF).lines
    assert "records on" in line
    age(lttd, 61)
    step_wall_clock(lttd, -86_400)
    (line,) = lttd.run("-t", tmp_path / "c", *BRIEF).lines
    assert "its tracing was on and is off now" in line
    assert run.instance.is_dir()
    lttd.run("-t", tmp_path / "a", "-a", *BRIEF)


def test_a_ring_is_turned_off_and_kept_if_lttd_cannot_ask_for_its_trace(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = killed(lttd, tmp_path / "a", times=7)
    shutil.rmtree(tmp_path / "a")
    age(lttd, 61)
    (line,) = lttd.run("-t", tmp_path / "b", *BRIEF, under=UNABLE).lines
    assert f"7 events of {tmp_path}/a, which is not there now (moved, removed" in line
    assert "its tracing was on and is off now" in line
    assert f"rmdir {run.instance} discards them" in line
    (line,) = lttd.run("-t", tmp_path / "c", *BRIEF).lines
    assert "removed, and 7 events with it" in line, "root can ask"


def test_the_ring_of_a_trace_that_is_gone_is_removed_and_its_events_are_counted(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = killed(lttd, tmp_path / "a", times=7)
    shutil.rmtree(tmp_path / "a")
    (line,) = lttd.run("-t", tmp_path / "b", *BRIEF).lines
    assert str(run.instance) in line
    assert f"whose trace {tmp_path}/a is gone, too: removed, and 7 events with it" in line
    assert lttd.left() == []
    assert records(lttd) == []


def test_the_ring_of_another_trace_is_not_recorded_by_its_instances_name(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = killed(lttd, tmp_path / "a", "of a alone")
    by_name = ("--source", f"ftrace:{run.instance.name}", "--duration", "50ms")
    for trace in ("a", "b"):
        other = lttd.run("-t", tmp_path / trace, "-a", *by_name)
        assert other.process.returncode == 2
        (line,) = [line for line in other.lines if run.instance.name in line]
        assert f"lttd --append -t {tmp_path}/a keeps it" in line
    lttd.run("-t", tmp_path / "a", "-a", *BRIEF)
    assert data_of(tmp_path / "a").count(b"of a alone") == 3
    assert records(lttd) == []


def test_an_instance_whose_name_is_not_utf8_is_refused_in_a_line(
    lttd: Launcher, tmp_path: Path
) -> None:
    path = lttd.instances / os.fsdecode(lttd.prefix.encode() + b"\xff")
    path.mkdir()
    try:
        refused = lttd.run("-t", tmp_path / "a", "--source", f"ftrace:{path.name}")
        assert refused.process.returncode == 2
        (line,) = refused.lines
        assert "this name of an instance is not UTF-8" in line
        assert not (tmp_path / "a").exists()
    finally:
        path.rmdir()


def test_a_new_trace_with_the_inode_of_a_removed_one_is_not_taken_for_it(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = killed(lttd, tmp_path / "a", "of the removed", times=7)
    (tmp_path / "b").mkdir()
    # File systems reuse inode numbers soon, but not on request.
    record = lttd.runtime / record_name(run.instance.name)
    inode, taken_over = (tmp_path / "a").stat().st_ino, (tmp_path / "b").stat().st_ino
    shutil.rmtree(tmp_path / "a")
    record.write_text(record.read_text().replace(f'"inode": {inode}', f'"inode": {taken_over}'))
    (line,) = lttd.run("-t", tmp_path / "b", *BRIEF).lines
    assert "is gone, too: removed, and 7 events with it" in line
    assert b"of the removed" not in data_of(tmp_path / "b")
    assert records(lttd) == []


def test_an_instance_without_a_record_is_left_alone_and_reported(
    lttd: Launcher, tmp_path: Path
) -> None:
    path = lttd.instances / f"{lttd.prefix}43"
    path.mkdir()
    try:
        (line,) = lttd.run("-t", tmp_path / "a", *BRIEF).lines
        assert f"{path}: no record says that lttd made it" in line
        assert f"rmdir {path} removes it" in line
        assert path.is_dir()
    finally:
        path.rmdir()


def test_an_instance_made_anew_under_the_name_of_a_killed_run_is_left_alone(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = killed(lttd, tmp_path / "a")
    run.instance.rmdir()
    run.instance.mkdir()
    try:
        for name in ("b", "a"):
            again = lttd.run("-t", tmp_path / name, "--append", *BRIEF)
            assert "no record says that lttd made it" in again.stderr
            assert run.instance.is_dir()
        assert records(lttd) == []
    finally:
        run.instance.rmdir()


def test_the_empty_ring_of_a_killed_run_is_removed_silently(lttd: Launcher, tmp_path: Path) -> None:
    run = killed(lttd, tmp_path / "a", times=0)
    (lttd.runtime / f"progress-{run.instance.name}").unlink()
    assert lttd.run("-t", tmp_path / "b", *BRIEF).stderr == ""
    assert lttd.left() == []
    assert records(lttd) == []


def test_a_record_of_another_boot_or_another_program_changes_nothing(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    run = killed(lttd, tmp_path / "a")
    record = lttd.runtime / record_name(run.instance.name)
    text = record.read_text()
    head = json.loads(text.splitlines()[0])
    (lttd.runtime / "ftrace-forged").write_text(
        json.dumps({**head, "instance": foreign.name, "own": False})
        + '\n{"file": "../../../../../etc/motd", "before": "0", "after": "1"}\n'
    )
    os.mkfifo(lttd.runtime / "ftrace-fifo")
    (lttd.runtime / "ftrace-link").symlink_to(record)
    record.write_text(text.replace(head["boot_id"], "another"))
    other = lttd.run("-t", tmp_path / "b", *BRIEF)
    assert other.process.returncode == 0
    assert "is not a setting that lttd changes" in other.stderr
    assert run.instance.is_dir(), "nobody knows whose it is"
    assert not record.exists()
    run.instance.rmdir()


@pytest.mark.parametrize("what", ["nothing", "events", "a mark", "an older record"])
def test_an_instance_that_a_kill_left_before_its_record_had_its_inode_is_removed(
    lttd: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(lttd.runtime))
    path = lttd.instances / f"{lttd.prefix}4194305"
    InstanceRecord.create(RuntimeDirectory(), path.name, NO_OWNER, own=True).release()
    record = lttd.runtime / record_name(path.name)
    record.write_text(record.read_text().replace(f'"pid": {os.getpid()},', '"pid": 4194305,'))
    path.mkdir()
    if what == "events":
        (path / "events/sched/sched_process_hang/enable").write_text("1")
    elif what == "a mark":
        mark(path, "somebody's")
    elif what == "an older record":
        moment = path.stat().st_ctime - 2
        os.utime(record, (moment, moment))
    lines = lttd.run("-t", tmp_path / "a", *BRIEF).lines
    assert path.is_dir() == (what != "nothing")
    assert records(lttd) == []
    if what == "nothing":
        assert lines == []
    else:
        assert "no record says that lttd made it" in lines[0]
        path.rmdir()


@pytest.mark.parametrize("name", [".", "..", "", "../x", "a/b", "another"])
def test_a_record_that_does_not_name_its_instance_is_reported(
    lttd: Launcher, tmp_path: Path, name: str
) -> None:
    run = killed(lttd, tmp_path / "a")
    record = lttd.runtime / record_name(run.instance.name)
    forged = record.with_name("ftrace-forged")
    forged.write_text(record.read_text().replace(f'"{run.instance.name}"', json.dumps(name)))
    forged.chmod(0o600)
    for trace in ("b", "c"):
        (line,) = [one for one in lttd.run("-t", tmp_path / trace, *BRIEF).lines if "forged" in one]
        assert "lttd did not write it: remove it" in line
    assert forged.exists()
    lttd.run("-t", tmp_path / "a", "-a", *BRIEF)


def test_any_number_of_notes_of_others_are_a_few_lines(lttd: Launcher, tmp_path: Path) -> None:
    lttd.runtime.mkdir(0o700)
    os.mkfifo(lttd.runtime / "ftrace-0-fifo")
    (lttd.runtime / "ftrace-0-link").symlink_to("/etc/passwd")
    for number in range(1, 100):
        path = lttd.runtime / f"ftrace-{number:02}"
        path.write_text('{"instance": "/"}\n{"file": "' + "x" * 100_000 + '"}\n')
        path.chmod(0o600)
    run = lttd.run("-t", tmp_path / "a", *BRIEF)
    assert run.process.returncode == 0
    assert len(run.lines) == 9
    assert "ftrace-0-fifo: it is not a file that only lttd can write" in run.lines[0]
    assert "93 more such notes there" in run.lines[-1]
    assert max(map(len, run.lines)) < 500


def test_a_ring_that_was_removed_before_it_was_drained_is_reported(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = killed(lttd, tmp_path / "a")
    run.instance.rmdir()
    assert lttd.run("-t", tmp_path / "b", *BRIEF).stderr == ""
    again = lttd.run("-t", tmp_path / "a", "-a", *BRIEF)
    assert f"{run.instance}: somebody removed it, with events that a killed lttd" in again.stderr
    assert records(lttd) == []
