"""The events per second of each preset of lttd: as the machine is, and with all CPUs busy.

The busy load has a loop on each CPU: it starts programs, writes and syncs a small file, sends
through a TCP socket on loopback, and takes and frees memory.  The kernel's own counters count the
events, and nobody reads the ring, so that a recorder's events are not in it.
"""

import contextlib
import mmap
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from bench.common import Instance, Options
from bench.report import Cell, Report
from lttd.errors import LttdError
from lttd.presets import Preset, read_presets
from lttd.sources.tracefs import find_events

NAME: Final = "presets"
_MEMORY_BYTES: Final = 16 << 20


def run(options: Options) -> Report:
    """Count each preset's events without load, then with it."""
    rounds = options.rounds_or(5, 1)
    seconds = 0.3 if options.quick else 2.0
    presets = read_presets().values()
    idle = _rates(presets, rounds, seconds)
    with _load(options.disk_dir):
        busy = _rates(presets, rounds, seconds)
    rows: list[list[Cell]] = [
        [name, *(round(statistics.median(each[name])) for each in (idle, busy))] for name in idle
    ]
    return Report(
        NAME,
        f"events per second of the whole machine ({os.cpu_count()} CPUs), medians of {rounds}",
        ["preset", "as it is", "all CPUs busy"],
        rows,
        samples={"idle": idle, "busy": busy},
    )


def _rates(presets: Collection[Preset], rounds: int, seconds: float) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        for preset in presets:
            rates.setdefault(preset.name, []).append(_rate(preset, number, seconds))
    return rates


def _rate(preset: Preset, number: int, seconds: float) -> float:
    with Instance(f"{preset.name}{number}") as instance:
        instance.write("buffer_size_kb", 256)
        for glob in preset.events:
            with contextlib.suppress(LttdError):  # this kernel lacks it
                for file in find_events(str(instance.path / "events"), (glob,)):
                    Path(file.path).write_text("1")
        before, began = instance.counters(), time.monotonic()
        time.sleep(seconds)
        after, ended = instance.counters(), time.monotonic()
        events = after.entries + after.lost - before.entries - before.lost
        return events / (ended - began)


@contextlib.contextmanager
def _load(parent: Path) -> Iterator[None]:
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lttdbench-presets-", dir=parent) as directory:
        processes = [
            subprocess.Popen(["taskset", "-c", str(cpu), sys.executable, "-m", __name__, directory])
            for cpu in sorted(os.sched_getaffinity(0))
        ]
        try:
            time.sleep(1)
            yield
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _be_busy(directory: str) -> None:
    """Do some of everything until killed."""
    path = Path(directory) / str(os.getpid())
    server = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(server.getsockname())
    receiver = server.accept()[0]
    while True:
        for _ in range(10):
            pid = os.posix_spawn("/bin/true", ["true"], os.environ)
            os.waitpid(pid, 0)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DSYNC)
        os.write(fd, bytes(1 << 20))
        os.close(fd)
        for _ in range(500):
            sender.sendall(bytes(1000))
            receiver.recv(1000, socket.MSG_WAITALL)
        with mmap.mmap(-1, _MEMORY_BYTES) as memory:
            for at in range(0, _MEMORY_BYTES, mmap.PAGESIZE):
                memory[at] = 1


if __name__ == "__main__":
    _be_busy(sys.argv[1])
