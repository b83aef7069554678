"""Run lttd as a process of its own, with instances that no other lttd on this machine touches."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lttd.errors import LttdError
from lttd.sources.mounts import find_tracefs
from tests.instances import stats_of

BENCH = Path(__file__).parents[1] / "bench"
# The limit for processes that hang; a busy machine may be slow.
PATIENCE_S = 120.0
# Instances get a prefix that no other lttd on this machine uses or searches. Syncs come often, so
# that short runs have a synced record.
LAUNCHER = """
import signal, sys
from lttd.sources.ftrace import instance as ftrace_instance
ftrace_instance.OWN_PREFIX = sys.argv.pop(1)
from lttd.recorder import Recorder
Recorder.__init__.__kwdefaults__["sync_interval_s"] = float(sys.argv.pop(1))
from lttd import cli
parse = cli.parse_command_line
def heed_signals_and_parse(arguments):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return parse(arguments)
cli.parse_command_line = heed_signals_and_parse
# A test that waits for the file "begun" may interrupt main(), but not this launcher.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
# The tests may run under nohup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
open("begun", "w").close()
sys.exit(cli.main())
"""
# This event never happens, so the rings hold only what the test writes.
QUIET = ("--events", "sched:sched_process_hang")


def why_no_kernel() -> str:
    """Return the reason why this kernel cannot be recorded; empty if it can."""
    try:
        root = find_tracefs()
    except LttdError as error:
        return str(error)
    return "" if os.access(root / "instances", os.W_OK) else "not root"


def needs_kernel(*, alone: bool = False) -> list[pytest.MarkDecorator]:
    """Return the marks of tests that record this kernel; *alone*: with no other test beside them.

    Others have rings and marks of their own, and neither measure time nor change the top level.
    """
    why = why_no_kernel()
    found = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.skipif(bool(why), reason=why)]
    return [*found, pytest.mark.alone] if alone else found


def until(
    condition: Callable[[], object], what: str, seen: Callable[[], object] | None = None
) -> None:
    """Wait until *condition* is true; fail after PATIENCE_S with the result of *seen*.

    The message also has the state of each lttd that a launcher has started, and what the machine
    does: a writer on one CPU only, or no writer at all, looks like an lttd that hangs.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            lines = [f"waited in vain: {what}", *([f"saw: {seen()}"] if seen else ())]
            lines += [run.state() for launcher in _in_use for run in launcher.runs]
            lines.append(f"CPUs {sorted(os.sched_getaffinity(0))}, load {os.getloadavg()}")
            raise AssertionError("\n".join(lines))
        time.sleep(0.01)


# The launchers that exist, for the message of until().
_in_use: "list[Launcher]" = []


