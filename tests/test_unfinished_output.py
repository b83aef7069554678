"""An output that cannot be completed leaves nothing, at a path or a URL, whatever ends it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.running import PATIENCE_S
from tests.tools import replayed

STEP = 3 if os.environ.get("LTTD_NIGHTLY") else 23
OUTPUTS = {
    "trace.dat": ["export", "--to", "trace.dat", "-o", "OUT.dat"],
    "ctf": ["export", "--to", "ctf", "-o", "OUT"],
    "parquet": ["export", "--to", "parquet", "-o", "OUT"],
    "parquet to a URL": ["export", "--to", "parquet", "-o", "file://OUT"],
    "perfetto": ["export", "--to", "perfetto", "-o", "OUT.pftrace"],
    "systrace": ["export", "--to", "systrace", "-o", "OUT.txt"],
    "cut": ["cut", "-o", "OUT"],
    "plot": ["plot", "-o", "OUT.svg"],
}
each_output = pytest.mark.parametrize("words", OUTPUTS.values(), ids=OUTPUTS.keys())
# Usage: SIGNALLED NUMBER NTH WORDS...: this process gets the signal when it opens the n-th file.
SIGNALLED = """
import os, sys
from lttd.beneath import OpenDirectory
from lttd.view import cli
number, left = int(sys.argv[1]), int(sys.argv[2])
real = OpenDirectory.open_file
def open_file(self, path):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), number)
    return real(self, path)
OpenDirectory.open_file = open_file
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replayed(tmp_path_factory.mktemp("whole") / "t").path


def ended(
    program: Sequence[str], trace: Path, words: Sequence[str], place: Path
) -> tuple[int, str]:
    """Run lttv with its output in *place*; return the status and stderr."""
    place.mkdir()
    (place / "other").write_text("of somebody else")
    named = [word.replace("OUT", str(place / "out")) for word in words]
    command = [*program, named[0], str(trace), *named[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.returncode, done.stderr


def left(place: Path) -> list[str]:
    return [path.name for path in place.iterdir() if path.name != "other"]


@pytest.mark.skipif(not shutil.which("prlimit"), reason="no prlimit here")
@each_output
def test_a_file_that_cannot_grow_leaves_nothing(
    trace: Path, tmp_path: Path, words: list[str]
) -> None:
    program = ["prlimit", "--fsize=1000", sys.executable, "-m", "lttd.view"]
    status, err = ended(program, trace, words, tmp_path / "place")
    assert status == 1
    assert len(err.splitlines()) == 1, err
    assert str(tmp_path / "place") in err
    assert left(tmp_path / "place") == []


@each_output
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_lttv_and_leaves_nothing(
    trace: Path, tmp_path: Path, words: list[str], number: signal.Signals
) -> None:
    nth, status = 1, -number
    while status == -number:
        program = [sys.executable, "-c", SIGNALLED, str(int(number)), str(nth)]
        place = tmp_path / f"place{nth}"
        status, err = ended(program, trace, words, place)
        if status == -number:
            # A cut is opened when it is complete.
            complete = ["out"] if words[0] == "cut" else []
            assert (err, left(place)) in (("", []), ("", complete)), f"at opening {nth}"
        nth += STEP
    assert status == 0, err
    assert nth > 1 + STEP, "the signal never came"
    assert left(place)
