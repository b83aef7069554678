"""Filters of events: their form, the events that they are for, and what the kernel says of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.controls import CONTROLS, control_lines
from lttd.errors import UsageError
from lttd.sources.ftrace.error_log import KernelError, parse_error_log
from lttd.sources.ftrace.filters import Filter, filters_by_event, parse_filter
from lttd.sources.table import SOURCES

EVENTS = ("sched:sched_switch", "sched:sched_waking", "irq:irq_handler_entry")


@pytest.mark.parametrize(
    ("text", "glob", "expression"),
    [
        ("sched:sched_switch: prev_pid == 42", "sched:sched_switch", "prev_pid == 42"),
        ("sched_switch:prev_pid==42", "sched_switch", "prev_pid==42"),
        ("sched:sched_switch:prev_pid==42", "sched:sched_switch", "prev_pid==42"),
        (' sched: : comm == "a: b" ', "sched:", 'comm == "a: b"'),
        ("*: common_pid & 1", "*", "common_pid & 1"),
        ("sys_enter_[or]*: CPU & CPUS{0-3:1/2}", "sys_enter_[or]*", "CPU & CPUS{0-3:1/2}"),
    ],
)
def test_a_filter_is_a_glob_and_an_expression(text: str, glob: str, expression: str) -> None:
    assert parse_filter(text) == Filter(glob, expression)


@pytest.mark.parametrize("text", ["", "sched_switch", "sched_switch:", "prev_pid == 3", ": a == 1"])
def test_another_form_of_a_filter_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="write EVENT: EXPRESSION, as '"):
        parse_filter(text)


@given(st.text())
def test_any_text_is_a_filter_or_is_refused_in_one_line(text: str) -> None:
    said = ""
    try:
        assert all(parse_filter(text))
    except UsageError as error:
        said = str(error)
    assert "\n" not in said


def test_a_glob_selects_among_the_events_that_are_recorded() -> None:
    found = filters_by_event(["sched:*: common_pid != 0"], EVENTS)
    assert found == {EVENTS[0]: "common_pid != 0", EVENTS[1]: "common_pid != 0"}


def test_an_event_that_several_filters_name_must_pass_all() -> None:
    texts = ["*: common_pid != 0", "irq_*: irq == 3 || irq == 4", "irq:*: common_pid != 0"]
    assert filters_by_event(texts, EVENTS[2:]) == {
        EVENTS[2]: "(common_pid != 0) && (irq == 3 || irq == 4)"
    }


def test_a_filter_of_an_event_that_is_not_recorded_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'block:\*' names no event that is recorded"):
        filters_by_event(["block:*: dev == 1"], EVENTS)


def test_a_filter_that_is_longer_than_a_page_is_refused_before_it_is_written() -> None:
    text = " || ".join(f"prev_pid == {pid}" for pid in range(1000))
    with pytest.raises(UsageError, match=r"fewer than 4,096; a list of processes goes into pid"):
        filters_by_event([f"sched_switch: {text}"], EVENTS)


LOG = """\
[   75.642281] event filter parse error: error: Field not found
  Command: nofield == 3
                   ^
[  175.642281] trace_kprobe: error: Invalid probed address or symbol
  Command: p:lttd/x no_such_function
                    ^
"""


def test_an_error_log_gives_the_message_the_command_and_the_place() -> None:
    first, second = parse_error_log(LOG)
    assert first == KernelError(
        "75.642281", "event filter parse error", "Field not found", "nofield == 3", 8
    )
    assert str(first) == 'Field not found: "nofield == 3", at character 9'
    assert second.command[second.at :] == "no_such_function"


@given(st.text(st.sampled_from(LOG)))
def test_any_text_is_read_as_an_error_log(text: str) -> None:
    for error in parse_error_log(text):
        assert "\n" not in str(error)


def test_a_long_command_is_shown_around_the_place_of_the_error() -> None:
    error = KernelError("1", "", "Too many", "(" * 4000, 2000)
    assert str(error) == f'Too many: "...{"(" * 120}...", at character 2001'


def test_controls_are_a_line_for_each_text_and_plain_settings_are_none() -> None:
    settings = {"events": ["sched:*"], "overwrite": True, "filter": ["a: b, c", "d: e"]}
    settings |= {"exclude": ["x", "y*"], "stack": True, "user_stack": False, "graph_depth": 3}
    assert control_lines(settings) == [
        ("exclude", "x,y*"),
        ("filter", "a: b, c"),
        ("filter", "d: e"),
        ("stack", "yes"),
        ("graph-depth", "3"),
    ]
    assert control_lines(["no", "settings"]) == []


def test_each_key_of_ftrace_is_a_control_or_shown_by_other_lines() -> None:
    keys = {key.replace("-", "_") for key in SOURCES["ftrace"].keys}
    others = {"events", "buffer_size", "subbuffer_size", "clock", "overwrite", "trace_self"}
    assert keys - others - {"kallsyms"} <= set(CONTROLS)
