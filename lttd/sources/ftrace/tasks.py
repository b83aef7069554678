"""Find the tasks that a user means by processes and by names, in /proc.

Rule: the kernel traces threads, so every function returns ids of threads.  A number that is a
process's means all its threads; one of a single thread means that thread alone.
Rule: a task may end at any moment; then it is not found.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from lttd.errors import UsageError
from lttd.sources.base import NAME_BYTES

PROC: Final = "/proc"
IDLE: Final = 0
"""The id of the idle task of each CPU; /proc does not list it."""


class Process(NamedTuple):
    """A process and its threads."""

    pid: int
    parent: int
    threads: tuple[int, ...]


class Wish(NamedTuple):
    """The tasks that a user asks for."""

    pids: Sequence[int] = ()
    globs: Sequence[str] = ()
    """Of names, as /proc/PID/comm has them."""
    descendants: bool = False
    """Whether to include the processes that descend from these."""
    more: frozenset[int] = frozenset()
    """Further threads: COMMAND."""


def find_tasks(wish: Wish, *, all_there: bool = True, proc: str = PROC) -> frozenset[int]:
    """Return the ids of the threads that *wish* means now.

    Names never mean this process and its children: lttd, COMMAND before its start.

    Raises:
        UsageError: there is no process of some number, or no task has some name; only with
            *all_there*.
    """
    found = set(wish.more)
    roots: set[int] = set()
    for pid in wish.pids:
        threads = (IDLE,) if pid == IDLE else _meant_by(pid, proc)
        if not threads and all_there:
            raise UsageError(f"pid {pid}: there is no such process")
        found.update(threads)
        roots.add(pid)
    if not wish.globs and not wish.descendants:
        return frozenset(found)
    processes = {each.pid: each for each in _processes(proc)}
    ours = _below({os.getpid()}, processes)
    for glob in wish.globs:
        matching = set(_named(glob, processes.values(), ours, proc))
        if not matching and all_there:
            raise UsageError(f"comm {glob!r}: {_no_task(glob)}")
        found |= matching
        roots |= {pid for pid in matching if pid in processes}
    if wish.descendants:
        for pid in _below(roots, processes) - roots - ours:
            found.update(processes[pid].threads)
    return frozenset(found)


def is_alive(thread: int, proc: str = PROC) -> bool:
    """Tell whether a thread exists."""
    return thread == IDLE or os.path.exists(f"{proc}/{thread}")


def _no_task(glob: str) -> str:
    words = "no task has such a name now"
    if len(os.fsencode(glob)) > NAME_BYTES and not set(glob) & set("*?["):
        return f"{words}; the kernel keeps {NAME_BYTES} characters of a name: write a *"
    return f"{words}; cat /proc/PID/comm prints them, and a glob such as 'nginx*' matches them"


def _meant_by(number: int, proc: str) -> tuple[int, ...]:
    """Return the threads of a process, or the single thread that has this id."""
    try:
        with open(f"{proc}/{number}/status", "rb", buffering=0) as file:
            lines = file.read().splitlines()
    except OSError:
        return ()
    is_process = any(line.split() == [b"Tgid:", b"%d" % number] for line in lines)
    return _threads(number, proc) if is_process else (number,)


def _threads(pid: int, proc: str) -> tuple[int, ...]:
    with suppress(OSError):
        return tuple(int(name) for name in os.listdir(f"{proc}/{pid}/task"))
    return ()


def _processes(proc: str) -> Iterator[Process]:
    for name in os.listdir(proc):
        if not name.isdigit():
            continue
        try:
            with open(f"{proc}/{name}/stat", "rb", buffering=0) as file:
                fields = file.read(4096).rpartition(b")")[2].split()
        except OSError:
            continue
        yield Process(int(name), int(fields[1]), _threads(int(name), proc))


def _named(
    glob: str, processes: Iterable[Process], ours: frozenset[int], proc: str
) -> Iterator[int]:
    """Yield all threads of processes whose name matches, and other threads with such a name."""
    for process in processes:
        if process.pid in ours:
            continue
        if fnmatchcase(_name(f"{proc}/{process.pid}"), glob):
            yield from process.threads
            continue
        for thread in process.threads:
            if fnmatchcase(_name(f"{proc}/{process.pid}/task/{thread}"), glob):
                yield thread


def _name(directory: str) -> str:
    try:
        with open(f"{directory}/comm", "rb", buffering=0) as file:
            return os.fsdecode(file.read(256).removesuffix(b"\n"))
    except OSError:
        return ""


def _below(roots: Iterable[int], processes: Mapping[int, Process]) -> frozenset[int]:
    """Return *roots* and the processes that descend from them."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += children.get(pid, ()) if pid != IDLE else ()
    return frozenset(found)
