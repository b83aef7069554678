"""A trigger's record survives JSON, and nothing that a sender chooses exceeds its limit."""

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd import trigger
from lttd.trigger import Trigger

any_text = st.text(st.characters(exclude_categories=())) | st.text(max_size=3000)
times = st.integers(-(1 << 70), 1 << 70)


@st.composite
def requests(draw: st.DrawFn) -> Trigger:
    return Trigger(
        draw(any_text),
        draw(st.dictionaries(any_text, any_text, max_size=100)),
        by=draw(st.sampled_from(trigger.SENDERS)),
        at_ns=draw(st.integers(-5, (1 << 63) - 1)),
        before_ns=draw(times),
        after_ns=draw(times),
        fingerprint=draw(any_text),
        starts_at=draw(any_text | st.just("2026-11-27T19:25:11.2276474Z")),
    ).within_limits()


@given(requests(), st.booleans())
def test_everything_that_a_sender_can_ask_for_is_read_back_from_its_record(
    request: Trigger, complete: bool
) -> None:
    one = replace(request, number=1, complete=complete, note="cut by a kill")
    if complete:
        one = replace(one, begin_ns=1, end_ns=2)
    record = json.dumps(one.to_json())
    assert Trigger.from_json(json.loads(record)) == one


@given(requests())
def test_what_a_sender_chooses_is_cut_to_its_limit(request: Trigger) -> None:
    assert len(request.reason) <= trigger.MOST_REASON
    assert len(request.labels) <= trigger.MOST_LABELS
    assert all(len(name) <= trigger.MOST_LABEL_NAME for name in request.labels)
    assert all(len(value) <= trigger.MOST_LABEL_VALUE for value in request.labels.values())
    assert 0 <= request.before_ns <= trigger.MOST_BEFORE_NS
    assert 0 <= request.after_ns <= trigger.MOST_AFTER_NS
    assert 0 <= request.asked_begin_ns <= request.at_ns <= request.asked_end_ns
    json.dumps(request.to_json(), ensure_ascii=False).encode()  # UTF-8 can encode all of it


def test_a_cut_text_says_so_and_a_short_one_stays() -> None:
    assert trigger.cut("x" * 1024, 1024) == "x" * 1024
    assert trigger.cut("x" * 1025, 1024) == "x" * 1023 + "…"
    assert trigger.cut("\ud800 disk", 1024) == "? disk"


def test_control_characters_stay_for_the_reader_to_escape() -> None:
    request = Trigger("\x1b[2J", {"a\n": "\u202e"}, by="http", at_ns=1).within_limits()
    assert (request.reason, request.labels) == ("\x1b[2J", {"a\n": "\u202e"})


RECORD = Trigger("slow", {"unit": "db"}, "command", 20_000_000_000, number=1).to_json()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("number", bad) for bad in (0, -1, True, "1", 1.0, None, 1 << 63)],
        *[("reason", bad) for bad in (None, 7, "x" * 1025, "\ud800", ["slow"])],
        *[("labels", bad) for bad in (None, [], {"a": 1}, {"a": None}, {"a": {"b": "c"}})],
        *[("labels", bad) for bad in ({"x" * 129: ""}, {"x": "y" * 1025}, {"\udc80": ""})],
        ("labels", {str(number): "" for number in range(65)}),
        *[("at_ns", bad) for bad in (-1, 1 << 63, 1.5, "now", None, float("nan"))],
        *[("before_ns", bad) for bad in (-1, None, [])],
        *[("after_ns", bad) for bad in (-1, None, {})],
        *[("by", bad) for bad in ("nobody", "", None, ["http"], {})],
        *[("fingerprint", bad) for bad in (None, "x" * 129, 1)],
        *[("starts_at", bad) for bad in (None, "yesterday", "2" * 65, "2026-11-27T19:25:11Z\n")],
        *[("begin_ns", bad) for bad in (-1, "0", 1 << 63)],
        *[("end_ns", bad) for bad in (-1, False)],
        *[("complete", bad) for bad in (1, None, "yes")],
        *[("note", bad) for bad in (None, "x" * 1025)],
    ],
)
def test_a_record_with_an_impossible_value_is_refused_by_its_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^trigger\.{key} has the impossible value"):
        Trigger.from_json(RECORD | {key: value})


@pytest.mark.parametrize("value", [None, 7, "trigger", [], [RECORD], True])
def test_a_record_that_is_not_an_object_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^trigger: not a mapping"):
        Trigger.from_json(value)


@pytest.mark.parametrize("key", ["number", "reason", "labels", "at_ns", "before_ns", "by"])
def test_a_record_without_a_needed_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"^trigger lacks '{key}'$"):
        Trigger.from_json({name: value for name, value in RECORD.items() if name != key})


def test_keys_of_later_versions_pass() -> None:
    assert Trigger.from_json(RECORD | {"later": [1, 2]}).number == 1


def test_labels_cannot_be_changed_afterwards() -> None:
    assert isinstance(Trigger.from_json(RECORD).labels, MappingProxyType)


def test_a_trigger_without_an_alert_has_no_identity_of_one() -> None:
    assert Trigger.from_json(RECORD).alert is None
    told = RECORD | {"fingerprint": "35021adbaa110fb5", "starts_at": "2026-11-27T19:25:11.123Z"}
    assert Trigger.from_json(told).alert == ("35021adbaa110fb5", "2026-11-27T19:25:11.123Z")
