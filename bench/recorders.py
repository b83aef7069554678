"""Run lttd and ``trace-cmd record`` as whole processes, through one interface.

Both get the same COMMAND.  It prints a line when recording has begun, and ends when its standard
input is closed; then the recorder stops, drains and ends.  So no recorder needs a signal, a pause
or a fixed duration, and a load runs exactly while it is being recorded.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from bench.common import CannotMeasureError, Instance, cpu_s, scratch, wait
from bench.report import BENCH_DIR

READY: Final = "recording\n"
GATE: Final = ("sh", "-c", f"echo {READY.strip()}; exec cat")


@dataclass(frozen=True, slots=True)
class Recorded:
    """The cost and the result of one run of a recorder."""

    cpu_s: float
    delivered_bytes: int
    """The bytes of whole sub-buffers that it took from the kernel."""
    summary: dict[str, Any]
    """lttd's ``--summary json``; empty for other recorders."""


class Recording:
    """A recorder that is recording."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._log = directory / "recorder.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._await_ready()

    def _await_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == READY:
                return
        self.process.wait()
        raise CannotMeasureError(f"it ended before it recorded: {self.log()}")

    def log(self) -> str:
        """Return the recorder's last line on stderr."""
        return last_line(self._log.read_text(errors="replace"))

    def finish(self) -> float:
        """Let the recorder stop and drain; return the CPU seconds of the whole process."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.read()
        process.stdout.close()
        usage = wait(process)
        if process.returncode != 0:
            raise CannotMeasureError(f"the recorder ended with {process.returncode}: {self.log()}")
        return cpu_s(usage)

    def end(self) -> None:
        """Kill the recorder if it still runs, as after an error in the benchmark."""
        if self.process.returncode is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def last_line(text: str) -> str:
    """Return the last line of a program's output, which of a traceback is the error."""
    return (text.strip().splitlines() or ["(nothing said)"])[-1]


def environment() -> dict[str, str]:
    """Return an environment in which Python finds this checkout's lttd.

    Modules may keep their bytecode, as those of an installed package do.
    """
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        "PYTHONPATH": str(BENCH_DIR.parent),
        "OPENBLAS_NUM_THREADS": "1",  # as lttd.cli sets it
    }


# -- lttd


def lttd_command(*arguments: str) -> list[str]:
    """Return the command line that runs this checkout's lttd."""
    return [sys.executable, "-m", "lttd", *arguments]


