"""``--markers`` records what programs write at the top level, and gives back what it takes."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lttd.sources.ftrace import markers
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.source import open_ftrace
from lttd.sources.ftrace.undo import Undo
from lttd.sources.mounts import find_tracefs
from lttd.subbuffer import BufferPool
from tests.ftrace_sources import QUIET, content, drain, instance_of
from tests.instances import mark
from tests.killed_runs import data_of
from tests.running import QUIET as QUIETLY
from tests.running import Launcher, needs_kernel

MARKED = QUIET._replace(markers=True)


def plain(path: Path, top: str, **options: str) -> Instance:
    """Return an instance made of plain files, below a top level with trace_printk_dest *top*."""
    for directory in (path, path / "instances/made"):
        (directory / "options").mkdir(parents=True)
    (path / "options/trace_printk_dest").write_text(top)
    made = path / "instances/made"
    for name, value in {"markers": "1", **options}.items():
        (made / "options" / name).write_text(value)
    return Instance(str(path), str(made), "made", True, {}, Undo(str(made), own=True))


def test_a_kernel_that_copies_no_marks_is_said_with_where_to_write(tmp_path: Path) -> None:
    made = plain(tmp_path, "1", trace_printk_dest="0")
    markers.take_marks(made)
    assert "cannot copy marks of the top level" in made.notes[0]
    assert made.file("trace_marker") in made.notes[0]
    assert "trace_printk goes to this instance" in made.notes[1]
    assert Path(made.file("options/trace_printk_dest")).read_text() == "1"


def test_an_instance_that_has_trace_printk_keeps_it(tmp_path: Path) -> None:
    made = plain(tmp_path, "0", trace_printk_dest="0", copy_trace_marker="0")
    markers.take_marks(made)
    assert made.notes == ["another instance has trace_printk already, and keeps it"]
    assert Path(made.file("options/trace_printk_dest")).read_text() == "0"
    assert Path(made.file("options/copy_trace_marker")).read_text() == "1"


def test_a_kernel_without_a_choice_for_trace_printk_is_said(tmp_path: Path) -> None:
    made = plain(tmp_path, "1", copy_trace_marker="0")
    (tmp_path / "options/trace_printk_dest").unlink()
    markers.take_marks(made)
    assert made.notes == ["this kernel's trace_printk stays at the top level"]


class TestOnThisKernel:
    pytestmark = needs_kernel(alone=True)

    @pytest.fixture(autouse=True)
    def needs_copies(self) -> None:
        if not (find_tracefs() / markers.COPY).exists():
            pytest.skip("this kernel copies no marks")

    @pytest.fixture
    def top(self) -> Iterator[Path]:
        """The option of the top level; it is as before afterwards."""
        path = find_tracefs() / markers.PRINTK
        before = path.read_text()
        yield path
        assert path.read_text() == before

    @pytest.mark.usefixtures("instances")
    def test_marks_of_the_top_level_are_recorded_and_trace_printk_is_given_back(
        self, top: Path
    ) -> None:
        with closing(open_ftrace(MARKED, BufferPool())) as source:
            assert source.info.settings["markers"] is True
            assert (instance_of(source) / markers.PRINTK).read_text() == "1\n"
            assert top.read_text() == "0\n"
            source.start()
            mark(find_tracefs(), f"of process {os.getpid()}")
            assert f"of process {os.getpid()}".encode() in content(drain(source))

    @pytest.mark.usefixtures("instances")
    def test_without_the_option_they_are_not_and_trace_printk_stays(self, top: Path) -> None:
        before = top.read_text()
        with closing(open_ftrace(QUIET, BufferPool())) as source:
            assert top.read_text() == before
            source.start()
            mark(find_tracefs(), f"of process {os.getpid()}")
            assert f"of process {os.getpid()}".encode() not in content(drain(source))

    def test_an_instance_of_others_has_its_options_back_at_the_end(
        self, foreign: Path, top: Path
    ) -> None:
        (foreign / "options/markers").write_text("0")
        source = open_ftrace(MARKED._replace(instance=foreign.name), BufferPool())
        with closing(source):
            assert top.read_text() == "0\n"
            source.start()
            mark(find_tracefs(), f"of process {os.getpid()}")
            assert f"of process {os.getpid()}".encode() in content(drain(source))
        names = ("options/markers", markers.COPY, markers.PRINTK)
        assert [(foreign / name).read_text() for name in names] == ["0\n"] * 3

    def test_the_next_start_after_a_kill_gives_trace_printk_back(
        self, lttd: Launcher, tmp_path: Path, top: Path
    ) -> None:
        run = lttd.start("-t", tmp_path / "t", *QUIETLY, "--markers").recording()
        assert top.read_text() == "0\n"
        mark(find_tracefs(), f"of process {os.getpid()}")
        run.signal(signal.SIGKILL).wait()
        again = lttd.run("-t", tmp_path / "t", "-a", *QUIETLY, "--duration", "10ms")
        assert again.process.returncode == 0, again.stderr
        assert f"of process {os.getpid()}".encode() in data_of(tmp_path / "t")
