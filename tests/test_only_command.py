"""``--only-command`` has every process of COMMAND from its exec on, beside a full recording.

``pytest -s -m kernel tests/test_only_command.py`` prints the share of events.
"""

import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.running import Launcher, lttv, needs_kernel

pytestmark = needs_kernel()

FILES = 20 if os.environ.get("LTTD_NIGHTLY") else 6
EVENTS = "sched:*,task:*,syscalls:sys_enter_execve,syscalls:sys_enter_openat,signal:*"
# Lines of tasks that are not recorded, with the ids of the other party.
OF_OTHERS = {
    "sched_switch": r"next_pid=(\d+)",
    "sched_waking": r" pid=(\d+)",
    "sched_wakeup": r" pid=(\d+)",
    "sched_wakeup_new": r" pid=(\d+)",
}
LINE = re.compile(r" *(.+)-(\d+) +\[(\d+)\] \S+ +(\d+\.\d+): (\w+): (.*)")


class Event(NamedTuple):
    pid: int
    at: str
    name: str
    fields: str


def make_project(directory: Path) -> None:
    """Write a C program of many small files, and its Makefile."""
    directory.mkdir()
    calls = "".join(f" + f{number}()" for number in range(FILES))
    declared = "".join(f"int f{number}(void);\n" for number in range(FILES))
    (directory / "main.c").write_text(f"{declared}int main(void) {{ return 0{calls}; }}\n")
    for number in range(FILES):
        (directory / f"f{number}.c").write_text(f"int f{number}(void) {{ return {number}; }}\n")
    objects = " ".join(["main.o", *(f"f{number}.o" for number in range(FILES))])
    (directory / "Makefile").write_text(
        f"program: {objects}\n\tcc -o $@ $^\n%.o: %.c\n\tcc -c -o $@ $<\n"
    )


def events_of(segment: Path) -> list[Event]:
    text = lttv("text", segment)
    assert text.returncode == 0, text.stderr
    found = (LINE.fullmatch(line) for line in text.stdout.splitlines())
    return [Event(int(one[2]), one[4], one[5], one[6]) for one in found if one]


def forked(events: list[Event], root: int) -> set[int]:
    """Return the tasks that descend from *root*."""
    tree = {root}
    for event in events:
        if event.name == "sched_process_fork" and event.pid in tree:
            tree.add(int(event.fields.rpartition("child_pid=")[2]))
    return tree


@pytest.mark.skipif(not (shutil.which("make") and shutil.which("cc")), reason="no make, no cc")
def test_every_process_of_make_is_recorded_from_its_exec_and_others_in_scheduler_lines_only(
    lttd: Launcher, tmp_path: Path
) -> None:
    make_project(tmp_path / "project")
    spec = f"ftrace,buffer-size=16M,events={EVENTS}"
    words = ("--source", f"{spec},only-command=yes", "--source", spec, "--summary", "none")
    run = lttd.run(
        "-t", tmp_path / "t", *words, "--", "make", "-s", "-j2", "-C", tmp_path / "project"
    )
    assert run.process.returncode == 0, run.stderr
    only, full = map(events_of, sorted((tmp_path / "t").iterdir()))
    is_exec = {"sched_process_exec": r"filename=\S*/make pid=(\d+)"}
    root = next(
        event.pid for event in only if re.match(is_exec["sched_process_exec"], event.fields)
    )
    tree = forked(full, root)
    assert len(tree) > 2 * FILES, "make forked cc, which forked"

    # What the tree's tasks do is in both recordings; COMMAND's fork was before either began.
    begin = next(event.at for event in only if event.pid == root)
    by_tree = [event for event in full if event.pid in tree and event.at >= begin]
    got = Counter((event.pid, event.name) for event in only if event.pid in tree)
    expected = Counter((event.pid, event.name) for event in by_tree)
    assert got == expected
    execs = {event.pid for event in only if event.name == "sched_process_exec"}
    assert execs == {event.pid for event in by_tree if event.name == "sched_process_exec"}
    assert root in execs

    for event in only:
        if event.pid not in tree:
            assert event.name in OF_OTHERS, event
            (other,) = re.findall(OF_OTHERS[event.name], event.fields)
            assert int(other) in tree, event
    print(f"{len(only):,} of {len(full):,} events: {len(only) / len(full):.0%} of a full recording")


def test_only_command_without_a_command_is_refused(lttd: Launcher, tmp_path: Path) -> None:
    run = lttd.run("-t", tmp_path / "t", "--only-command", "--duration", "1s")
    assert run.process.returncode == 2
    assert "only-command records COMMAND alone; write COMMAND after '--'" in run.stderr


def test_processes_of_a_pid_namespace_are_refused_because_the_kernel_traces_other_ids(
    lttd: Launcher, tmp_path: Path
) -> None:
    under = ("unshare", "--pid", "--fork", "--mount-proc")
    run = lttd.run("-t", tmp_path / "t", "--only-command", "--", "true", under=under)
    assert run.process.returncode == 77
    assert "lttd runs in a pid namespace, whose process ids the kernel's trace does" in run.stderr
    assert "run lttd in the initial pid namespace (docker: --pid=host)" in run.stderr


def test_doctor_tries_it(lttd: Launcher) -> None:
    run = lttd.run("doctor", "--only-command", "--", "true")
    assert run.process.returncode == 0, run.stdout
