"""``lttd trigger`` and the request that it makes: what it may ask for, and what it prints."""

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.clients import trigger as client
from lttd.errors import UsageError
from lttd.trigger import MOST_AFTER_NS, Trigger
from lttd.trigger_requests import parse_trigger_request

NOW_NS = 1_795_807_520_000_000_000


def parsed(**keys: Any) -> Trigger:  # noqa: ANN401  (any JSON)
    return parse_trigger_request({"do": "trigger", **keys}, NOW_NS)


def test_a_request_without_keys_asks_for_the_default_window_around_now() -> None:
    assert parsed() == Trigger("asked for by socket", {}, "socket", NOW_NS)


def test_a_request_names_reason_labels_and_window() -> None:
    one = parsed(reason="slow", labels={"a": "b"}, before="1m", after=0, by="command", wait=True)
    assert one == Trigger("slow", {"a": "b"}, "command", NOW_NS, 60_000_000_000, 0)


def test_a_sender_cannot_pass_for_another() -> None:
    assert parsed(by="http").by == parsed(by="signal").by == parsed(by=[]).by == "socket"


@pytest.mark.parametrize(
    "keys",
    [
        *({"reason": 7}, {"labels": []}, {"labels": {"a": 1}}, {"before": "25h"}, {"after": "2h"}),
        *({"before": "soon"}, {"at": 1}, {"x" * 9000: 1}, {"after": None, "before": {}}),
    ],
)
def test_a_request_that_is_not_right_is_refused_in_one_short_line(keys: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"^trigger: [^\n]{1,150}$"):
        parsed(**keys)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["reason", "labels", "before", "after", "by"]), any_json))
def test_any_request_gives_a_trigger_within_limits_or_one_line(keys: dict[str, object]) -> None:
    try:
        one = parsed(**keys)
    except UsageError as error:
        one = parsed(reason=str(error))
    assert one == one.within_limits()
    assert one.after_ns <= MOST_AFTER_NS


def test_the_client_prints_number_and_true_bounds_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests: list[Any] = []
    record = Trigger(
        "\x1b[2J", {}, "command", NOW_NS, number=7, begin_ns=NOW_NS - 1, end_ns=NOW_NS + 500,
        complete=True, note="short\n",
    ).to_json()  # fmt: skip

    def ask(_given: argparse.Namespace, request: object, _patience_s: object) -> dict[str, Any]:
        requests.append(request)
        return {"trigger": record}

    monkeypatch.setattr(client, "ask", ask)
    words = ["--reason", "x", "--label", "a=b=c", "--label", "d=", "--before", "1m", "--no-wait"]
    assert client.run(words) == 0
    begin, end = "2026-11-27T19:25:19.999999999Z", "2026-11-27T19:25:20.000000500Z"
    out = capsys.readouterr().out
    assert out == f"trigger 7: {begin} to {end} (0.000 s) is kept; short\\x0a\n"
    window = {"before": "1m", "wait": False, "by": "command"}
    labels = {"a": "b=c", "d": ""}
    assert requests == [{"do": "trigger", "reason": "x", "labels": labels} | window]


@pytest.mark.parametrize(
    "words",
    [
        *(["--label", "a"], ["--label", "=b"], ["--label", "x" * 129 + "=y"]),
        *(["--label", "x=" + "y" * 1025], ["--reason", "x" * 1025]),
        [word for number in range(65) for word in ("--label", f"{number}=x")],
    ],
)
def test_the_client_refuses_what_would_be_cut(words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"^--(label|reason)"):
        client.run(words)
