"""A tracer is set before the rings are open; refusals are one line, and leave nothing behind."""

import os
from pathlib import Path

import pytest

from lttd.errors import LockedError, NothingToRecordError, UsageError
from lttd.sources.ftrace.additions import Added
from lttd.sources.ftrace.asked import FtraceSettings
from lttd.sources.ftrace.instance import Instance, lock_all
from lttd.sources.ftrace.modules import loaded_modules, symbols_since
from lttd.sources.ftrace.settings import Change
from lttd.sources.ftrace.tracer import set_tracer
from lttd.sources.ftrace.undo import Undo
from tests.running import Launcher, needs_kernel


def tracefs(root: Path, tracers: str = "function_graph function nop") -> Instance:
    """Return an instance in a directory of ordinary files."""
    path = root / "instances" / "mine"
    (path / "per_cpu/cpu0").mkdir(parents=True)
    (path / "per_cpu/cpu0/trace_pipe_raw").touch()
    (path / "per_cpu/cpu0/stats").write_text("entries: 0\n")
    for name, text in (
        ("available_tracers", tracers), ("current_tracer", "nop"), ("set_ftrace_filter", ""),
        ("set_ftrace_notrace", ""),
    ):  # fmt: skip
        (path / name).write_text(text)
    (root / "available_tracers").write_text("function_graph function nop")
    (root / "available_filter_functions").write_text("vfs_read\nvfs_write\n")
    (root / "max_graph_depth").write_text("0")
    undo = Undo(str(path), root=str(root))
    return Instance(str(root), str(path), "mine", False, {}, undo)


def refused(instance: Instance, tracer: str | None, **options: object) -> str:
    with pytest.raises((UsageError, NothingToRecordError)) as caught:
        set_tracer(instance, FtraceSettings(tracer=tracer, **options))  # type: ignore[arg-type]
    return str(caught.value)


def test_functions_and_depth_are_set_and_taken_back(tmp_path: Path) -> None:
    instance = tracefs(tmp_path)
    asked = FtraceSettings(
        tracer="function_graph", function=("vfs_*", "schedule"), notrace=("vfs_w*",), graph_depth=3
    )
    set_tracer(instance, asked)
    path = Path(instance.path)
    assert (path / "current_tracer").read_text() == "function_graph"
    assert (path / "set_ftrace_filter").read_text() == "vfs_*\nschedule\n"
    assert (path / "set_ftrace_notrace").read_text() == "vfs_w*\n"
    assert (tmp_path / "max_graph_depth").read_text().startswith("3")
    assert instance.raw_fds.keys() == {0}
    assert any("whole machine" in note for note in instance.notes)
    instance.unlock()
    assert set(instance.undo.files) == {
        "current_tracer", "set_ftrace_filter", "set_ftrace_notrace", "/max_graph_depth",
    }  # fmt: skip


def test_no_ring_is_open_while_the_rings_are_closed_and_all_are_locked_afterwards(
    tmp_path: Path,
) -> None:
    instance = tracefs(tmp_path)
    instance.raw_fds = lock_all(instance.path)
    (fd,) = instance.raw_fds.values()
    with instance.rings_closed():
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        assert instance.raw_fds == {}
    with pytest.raises(LockedError):
        lock_all(instance.path)
    instance.unlock()


def test_the_functions_stay_chosen_as_long_as_the_tracer_is_set(tmp_path: Path) -> None:
    instance = tracefs(tmp_path)
    path = Path(instance.path)
    (path / "current_tracer").write_text("function")
    (path / "set_ftrace_filter").write_text("vfs_read\n")
    changes = [Change("current_tracer", "nop", "function"), Change("/max_graph_depth", "0", "2")]
    (tmp_path / "max_graph_depth").write_text("2")
    added = [Added("set_ftrace_filter", ("vfs_read",), alone=True)]
    killed = Undo(instance.path, root=instance.root)
    killed.take_over(changes, added)
    assert killed.run(keep_rings=True) == []
    assert set(killed.files) == {"current_tracer", "set_ftrace_filter"}
    assert (path / "set_ftrace_filter").read_text() == "vfs_read\n"

    assert instance.undo.inherit([changes[0]], added) == []
    assert (path / "set_ftrace_filter").read_text() == "vfs_read\n"
    set_tracer(instance, FtraceSettings(tracer="function", function=("vfs_read",)))
    assert instance.undo.run() == []
    assert (path / "current_tracer").read_text().startswith("nop")
    assert (path / "set_ftrace_filter").read_text() == ""
    instance.unlock()


