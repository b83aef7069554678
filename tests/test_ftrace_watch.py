"""Interpret changes to the files of an instance: plain files replace tracefs, inotify is real."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lttd.health import Health, Trouble
from lttd.sources.ftrace import watch
from lttd.sources.ftrace.counts import RingCounts
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.listener import Listener
from lttd.sources.ftrace.stream import Shared
from lttd.sources.ftrace.undo import Undo
from lttd.sources.ftrace.watch import FtraceWatch
from lttd.sources.ftrace.watch_events import EventsWatch
from lttd.sources.ftrace.watch_traceoff import TraceoffWatch
from lttd.sources.ftrace.watched_settings import OF_FUNCTIONS, SETTINGS, Setting
from lttd.sources.tracefs import StatsFile
from lttd.subbuffer import Reason

VALUES = {
    "tracing_on": "1",
    "trace_clock": "local [mono]",
    "buffer_subbuf_size_kb": "4",
    "current_tracer": "nop",
    "options/overwrite": "1",
    "options/pause-on-trace": "1",
    "buffer_percent": "25",
    "options/event-fork": "0",
    "set_event_pid": "",
    "set_event_notrace_pid": "",
    "options/function-fork": "0",
    "set_ftrace_pid": "no pid",
    "set_ftrace_notrace_pid": "no pid",
    "tracing_cpumask": "3",
    "set_event": "sched:sched_switch\nsched:sched_waking",
    "trace": "",
    "trace_pipe": "",
    "buffer_size_kb": "64",
    "per_cpu/cpu0/buffer_size_kb": "64",
    "free_buffer": "",
    "snapshot": "",
    "per_cpu/cpu0/snapshot": "",
    "per_cpu/cpu0/trace": "",
    "per_cpu/cpu0/trace_pipe_raw": "",
    "events/sched/enable": "1",
    "events/sched/filter": "none",
    "events/sched/sched_switch/enable": "1",
    "events/sched/sched_switch/filter": "none",
    "events/sched/sched_switch/trigger": "# none",
    "events/sched/sched_waking/enable": "1",
    "events/sched/sched_waking/filter": "none",
    "events/sched/sched_waking/trigger": "# none",
}


class Ring:
    """A stream as the watch uses it; it keeps the reported acts."""

    cpu = 0

    def __init__(self) -> None:
        self.suspected: list[Reason] = []
        self.foreign_read_events = 0
        self.counts = False
        self.emptied = False

    def suspect(self, reason: Reason) -> None:
        self.suspected.append(reason)

    def note_emptied(self) -> None:
        self.emptied = False
        self.suspected.append(Reason.EMPTIED)

    def was_emptied(self) -> bool:
        emptied, self.emptied = self.emptied, False
        return emptied

    looks_emptied = was_emptied

    def count_reads(self) -> None:
        self.counts = True

    def trust_reads(self) -> None:
        self.counts = False


class Watched:
    """An instance made of plain files, and its watch."""

    def __init__(self, path: Path, tracer: str = "nop") -> None:
        self.path = path
        for name, value in (VALUES | {"current_tracer": tracer}).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(value + "\n")
        self.ring, self.health = Ring(), Health()
        self.shared = Shared.__new__(Shared)
        self.shared.paused = False
        self.shared.now = lambda: 4242
        self.root = path / "root"
        self.root.mkdir()
        (self.root / "kprobe_events").touch()
        self.instance = Instance(str(self.root), str(path), "made", True, {}, Undo(str(path)))
        self.watch = FtraceWatch(self.instance, [self.ring], self.shared)  # type: ignore[list-item]
        if tracer != "nop":
            self.watch.settings += (OF_FUNCTIONS,)
        self.watch.arm(self.health)
        self.look()
        assert self.troubles() == set()
        assert not self.watch.wants_closer_look, "once is enough"

    def look(self) -> None:
        """Look at the changes, as the daemon does at a tick."""
        self.watch.tick()
        if self.watch.wants_closer_look:
            self.watch.look_closer()
            self.watch.tick()

    def look_again(self) -> None:
        """Look at everything, as the daemon does every LOOK_AGAIN_NS."""
        self.watch._look_again_ns = 0
        self.look()

    def write(self, name: str, value: str) -> None:
        """Write a file by one write call, as tracefs sees it."""
        fd = os.open(self.path / name, os.O_WRONLY)
        os.write(fd, f"{value}\n".ljust(len(VALUES[name]) + 1).encode())
        os.close(fd)
        self.watch.heard()

    def troubles(self) -> set[Trouble]:
        return {each.trouble for each in self.health.conditions()}


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    found = Watched(tmp_path)
    yield found
    found.watch.disarm()


def test_processes_are_listed_only_when_one_may_have_begun_to_read(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []

    def list_them(path: str) -> list[str]:
        listed.append(path)
        return []

    monkeypatch.setattr(watch, "other_readers", list_them)
    for _ in range(3):  # as every 10 s
        watched.watch.look_closer()
    assert listed == []
    os.close(os.open(watched.path / "trace_pipe", os.O_RDONLY))
    watched.watch.heard()
    watched.look()
    assert listed == [str(watched.path)]


def test_the_filters_of_many_events_are_read_again_in_turn(tmp_path: Path) -> None:
    names = [f"e{number:03}" for number in range(600)]
    for name in names:
        (tmp_path / "events/made" / name).mkdir(parents=True)
        (tmp_path / "events/made" / name / "filter").write_text("none\n")
    (tmp_path / "set_event").write_text("".join(f"made:{name}\n" for name in names))
    instance = Instance(str(tmp_path), str(tmp_path), "made", True, {}, Undo(str(tmp_path)))
    events = EventsWatch(Listener(instance, []))
    events.arm()
    events.hear_filters()
    looks = [list(events.filters()) for _ in range(4)]
    assert [len(look) for look in looks] == [256, 256, 88, 256]
    assert [*looks[0], *looks[1], *looks[2]] == [f"events/made/{name}/filter" for name in names]
    assert looks[3] == looks[0]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.file)
def test_a_setting_is_reported_for_as_long_as_it_differs(
    watched: Watched, setting: Setting
) -> None:
    reasons = [setting.reason] if setting.reason else []
    watched.write(setting.file, "0")
    assert watched.troubles() == {setting.trouble}
    assert watched.shared.paused == setting.pauses
    assert watched.ring.suspected == reasons
    watched.look()
    assert watched.ring.suspected == reasons, "once"
    watched.write(setting.file, VALUES[setting.file])
    assert watched.troubles() == set()
    assert not watched.shared.paused
    assert watched.ring.suspected == 2 * reasons


def test_pids_that_the_kernel_changes_itself_are_not_reported(watched: Watched) -> None:
    watched.write("options/event-fork", "1")
    for name in ("set_event_pid", "set_event_notrace_pid"):
        # Acts of the kernel make no inotify event; replacing the file makes none either.
        (watched.path / "new").write_text("7\n8\n")
        (watched.path / "new").rename(watched.path / name)
    watched.look_again()
    assert watched.troubles() == set()
    assert watched.ring.suspected == []


def test_a_pid_list_that_the_kernel_also_changes_is_reported_as_an_act(
    watched: Watched,
) -> None:
    watched.write("options/event-fork", "1")
    watched.write("set_event_pid", "7")
    assert watched.troubles() == {Trouble.FILTER_SET}
    assert watched.ring.suspected == [Reason.FILTERED]


@pytest.mark.parametrize("name", ["set_ftrace_pid", "set_ftrace_notrace_pid"])
def test_a_list_of_tasks_of_functions_is_watched_where_functions_are_recorded(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "nop").mkdir()
    without, watched = Watched(tmp_path / "nop"), Watched(tmp_path, "function")
    for each in (without, watched):
        (each.path / name).write_text("1234\n")
        each.watch.heard()
        each.look_again()
    assert without.troubles() == set()
    assert watched.troubles() == {Trouble.FILTER_SET}
    assert watched.ring.suspected == [Reason.FILTERED]
    (watched.path / name).write_text("no pid\n")
    watched.look_again()
    assert watched.troubles() == set()
    for each in (without, watched):
        each.watch.disarm()


def test_pids_excluded_by_others_are_reported_for_as_long_as_they_are(
    watched: Watched,
) -> None:
    pids = watched.path / "set_event_notrace_pid"
    watched.instance.undo.leave_out("set_event_notrace_pid", [41, 42])
    watched.look_again()
    assert watched.troubles() == set(), "these are our own"
    pids.write_text("41\n42\n1234\n")
    watched.look_again()
    watched.look_again()
    assert "1 pids more left out, such as 1234" in watched.health.verdict()[1]
    assert watched.ring.suspected == [Reason.FILTERED], "once"
    pids.write_text("")
    watched.look_again()
    assert watched.troubles() == set()
    assert watched.ring.suspected == 2 * [Reason.FILTERED]


def test_pids_that_others_have_left_out_are_noticed_at_once(watched: Watched) -> None:
    watched.instance.undo.leave_out("set_event_notrace_pid", [41])
    watched.watch.heard()
    assert watched.troubles() == set(), "these are our own"
    (watched.path / "set_event_notrace_pid").write_text("41\n1234\n")
    watched.watch.heard()
    assert watched.troubles() == {Trouble.FILTER_SET}


def test_pids_that_a_process_leaves_out_are_an_act_where_the_kernel_changes_them_too(
    watched: Watched,
) -> None:
    watched.write("options/event-fork", "1")
    (watched.path / "set_event_notrace_pid").write_text("1234\n")
    watched.watch.heard()
    assert watched.troubles() == {Trouble.FILTER_SET}
    assert watched.ring.suspected == [Reason.FILTERED]


def test_a_freed_ring_is_found_at_the_next_tick(watched: Watched) -> None:
    watched.write("free_buffer", "")
    # The kernel itself writes the new size.
    (watched.path / "new").write_text("7\n")
    (watched.path / "new").rename(watched.path / "buffer_size_kb")
    watched.look()
    assert watched.troubles() == {Trouble.RING_RESIZED}
    assert "from 64 KiB to 7 KiB" in watched.health.verdict()[1]


@pytest.mark.parametrize("name", ["buffer_size_kb", "per_cpu/cpu0/buffer_size_kb"])
def test_a_resize_that_several_files_show_is_one_act(watched: Watched, name: str) -> None:
    other = {"buffer_size_kb", "per_cpu/cpu0/buffer_size_kb"} - {name}
    (watched.path / "new").write_text("8\n")
    (watched.path / "new").rename(watched.path / other.pop())
    watched.write(name, "8")
    watched.look_again()
    assert len(watched.health.conditions()) == 1
    assert f"{name}: another process changed it from 64" in watched.health.verdict()[1]


def test_a_ring_that_the_kernel_allocates_late_is_not_a_resize(watched: Watched) -> None:
    watched.watch.disarm()
    (watched.path / "buffer_size_kb").write_text("7 (expanded: 1408)\n")
    watched.watch.arm(watched.health)
    (watched.path / "new").write_text("1410\n")
    (watched.path / "new").rename(watched.path / "buffer_size_kb")
    watched.look_again()
    assert watched.troubles() == set()


WITHOUT_INOTIFY = """
import sys
from pathlib import Path
from tests.test_ftrace_watch import Watched
watched = Watched(Path(sys.argv[1]))
watched.write("tracing_on", "0")
watched.look()
print(*watched.troubles(), *watched.instance.notes, sep="\\n")
"""


def test_lasting_changes_are_found_without_inotify_and_a_line_says_so(tmp_path: Path) -> None:
    refuse = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    words = ["unshare", "--user", "--map-root-user", "sh", "-c", refuse, "sh"]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace, or none with limits of its own")
    words += [sys.executable, "-c", WITHOUT_INOTIFY, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    trouble, note = done.stdout.splitlines()
    assert trouble == Trouble.TRACING_OFF
    assert "the kernel refuses inotify" in note
    assert "max_user_instances" in note


def test_a_setting_that_changes_back_at_once_is_an_act(watched: Watched) -> None:
    for value in ("0", "1"):
        fd = os.open(watched.path / "tracing_on", os.O_WRONLY)
        os.write(fd, value.encode())
        os.close(fd)
    watched.watch.heard()
    assert watched.troubles() == {Trouble.TRACING_OFF}
    assert watched.ring.suspected == [Reason.SWITCHED_OFF]


def test_an_overflow_of_inotify_makes_the_next_tick_look_at_everything(watched: Watched) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    fds = [os.open(watched.path / name, os.O_RDWR) for name in ("tracing_cpumask", "trace_clock")]
    for _ in range(most // 2 + 1):  # in turn, because the kernel merges equal events
        for fd in fds:
            os.pwrite(fd, os.pread(fd, 64, 0), 0)
    (watched.path / "options/overwrite").write_text("0\n")
    watched.watch.tick()
    assert Trouble.SETTING_CHANGED in watched.troubles()
    for fd in fds:
        os.close(fd)


def test_writing_the_same_value_is_not_reported(watched: Watched) -> None:
    for name in ("tracing_on", "set_event", "buffer_size_kb", "events/sched/filter"):
        watched.write(name, VALUES[name])
    assert watched.troubles() == set()
    assert watched.ring.suspected == []


def test_the_same_clock_written_again_empties_the_ring(watched: Watched) -> None:
    watched.write("trace_clock", VALUES["trace_clock"])
    assert watched.troubles() == {Trouble.RING_EMPTIED}
    assert watched.ring.suspected == [Reason.EMPTIED]


def test_another_clock_is_reported_by_its_name_alone(watched: Watched) -> None:
    watched.write("trace_clock", "[local] mono")
    assert "trace_clock: is local now and was mono when" in watched.health.verdict()[1]


@pytest.mark.parametrize("name", ["trace", "per_cpu/cpu0/trace"])
def test_clearing_the_ring_is_reported_as_an_act(watched: Watched, name: str) -> None:
    watched.write(name, "")
    assert watched.troubles() == {Trouble.RING_EMPTIED}
    assert watched.ring.suspected == [Reason.EMPTIED]


@pytest.mark.parametrize("name", ["snapshot", "per_cpu/cpu0/snapshot", "root/kprobe_events"])
def test_a_snapshot_or_a_deleted_probe_is_an_act_if_it_emptied_the_ring(
    watched: Watched, name: str
) -> None:
    (watched.path / name).write_text("made")
    watched.watch.heard()
    assert watched.troubles() == set()
    watched.ring.emptied = True
    (watched.path / name).write_text("-:deleted")
    watched.watch.heard()
    assert watched.troubles() == {Trouble.RING_EMPTIED}
    assert f"{watched.path / name}: another process wrote it" in watched.health.verdict()[1]
    assert watched.ring.suspected == [Reason.EMPTIED]


def test_counters_that_run_backwards_are_found_at_the_next_tick(watched: Watched) -> None:
    watched.ring.emptied = True
    watched.look()
    assert watched.troubles() == {Trouble.RING_EMPTIED}
    assert watched.ring.suspected == [Reason.EMPTIED]


def test_each_event_that_is_turned_off_is_named(watched: Watched) -> None:
    watched.write("set_event", "sched:sched_switch")
    assert watched.troubles() == {Trouble.EVENTS_OFF}
    (path,) = (each.words for each in watched.health.conditions())
    assert path == "1 of 2 events were turned off, such as sched:sched_waking"
    watched.write("set_event", VALUES["set_event"])
    assert watched.troubles() == set()
    assert watched.ring.suspected == [Reason.SWITCHED_OFF] * 2


def test_a_reload_while_the_events_are_read_is_not_taken_for_somebody_s_change(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = VALUES["set_event"].split()
    watched.watch.expect(names[:1])

    def enabled(_: Instance) -> frozenset[str]:
        watched.watch.expect(names)  # in another thread: the second event is on now
        return frozenset(names[:1])

    monkeypatch.setattr(Instance, "enabled", enabled)
    watched.write("set_event", VALUES["set_event"])
    assert watched.troubles() == set()
    assert watched.ring.suspected == []


def test_a_filter_on_an_event_is_found_whoever_set_it(watched: Watched) -> None:
    (watched.path / "events/sched/sched_waking/filter").write_text("pid == 1\n")
    watched.watch.heard()
    assert watched.troubles() == {Trouble.FILTER_SET}
    (watched.path / "events/sched/sched_waking/filter").write_text("none\n")
    watched.watch.heard()
    assert watched.troubles() == set()
    assert watched.ring.suspected == [Reason.FILTERED] * 2


def test_tracing_that_the_kernel_turned_off_is_reported_unless_a_trigger_was_to(
    watched: Watched,
) -> None:
    quiet = watched.path / "quiet"
    quiet.write_text("0\n")
    quiet.rename(watched.path / "tracing_on")  # another inode: inotify reports nothing
    fd = os.open(watched.path / "tracing_on", os.O_RDONLY)
    os.dup2(fd, watched.watch._on_fd)
    os.close(fd)
    trigger = watched.path / "events/sched/sched_switch/trigger"
    trigger.write_text("traceoff:unlimited\n")
    watched.look()
    assert watched.troubles() == set()
    assert "as a traceoff trigger asks for (sched:sched_switch)" in watched.instance.notes[-1]
    assert list(watched.watch.traceoffs) == [(4242, "sched:sched_switch")]
    watched.watch._off_explained = None
    trigger.write_text("# none\n")
    watched.look()
    watched.look()
    assert watched.troubles() == {Trouble.TRACING_OFF}


def test_of_many_events_whose_trigger_may_have_fired_some_are_named(watched: Watched) -> None:
    traceoff = TraceoffWatch(Listener(watched.instance, []), watched.shared)
    line = traceoff.explained(["s:a", "s:b", "s:c", "s:d", "s:e"])
    assert "asks for (s:a or s:b or s:c or one of 2 others), since at most at 2" in line


def test_another_reader_is_counted_from_its_open_to_its_close(watched: Watched) -> None:
    fd = os.open(watched.path / "per_cpu/cpu0/trace_pipe_raw", os.O_RDONLY)
    watched.watch.heard()
    assert watched.ring.counts
    watched.look()
    # Who opened it is not found: its open may not have returned yet.
    assert watched.troubles() == set()
    watched.watch.heard()
    assert watched.watch.wants_closer_look
    watched.look()
    assert watched.troubles() == {Trouble.FOREIGN_READER}
    watched.ring.foreign_read_events = 7
    os.close(fd)
    watched.watch.heard()
    watched.look()
    assert not watched.ring.counts
    assert watched.troubles() == set()


def test_a_reader_that_closed_before_the_tick_is_an_act(watched: Watched) -> None:
    os.close(os.open(watched.path / "trace_pipe", os.O_RDONLY))
    watched.watch.heard()
    assert watched.ring.counts
    watched.look()
    assert not watched.ring.counts
    (found,) = watched.health.conditions()
    assert found.trouble is Trouble.FOREIGN_READER
    assert found.words.startswith("another process opened a file that consumes events")


def test_changes_that_lttd_makes_at_the_end_are_not_reported(watched: Watched) -> None:
    watched.watch.disarm()
    (watched.path / "tracing_on").write_text("0\n")
    watched.look()
    assert watched.troubles() == set()


# -- the counters


class Stats:
    """A ``stats`` file whose values the test sets."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.set(0, 0)
        self.counts = RingCounts(StatsFile(str(path)))

    def set(self, overrun: int, read_events: int, entries: int = 7, unread: int = 0) -> None:
        text = f"entries: {entries}\noverrun: {overrun}\nread events: {read_events}\n"
        text += f"bytes: {unread}\n"
        self._path.write_text(text)


