"""After kill -9 the next lttd takes over the rings, the settings and the losses that are left."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lttd.index import read_gaps
from lttd.manifest import Manifest
from lttd.runtime import RuntimeDirectory
from lttd.sources.base import NO_OWNER
from lttd.sources.ftrace.record import InstanceRecord, record_name
from lttd.sources.inotify import Inotify
from lttd.subbuffer import Gap, Reason
from lttd.tracedir import segments, segments_below
from tests.instances import mark, read_events
from tests.running import (
    QUIET,
    Launcher,
    Run,
    assert_whole,
    free_port,
    get,
    info,
    lttv,
    needs_kernel,
    scraped,
    until,
)

pytestmark = needs_kernel()

IN_MODIFY = 0x2
NOW = ("--flush-interval", "20ms", "--summary", "none")
BRIEF = (*QUIET, *NOW, "--duration", "50ms")
# As the shipped unit, which cannot ask the kernel for a file handle.
UNABLE = ("setpriv", "--bounding-set=-dac_read_search", "--inh-caps=-all")
# The writer threads hang for ever once the directory of the run contains a file "hang".
HANGING = """
import os, time
from lttd.writer import StreamFile
append = StreamFile.append
def append_or_hang(self, *arguments):
    while os.path.exists("hang"):
        time.sleep(0.01)
    return append(self, *arguments)
StreamFile.append = append_or_hang
"""


def data_of(trace: Path) -> bytes:
    streams = (path for segment in segments_below(trace) for path in segment.streams.iterdir())
    return b"".join(path.read_bytes() for path in streams if path.is_file())


def gaps_of(trace: Path) -> list[Gap]:
    found = (path for segment in segments(trace) for path in segment.index.glob("*.gaps"))
    return [gap for path in found for gap in read_gaps(path)]


def killed(lttd: Launcher, trace: Path, text: str = "left behind", times: int = 3) -> Run:
    """Return a killed run with marks in its ring."""
    run = lttd.start("-t", trace, *QUIET, "--flush-interval", "1h").recording()
    until(lambda: list(trace.glob("*/trace.json")), "it has a segment")
    mark(run.instance, text, times)
    run.signal(signal.SIGKILL).wait()
    return run


def age(lttd: Launcher, seconds: int) -> None:
    """Set the notes of a killed run to an earlier time."""

    def earlier(found: re.Match[str]) -> str:
        return found[1] + str(int(found[2]) - seconds * 1_000_000_000)

    for path in lttd.runtime.iterdir():
        path.write_text(re.sub(r'("boottime_ns": )(\d+)', earlier, path.read_text()))


def step_wall_clock(lttd: Launcher, seconds: float) -> None:
    """Set the files' own times back, as if the wall clock had been set ahead since."""
    moment = time.clock_gettime(time.CLOCK_REALTIME) - seconds
    for path in lttd.runtime.iterdir():
        os.utime(path, (moment, moment))


def records(lttd: Launcher) -> list[str]:
    return sorted(path.name for path in lttd.runtime.iterdir())


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


# -- events that were taken and not stored


@contextmanager
def hanging(lttd: Launcher, trace: Path, *options: str) -> Iterator[Run]:
    """Yield a run whose writer threads can be made to hang; kill it afterwards."""
    words = lttd.words("-t", trace, *NOW, *options)
    words[2] = HANGING + words[2]
    cwd = lttd.cwd / f"run{len(lttd.runs)}"
    cwd.mkdir()
    run = Run(lttd, words, cwd)
    lttd.runs.append(run)
    until(lambda: list(trace.glob("*/trace.json")), "it has a segment")
    yield run
    run.signal(signal.SIGKILL).wait()


def lose(lttd: Launcher, trace: Path, instance: Path, run: Run) -> None:
    """Write 100 marks that are stored, 50 that are only taken, and 7 that stay in the ring."""
    before = read_events(instance)
    mark(instance, "stored", 100)
    until(lambda: data_of(trace).count(b"stored") == 100, "they are stored")
    (lttd.cwd / f"run{len(lttd.runs) - 1}" / "hang").touch()
    mark(instance, "taken", 50)
    until(lambda: read_events(instance) == before + 150, "they are taken")
    run.stop()
    mark(instance, "left", 7)


def assert_loss_is_told(lttd: Launcher, trace: Path, gap_segment: int) -> None:
    report = assert_whole(trace, "--events")
    assert not report["findings"]
    (gap,) = [gap for gap in gaps_of(trace) if gap.reason is Reason.KILLED]
    assert gap.count == 50
    assert gap.begin <= gap.end
    (stream,) = [one for one in info(trace)["streams"] if one["lost"].get("killed")]
    assert stream["lost"]["killed"] == 50
    assert info(trace)["events_lost"] == 50
    assert "50 events taken and not stored by a killed lttd" in lttv("info", trace).stdout
    manifest = Manifest.read(segments(trace)[gap_segment].manifest)
    assert manifest.source["continues"] == segments(trace)[0].directory.name
    data = data_of(trace)
    assert [data.count(text) for text in (b"stored", b"taken", b"left")] == [100, 0, 7]


