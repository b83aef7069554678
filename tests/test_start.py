"""The start of lttd: descriptors, limits, background; and its line for unexpected failures."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from lttd.start import unforeseen
from tests.data import FIXTURES
from tests.running import PATIENCE_S, QUIET, Launcher, assert_whole, needs_kernel, until

REPLAY = ("--source", f"replay:{FIXTURES}/ftrace,abi=ftrace", "--summary", "none")
LTTD = (sys.executable, "-m", "lttd")


def run(*words: str | Path, under: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run lttd; fail if it hangs or ignores SIGTERM."""
    command = [*under, *LTTD, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = done.stderr.splitlines()
    assert line.startswith("lttd: ")
    return line


# -- limits of memory


@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
@pytest.mark.parametrize("door", ["lttd", "lttv"])
@pytest.mark.parametrize("most_mb", [30, 45, 60, 80, 95, 105, 120, 140])
def test_too_little_memory_is_reported_in_our_own_line(
    tmp_path: Path, limit: int, door: str, most_mb: int
) -> None:
    words = ["-t", str(tmp_path / "t"), *REPLAY] if door == "lttd" else ["info", str(tmp_path)]
    program = f"import sys; from lttd.entry import {door} as door; sys.exit(door())"
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        preexec_fn=lambda: resource.setrlimit(limit, (most_mb * 1_000_000,) * 2),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    lines = done.stderr.splitlines()
    assert all(line.startswith(f"{door}: ") for line in lines), done.stderr
    assert bool(lines) == bool(done.returncode)


START_THREADS = """
import resource, threading
from pathlib import Path
from lttd.start import start_thread
words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
own_bytes = int(words["VmSize"].split()[0]) << 10
resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, 8 << 20))
resource.setrlimit(resource.RLIMIT_AS, (own_bytes + (9 << 20), resource.RLIM_INFINITY))
try:
    start_thread(threading.Thread(target=print, args=["started"]))
except RuntimeError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (own_bytes + (32 << 20), resource.RLIM_INFINITY))
start_thread(threading.Thread(target=print, args=["started"]))
"""


def test_a_thread_starts_only_if_there_is_memory_for_more_than_its_stack() -> None:
    done = subprocess.run(
        [sys.executable, "-c", START_THREADS],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    assert done.stdout.splitlines() == ["can't start new thread", "started"]


@pytest.mark.nightly
def test_lttd_ends_at_every_limit_of_memory(tmp_path: Path) -> None:
    """It hung at a few limits, each 24 KiB wide, where a thread got its stack and nothing else."""
    for most_kib in range(190_000, 226_000, 40):
        done = subprocess.run(
            [*LTTD, "-t", str(tmp_path / f"{most_kib}"), *REPLAY],
            preexec_fn=partial(resource.setrlimit, resource.RLIMIT_AS, (most_kib << 10,) * 2),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode in (0, 1, 2), most_kib


# -- the line for an unexpected failure


def chained() -> ImportError:
    error = ImportError("\n\nIMPORTANT: PLEASE READ THIS\n\nfor advice")
    error.__cause__ = ImportError("libx.so: failed to map segment")
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "memory is used up: allow lttd more"),
        (RuntimeError("can't start new thread"), "no thread can be started: allow lttd more"),
        (OSError(errno.EMFILE, "Too many open files", "/x"), "/x: Too many open files; let lttd"),
        (chained(), "cannot load libx.so: failed to map segment; reinstall lttd"),
        (KeyError("a\nb" * 1000), "unforeseen KeyError: 'a\\nba"),
        (
            ExceptionGroup("", [ExceptionGroup("", [MemoryError(), KeyError()])]),
            "memory is used up",
        ),
        (ExceptionGroup("", [MemoryError(), KeyError()]), "(and 1 more errors)"),
    ],
)
def test_every_failure_is_one_short_line(error: BaseException, says: str) -> None:
    line = unforeseen(error)
    assert says in line
    assert "\n" not in line
    assert len(line) < 350


