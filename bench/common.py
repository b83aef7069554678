"""Common parts of the benchmarks: options, compiled helpers, CPU time, tracefs instances, loads."""

import argparse
import contextlib
import ctypes
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage, struct_rusage
from types import TracebackType
from typing import Final, Self

from bench.report import BENCH_DIR, OUT_DIR

TMPFS_DIR: Final = Path("/dev/shm")
NS_PER_S: Final = 1_000_000_000


class CannotMeasureError(Exception):
    """A benchmark needs something that this machine or this lttd lacks; the message names it."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of every benchmark."""

    quick: bool = False
    """Few rounds and little data: shows that a benchmark works, not for comparing figures."""
    rounds: int | None = None
    """The number of measurements of each variant; None: the benchmark's own default."""
    cold_memory: bool = False
    """Do not call warm() before a measurement."""
    gigabytes: float | None = None
    """The size of a long trace; None: the benchmark's own default."""
    disk_dir: Path = OUT_DIR / "data"
    """The directory for traces, on a real disk file system."""

    def rounds_or(self, proper: int, quick: int) -> int:
        """Return the number of rounds: as the user says, else *proper*, or *quick* with --quick."""
        return self.rounds or (quick if self.quick else proper)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that ``options_from`` reads."""
    parser.add_argument("--quick", action="store_true", help="smoke test: few rounds, small data")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each measurement")
    parser.add_argument(
        "--gigabytes", type=float, metavar="N", help="rare, sql: size of the long trace"
    )
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
        arguments.quick,
        arguments.rounds,
        arguments.cold_memory,
        arguments.gigabytes,
        arguments.dir.resolve(),
    )


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """Make a directory for one measurement, and remove it with its content afterwards."""
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
    """Wait until the dirty pages of earlier measurements are on the disk."""
    os.sync()


def warm(directory: Path, size_bytes: int) -> None:
    """Write and remove a file, so that the next write gets pages that were in use a moment ago.

    In a virtual machine free pages go back to the host within 2 s (free page reporting), and the
    first copy into such a page waits for the host.  A splice loop's CPU time per GB was 0.35 s with
    this call and 1.1 to 2 s without it; a recorder that drops its written pages uses them again, so
    that a comparison without this call would be unfair.  Anonymous memory does not help: the page
    cache gets other pages.
    """
    path = directory / "warm"
    with path.open("wb", buffering=0) as file:
        block = b"\xff" * (1 << 20)
        for _ in range(0, size_bytes, len(block)):
            file.write(block)
    path.unlink()


def compiled(name: str) -> Path:
    """Compile ``bench/NAME.c`` if its source is newer; return the path of the program."""
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
    """Return user and system time, in seconds."""
    return usage.ru_utime + usage.ru_stime


def wait(process: subprocess.Popen[str]) -> struct_rusage:
    """Wait for a child; return the resources that it and its own waited-for children used."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


def peak_bytes(words: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run a command; return the most memory that it, or a process that it waited for, had.

    Linux keeps the peak over execve: that of a child of this large process is at least this one's.
    So a small process starts the command.

    Raises:
        CannotMeasureError: it failed; the message is the last line of its stderr.
    """
    launcher = [sys.executable, "-S", "-E", "-c", _LAUNCHER, *words]
    done = subprocess.run(launcher, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise CannotMeasureError(f"{words[0]}: {done.stderr.strip().rpartition(chr(10))[2]}")
    return int(done.stdout) << 10


_LAUNCHER: Final = """\
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def resident_bytes(path: Path) -> int:
    """Return how many bytes of a file are in the page cache, by mincore(2)."""
    size = path.stat().st_size
    if not size:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    pages = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    # ctypes takes the address of a writable mapping only, hence a private one; nothing is written.
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped,
    ):
        anchor = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(anchor))
        failed = libc.mincore(address, ctypes.c_size_t(size), states)
        del anchor
    if failed:
        raise CannotMeasureError(f"mincore: {os.strerror(ctypes.get_errno())}")
    return sum(state & 1 for state in states) * mmap.PAGESIZE


