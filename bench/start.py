"""Time from exec to the first read of the kernel's rings, beside importing numpy and trio only."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from bench.common import (
    NS_PER_S,
    CannotMeasureError,
    Instance,
    Options,
    file_system,
    scratch,
    wait,
)
from bench.recorders import environment, last_line, lttd_command
from bench.report import Figure, Plot, Report, median

NAME: Final = "start"
DEADLINE_S: Final = 30.0
BARE: Final = "python -c 'import numpy, trio'"
OWN: Final = "lttd, own instance, until READY"
NAMED: Final = "lttd, named instance, until READY"


def run(options: Options) -> Report:
    """Start each variant in turn; the first start, from a cold cache, does not count."""
    starts = options.rounds_or(proper=10, quick=3)
    samples: dict[str, list[float]] = {OWN: [], NAMED: [], BARE: []}
    for number in range(starts + 1):
        with Instance("start") as instance:
            figures = {
                OWN: _lttd_start_s(options.disk_dir, "ftrace"),
                NAMED: _lttd_start_s(options.disk_dir, f"ftrace:{instance.name}"),
                BARE: _bare_start_s(),
            }
        if number:
            for name, seconds in figures.items():
                samples[name].append(seconds)
    return Report(
        NAME,
        f"seconds to the first read ({file_system(options.disk_dir)})",
        ["what", "starts", "median s", "least s", "most s"],
        [[name, len(s), median(s), min(s), max(s)] for name, s in samples.items()],
        [Figure("start to the first read, median", median(samples[OWN]), "<", 0.4, "s")],
        ["READY=1 comes after every ring was read once"],
        dict(samples),
        plot=Plot("seconds", {"start": samples}),
    )


def _lttd_start_s(parent: Path, source: str) -> float:
    with scratch(parent) as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        # An abstract address: a path may be too long for a socket.
        address = f"lttdbench-{os.getpid()}-{directory.name}"
        ready.bind("\0" + address)
        command = lttd_command(
            "--trace-dir", str(directory / "trace"),
            "--source", source,
            "--events", "raw_syscalls:*",
            "--buffer-size", "16M",
            "--summary", "none",
        )  # fmt: skip
        log = directory / "log"
        with log.open("w") as stderr:
            began_ns = time.monotonic_ns()
            process = subprocess.Popen(
                command,
                env={**environment(), "NOTIFY_SOCKET": "@" + address},
                stderr=stderr,
                text=True,
            )
        try:
            _await_ready(ready, process, log)
            return (time.monotonic_ns() - began_ns) / NS_PER_S
        finally:
            process.send_signal(signal.SIGTERM)
            wait(process)


def _await_ready(ready: socket.socket, process: subprocess.Popen[str], log: Path) -> None:
    ready.settimeout(0.2)
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            message = ready.recv(4096)
        except TimeoutError:
            # Not polled: the child must stay unreaped for wait4.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        else:
            if b"READY=1" in message.split(b"\n"):
                return
    raise CannotMeasureError(f"lttd did not become ready: {last_line(log.read_text())}")


def _bare_start_s() -> float:
    began_ns = time.monotonic_ns()
    subprocess.run([sys.executable, "-c", "import numpy, trio"], check=True)
    return (time.monotonic_ns() - began_ns) / NS_PER_S
