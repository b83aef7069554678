"""Other processes that have a ring's files open are found; lttd's own children are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lttd.sources.ftrace.other_readers import other_readers


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    """A directory with the files of an instance; one is open in this process."""
    ring = tmp_path / "per_cpu" / "cpu0" / "trace_pipe_raw"
    ring.parent.mkdir(parents=True)
    ring.touch()
    return tmp_path


def opened(instance: Path) -> int:
    return os.open(instance / "per_cpu" / "cpu0" / "trace_pipe_raw", os.O_RDONLY)


def test_a_child_before_its_exec_is_no_reader(instance: Path) -> None:
    file, (until, release) = opened(instance), os.pipe()
    child = os.fork()
    if not child:
        os.close(release)
        os.read(until, 1)
        os._exit(0)
    try:
        assert other_readers(str(instance)) == []
    finally:
        for fd in (file, until, release):
            os.close(fd)
        os.waitpid(child, 0)


def test_a_child_that_has_become_another_program_is_a_reader(instance: Path) -> None:
    script = "import sys; print(flush=True); sys.stdin.read()"
    with open(opened(instance)) as file:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen([sys.executable, "-c", script], pass_fds=[file.fileno()], **pipes)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        (found,) = other_readers(str(instance))
        assert found.endswith(f" (pid {child.pid})")
    finally:
        child.communicate()
