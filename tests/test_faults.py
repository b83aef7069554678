"""Every system call of a recording fails once: status, line, trace; see tests/faults.py."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import event, page
from tests.faults import LIVE_SAMPLE, SAMPLE, Bench, Case, cases, run_all, table, why_no_compiler
from tests.running import PATIENCE_S, assert_whole, needs_kernel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    if why := why_no_compiler():
        pytest.skip(why)
    return Bench(tmp_path_factory.mktemp("faults"))


def assert_no_problem(bench: Bench, case: Case) -> None:
    outcome = bench.run(case)
    assert outcome.hit, "there is no such call any more"
    assert outcome.problems == [], outcome.lines


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_replay_survives_a_call_that_fails(bench: Bench, case: Case) -> None:
    assert_no_problem(bench, case)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=needs_kernel(), id=str(case)) for case in LIVE_SAMPLE]
)
def test_a_recording_survives_a_call_that_fails(bench: Bench, case: Case) -> None:
    assert_no_problem(bench, case)


@pytest.mark.nightly
@pytest.mark.parametrize("place", ["trace", "replayed file"])
def test_a_replay_survives_every_call_that_fails(place: str) -> None:
    outcomes = run_all((case for case in cases() if case.place == place), workers=2)
    assert not [outcome for outcome in outcomes if outcome.problems], table(outcomes)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=needs_kernel()) for place in ("live trace", "ring")]
)
def test_a_recording_survives_every_call_that_fails(place: str) -> None:
    outcomes = run_all((case for case in cases() if case.place == place), workers=4)
    assert not [outcome for outcome in outcomes if outcome.problems], table(outcomes)


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        (resource.RLIMIT_NOFILE, 9),
        (resource.RLIMIT_NOFILE, 15),
        (resource.RLIMIT_NOFILE, 24),
        (resource.RLIMIT_NOFILE, 40),
        (resource.RLIMIT_AS, 150 << 20),
        (resource.RLIMIT_AS, 200 << 20),
        (resource.RLIMIT_AS, 900 << 20),
        (resource.RLIMIT_FSIZE, 100),
    ],
)
def test_a_system_limit_is_reported_in_lines_and_leaves_nothing_half_made(
    tmp_path: Path, limit: int, value: int
) -> None:
    (tmp_path / "old").mkdir()
    for cpu in range(12):
        (tmp_path / "old" / f"cpu{cpu}").write_bytes(page(1000, event(b"word")))
    words = [sys.executable, "-m", "lttd", "-t", tmp_path / "trace", "--summary", "none"]
    words += ["--source", f"replay:{tmp_path / 'old'},abi=ftrace,subbuffer-size=4096"]
    done = subprocess.run(
        [str(word) for word in words],
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode in (0, 1, 2)
    lines = done.stderr.splitlines()
    assert all(line.startswith("lttd: ") for line in lines), done.stderr
    assert bool(lines) == bool(done.returncode)
    if done.returncode:
        assert not (tmp_path / "trace").exists()
    else:
        assert_whole(tmp_path / "trace", "--events")
