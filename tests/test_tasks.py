"""Processes and names that a user writes mean the threads that /proc has of them."""

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lttd.errors import UsageError
from lttd.sources.ftrace.tasks import Wish, find_tasks, is_alive


class Proc:
    """A /proc of a few processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def process(
        self, pid: int, name: str, parent: int = 1, threads: Mapping[int, str] | None = None
    ) -> "Proc":
        directory = self.root / str(pid)
        directory.mkdir()
        (directory / "stat").write_text(f"{pid} (a) b (({name}) S {parent} 1 1 0 -1 4194560 0\n")
        for thread, comm in {pid: name, **(threads or {})}.items():
            for place in (directory / "task" / str(thread), self.root / str(thread)):
                place.mkdir(parents=True, exist_ok=True)
                (place / "comm").write_bytes(os.fsencode(comm) + b"\n")
                (place / "status").write_text(f"Name:\t{comm}\nTgid:\t{pid}\nNgid:\t0\n")
        return self

    def find(self, *, all_there: bool = True, **wish: object) -> set[int]:
        return set(find_tasks(Wish(**wish), all_there=all_there, proc=str(self.root)))  # type: ignore[arg-type]


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """nginx has workers with threads; lttd is this process, and COMMAND waits below it."""
    return (
        Proc(tmp_path)
        .process(1, "init", 0)
        .process(10, "nginx", threads={11: "nginx-log"})
        .process(20, "nginx-worker", 10, threads={21: "aio"})
        .process(30, "cgi", 20)
        .process(40, "bash (x) y", threads={41: "aio"})
        .process(os.getpid(), "lttd", 40)
        .process(50, "lttd", os.getpid())
    )


@pytest.mark.parametrize(
    ("pids", "means"),
    [((10,), {10, 11}), ((10, 30), {10, 11, 30}), ((11,), {11}), ((0,), {0}), ((0, 21), {0, 21})],
)
def test_a_process_means_all_its_threads_and_a_thread_itself(
    proc: Proc, pids: Sequence[int], means: set[int]
) -> None:
    assert proc.find(pids=pids) == means


@pytest.mark.parametrize(
    ("glob", "means"),
    [("nginx", {10, 11}), ("nginx*", {10, 11, 20, 21}), ("aio", {21, 41}), ("bash (x) y", {40, 41}),
     ("[cn]*", {10, 11, 20, 21, 30})],
)  # fmt: skip
def test_a_name_means_processes_with_their_threads_and_threads_of_that_name(
    proc: Proc, glob: str, means: set[int]
) -> None:
    assert proc.find(globs=(glob,)) == means


def test_descendants_are_those_that_exist_but_not_lttd_and_its_command(proc: Proc) -> None:
    assert proc.find(pids=(10,), descendants=True) == {10, 11, 20, 21, 30}
    assert proc.find(pids=(40,), descendants=True) == {40, 41}
    assert proc.find(globs=("nginx-w*",), descendants=True) == {20, 21, 30}
    everything = proc.find(pids=(1,), descendants=True)
    assert not {os.getpid(), 50} & everything
    assert proc.find(pids=(40,), descendants=True, more=frozenset({50})) == {40, 41, 50}


def test_idle_tasks_have_no_descendants(proc: Proc) -> None:
    assert proc.find(pids=(0,), descendants=True) == {0}


def test_a_name_never_means_lttd_itself(proc: Proc) -> None:
    with pytest.raises(UsageError, match="comm 'lttd': no task has such a name now"):
        proc.find(globs=("lttd",))


@pytest.mark.parametrize(
    ("wish", "words"),
    [({"pids": (12,)}, r"^pid 12: there is no such process$"),
     ({"globs": ("nginx", "apache*")}, r"^comm 'apache\*': no task has such a name now; cat /proc"),
     ({"globs": ("nginx-worker-process",)}, "keeps 15 characters of a name: write a \\*$")],
)  # fmt: skip
def test_a_wish_that_means_no_task_is_refused_because_an_empty_list_would_mean_all(
    proc: Proc, wish: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        proc.find(**wish)


def test_a_later_look_takes_what_is_left(proc: Proc) -> None:
    assert proc.find(pids=(10, 12), globs=("apache",), all_there=False) == {10, 11}


def test_the_threads_of_a_running_process_are_found() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert {os.getpid(), thread.native_id} <= find_tasks(Wish((os.getpid(),)))
        assert find_tasks(Wish((thread.native_id or 0,))) == {thread.native_id}
        assert is_alive(thread.native_id or 0)
    finally:
        ended.set()
        thread.join()
    assert not is_alive(1 << 22)
    assert is_alive(0)