def test_an_unexpected_exception_is_reported_with_its_place() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        1 / 0  # noqa: B018
    assert "unforeseen ZeroDivisionError at test_start.py:" in unforeseen(caught.value)


THREAD_FAILS = """
import threading
from lttd.start import threads_that_fail_end_all
with threads_that_fail_end_all():
    threading.Thread(target=lambda: {}["x"], name="writer").start()
    threading.Event().wait()  # for what the thread does not do
"""


@pytest.mark.slow
def test_a_thread_that_fails_ends_the_process_that_waits_for_it() -> None:
    words = [sys.executable, "-c", THREAD_FAILS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 1
    assert "unforeseen KeyError at <string>:5: 'x'" in only_line(done)


# An exception in the loop itself leaves the threads of the run alone, as when the closed terminal
# had the number of a descriptor of the loop.
LOOP_BREAKS = """
import os, sys
from contextlib import suppress
from lttd import cli
def leave_terminal():
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventpoll]":
                os.dup2(nowhere, fd)
cli._leave_terminal = leave_terminal
sys.exit(cli.main())
"""
READER_BREAKS = """
import sys
from lttd import cli, reader
async def run(self):
    raise KeyError("x")
reader.Reader.run = run
sys.exit(cli.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("broken", [LOOP_BREAKS, READER_BREAKS], ids=["loop", "reader"])
@pytest.mark.parametrize("daemon", [[], ["-d"]], ids=["", "daemon"])
def test_an_unexpected_failure_gives_one_line_and_status_1(
    tmp_path: Path, broken: str, daemon: list[str]
) -> None:
    if broken is LOOP_BREAKS and not daemon:
        pytest.skip("only a daemon leaves its terminal")
    words = [sys.executable, "-c", broken, "-t", str(tmp_path / "t"), *daemon, *REPLAY]
    # Every process with a copy of its stderr has ended when this returns.
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    line = only_line(done)
    if broken is READER_BREAKS:
        assert done.returncode == 1
        assert "unforeseen KeyError at " in line


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_on_a_full_disk_fails_in_one_line(option: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    for where, status, lines in ((">/dev/full", 1, 1), (">&-", 1, 1), ("| true", 0, 0), ("", 0, 0)):
        script = f'set -o pipefail; "$@" {where}'
        words = ["bash", "-c", script, "bash", *LTTD, option]
        done = subprocess.run(
            words, capture_output=True, env=environment, timeout=PATIENCE_S, check=False
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (status, lines), done.stderr


# -- limits


def test_lttd_raises_the_soft_limit_of_open_files(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    done = run("-t", tmp_path / "t", *REPLAY, under=["prlimit", f"--nofile=12:{hard}"])
    assert (done.returncode, done.stderr) == (0, "")
    assert_whole(tmp_path / "t")


def test_a_file_size_limit_is_reported_in_one_line(tmp_path: Path) -> None:
    done = run("-t", tmp_path / "t", *REPLAY, under=["prlimit", "--fsize=10240"])
    assert done.returncode == 1
    assert "the file is as large as the limit allows: raise it (ulimit -f)" in only_line(done)
    assert_whole(tmp_path / "t")


@pytest.mark.slow
@pytest.mark.parametrize("files", [6, 8, 10, 12, 14, 16])
def test_too_few_descriptors_are_reported_in_one_line(tmp_path: Path, files: int) -> None:
    done = run("-t", tmp_path / "t", *REPLAY, under=["prlimit", f"--nofile={files}:{files}"])
    assert done.returncode in (1, 2)
    assert re.search(r"[Tt]oo many open files.*ulimit -n", only_line(done))


@pytest.mark.slow
@pytest.mark.parametrize("size_mb", [30, 60, 110, 140, 170, 200])
def test_too_little_address_space_is_reported_in_one_line(tmp_path: Path, size_mb: int) -> None:
    done = run("-t", tmp_path / "t", *REPLAY, under=["prlimit", f"--as={size_mb << 20}"])
    if done.returncode != 0:  # the libraries decide how much it takes
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
        only_line(done)


@pytest.mark.slow
def test_too_few_processes_are_reported_in_one_line(tmp_path: Path) -> None:
    # A user whom limits bind, and who may read this Python in any directory.
    nobody = ["setpriv", "--reuid=64999", "--inh-caps=+dac_override"]
    nobody += ["--ambient-caps=+dac_override"]
    if os.geteuid() or subprocess.run([*nobody, "true"], check=False).returncode:
        pytest.skip("not root, or no setpriv with ambient capabilities")
    under = [*nobody, "prlimit", "--nproc=1"]
    done = run("-t", tmp_path / "t", *REPLAY, under=under)
    assert done.returncode == 1
    assert re.search(r"no thread can be started: .*ulimit -u.*ulimit -v", only_line(done))
    for option in (["-d"], ["--", "true"]):
        done = run("-t", tmp_path / "t", *REPLAY[:2], *option, under=under)
        assert done.returncode == 1
        assert "allow lttd more threads" in only_line(done)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("size", "limit", "says"),
    [
        ("1T", [], "this machine has "),
        ("1024T", [], "this machine has "),
        ("256M", ["prlimit", f"--as={300 << 20}"], "this process may not have so much memory"),
    ],
)
def test_a_backlog_larger_than_memory_is_refused(
    tmp_path: Path, size: str, limit: list[str], says: str
) -> None:
    done = run("-t", tmp_path / "t", "--backlog", size, *REPLAY, under=limit)
    assert done.returncode == 2
    assert says in only_line(done)
    assert not (tmp_path / "t").exists()


# -- the background

CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"]


def test_no_file_of_lttd_takes_the_number_of_a_closed_standard_descriptor(tmp_path: Path) -> None:
    under = ["sh", "-c", f'exec "$@" {CLOSED[-1]}', "sh"]
    assert run("-t", tmp_path / "t", *REPLAY, under=under).returncode == 0
    assert_whole(tmp_path / "t")


class TestOnThisKernel:
    pytestmark = needs_kernel()

    @pytest.mark.parametrize("closed", CLOSED)
    def test_a_daemon_with_closed_descriptors_records_and_ends_on_a_signal(
        self, lttd: Launcher, tmp_path: Path, closed: str
    ) -> None:
        under = ["sh", "-c", f'exec "$@" {closed}', "sh"]
        parent = lttd.start("-t", tmp_path / "t", "-d", *QUIET, under=under)
        assert parent.wait() == 0, parent.stderr
        (name,) = lttd.left()
        pid = int(name.removeprefix(lttd.prefix))
        for fd in (0, 1, 2):
            is_log = fd > 0 and (">&-", "2>&-")[fd - 1] not in closed.split()
            log = (parent.out_path, parent.err_path)[fd - 1]
            assert os.readlink(f"/proc/{pid}/fd/{fd}") == (str(log) if is_log else "/dev/null")
        (lttd.instances / name / "trace_marker").write_text("the last word")
        os.kill(pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{pid}").exists(), "the daemon has ended")
        assert_whole(tmp_path / "t", "--events")
        assert b"the last word" in b"".join(
            path.read_bytes() for path in tmp_path.glob("t/*/streams/ftrace_?")
        )

    def test_a_signal_to_the_parent_of_a_starting_daemon_ends_both(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        run = lttd.start("-t", tmp_path / "t", "-d", *QUIET)
        children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children")
        until(children.read_text, "the daemon is there")
        (pid,) = map(int, children.read_text().split())
        run.signal(signal.SIGTERM)
        # It may have been ready already; it still ends by the signal.
        assert run.wait() in (0, 1)
        until(lambda: not Path(f"/proc/{pid}").exists(), "the daemon has ended")
