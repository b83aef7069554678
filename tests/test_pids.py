"""Only the tasks that were asked for are recorded, whole, by the kernel's list of thread ids."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lttd.errors import LttdError, NothingToRecordError, UsageError
from lttd.health import Health, Trouble
from lttd.sources.base import child_of
from lttd.sources.ftrace import pids
from lttd.sources.ftrace.asked import FtraceSettings
from lttd.sources.ftrace.source import FtraceSource, open_ftrace
from lttd.sources.ftrace.task_lists import EVENTS
from lttd.sources.ftrace.tasks import Wish, find_tasks
from lttd.sources.ftrace.tasks_change import TasksChange
from lttd.subbuffer import BufferPool
from tests.ftrace_sources import content, drain, instance_of
from tests.instances import mark, unread_events
from tests.running import PATIENCE_S, QUIET, Launcher, needs_kernel, until

EXECS = ("--events", "syscalls:sys_enter_execve,sched:sched_process_exec,sched:sched_switch")
# A process that runs true whenever a line comes, from a thread that it had before.
RUNNER = """
import subprocess, sys, threading
def run():
    for line in sys.stdin:
        subprocess.run(["true"])
        print(flush=True)
thread = threading.Thread(target=run)
thread.start()
print(flush=True)
thread.join()
"""


class Child:
    """A python process that answers each line with a line."""

    def __init__(self, program: str) -> None:
        words = [sys.executable, "-c", program]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._hear()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "\n"

    def ask(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._hear()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def child(program: str = RUNNER) -> Iterator[Child]:
    made = Child(program)
    try:
        yield made
    finally:
        made.end()


def settings(**asked: object) -> FtraceSettings:
    return FtraceSettings(events=("sched:sched_process_hang",), buffer_bytes=64 << 10)._replace(
        **asked  # type: ignore[arg-type]
    )


def listed(instance: Path) -> set[int]:
    return {int(word) for word in (instance / "set_event_pid").read_text().split()}


def threads(pid: int) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{pid}/task")}


def test_an_option_that_needs_another_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^only-command records COMMAND alone; write COMMAND"):
        pids.wish_of(settings(only_command=True))
    with pytest.raises(UsageError, match=r"^follow-fork follows the tasks of pid or comm; name"):
        pids.wish_of(settings(follow_fork=True))
    assert pids.wish_of(settings(command=child_of(7, ["make"]))) is None


@pytest.mark.usefixtures("instances")
class TestOfTheList:
    pytestmark = needs_kernel()

    def test_all_threads_of_a_process_are_listed_and_nothing_else(self) -> None:
        with child() as one, closing(source(pid=(one.process.pid,))) as made:
            assert listed(instance_of(made)) == threads(one.process.pid)
            assert len(threads(one.process.pid)) == 2
            assert (instance_of(made) / "options/event-fork").read_text() == "0\n"
            assert made.info.settings["pid"] == [one.process.pid]
            assert "comm" not in made.info.settings

    def test_more_ids_than_a_page_has_room_for_are_listed_whole(self) -> None:
        everything = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        many = tuple({*everything, *(0,)} | threads(os.getpid()))
        wanted = Wish(many, more=frozenset(range(1 << 21, (1 << 21) + 5000)))
        with closing(source(pid=(0,))) as made:
            ids = find_tasks(wanted, all_there=False)
            pids.limit(made._instance, EVENTS, wanted, ids)
            assert ids <= listed(instance_of(made))
            assert listed(instance_of(made)) - ids <= threads(os.getpid()) | {0}

    @pytest.mark.parametrize("follow_fork", [False, True])
    def test_a_thread_that_is_born_while_others_are_listed_is_listed_too(
        self, monkeypatch: pytest.MonkeyPatch, *, follow_fork: bool
    ) -> None:
        ended, born = threading.Event(), list[threading.Thread]()

        def find_and_bear(wish: Wish, **how: bool) -> frozenset[int]:
            found = find_tasks(wish, **how)
            if len(born) < 3:
                born.append(threading.Thread(target=ended.wait))
                born[-1].start()
            return found

        monkeypatch.setattr(pids, "find_tasks", find_and_bear)
        try:
            with closing(source(pid=(os.getpid(),), follow_fork=follow_fork)) as made:
                assert {each.native_id for each in born} <= listed(instance_of(made))
                assert len(born) == 3
        finally:
            ended.set()
            for thread in born:
                thread.join()

    @pytest.mark.parametrize(
        ("asked", "words"),
        [({"pid": (1 << 22,)}, "pid 4194304: there is no such process"),
         ({"comm": ("no such task",)}, "comm 'no such task': no task has such a name now"),
         ({"only_command": True}, "only-command records COMMAND alone; write COMMAND after '--'")],
    )  # fmt: skip
    def test_a_request_that_would_record_everything_is_refused(
        self, asked: dict[str, object], words: str
    ) -> None:
        with pytest.raises(UsageError, match=re.escape(words)):
            source(**asked)

    def test_no_list_of_pids_that_are_left_out_is_written(self) -> None:
        asked = {"pid": (os.getppid(),), "trace_self": False}
        with closing(source(**asked)) as made:
            made.leave_out([os.getpid()])
            assert (instance_of(made) / "set_event_notrace_pid").read_text() == ""

    def test_the_end_of_all_tasks_is_noted_once(self) -> None:
        with child() as one:
            made = source(pid=(one.process.pid,), follow_fork=True)
        with closing(made):
            ended = pids.Ended(made._instance, made._settings)
            assert ended.look()
            assert not ended.look()
            assert "all tasks to which recording is limited have ended" in list(made.notes())[-1]
            # The kernel removes ended tasks from its list, and records nothing all the same.
            until(lambda: not listed(instance_of(made)), "the kernel's list is empty")
            made.start()
            (instance_of(made) / "events/sched/sched_switch/enable").write_text("1")
            time.sleep(0.05)
            assert content(drain(made)) == b""

    def test_a_task_that_lives_is_no_end(self) -> None:
        with child() as one, closing(source(pid=(one.process.pid,))) as made:
            assert not pids.Ended(made._instance, made._settings).look()

    def test_children_that_are_no_longer_followed_are_reported(self) -> None:
        health = Health()
        with closing(source(pid=(os.getpid(),), follow_fork=True)) as made:
            made.watch.arm(health)
            (instance_of(made) / "options/event-fork").write_text("0")
            until(lambda: made.watch.tick() or health.conditions(), "it is noticed")
            assert {one.trouble for one in health.conditions()} == {Trouble.FILTER_SET}


@pytest.mark.usefixtures("instances")
class TestOfAReload:
    pytestmark = needs_kernel()

    @pytest.mark.parametrize("follow_fork", [False, True])
    def test_tasks_come_and_go_and_nobody_else_is_blamed(self, *, follow_fork: bool) -> None:
        health, events = Health(), ("sched:sched_process_hang",)
        with child() as one, child() as other:
            a, b = one.process.pid, other.process.pid
            asked = {"pid": (a,), "follow_fork": follow_fork}
            with closing(source(**asked)) as made:
                made.watch.arm(health)
                for wanted in ((a, b), (b,), (a,)):
                    change = made.changed({"events": events, **asked, "pid": wanted})
                    change.announce()
                    change.make()
                    made.watch.tick()
                    made.watch._look_again_ns = 0
                    made.watch.tick()
                    assert listed(instance_of(made)) == set().union(*map(threads, wanted))
                    assert made.info.settings["pid"] == list(wanted)
                assert health.conditions() == []
                (instance_of(made) / "set_event_pid").write_text("4194303")
                until(lambda: made.watch.tick() or health.conditions(), "noticed")

    def test_a_limit_is_lifted_and_set_while_recording(self) -> None:
        events = ("sched:sched_process_hang",)
        with child() as one, closing(source(pid=(os.getpid(),))) as made:
            made.changed({"events": events}).make()
            assert listed(instance_of(made)) == set()
            assert "pid" not in made.info.settings
            made.changed({"events": events, "pid": (one.process.pid,)}).make()
            assert listed(instance_of(made)) == threads(one.process.pid)

    def test_a_reload_that_names_no_task_is_refused_and_the_list_stays(self) -> None:
        with closing(source(pid=(os.getpid(),))) as made:
            before = listed(instance_of(made))
            with pytest.raises(UsageError, match="there is no such process"):
                made.changed({"events": ("sched:*",), "pid": (1 << 22,)})
            assert listed(instance_of(made)) == before

    def test_the_list_is_put_back_if_the_kernel_refuses_the_events(self) -> None:
        class Refused:
            def make(self) -> None:
                raise LttdError("refused")

        with child() as one, closing(source(pid=(one.process.pid,))) as made:
            old, new = made._settings, made._settings._replace(pid=(os.getpid(),))
            refused: Any = Refused()
            change = TasksChange(refused, made._instance, made.watch, old, new)
            with pytest.raises(LttdError, match="refused"):
                change.make()
            assert listed(instance_of(made)) == threads(one.process.pid)


class TestInAnInstanceOfOthers:
    pytestmark = needs_kernel()

    def test_the_list_is_empty_again_at_the_end_whatever_the_kernel_added(
        self, foreign: Path
    ) -> None:
        with child() as one:
            asked = {"pid": (one.process.pid,), "follow_fork": True}
            with closing(source(instance=foreign.name, **asked)) as made:
                assert listed(foreign) == threads(one.process.pid)
                assert (foreign / "options/event-fork").read_text() == "1\n"
                one.ask()
                assert "lists pids" not in " ".join(made.notes())
            assert (foreign / "set_event_pid").read_text() == ""
            assert (foreign / "options/event-fork").read_text() == "0\n"

    def test_a_list_of_somebody_stays_and_is_the_reason_of_a_refusal(self, foreign: Path) -> None:
        (foreign / "set_event_pid").write_text("4194303")
        with pytest.raises(NothingToRecordError, match=r"such as 4194303 \(1 in all\), which"):
            source(instance=foreign.name, pid=(os.getpid(),))
        assert listed(foreign) == {4194303}

    def test_a_task_that_somebody_leaves_out_is_the_reason_of_a_refusal(
        self, foreign: Path
    ) -> None:
        (foreign / "set_event_notrace_pid").write_text(str(os.getpid()))
        with pytest.raises(NothingToRecordError, match=f"lists {os.getpid()}, so that task is not"):
            source(instance=foreign.name, pid=(os.getpid(),))
        assert (foreign / "set_event_pid").read_text() == ""

    @pytest.mark.alone  # it takes trace_printk of the top level
    @pytest.mark.parametrize("follow", [(), ("--follow-fork",)])
    def test_the_next_start_after_a_kill_empties_the_list(
        self, lttd: Launcher, tmp_path: Path, foreign: Path, follow: Sequence[str]
    ) -> None:
        before = settings_of(foreign)
        (foreign / "events/sched/sched_process_hang/enable").write_text("1")
        with child() as one:
            asked = ("--pid", str(one.process.pid), "--markers", *follow)
            run = lttd.start("-t", tmp_path / "a", "--source", f"ftrace:{foreign.name}", *asked)
            until(lambda: len(listed(foreign)) == 2, "it limits the instance", lambda: run.stderr)
            until((foreign / "tracing_on").read_text, "it records")
            mark(foreign, "stays")
            run.signal(signal.SIGKILL).wait()
            again = lttd.run("-t", tmp_path / "b", *QUIET, "--duration", "10ms")
        assert "had changed it; restored: " in again.stderr
        assert settings_of(foreign) == before
        assert unread_events(foreign) >= 1, "the clean-up emptied the ring"


SETTINGS = ("set_event_pid", "options/event-fork", "options/markers")
SETTINGS += (
    "options/copy_trace_marker",
    "options/trace_printk_dest",
    "../../options/trace_printk_dest",
)


def settings_of(instance: Path) -> dict[str, str]:
    found = (instance / name for name in SETTINGS)
    return {str(path): path.read_text() for path in found if path.exists()}


def source(**asked: object) -> FtraceSource:
    return open_ftrace(settings(**asked), BufferPool())
