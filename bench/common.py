"""What several benchmarks need: options, compiled helpers, CPU time, tracefs instances, loads."""

import argparse
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import struct_rusage
from types import TracebackType
from typing import Final, Self

from bench.report import BENCH_DIR, OUT_DIR

TMPFS_DIR: Final = Path("/dev/shm")
NS_PER_S: Final = 1_000_000_000


class CannotMeasureError(Exception):
    """This machine or this version of lttd lacks what a benchmark needs; says what."""


@dataclass(frozen=True, slots=True)
class Options:
    """What every benchmark takes."""

    quick: bool = False
    """Few rounds and small amounts: to see that it works, not to compare figures."""
    rounds: int | None = None
    """How often each thing is measured; None: what the benchmark finds proper."""
    cold_memory: bool = False
    """Leave it to chance whose the pages are that data is copied into; see warm()."""
    disk_dir: Path = OUT_DIR / "data"
    """Where traces go: on a real disk file system."""

    def rounds_or(self, proper: int, quick: int) -> int:
        """Return how many rounds to run."""
        return self.rounds or (quick if self.quick else proper)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that ``options_from`` reads."""
    parser.add_argument("--quick", action="store_true", help="smoke test: few rounds, small data")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each measurement")
    parser.add_argument(
        "--cold-memory", action="store_true", help="drain: do not warm the page cache's pages"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=OUT_DIR / "data",
        help="directory on a real disk file system (default: %(default)s)",
    )


def options_from(arguments: argparse.Namespace) -> Options:
    """Return the options of a command line."""
    return Options(
        arguments.quick, arguments.rounds, arguments.cold_memory, arguments.dir.resolve()
    )


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Make a directory for one measurement; removed with what is in it."""
    parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=f"lttdbench-{os.getpid()}-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def file_system(path: Path) -> str:
    """Return the type of the file system that *path* is on."""
    path.mkdir(parents=True, exist_ok=True)
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # 36 35 98:0 /root /mount/point options... - ext3 /dev/root options
        before, _, behind = line.partition(" - ")
        if before.split()[2] == wanted:
            return behind.split()[0]
    return "unknown"


def settle() -> None:
    """Wait until earlier measurements' dirty pages are on the disk."""
    os.sync()


def warm(directory: Path, size_bytes: int) -> None:
    """Write and remove a file, so that what is written next gets pages that were just in use.

    In a virtual machine free pages go back to the host (free page reporting, within 2 s), and the
    first copy into such a page waits for the host: a splice loop's CPU time per GB was 0.35 s with
    and 1.1 to 2 s without this, while a recorder that drops what it wrote uses its pages again.
    Anonymous memory does not do: the page cache is given other pages.
    """
    path = directory / "warm"
    with path.open("wb", buffering=0) as file:
        block = b"\xff" * (1 << 20)
        for _ in range(0, size_bytes, len(block)):
            file.write(block)
    path.unlink()


def compiled(name: str) -> Path:
    """Return the program made of ``bench/NAME.c``, compiled when its source is newer."""
    source, program = BENCH_DIR / f"{name}.c", OUT_DIR / "bin" / name
    if not program.exists() or program.stat().st_mtime_ns < source.stat().st_mtime_ns:
        program.parent.mkdir(parents=True, exist_ok=True)
        command = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-o", str(program), str(source)]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CannotMeasureError(f"no working C compiler ({error}); apt install gcc") from error
    return program


def cpu_s(usage: struct_rusage) -> float:
    """Return user and system time."""
    return usage.ru_utime + usage.ru_stime


