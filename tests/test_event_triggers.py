"""The form of triggers of events, and which of them lttd refuses."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.errors import UsageError
from lttd.sources.ftrace.additions import addition_of
from lttd.sources.ftrace.triggers import (
    parse_trigger,
    stores_stacks,
    switched_event,
    trigger_file,
    triggers_by_event,
)


@pytest.fixture
def events(tmp_path: Path) -> str:
    for name in ("sched/sched_switch", "sched/sched_waking", "irq/irq_handler_entry"):
        (tmp_path / name).mkdir(parents=True)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("text", "glob", "item"),
    [
        ("sched_switch: traceoff", "sched_switch", "traceoff"),
        ("sched_switch:traceoff:1", "sched_switch", "traceoff:1"),
        ("sched:sched_switch:stacktrace:5", "sched:sched_switch", "stacktrace:5"),
        ("x: traceon  if  a == 1 && b", "x", "traceon if a == 1 && b"),
        (
            "sched:*: enable_event:irq:irq_handler_entry:2 if prev_pid == 3",
            "sched:*",
            "enable_event:irq:irq_handler_entry:2 if prev_pid == 3",
        ),
        ('x: disable_event:a:b if comm ~ "x if y"', "x", 'disable_event:a:b if comm ~ "x if y"'),
    ],
)
def test_a_trigger_is_a_glob_and_a_line_for_the_kernel(text: str, glob: str, item: str) -> None:
    found = parse_trigger(text)
    assert (found.glob, found.item) == (glob, item)
    row = addition_of(trigger_file("sched:sched_switch"))
    assert row is not None
    assert re.fullmatch(row.item, item), "it can be undone"


@pytest.mark.parametrize(
    "text",
    ["", "traceoff", "x: traceof", "x: stacktrace:0", "x: traceoff:x", "x: enable_event:y", "x: 3",
     "x: traceoff if", "x: traceoff, stacktrace"],
)  # fmt: skip
def test_another_form_of_a_trigger_is_refused_with_the_possible_ones(text: str) -> None:
    with pytest.raises(UsageError, match=r"write EVENT: ACTION\[:N\] \[if FILTER\]; ACTION is tra"):
        parse_trigger(text)


def test_a_snapshot_is_refused_with_the_reason_and_what_does_it() -> None:
    with pytest.raises(UsageError, match=r"would take the unread events out of the ring.*traceoff"):
        parse_trigger("sched_switch: snapshot if prev_pid == 3")
    with pytest.raises(UsageError, match="it counts within the kernel"):
        parse_trigger("sched_switch: hist:keys=prev_pid")


@given(st.text())
def test_any_text_is_a_trigger_or_is_refused_in_one_line(text: str) -> None:
    said = ""
    try:
        assert parse_trigger(text).item
    except UsageError as error:
        said = str(error)
    assert "\n" not in said


def test_triggers_are_listed_by_event_each_once(events: str) -> None:
    texts = ["sched:*: stacktrace", "sched_switch: stacktrace", "sched_switch: traceoff:1"]
    assert triggers_by_event(events, texts) == {
        "sched:sched_switch": ["stacktrace", "traceoff:1"],
        "sched:sched_waking": ["stacktrace"],
    }
    assert stores_stacks(texts)
    assert not stores_stacks(texts[2:])


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["sched_switch: traceoff", "sched:*: traceon"], "takes one traceon or traceoff of an"),
        (["sched_switch: stacktrace", "sched_switch: stacktrace:3"], "takes one stacktrace of an"),
        (
            ["irq:*: enable_event:sched:sched_waking", "irq:*: disable_event:sched:sched_waking"],
            "takes one event:sched:sched_waking of an event",
        ),
        (["sched_swich: traceoff"], "did you mean sched:sched_switch"),
        (["sched_switch: enable_event:sched:sched_wakin"], "did you mean sched:sched_waking"),
    ],
)
def test_what_the_kernel_would_refuse_is_refused_before(
    events: str, texts: list[str], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        triggers_by_event(events, texts)


def test_the_event_that_a_trigger_switches_is_known() -> None:
    assert switched_event("disable_event:irq:irq_handler_entry:2 if x") == "irq:irq_handler_entry"
    assert switched_event("traceoff:1") is None
