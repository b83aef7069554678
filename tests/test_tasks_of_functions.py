"""The functions of a tracer are limited to the same tasks as events, by a list of their own."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lttd.errors import NothingToRecordError
from lttd.sources.ftrace.additions import Added
from lttd.sources.ftrace.asked import FtraceSettings
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.left_out import LeftOut
from lttd.sources.ftrace.pids import record_only
from lttd.sources.ftrace.settings import Change
from lttd.sources.ftrace.task_lists import EVENTS, FUNCTIONS, ids_in, lists_of
from lttd.sources.ftrace.undo import Undo
from lttd.sources.mounts import find_tracefs
from tests.running import Launcher, needs_kernel

FORKS = ("options/event-fork", "options/function-fork")


def of_files(path: Path, tracer: str) -> Instance:
    """Return an instance in a directory of ordinary files."""
    (path / "options").mkdir(parents=True)
    for name in ("set_ftrace_pid", "set_ftrace_notrace_pid"):
        (path / name).write_text("no pid\n")
    for name in ("set_event_pid", "set_event_notrace_pid"):
        (path / name).write_text("")
    for name in ("options/event-fork", "options/function-fork"):
        (path / name).write_text("0\n")
    (path / "current_tracer").write_text(f"{tracer}\n")
    return Instance(str(path), str(path), "made", False, {}, Undo(str(path)))


def ids(instance: Path | str, name: str) -> frozenset[int]:
    return ids_in(Path(instance, name).read_text())


def test_an_empty_list_of_functions_has_words_and_no_ids() -> None:
    assert ids_in("no pid\n") == frozenset()
    assert ids_in("0\n4711\n") == {0, 4711}


@pytest.mark.parametrize(
    ("now", "asked", "lists"),
    [
        ("nop", None, (EVENTS,)),
        ("nop", "function", (EVENTS, FUNCTIONS)),
        ("nop", "blk", (EVENTS,)),
        ("function_graph", None, (EVENTS, FUNCTIONS)),
        ("function", "blk", (EVENTS,)),
    ],
)
def test_functions_have_a_list_where_a_tracer_records_them(
    tmp_path: Path, now: str, asked: str | None, lists: tuple[Any, ...]
) -> None:
    assert lists_of(of_files(tmp_path / "a", now), asked) == lists
    (tmp_path / "a/set_ftrace_pid").unlink()
    assert lists_of(of_files(tmp_path / "b", now), asked) == lists
    assert lists_of(Instance(*(str(tmp_path / "a"),) * 2, "a", True, {}, Undo(""))) == (EVENTS,)


def test_the_list_is_emptied_after_its_tracer_and_stays_while_the_ring_must_be_kept(
    tmp_path: Path,
) -> None:
    lines = list[Mapping[str, Any]]()
    (tmp_path / "current_tracer").write_text("nop\n")
    (tmp_path / "set_ftrace_pid").write_text("no pid\n")
    undo = Undo(str(tmp_path), lines.append)
    undo.add("set_ftrace_pid", ["70"])
    assert lines == [{"added": "set_ftrace_pid", "items": ["70"], "alone": True}]
    (tmp_path / "set_ftrace_pid").write_text("70\n71\n")  # 71 is a child
    undo.change("current_tracer", "function")
    assert undo.run(keep_rings=True) == []
    assert set(undo.files) == {"current_tracer", "set_ftrace_pid"}
    assert ids(tmp_path, "set_ftrace_pid") == {70, 71}
    assert undo.run() == []
    assert ids(tmp_path, "set_ftrace_pid") == frozenset()
    assert (tmp_path / "current_tracer").read_text().startswith("nop")


def test_a_tracer_that_records_no_functions_records_all_tasks_and_says_so(tmp_path: Path) -> None:
    instance = of_files(tmp_path / "a", "nop")
    record_only(instance, FtraceSettings(pid=(os.getpid(),), tracer="hwlat"))
    assert ids(instance.path, "set_ftrace_pid") == frozenset()
    assert instance.notes == [
        "pid, comm and only-command limit events and calls of functions; the tracer hwlat records"
        " all tasks"
    ]


def test_both_lists_have_the_tasks_and_their_forks_are_followed(tmp_path: Path) -> None:
    instance = of_files(tmp_path / "a", "nop")
    before = {name: (tmp_path / "a" / name).read_text() for name in FORKS}
    record_only(instance, FtraceSettings(pid=(0,), follow_fork=True, tracer="function"))
    assert ids(instance.path, EVENTS.file) == ids(instance.path, FUNCTIONS.file) == {0}
    assert {(tmp_path / "a" / name).read_text()[0] for name in FORKS} == {"1"}
    assert instance.undo.run() == []
    assert ids(instance.path, EVENTS.file) == ids(instance.path, FUNCTIONS.file) == frozenset()
    assert {name: (tmp_path / "a" / name).read_text() for name in FORKS} == before


def test_without_a_tracer_the_list_of_functions_is_left_alone(tmp_path: Path) -> None:
    instance = of_files(tmp_path / "a", "nop")
    record_only(instance, FtraceSettings(pid=(0,)))
    assert ids(instance.path, FUNCTIONS.file) == frozenset()


def test_a_list_of_somebody_stays_and_is_the_reason_of_a_refusal(tmp_path: Path) -> None:
    instance = of_files(tmp_path / "a", "nop")
    (tmp_path / "a/set_ftrace_pid").write_text("4194303")
    with pytest.raises(NothingToRecordError, match=r"set_ftrace_pid lists pids such as 4194303"):
        record_only(instance, FtraceSettings(pid=(0,), tracer="function"))
    assert ids(instance.path, FUNCTIONS.file) == {4194303}
    assert ids(instance.path, EVENTS.file) == frozenset()


@pytest.mark.parametrize(("now_asked", "listed"), [((), set()), ((0,), {0})])
def test_what_a_killed_lttd_listed_is_not_recorded_by_the_next(
    tmp_path: Path, now_asked: tuple[int, ...], listed: set[int]
) -> None:
    instance = of_files(tmp_path / "a", "function")
    (tmp_path / "a/set_ftrace_pid").write_text("4194303\n")
    of_killed = Added("set_ftrace_pid", ("4194303",), alone=True)
    instance.undo.inherit([Change("current_tracer", "nop", "function")], [of_killed])
    assert ids(instance.path, FUNCTIONS.file) == {4194303}, "its tracer is still set"
    record_only(instance, FtraceSettings(pid=now_asked, tracer="function"))
    assert ids(instance.path, FUNCTIONS.file) == listed


class TestOnThisKernel:
    pytestmark = needs_kernel()

    def test_lockdown_refuses_functions_of_some_tasks_with_one_line(self, lttd: Launcher) -> None:
        try:
            (find_tracefs() / "set_ftrace_pid").read_text()
        except PermissionError:
            pass  # so it is for lttd
        else:
            pytest.skip("this kernel is not in lockdown")
        run = lttd.run("-t", lttd.cwd / "t", "--tracer", "function", "--pid", str(os.getpid()))
        assert run.process.returncode == 77
        assert run.stderr.count("\n") == 1, run.stderr
        assert "lockdown" in run.stderr
        assert lttd.left() == []


def test_lttds_own_threads_are_left_out_of_functions_too(tmp_path: Path) -> None:
    instance = of_files(tmp_path / "a", "function")
    LeftOut(instance, FtraceSettings(trace_self=False)).add([7, 8])
    assert ids(instance.path, "set_event_notrace_pid") == {7, 8}
    assert {7, 8} == {int(each) for each in instance.undo.added("set_ftrace_notrace_pid")}
