"""Block traces that are replayed, and their lines by ``lttv text`` and by blkparse."""

import io
import shutil
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from lttd.cli import main as record_main
from lttd.view.cli import main as view_main
from tests.data import SHARED_BLKTRACE, needs

needs_data = needs(SHARED_BLKTRACE)
needs_blkparse = pytest.mark.skipif(not shutil.which("blkparse"), reason="no blkparse")


def written(directory: Path, *cpus: bytes) -> Path:
    """Write the records of each CPU to a file of *directory*, as blktrace names them."""
    directory.mkdir()
    for cpu, data in enumerate(cpus):
        (directory / f"made.blktrace.{cpu}").write_bytes(data)
    return directory


def replayed(directory: Path, trace: Path) -> Path:
    """Replay *directory* into a trace; return the directory of streams of its segment."""
    with redirect_stderr(io.StringIO()) as told:
        spec = f"replay:{directory},abi=blktrace"
        status = record_main(["-t", str(trace), "--source", spec, "--summary", "none"])
    assert status == 0, told.getvalue()
    (streams,) = trace.glob("*/streams")
    return streams


def shown(trace: Path, *options: str) -> list[str]:
    """Return the lines of ``lttv text``."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()) as told:
        assert view_main(["text", str(trace), *options]) == 0
    assert told.getvalue() == ""
    return out.getvalue().splitlines()


def parsed(streams: Path, name: str) -> list[str]:
    """Return the lines of ``blkparse``."""
    run = subprocess.run(
        ["blkparse", "-q", "-i", name], cwd=streams, capture_output=True, text=True, check=True
    )
    assert "ad " not in run.stderr.replace("read", ""), run.stderr  # "Bad magic", "bad action"
    return [line for line in run.stdout.splitlines() if not line.startswith("Input file")]
