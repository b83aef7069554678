"""Names of tasks are read once for all sources; the last test needs root and a mounted tracefs."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from lttd.sources.base import Attachments, Child, When, child_of
from lttd.sources.ftrace.source import open_ftrace
from lttd.sources.ftrace.task_names import NameReader
from lttd.subbuffer import BufferPool
from tests.ftrace_sources import QUIET
from tests.running import Launcher, lttv, needs_kernel


@contextmanager
def thread_named(name: str) -> Iterator[int]:
    """Give this thread a name; yield the thread's id."""
    thread = threading.get_native_id()
    path = Path("/proc/self/task", str(thread), "comm")
    before = path.read_text()
    path.write_text(name)
    try:
        yield thread
    finally:
        path.write_text(before.strip())


def names_of(due: Attachments, when: When) -> dict[int, bytes]:
    """Return the names that are added to the segment."""
    lines = [
        line
        for one in due(when)
        if one.name == "tracefs/commands"
        for line in one.data.splitlines()
    ]
    return {int(pid): command for _, pid, _, command in (line.split(b"\t") for line in lines)}


def test_names_serve_all_who_ask_at_about_the_same_time(tmp_path: Path) -> None:
    reader = NameReader()
    first = reader.read(str(tmp_path), 0)
    assert threading.get_native_id() in first.living
    assert reader.read(str(tmp_path), first.read_ns) is first


def test_names_are_read_again_for_who_needs_newer_ones(tmp_path: Path) -> None:
    reader = NameReader()
    first = reader.read(str(tmp_path), 0)
    with thread_named("renamed") as thread:
        again = reader.read(str(tmp_path), first.read_ns + 1)
    assert again.living[thread] == (b"%d" % os.getpid(), b"renamed")


def test_only_names_of_ended_tasks_come_from_saved_cmdlines(tmp_path: Path) -> None:
    ended = 2**22 + 1  # beyond the largest pid
    (tmp_path / "saved_cmdlines").write_text(f"{ended} was here\n{os.getpid()} old\n7 <...>\n")
    (tmp_path / "saved_tgids").write_text(f"{ended} 12\n")
    names = NameReader().read(str(tmp_path), 0)
    assert names.ended(names.saved) == {ended: (b"12", b"was here")}


@needs_kernel()[0]
@pytest.mark.usefixtures("instances")
def test_a_source_gets_no_names_from_before_it_was_stopped() -> None:
    with ExitStack() as stack:
        sources = [stack.enter_context(closing(open_ftrace(QUIET, BufferPool()))) for _ in range(2)]
        for source in sources:
            source.start()
        first, second = (source.attachments() for source in sources)
        for due in (first, second):
            names_of(due, When.OPEN)
        names_of(first, When.PERIODIC)
        with thread_named("lately") as thread:
            sources[1].stop()
            assert names_of(second, When.CLOSE)[thread] == b"lately"


def test_the_name_of_command_is_as_exec_gives_it() -> None:
    assert child_of(7, ["/usr/bin/a-name-longer-than-15", "x"]) == (7, b"a-name-longer-t")
    assert child_of(None, []) is None


class TestOfACommand:
    pytestmark = needs_kernel()

    @pytest.mark.parametrize(
        ("command", "name"),
        [(["cat", "/etc/hosts"], "cat"), (["sh", "-c", "exec cat /etc/hosts"], "cat")],
        ids=["program", "shell"],
    )
    def test_all_events_of_a_short_command_have_its_name(
        self, lttd: Launcher, command: list[str], name: str
    ) -> None:
        # No event of these has a name in it.
        events = ("--events", "syscalls:sys_enter_openat,syscalls:sys_enter_execve")
        run = lttd.run("-t", lttd.cwd / "t", *events, "--only-command", "--", *command)
        assert run.process.returncode == 0, run.stderr
        text = lttv("text", lttd.cwd / "t").stdout
        assert "sys_enter_openat" in text
        assert set(re.findall(r"^ *(\S.*?)-\d+ +\[", text, re.MULTILINE)) == {name}

    def test_a_command_that_saved_cmdlines_has_forgotten_has_the_name_that_it_was_given(
        self, instances: Path
    ) -> None:
        # A child of this process that has not called exec, and one that ended unseen.
        waiting, unseen = os.fork(), Child(2**22 + 1, b"make")
        if waiting == 0:
            signal.pause()
        try:
            for child in (Child(waiting, b"make"), unseen):
                with closing(open_ftrace(QUIET._replace(command=child), BufferPool())) as source:
                    due = source.attachments()
                    assert child.pid not in names_of(due, When.OPEN)
                    at_end = names_of(due, When.CLOSE)
                    assert at_end.get(child.pid) == (b"make" if child is unseen else None)
        finally:
            os.kill(waiting, signal.SIGKILL)
            os.waitpid(waiting, 0)