def left_in_cache_bytes(directory: Path) -> int:
    """Return how many bytes of all files below *directory* are in the page cache."""
    return sum(resident_bytes(path) for path in directory.rglob("*") if path.is_file())


def machine_cpu_s() -> float:
    """Return the CPU seconds of the whole machine since it booted, kernel threads included."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def children_cpu_s() -> float:
    """Return the CPU seconds of this process's children that were waited for."""
    return cpu_s(getrusage(RUSAGE_CHILDREN))


# -- tracefs


def tracefs() -> Path:
    """Return the mount point of tracefs.

    Raises:
        CannotMeasureError: it is not mounted, or this process may not write to it.
    """
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount_point, file_system, *_ = line.split()
        if file_system == "tracefs" and os.access(Path(mount_point) / "instances", os.W_OK):
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
        """The number of lost events, by the kernel's counters; the reasons are disjoint."""
        return self.overrun + self.dropped + self.commit_overrun

    @property
    def lost_share(self) -> float:
        """Lost events as a share of all events."""
        return self.lost / max(1, self.lost + self.read + self.entries)


class Instance:
    """A tracefs instance of the benchmark, which removes it at the end whatever happens."""

    def __init__(self, label: str) -> None:
        self.name = f"lttdbench-{os.getpid()}-{label}"
        self.path = tracefs() / "instances" / self.name

    def __enter__(self) -> Self:
        self.path.mkdir()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self.write("tracing_on", 0)
            self.write("events/enable", 0)
        for _ in range(50):  # EBUSY while a recorder that was just ended still has a file open
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.1)
            else:
                return
        print(f"   {self.path} is busy and was not removed; rmdir it")

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
        """Set the sizes of every CPU's ring and of its sub-buffers, in KiB."""
        if subbuffer_kib != int(self.read("buffer_subbuf_size_kb")):
            self.write("buffer_subbuf_size_kb", subbuffer_kib)
        self.write("buffer_size_kb", ring_kib)

    def rings(self) -> list[Path]:
        """Return the trace_pipe_raw file of every CPU."""
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
        """Fill the rings with the events of a syscall loop, then turn tracing off.

        They do not overwrite themselves meanwhile, so that a recorder finds them as it does when it
        keeps up.
        """
        self.write("tracing_on", 0)
        self.write("options/overwrite", 0)
        self.write("trace", "")
        self.write("trace_clock", "mono")
        self.write("events/raw_syscalls/enable", 1)
        self.write("tracing_on", 1)
        with syscall_load(calls_per_cpu) as load:
            load.wait()
        self.write("tracing_on", 0)
        self.write("events/raw_syscalls/enable", 0)
        self.write("options/overwrite", 1)


# -- load


class Load:
    """Processes that cause events."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self.processes = processes

    def wait(self) -> None:
        """Wait until every process has ended.

        Raises:
            CannotMeasureError: one of them failed.
        """
        for process in self.processes:
            if process.wait() != 0:
                raise CannotMeasureError(f"{process.args!r} ended with {process.returncode}")

    def kill(self) -> None:
        """Kill every process that still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextlib.contextmanager
def background(commands: Sequence[Sequence[str]]) -> Iterator[Load]:
    """Run commands beside the measurement, and kill those that still run at its end."""
    load = Load([])
    try:
        load.processes = [subprocess.Popen(command) for command in commands]
        yield load
    finally:
        load.kill()


def cpus() -> list[int]:
    """Return the two CPUs that a load runs on, as the goals demand."""
    return sorted(os.sched_getaffinity(0))[:2]


def syscall_load(calls_per_cpu: int, *bursts: int) -> contextlib.AbstractContextManager[Load]:
    """Make *calls_per_cpu* getppid calls on each of two CPUs (two raw_syscalls events a call).

    *bursts* gives the calls of a burst and the us of the pause after it; None: there is no pause.
    """
    program, words = str(compiled("syscall_load")), [str(calls_per_cpu), *map(str, bursts)]
    return background([[program, str(cpu), *words] for cpu in cpus()])
