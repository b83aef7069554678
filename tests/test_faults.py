"""Every system call of a recording fails once: status, line, trace; see tests/faults.py."""

import pytest

from tests.faults import LIVE_SAMPLE, SAMPLE, Bench, Case, cases, run_all, table, why_no_compiler
from tests.running import needs_kernel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_compiler()), reason=why_no_compiler()),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
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
