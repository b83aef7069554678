"""tools/run-tests runs each part, stops at the first that fails, and leaves no process."""

import os
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from tests.running import PATIENCE_S, until

PARTS = ["unit", "guest", "kernel", "alone"]
TOOL = Path(__file__).parents[1] / "tools" / "run-tests"
# In place of pytest: notes if two processes share its part, prints which part that is, waits for
# the file "go-PART" if the file "wait-PART" exists, and ends with the status in "status-PART".
PYTEST = """\
#!/bin/sh
cd "${0%/*}"
case "$*" in
*"kernel or guest or alone"*) part=rest ;;
*"not kernel and not guest and not alone"*) part=unit ;;
*"kernel and not alone"*) part=kernel ;;
*"-m alone"*) part=alone ;;
*"-m guest"*) part=guest ;;
esac
case "$*" in *"-n 2"*) echo "$part in two" >>shared ;; esac
touch "began-$part"
echo "$part ${PYTHONDONTWRITEBYTECODE-compiles once}"
while [ -e "wait-$part" ] && [ ! -e "go-$part" ]; do sleep 0.01; done
echo "$part ends"
exit "$(cat "status-$part" 2>/dev/null || echo 0)"
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one CPU: the parts take turns"),
]


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """The directory of a program that is called in place of pytest."""
    program = tmp_path / "pytest"
    program.write_text(PYTEST)
    program.chmod(0o755)
    return tmp_path


def started(parts: Path, **environment: str) -> "subprocess.Popen[str]":
    names = {**os.environ, "LTTD_NIGHTLY": "", "PYTHONDONTWRITEBYTECODE": "1", **environment}
    words = [TOOL, parts / "pytest", "-q"]
    return subprocess.Popen(
        words, env=names, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def printed(run: "subprocess.Popen[str]") -> tuple[int, list[str]]:
    out, _ = run.communicate(timeout=PATIENCE_S)
    return run.returncode, [line.removesuffix(" compiles once") for line in out.splitlines()]


def test_the_guest_runs_beside_the_unit_tests_and_the_others_afterwards(parts: Path) -> None:
    for name in ("unit", "guest"):
        (parts / f"wait-{name}").touch()
    run = started(parts)
    until((parts / "began-unit").exists, "the unit part")
    until((parts / "began-guest").exists, "the guest part")
    (parts / "go-unit").touch()
    (parts / "go-guest").touch()
    expected = [line for part in PARTS for line in (part, f"{part} ends")]
    assert printed(run) == (0, expected)
    assert (parts / "shared").read_text() == "unit in two\nkernel in two\n"


@pytest.mark.parametrize(("after", "part"), [*pairwise(PARTS)])
def test_the_first_part_that_fails_is_the_last_in_the_output(
    parts: Path, after: str, part: str
) -> None:
    (parts / f"status-{part}").write_text("3")
    status, lines = printed(started(parts))
    assert status == 3
    assert lines[-3:] == [f"{after} ends", part, f"{part} ends"]


def test_a_failure_of_the_unit_tests_ends_the_guest(parts: Path) -> None:
    (parts / "wait-guest").touch()
    (parts / "status-unit").write_text("1")
    run = started(parts)
    assert printed(run) == (1, ["unit", "unit ends"])
    assert_none_left(run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("waits", [("unit", "guest"), ("guest",)], ids="+".join)
def test_a_signal_of_the_terminal_ends_all_parts(
    parts: Path, waits: tuple[str, ...], number: signal.Signals
) -> None:
    for name in waits:
        (parts / f"wait-{name}").touch()
    run = started(parts)
    until((parts / "began-unit").exists, "the unit part")
    until((parts / "began-guest").exists, "the guest part")
    os.killpg(run.pid, number)
    status, lines = printed(run)
    assert status == 128 + number
    assert "guest" not in lines
    assert_none_left(run)


def test_by_night_no_part_runs_beside_another(parts: Path) -> None:
    expected = ["unit", "unit ends", "rest", "rest ends"]
    assert printed(started(parts, LTTD_NIGHTLY="1")) == (0, expected)
    assert not (parts / "shared").exists()


def assert_none_left(run: "subprocess.Popen[str]") -> None:
    """Assert that no process of the fake pytest is left, whose directory is in its words."""
    assert isinstance(run.args, list)
    program = os.fsencode(run.args[1])
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert program not in path.read_bytes()
        except OSError:
            continue