def test_a_gap_counts_the_events_that_a_killed_lttd_took_and_did_not_store(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with hanging(lttd, trace, *QUIET) as run:
        run.recording()
        lose(lttd, trace, run.instance, run)
    port = free_port()
    metrics = ("--metrics", f"127.0.0.1:{port}")
    again = lttd.start("-t", trace, "--append", *QUIET, *NOW, *metrics)
    again.recording()
    until(lambda: get(port, "/healthz")[0] == 200, "it answers")
    lost = re.findall(r'^lttd_events_lost_total\{.*reason="killed".*\} (\d+)', scraped(port), re.M)
    assert sorted(map(int, lost))[-2:] == [0, 50]
    assert again.end() == 0
    assert "50 events that it had taken before and not stored are counted there" in again.stderr
    assert_loss_is_told(lttd, trace, 1)


def test_in_a_foreign_instance_the_next_segment_has_the_gap_of_a_kill(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    trace, source = tmp_path / "t", ("--source", f"ftrace:{foreign.name}")
    (foreign / "tracing_on").write_text("1")
    mark(foreign, "somebody else's", 3)
    with (foreign / "per_cpu/cpu0/trace_pipe_raw").open("rb", buffering=0) as ring:
        ring.read(4096)
    with hanging(lttd, trace, *source) as run:
        until(lambda: Path(foreign / "set_event_notrace_pid").read_text(), "it records")
        lose(lttd, trace, foreign, run)
    wrong = lttd.run("-t", trace, "-a", *source, "--events", "no:such")
    assert wrong.process.returncode == 2
    again = lttd.run("-t", trace, "-a", *source, *NOW, "--duration", "50ms")
    assert again.process.returncode == 0
    assert_loss_is_told(lttd, trace, 1)
    # Counted once: a later run, killed or not, does not add to it.
    assert lttd.run("-t", trace, "-a", *source, *NOW, "--duration", "50ms").process.returncode == 0
    assert_loss_is_told(lttd, trace, 1)


def test_a_loss_that_no_gap_can_hold_is_reported_in_a_line(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    trace = tmp_path / "t"
    (foreign / "tracing_on").write_text("1")
    with hanging(lttd, trace, "--source", f"ftrace:{foreign.name}") as run:
        until((foreign / "set_event_notrace_pid").read_text, "it records")
        lose(lttd, trace, foreign, run)
    again = lttd.run("-t", trace, "-a", *BRIEF)
    assert "of 50 events that a killed lttd took of it and did not store" in again.stderr
    assert records(lttd) == []


def test_a_kill_after_everything_was_stored_is_not_a_loss(lttd: Launcher, tmp_path: Path) -> None:
    run = lttd.start("-t", tmp_path / "t", *QUIET, *NOW).recording()
    mark(run.instance, "stored", 100)
    until(lambda: data_of(tmp_path / "t").count(b"stored") == 100, "they are stored")
    run.signal(signal.SIGKILL).wait()
    again = lttd.run("-t", tmp_path / "t", "-a", *BRIEF)
    assert "not stored" not in again.stderr
    assert not gaps_of(tmp_path / "t")
    assert_whole(tmp_path / "t", "--events")
    assert lttd.left() == []


def test_a_second_kill_during_the_drain_counts_nothing_twice(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with hanging(lttd, trace, *QUIET) as run:
        run.recording()
        lose(lttd, trace, run.instance, run)
    number = len(lttd.runs)
    (lttd.cwd / f"run{number}").mkdir()
    words = lttd.words("-t", trace, "--append", *QUIET, *NOW)
    words[2] = HANGING + words[2]
    (lttd.cwd / f"run{number}" / "hang").touch()
    second = Run(lttd, words, lttd.cwd / f"run{number}")
    lttd.runs.append(second)
    until(lambda: read_events(run.instance) == 157, "the ring is drained, and nothing stored")
    second.signal(signal.SIGKILL).wait()
    assert lttd.run("-t", trace, "-a", *BRIEF).process.returncode == 0
    assert_whole(trace, "--events")
    assert sum(gap.count or 0 for gap in gaps_of(trace)) == 57
    assert lttd.left() == []


# -- settings of a foreign instance


CHANGED = ("tracing_on", "trace_clock", "set_event", "set_event_notrace_pid", "options/overwrite")
CHANGED += ("per_cpu/cpu0/buffer_size_kb", "buffer_percent")


def settings_of(instance: Path) -> dict[str, str]:
    return {name: (instance / name).read_text() for name in CHANGED}


def killed_on(lttd: Launcher, foreign: Path, trace: Path) -> list[str]:
    """Kill an lttd that has changed many settings of *foreign*; return its options."""
    (foreign / "buffer_percent").write_text("0")
    options = ["--source", f"ftrace:{foreign.name}", "--events", "sched:sched_process_hang,oom:*"]
    options += ["--clock", "boot", "--no-overwrite", "--buffer-size", "256K"]
    run = lttd.start("-t", trace, *options)
    until(lambda: (foreign / "tracing_on").read_text() == "1\n", "it records")
    until((foreign / "set_event_notrace_pid").read_text, "it is left out")
    run.signal(signal.SIGKILL).wait()
    return options


def test_the_next_start_of_any_lttd_undoes_the_changes_of_a_killed_one(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    before = settings_of(foreign)
    before["buffer_percent"] = "0\n"
    killed_on(lttd, foreign, tmp_path / "a")
    assert all(value != before[name] for name, value in settings_of(foreign).items())
    (foreign / "trace").write_text("")  # the ring is empty
    fd = os.open(foreign / "set_event_notrace_pid", os.O_WRONLY)
    os.write(fd, b"4194303")
    os.close(fd)
    (line, *_) = lttd.run("-t", tmp_path / "b", *BRIEF).lines
    assert f"{foreign}: an lttd that was killed" in line
    assert "had changed it; restored: " in line
    before["set_event_notrace_pid"] = "4194303\n"
    assert settings_of(foreign) == before
    assert lttd.run("-t", tmp_path / "c", *BRIEF).stderr == "", "told once"


def test_a_change_that_would_empty_a_ring_is_undone_after_the_drain(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    before = settings_of(foreign)
    killed_on(lttd, foreign, tmp_path / "a")
    mark(foreign, "not to be lost")
    other = lttd.run("-t", tmp_path / "b", *BRIEF)
    assert "trace_clock" in other.stderr
    assert "would lose its" in other.stderr
    now = settings_of(foreign)
    assert (now["tracing_on"], now["set_event"]) == ("0\n", ""), "nothing records any more"
    assert now["trace_clock"] != before["trace_clock"]
    source = ("--source", f"ftrace:{foreign.name}", *NOW, "--duration", "50ms")
    assert lttd.run("-t", tmp_path / "a", "-a", *source).process.returncode == 0
    assert b"not to be lost" in data_of(tmp_path / "a")
    assert settings_of(foreign) == before | {"buffer_percent": "0\n"}


def test_a_start_with_the_same_options_takes_over_without_a_pause(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    before = settings_of(foreign) | {"buffer_percent": "0\n"}
    options = killed_on(lttd, foreign, tmp_path / "a")
    written = Inotify()
    for name in ("tracing_on", "trace_clock", "options/overwrite", "events/oom/enable"):
        assert written.watch(str(foreign / name), IN_MODIFY) >= 0
    written.watch(str(foreign / "events/oom/mark_victim/enable"), IN_MODIFY)
    mark(foreign, "of the killed one")
    again = lttd.start("-t", tmp_path / "a", "--append", *options, *NOW)
    until(lambda: len(segments_below(tmp_path / "a")) == 2, "it records")
    until(lambda: b"of the killed one" in data_of(tmp_path / "a"), "it drained the ring")
    assert not written.heard()
    assert again.end() == 0
    assert settings_of(foreign) == before
    assert_whole(tmp_path / "a", "--events")
    assert records(lttd) == []


def test_a_start_with_fewer_events_turns_the_others_off(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    killed_on(lttd, foreign, tmp_path / "a")
    source = ("--source", f"ftrace:{foreign.name}", "--events", "sched:sched_process_hang")
    run = lttd.start("-t", tmp_path / "a", "--append", *source, *NOW)
    until(lambda: len(segments_below(tmp_path / "a")) == 2, "it records")
    until(lambda: (foreign / "set_event").read_text().split() == ["sched:sched_process_hang"], "")
    assert (foreign / "options/overwrite").read_text() == "1\n"
    assert run.end() == 0
    assert (foreign / "set_event").read_text() == ""


# -- failures while an instance is removed


def test_an_instance_that_another_process_holds_open_is_turned_off_and_reported(
    lttd: Launcher, tmp_path: Path
) -> None:
    run = lttd.start("-t", tmp_path / "a", "--events", "sched:*", *NOW).recording()
    holder = (run.instance / "trace").open("rb")
    assert run.end() == 0
    (line,) = [line for line in run.lines if "stays" in line]
    assert f"{run.instance} stays, because" in line
    assert f"(pid {os.getpid()})" in line
    assert f"then rmdir {run.instance}" in line
    assert (run.instance / "set_event").read_text() == ""
    assert (run.instance / "tracing_on").read_text() == "0\n"
    still = lttd.run("-t", tmp_path / "b", *BRIEF)
    assert f"{run.instance} stays" in still.stderr
    holder.close()
    assert lttd.run("-t", tmp_path / "c", *BRIEF).stderr == ""
    assert lttd.left() == []
    assert records(lttd) == []


@pytest.mark.parametrize("descriptors", [10, 11, 13, 15, 16, 17, 18, 20, 24, 28])
def test_too_few_descriptors_leave_no_instance_and_no_record(
    lttd: Launcher, tmp_path: Path, descriptors: int
) -> None:
    limit = ["prlimit", f"--nofile={descriptors}:{descriptors}"]
    lttd.run("-t", tmp_path / "a", *BRIEF, under=limit)
    assert lttd.left() == []
    assert not lttd.runtime.exists() or records(lttd) == []
