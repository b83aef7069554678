"""The lines of a run's end."""

import json

import pytest

from lttd.errors import LttdError
from lttd.summary import Outcome
from lttd.terminal import Level


def test_each_failure_has_one_line_at_the_end_unless_it_was_said_before(
    capfd: pytest.CaptureFixture[str],
) -> None:
    outcome = Outcome()
    outcome.say("a: failed", Level.ERROR)
    outcome.failures += [LttdError(words) for words in ("a: failed", "b: failed", "b: failed")]
    outcome.tell("none", {})
    assert capfd.readouterr().err == "lttd: a: failed\nlttd: b: failed\n"


def test_a_summary_that_cannot_be_written_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome()
    outcome.tell("json:/dev/null/here", {})
    assert len(outcome.failures) == 1
    assert capfd.readouterr().err == "lttd: --summary json:/dev/null/here: Not a directory\n"


def test_a_summary_in_json_has_what_the_run_adds(capfd: pytest.CaptureFixture[str]) -> None:
    Outcome().tell("json", {"command_status": 3})
    assert json.loads(capfd.readouterr().out)["command_status"] == 3
