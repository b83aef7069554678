"""Mode flight decides from a table when the rings are read."""

import itertools
from pathlib import Path

import pytest

from lttd.config import FLIGHT, parse_command_line
from lttd.errors import UsageError
from lttd.flight import READS, TRANSITIONS, Event, State, after


def reached(*events: Event) -> State:
    state = State.WAITING
    for event in events:
        state = after(state, event)
    return state


def test_nothing_is_read_until_a_trigger_comes_and_after_its_window() -> None:
    assert reached() not in READS
    assert reached(Event.ASKED) in READS
    assert reached(Event.ASKED, Event.REACHED) in READS
    assert reached(Event.ASKED, Event.REACHED, Event.OVER) not in READS
    assert reached(Event.ASKED, Event.REACHED, Event.OVER, Event.CLOSED) is State.WAITING


def test_a_trigger_is_served_at_once_in_every_state() -> None:
    for state in State:
        assert after(state, Event.ASKED) in READS


def test_a_segment_that_is_closed_late_ends_no_window() -> None:
    late = reached(Event.ASKED, Event.REACHED, Event.OVER, Event.ASKED, Event.CLOSED)
    assert late is State.REACHING
    assert after(after(late, Event.REACHED), Event.CLOSED) is State.WRITING


def test_a_window_is_over_only_once_it_is_known_how_far_it_reaches_back() -> None:
    assert Event.OVER not in TRANSITIONS[State.REACHING]
    for state, event in itertools.product(State, Event):
        if (state, event) != (State.REACHING, Event.OVER):
            assert after(state, event) in State


# -- the command line


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--source", "blktrace:/dev/sda"], "leave out source 'blktrace:/dev/sda'"),
        (["--source", "ftrace:bm"], "leave out source 'ftrace:bm'"),
        (["--no-overwrite"], "leave out no-overwrite"),
        (["--source", "ftrace,overwrite=no"], "leave out no-overwrite"),
        (["--source", "lttng"], "the ring overwrite itself; write overwrite=yes"),
    ],
)
def test_a_ring_that_cannot_overwrite_itself_is_refused(words: list[str], what: str) -> None:
    with pytest.raises(UsageError, match=r"^mode flight ") as refused:
        parse_command_line(["-t", "t", "--mode", "flight", *words])
    assert what in str(refused.value)


def test_an_overwrite_that_is_neither_yes_nor_no_is_refused_by_its_name() -> None:
    words = ["-t", "t", "--mode", "flight", "--source", "lttng,overwrite=maybe"]
    with pytest.raises(UsageError, match=r"^overwrite 'maybe' is neither yes nor no"):
        parse_command_line(words)


def test_every_channel_has_to_overwrite_itself(tmp_path: Path) -> None:
    file = tmp_path / "lttd.toml"
    written = '[[source]]\nkind = "lttng"\n[source.channel.a]\noverwrite = true\n'
    written += "[source.channel.b]\n"
    words = ["-t", "t", "--mode", "flight", "--config", str(file)]
    file.write_text(written + "overwrite = false\n")
    with pytest.raises(UsageError, match="the ring of channel b overwrite itself; write overwrite"):
        parse_command_line(words)
    file.write_text(written + "overwrite = true\n")
    assert parse_command_line(words).mode == FLIGHT


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="mode 'fly': write continuous or flight"):
        parse_command_line(["-t", "t", "--mode", "fly"])