class Run:
    """An lttd process, with its output in files."""

    def __init__(
        self,
        launcher: "Launcher",
        words: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.launcher = launcher
        # Files, not pipes, so that a test can read them while lttd runs.
        self.out_path, self.err_path = cwd / "stdout", cwd / "stderr"
        own = {"RUNTIME_DIRECTORY": str(launcher.runtime)}
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            self.process = subprocess.Popen(
                words,
                cwd=cwd,
                stdout=out,
                stderr=err,
                env={**os.environ, **own, **(environment or {})},
            )

    @property
    def stdout(self) -> str:
        return self.out_path.read_text()

    @property
    def stderr(self) -> str:
        return self.err_path.read_text()

    @property
    def lines(self) -> list[str]:
        return self.stderr.splitlines()

    @property
    def instance(self) -> Path:
        """The path of the tracefs instance that this process makes."""
        return self.launcher.instances / f"{self.launcher.prefix}{self.process.pid}"

    def recording(self) -> "Run":
        """Wait until lttd has turned tracing on."""

        def is_on() -> bool:
            assert self.process.poll() is None, self.stderr
            try:
                # A new instance is on, too; lttd turns it off before it enables events.
                names = ("set_event", "tracing_on")
                events, on = ((self.instance / name).read_text() for name in names)
                return bool(events) and on == "1\n"
            except OSError:
                return False

        until(is_on, "tracing is on")
        return self

    def stats(self) -> dict[int, dict[str, int]]:
        """Return the kernel's own counters by CPU."""
        return stats_of(self.instance)

    def state(self) -> str:
        """Return status, counters of the kernel and last lines, for the message of a failure."""
        ended = self.process.poll()
        status = f"pid {self.process.pid} runs" if ended is None else f"ended with {ended}"
        stats = "".join(f"\n  cpu {cpu}: {found}" for cpu, found in sorted(self.stats().items()))
        return "\n  ".join([f"lttd {status}{stats}", *self.lines[-5:]])

    def signal(self, number: int) -> "Run":
        self.process.send_signal(number)
        return self

    def stop(self) -> "Run":
        """Stop all threads.  A signal alone lets a read go on that a thread is in."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        return self

    def wait(self) -> int:
        """Wait for the end and return the exit status."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"lttd does not end: {self.stderr}") from None

    def end(self) -> int:
        return self.signal(signal.SIGTERM).wait()


class Launcher:
    """Start lttd processes whose own instances have the prefix of this launcher."""

    def __init__(self, cwd: Path, prefix: str) -> None:
        self.cwd = cwd
        self.prefix = prefix
        self.runtime = cwd / "runtime"
        """The runtime directory of these processes; no other lttd reads it."""
        self.instances = find_tracefs() / "instances"
        self.runs: list[Run] = []

    def words(self, *arguments: str | Path, sync_s: float = 0.1) -> list[str]:
        options = [sys.executable, "-c", LAUNCHER, self.prefix, str(sync_s)]
        return options + [str(word) for word in arguments]

    def start(
        self,
        *arguments: str | Path,
        under: Sequence[str] = (),
        sync_s: float = 0.1,
        environment: Mapping[str, str] | None = None,
    ) -> Run:
        cwd = self.cwd / f"run{len(self.runs)}"
        cwd.mkdir()
        cwd.chmod(0o777)  # for an lttd that runs as nobody
        words = [*under, *self.words(*arguments, sync_s=sync_s)]
        run = Run(self, words, cwd, environment)
        self.runs.append(run)
        return run

    def run(self, *arguments: str | Path, under: Sequence[str] = ()) -> Run:
        """Start an lttd and wait for its end."""
        run = self.start(*arguments, under=under)
        run.wait()
        return run

    def left(self) -> list[str]:
        """Return the names of the instances that exist with our prefix."""
        return [name for name in os.listdir(self.instances) if name.startswith(self.prefix)]

    def clean(self) -> None:
        for run in self.runs:
            if run.process.poll() is None:
                run.process.kill()
                run.process.wait()
        for name in self.left():
            os.rmdir(self.instances / name)


@contextmanager
def launching(cwd: Path, mark: str = "") -> Iterator[Launcher]:
    """Yield a launcher, and remove all its processes and instances afterwards.

    *mark* distinguishes launchers that are used at the same time.
    """
    launcher = Launcher(cwd, f"lttdtest{os.getpid()}{mark}-")
    _in_use.append(launcher)
    try:
        yield launcher
        left = launcher.left()
    finally:
        launcher.clean()
        _in_use.remove(launcher)
    assert left == [], "instances were left behind"


def build_load(directory: Path) -> Path:
    """Compile bench/syscall_load.c (usage: ``syscall_load CPU COUNT``) and return its path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the load")
    program = directory / "syscall_load"
    subprocess.run([compiler, "-O2", "-o", program, BENCH / "syscall_load.c"], check=True)
    return program


@contextmanager
def loaded(program: Path, cpus: Sequence[int] = (0,)) -> Iterator[None]:
    """Keep *cpus* busy with system calls during the block."""
    forever = str(1 << 60)
    # Nice, so that the tested program gets its share of a small machine.
    loads = [subprocess.Popen(["nice", program, str(cpu), forever]) for cpu in cpus]
    try:
        yield
    finally:
        for load in loads:
            load.kill()
            load.wait()


def lttv(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run lttv to its end."""
    words = [sys.executable, "-m", "lttd.view", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def info(trace: Path) -> dict[str, Any]:
    """Return the output of ``lttv info --json``."""
    found = lttv("info", "--json", trace)
    assert found.returncode == 0, found.stderr
    value: dict[str, Any] = json.loads(found.stdout)
    return value


def assert_whole(trace: Path, *options: str) -> dict[str, Any]:
    """Assert that ``lttv check`` finds nothing; return its report."""
    found = lttv("check", "--json", *options, trace)
    assert found.returncode == 0, found.stdout + found.stderr
    report: dict[str, Any] = json.loads(found.stdout)
    return report


def free_port() -> int:
    """Return a free port outside the range that the kernel assigns to connections.

    No other worker of pytest-xdist returns it.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    below = range(first - 10_000, first) if first > 12_000 else range(first, 1 << 16)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for port in random.sample(below[worker::workers], 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def get(port: int, path: str) -> tuple[int, str]:
    """Return status and body from lttd's endpoint; status 0 while nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def scraped(port: int) -> str:
    return get(port, "/metrics")[1]
