"""Runs of lttd that a test kills, and what they leave."""

import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lttd.index import read_gaps
from lttd.subbuffer import Gap
from lttd.tracedir import SegmentPaths, segments, segments_below
from tests.instances import mark
from tests.running import (
    PATIENCE_S,
    QUIET,
    Launcher,
    Run,
    until,
)

NOW = ("--flush-interval", "20ms", "--summary", "none")
BRIEF = (*QUIET, *NOW, "--duration", "50ms")
# The writer threads hang for ever once the directory of the run contains a file "hang".
HANGING = """
import os, time
from lttd.writer import StreamFile
append = StreamFile.append
def append_or_hang(self, *arguments):
    while os.path.exists("hang"):
        time.sleep(0.01)
    return append(self, *arguments)
StreamFile.append = append_or_hang
"""


@contextmanager
def hanging(lttd: Launcher, trace: Path, *options: str, at_once: bool = False) -> Iterator[Run]:
    """Yield a run whose writers can be made to hang, or hang *at_once*; kill it afterwards."""
    words = lttd.words("-t", trace, *NOW, *options)
    words[2] = HANGING + words[2]
    cwd = lttd.cwd / f"run{len(lttd.runs)}"
    cwd.mkdir()
    if at_once:
        (cwd / "hang").touch()
    run = Run(lttd, words, cwd)
    lttd.runs.append(run)
    if not at_once:
        until(lambda: list(trace.glob("*/trace.json")), "it has a segment")
    yield run
    run.signal(signal.SIGKILL).wait()


def data_of(trace: Path) -> bytes:
    return b"".join(map(data_in, segments_below(trace)))


def data_in(segment: SegmentPaths) -> bytes:
    return b"".join(path.read_bytes() for path in segment.streams.glob("*") if path.is_file())


def gaps_of(trace: Path) -> list[Gap]:
    return [gap for segment in segments(trace) for gap in gaps_in(segment)]


def gaps_in(segment: SegmentPaths) -> list[Gap]:
    return [gap for path in segment.index.glob("*.gaps") for gap in read_gaps(path)]


def killed(lttd: Launcher, trace: Path, text: str = "left behind", times: int = 3) -> Run:
    """Return a killed run with marks in its ring."""
    address = f"{lttd.prefix}notify{len(lttd.runs)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{address}")
        manager.settimeout(PATIENCE_S)
        options = ("-t", trace, *QUIET, "--flush-interval", "1h")
        run = lttd.start(*options, environment={"NOTIFY_SOCKET": f"@{address}"})
        # Then all rings were read once: marks that lttd has taken and not stored are lost with it.
        while manager.recv(4096) != b"READY=1":
            pass
    mark(run.instance, text, times)
    run.signal(signal.SIGKILL).wait()
    return run


def notes(lttd: Launcher) -> list[Path]:
    """Return the files in the runtime directory, without the sockets that a kill leaves."""
    return [path for path in lttd.runtime.iterdir() if not path.is_socket()]


def age(lttd: Launcher, seconds: int) -> None:
    """Set the notes of a killed run to an earlier time."""

    def earlier(found: re.Match[str]) -> str:
        return found[1] + str(int(found[2]) - seconds * 1_000_000_000)

    for path in notes(lttd):
        path.write_text(re.sub(r'("boottime_ns": )(\d+)', earlier, path.read_text()))


def records(lttd: Launcher) -> list[str]:
    return sorted(path.name for path in notes(lttd))