def wait(process: subprocess.Popen[str]) -> struct_rusage:
    """Wait for a child; return what it and the children it waited for have used."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


# -- tracefs


def tracefs() -> Path:
    """Return where tracefs is mounted.

    Raises:
        CannotMeasureError: it is not, or may not be used.
    """
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount_point, kind, *_ = line.split()
        if kind == "tracefs" and os.access(Path(mount_point) / "instances", os.W_OK):
            return Path(mount_point)
    raise CannotMeasureError(
        "no tracefs that can be written to; as root: mount -t tracefs none /sys/kernel/tracing"
    )


@dataclass(frozen=True, slots=True)
class Counters:
    """The kernel's counters of an instance's rings, summed over the CPUs, in events."""

    entries: int
    read: int
    overrun: int
    dropped: int
    commit_overrun: int

    @property
    def lost(self) -> int:
        """Events that the kernel says are lost; the reasons are disjoint."""
        return self.overrun + self.dropped + self.commit_overrun

    @property
    def lost_share(self) -> float:
        """Lost events as a share of all."""
        return self.lost / max(1, self.lost + self.read + self.entries)


class Instance:
    """A tracefs instance of our own, removed at the end whatever happens."""

    def __init__(self, label: str) -> None:
        self.name = f"lttdbench-{os.getpid()}-{label}"
        self.path = tracefs() / "instances" / self.name

    def __enter__(self) -> Self:
        self.path.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self.write("tracing_on", 0)
            self.write("events/enable", 0)
        for _ in range(50):  # EBUSY while a recorder that we ended still has a file open
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.1)
            else:
                return
        print(f"   {self.path} is busy and stays: rmdir it")

    def write(self, name: str, value: object) -> None:
        """Write a setting."""
        try:
            (self.path / name).write_text(f"{value}\n")
        except OSError as error:
            raise CannotMeasureError(f"{self.path / name}: {error.strerror}") from error

    def read(self, name: str) -> str:
        """Return a setting."""
        return (self.path / name).read_text().strip()

    def set_sizes(self, ring_kib: int, subbuffer_kib: int) -> None:
        """Give every CPU a ring, made of sub-buffers of that size."""
        if subbuffer_kib != int(self.read("buffer_subbuf_size_kb")):
            self.write("buffer_subbuf_size_kb", subbuffer_kib)
        self.write("buffer_size_kb", ring_kib)

    def rings(self) -> list[Path]:
        """Return every CPU's ring, as it is read raw."""
        return sorted(self.path.glob("per_cpu/cpu*/trace_pipe_raw"))

    def counters(self) -> Counters:
        """Return the kernel's counters."""
        totals: dict[str, int] = {}
        for path in self.path.glob("per_cpu/cpu*/stats"):
            for line in path.read_text().splitlines():
                key, _, value = line.partition(":")
                if value.strip().isdigit():
                    totals[key] = totals.get(key, 0) + int(value)
        return Counters(
            totals["entries"],
            totals["read events"],
            totals["overrun"],
            totals["dropped events"],
            totals["commit overrun"],
        )

    def fill(self, calls_per_cpu: int) -> None:
        """Fill the rings with the events of a syscall loop, then turn tracing off."""
        self.write("tracing_on", 0)
        self.write("trace", "")
        self.write("trace_clock", "mono")
        self.write("events/raw_syscalls/enable", 1)
        self.write("tracing_on", 1)
        with syscall_load(calls_per_cpu) as load:
            load.wait()
        self.write("tracing_on", 0)
        self.write("events/raw_syscalls/enable", 0)


# -- load


class Load:
    """Processes that make events."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self.processes = processes

    def wait(self) -> None:
        """Wait until all of it is done."""
        for process in self.processes:
            if process.wait() != 0:
                raise CannotMeasureError(f"{process.args!r} ended with {process.returncode}")

    def kill(self) -> None:
        """End it now."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextlib.contextmanager
def background(commands: Sequence[Sequence[str]]) -> Iterator[Load]:
    """Run commands beside the measurement; what still runs at the end is killed."""
    load = Load([])
    try:
        load.processes = [subprocess.Popen(command) for command in commands]
        yield load
    finally:
        load.kill()


def cpus() -> list[int]:
    """Return the CPUs that a load runs on: two, as the goals say."""
    return sorted(os.sched_getaffinity(0))[:2]


def syscall_load(calls_per_cpu: int) -> contextlib.AbstractContextManager[Load]:
    """Run two CPUs through so many getppid calls each (two raw_syscalls events a call)."""
    program = str(compiled("syscall_load"))
    return background([[program, str(cpu), str(calls_per_cpu)] for cpu in cpus()])