def test_a_tracer_that_is_set_already_is_not_written(tmp_path: Path) -> None:
    instance = tracefs(tmp_path)
    (tmp_path / "instances/mine/current_tracer").write_text("function\n")
    set_tracer(instance, FtraceSettings(tracer="function"))
    assert not instance.undo.changed


def test_an_unknown_tracer_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    assert refused(tracefs(tmp_path), "functoin") == (
        "tracer 'functoin': this kernel does not have it here; did you mean function? it has"
        " function_graph, function, nop"
    )


def test_a_tracer_of_the_top_level_only_says_how_to_record_that(tmp_path: Path) -> None:
    line = refused(tracefs(tmp_path, "function nop"), "function_graph")
    assert line == (
        "tracer function_graph: this kernel has it at the top level only;"
        " record that: --source ftrace:/"
    )


@pytest.mark.parametrize(
    ("tracer", "options", "words"),
    [
        (None, {"function": ["vfs_read"]}, "function is of the function tracers"),
        ("nop", {"notrace": ["vfs_read"]}, "notrace is of the function tracers"),
        ("function", {"graph_depth": 3}, "graph-depth is of one tracer only"),
        ("function", {"function": ["vfs read"]}, "function 'vfs read': write a name, or a glob"),
        ("function", {"function": ["f:traceoff"]}, "function 'f:traceoff': write a name"),
    ],
)
def test_options_that_do_not_fit_the_tracer_are_refused(
    tmp_path: Path, tracer: str | None, options: dict[str, object], words: str
) -> None:
    instance = tracefs(tmp_path)
    assert words in refused(instance, tracer, **options)
    assert (tmp_path / "instances/mine/current_tracer").read_text() == "nop"
    assert not instance.undo.changed


def test_symbols_of_a_module_that_came_or_moved_are_found(tmp_path: Path) -> None:
    modules, kallsyms = tmp_path / "modules", tmp_path / "kallsyms"
    modules.write_text("ext4 987136 1 - Live 0xffffffffc0340000\nfuse 1 0 - Live 0x10\n")
    known = loaded_modules(str(modules))
    assert known == {b"ext4": b"0xffffffffc0340000", b"fuse": b"0x10"}
    kallsyms.write_text(
        "1 T vfs_read\n2 t fuse_a\t[fuse]\n3 t loop_a\t[loop]\n4 t ext4_a\t[ext4]\n5 t x\t[loopy]\n"
    )
    assert symbols_since(known, str(modules), str(kallsyms)) == b""
    modules.write_text(
        "ext4 987136 1 - Live 0xffffffffc0340000\nfuse 1 0 - Live 0x20\nloop 1 0 - Live 0x30\n"
    )
    found = symbols_since(known, str(modules), str(kallsyms))
    assert found == b"2 t fuse_a\t[fuse]\n3 t loop_a\t[loop]\n"
    assert symbols_since(known, str(tmp_path / "absent"), str(kallsyms)) == b""


class TestOnThisKernel:
    pytestmark = needs_kernel()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--tracer", "functoin"), "lttd: tracer 'functoin': this kernel does not have it"),
            (("--function", "vfs_*"), "lttd: function is of the function tracers"),
            (("--tracer", "nop", "--graph-depth", "2"), "lttd: graph-depth is of one tracer only"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_a_refusal_is_one_line_with_status_2_and_leaves_nothing(
        self, lttd: Launcher, options: tuple[str, ...], words: str
    ) -> None:
        run = lttd.run("-t", lttd.cwd / "t", *options)
        assert run.process.returncode == 2
        assert run.stderr.startswith(words)
        assert run.stderr.count("\n") == 1
        assert lttd.left() == []