def test_totals_survive_a_reset_of_the_kernel_counters(tmp_path: Path) -> None:
    stats = Stats(tmp_path / "stats")
    for overrun, read_events in ((5, 100), (9, 150), (0, 20), (3, 30)):
        stats.set(overrun, read_events)
        stats.counts.read()
    assert stats.counts.was_emptied()
    assert not stats.counts.was_emptied(), "told once"
    found = stats.counts.since_the_base()
    assert (found["overrun"], found["read events"], found["entries"]) == (9 + 3, 150 + 30, 7)


@pytest.mark.parametrize(
    ("overrun", "read_events", "entries", "shrank"),
    [(0, 0, 0, True), (0, 7, 0, False), (0, 6, 0, True), (3, 0, 0, False), (0, 0, 8, False)],
)
def test_a_ring_that_was_never_read_is_seen_to_be_emptied_by_what_it_holds(
    tmp_path: Path, overrun: int, read_events: int, entries: int, shrank: bool
) -> None:
    stats = Stats(tmp_path / "stats")
    stats.set(overrun, read_events, entries)
    stats.counts.read()
    stats.counts.read()  # the next tick may come before the write is reported
    assert stats.counts.shrank_lately() == shrank
    assert not stats.counts.shrank_lately(), "told once"
    assert not stats.counts.was_emptied()


