"""lttd and lttv with descriptors that are closed, full, or lead to nobody."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lttd.tracedir import Manifest, segments

FIXTURE = Path(__file__).parents[1] / "fixtures" / "ftrace"
Ended = subprocess.CompletedProcess[bytes]


def ended(module: str, words: list[str | Path], where: str) -> Ended:
    """Run a command of ours in a shell that redirects its descriptors."""
    command = shlex.join([sys.executable, "-m", module, *map(str, words)])
    script = f"set -o pipefail; {command} {where}"
    return subprocess.run(["bash", "-c", script], capture_output=True, check=False)


def recorded(trace: Path, where: str, *arguments: str) -> Ended:
    return ended("lttd.cli", ["-t", trace, "--source", f"replay:{FIXTURE}", *arguments], where)


def is_closed(trace: Path) -> bool:
    (segment,) = segments(trace)
    return Manifest.read(segment.manifest).state == "closed"


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "2> >(true)", "<&- >&- 2>&-"])
def test_a_stderr_that_takes_nothing_leaves_recording_and_its_status_alone(
    tmp_path: Path, where: str
) -> None:
    run = recorded(tmp_path / "t", where)
    assert (run.returncode, run.stderr) == (0, b"")
    assert is_closed(tmp_path / "t")


@pytest.mark.parametrize(
    ("where", "line"),
    [
        (">/dev/full", b"standard output: No space left on device; the output is incomplete"),
        (">&-", b"standard output is closed; the output is incomplete"),
        ("| true", b"--summary json: Broken pipe"),
        (">&- 2>&-", None),
    ],
)
def test_a_json_summary_that_stdout_does_not_take_is_a_failure_of_one_line(
    tmp_path: Path, where: str, line: bytes | None
) -> None:
    run = recorded(tmp_path / "t", where, "--summary", "json")
    assert (run.returncode, run.stderr) == (1, b"lttd: %b\n" % line if line else b"")
    assert is_closed(tmp_path / "t")