def lttv(*arguments: str) -> dict[str, Any]:
    """Run this checkout's lttv; return the JSON that it prints."""
    command = [sys.executable, "-m", "lttd.view", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    try:
        value: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise CannotMeasureError(f"{shlex.join(command)}: {last_line(done.stderr)}") from error
    return value


def check_events(trace: Path) -> tuple[int, bool]:
    """Decode a whole trace; return its number of events, and whether it has no damage."""
    found = lttv("check", "--events", "--json", str(trace))
    streams = [stream for segment in found["segments"] for stream in segment["streams"]]
    return sum(stream["events"] for stream in streams), found["whole"]


class Lttd:
    """lttd on an instance of the benchmark, or on its own."""

    def __init__(self, layout: str = "packed", *options: str) -> None:
        self.name = f"lttd {layout}"
        self._options = ("--layout", layout, *options)

    @contextlib.contextmanager
    def recording(
        self, instance: Instance | None, directory: Path, events: str
    ) -> Iterator[Recording]:
        """Record *events* of *instance*, or of one that lttd makes, into ``directory/trace``."""
        command = lttd_command(
            "--trace-dir", str(directory / "trace"),
            *(("--source", f"ftrace:{instance.name}") if instance else ()),
            "--events", events,
            "--summary", f"json:{directory / 'summary.json'}",
            *self._options,
            "--", *GATE,
        )  # fmt: skip
        recording = Recording(command, directory)
        try:
            yield recording
        finally:
            recording.end()

    def recorded(self, recording: Recording, directory: Path) -> Recorded:
        """Let *recording* end; return what it cost and took."""
        cpu = recording.finish()
        summary = json.loads((directory / "summary.json").read_text())
        return Recorded(cpu, summary["payload_bytes"] + summary["padding_bytes"], summary)


# -- trace-cmd


class TraceCmd:
    """``trace-cmd record`` on an instance of the benchmark; ``-k`` keeps its settings."""

    def __init__(self, *options: str) -> None:
        self.name = " ".join(("trace-cmd", *options))
        self._options = options

    @contextlib.contextmanager
    def recording(self, instance: Instance, directory: Path, events: str) -> Iterator[Recording]:
        """Record *events* of *instance* into ``directory/trace.dat``."""
        command = trace_cmd_command(instance.name, events, *self._options)
        recording = Recording([*in_mount_namespace(refused_files()), *command], directory)
        try:
            yield recording
        finally:
            recording.end()

    def recorded(self, recording: Recording, directory: Path) -> Recorded:
        """Let *recording* end; return what it cost and took."""
        cpu = recording.finish()
        # "CPU0 data recorded at offset=0x1000", then "9 bytes in size (4096 uncompressed)".
        said = (directory / "recorder.log").read_text() + (directory / "trace-cmd.out").read_text()
        sizes = re.findall(r"(\d+) bytes in size(?: \((\d+) uncompressed\))?", said)
        return Recorded(cpu, sum(int(whole or stored) for stored, whole in sizes), {})


def trace_cmd_command(
    instance: str, events: str, *options: str, gate: Sequence[str] = GATE
) -> list[str]:
    """Return trace-cmd's command line; its own output goes to ``trace-cmd.out``."""
    wanted = [word for one in events.split(",") for word in ("-e", one.removesuffix(":*"))]
    command = [
        "trace-cmd", "record", "-k", "-B", instance, "-C", "mono", *wanted,
        "-o", "trace.dat", *options, "--", "sh", "-c", f"{shlex.join(gate)} >&3",
    ]  # fmt: skip
    return ["sh", "-c", f"exec 3>&1 >trace-cmd.out; exec {shlex.join(command)}"]


def in_mount_namespace(files: Sequence[str]) -> list[str]:
    """Return the words that run a command with an ordinary file mounted over each of *files*."""
    if not files:
        return []
    mounts = "".join(
        f"cat {shlex.quote(file)} >stand-in-{number} 2>/dev/null || : >stand-in-{number}\n"
        f"mount --bind stand-in-{number} {shlex.quote(file)}\n"
        for number, file in enumerate(files)
    )
    script = f'set -e\nmount --make-rprivate /\n{mounts}exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


@cache
def refused_files() -> tuple[str, ...]:
    """Return the files to which trace-cmd may not write, and without which it gives up.

    strace shows the refused files of a short run; they are covered, until a run succeeds.

    Raises:
        CannotMeasureError: there is no trace-cmd here, or it fails for another reason.
    """
    if not shutil.which("trace-cmd"):
        raise CannotMeasureError("no trace-cmd here; apt install trace-cmd")
    covered: tuple[str, ...] = ()
    with Instance("probe") as instance, contextlib.ExitStack() as stack:
        directory = stack.enter_context(scratch(Path("/tmp")))
        while True:
            command = trace_cmd_command(instance.name, "raw_syscalls", gate=("true",))
            trace = directory / "strace"
            watch = ["strace", "-f", "-y", "-e", "trace=openat,write", "-o", str(trace)]
            if not shutil.which("strace"):
                watch = []
            done = subprocess.run(
                [*in_mount_namespace(covered), *watch, *command],
                cwd=directory,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            if done.returncode == 0:
                return covered
            found = _refused(trace.read_text(errors="replace")) if watch else KNOWN_REFUSALS
            # Files of the instance are not covered: trace-cmd does not need them.
            more = [f for f in found if f not in covered and instance.name not in f]
            if not more:
                raise CannotMeasureError(f"trace-cmd record fails here: {last_line(done.stderr)}")
            covered += tuple(more)


# The refused files of trace-cmd 3.1.6 on a kernel under lockdown, for machines without strace.
KNOWN_REFUSALS: Final = ("/proc/sys/kernel/ftrace_enabled",)
_REFUSED_OPEN: Final = re.compile(
    r'openat\([^"]*"([^"]+)", O_(?:WRONLY|RDWR).* = -1 E(?:PERM|ACCES)'
)
_REFUSED_WRITE: Final = re.compile(r"write\(\d+<([^>]+)>.* = -1 E(?:PERM|ACCES|INVAL|BUSY)")


def _refused(trace: str) -> list[str]:
    """Return the files that a process could not write to, from the output of strace."""
    return list(dict.fromkeys(_REFUSED_OPEN.findall(trace) + _REFUSED_WRITE.findall(trace)))