def test_foreign_reads_are_the_kernels_count_less_our_own(tmp_path: Path) -> None:
    stats = Stats(tmp_path / "stats")
    counts = stats.counts

    def others(read_events: int, *ours: int | None) -> int | None:
        for some in ours:
            counts.took(some)
        stats.set(0, read_events)
        counts.read()
        return counts.look_for_others()

    assert others(10) == 10
    assert others(100, 60, 20) == 10
    assert others(200, 50, None) is None, "nobody counted"
    assert counts.unsure
    assert others(230, 30) == 0
    assert not counts.unsure
    assert others(40, 90) == 0, "a reset may hide some, and makes none up"
    assert counts.foreign_read_events == 20


def test_bytes_that_the_kernel_forgot_to_subtract_are_not_taken_for_content(tmp_path: Path) -> None:
    stats = Stats(tmp_path / "stats")
    fresh = "overrun: 0\nread events: {}\nbytes: 9000\n"
    (tmp_path / "fresh").write_text(fresh.format(0))
    (tmp_path / "used").write_text(fresh.format(7))
    counts = {name: RingCounts(StatsFile(str(tmp_path / name))) for name in ("fresh", "used")}
    for one in counts.values():
        one.read()
    assert {name: one.unread_bytes() for name, one in counts.items()} == {"fresh": 9000, "used": 0}

    def unread(overrun: int, counted: int) -> int:
        stats.set(overrun, 0, unread=counted)
        return stats.counts.unread_bytes()

    assert unread(0, 9000) == 9000
    assert unread(50, 9000 + 4080) == 0, "of an excess that may have grown nothing is known"
    assert unread(50, 4080 + 200) == 0
    assert unread(50, 4080 + 9000) == 8800
    assert unread(50, 4080) == 0
    assert unread(50, 4080 + 9000) == 9000
    stats.counts.took(None, partial=True)
    assert unread(50, 4080 + 300) == 0, "before Linux 6.6 a page read in part is an excess, too"
    assert unread(50, 4080 + 9000) == 8700
    assert unread(0, 100) == 0
    assert unread(0, -4080) == 0
    assert unread(0, 0) == 4080
