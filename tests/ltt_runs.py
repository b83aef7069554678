"""Run lttd on an emulated LTTng 0.x kernel, and read back what it stored of each channel."""

import subprocess
import sys
from pathlib import Path

from lttd.index import read_gaps
from lttd.manifest import Manifest
from lttd.stored import StoredStream
from lttd.subbuffer import Reason, Unit
from lttd.tracedir import segments
from tests.running import PATIENCE_S


class Runs:
    """Start lttd processes that end with the test."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *words: str | Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "lttd", *map(str, words)]
        run = subprocess.Popen(command, cwd=self.cwd, stderr=subprocess.PIPE, text=True)
        self._started.append(run)
        return run

    def run(self, *words: str | Path) -> tuple[int, str]:
        """Return exit status and stderr."""
        run = self.start(*words)
        _, told = run.communicate(timeout=PATIENCE_S)
        return run.returncode, told

    def end(self) -> None:
        for run in self._started:
            if run.poll() is None:
                run.kill()
            run.communicate()


def recorded(trace: Path, segment: int = -1) -> dict[str, StoredStream]:
    """Return the streams of a segment by the path of their channel."""
    paths = segments(trace)[segment]
    manifest = Manifest.read(paths.manifest)
    streams = [StoredStream(paths, manifest, record) for record in manifest.streams]
    return {one.info.id.name: one for one in streams}


def subbuffers(stream: StoredStream) -> list[bytes]:
    """Return header and content of each sub-buffer of the file."""
    entries, data = stream.index.entries(), stream.read()
    starts = entries["offset_bytes"].astype(int).tolist()
    sizes = (entries["content_bits"] >> 3).astype(int).tolist()
    return [bytes(data[at : at + size]) for at, size in zip(starts, sizes, strict=True)]


def lost(stream: StoredStream, reason: Reason, unit: Unit) -> int:
    gaps = read_gaps(stream.paths.gaps) if stream.paths.gaps.exists() else []
    return sum(gap.count or 0 for gap in gaps if (gap.reason, gap.unit) == (reason, unit))
