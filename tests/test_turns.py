"""The tables of states that streams follow from take to take."""

import enum
from collections.abc import Mapping

import pytest

from lttd.sources.ftrace import stream as ftrace
from lttd.sources.relay import stream as relay

Table = Mapping[enum.Enum, Mapping[enum.Enum, enum.Enum]]
TABLES: list[tuple[Table, type[enum.Enum], type[enum.Enum], enum.Enum, enum.Enum]] = [
    (ftrace.TRANSITIONS, ftrace.State, ftrace.Event, ftrace.State.FILLING, ftrace.State.OVER),
    (relay.TRANSITIONS, relay.State, relay.Event, relay.State.READING, relay.State.OVER),
]
tables = pytest.mark.parametrize(("table", "states", "events", "first", "over"), TABLES)


@tables
def test_every_state_can_be_reached_and_every_event_is_used(
    table: Table,
    states: type[enum.Enum],
    events: type[enum.Enum],
    first: enum.Enum,
    over: enum.Enum,
) -> None:
    reached, new = {first}, {first}
    while new:
        new = {after for state in new for after in table[state].values()} - reached
        reached |= new
    assert reached == set(states) == set(table)
    assert {event for row in table.values() for event in row} == set(events)


@tables
def test_a_stream_can_end_in_every_state_and_stays_over(
    table: Table,
    states: type[enum.Enum],
    events: type[enum.Enum],
    first: enum.Enum,
    over: enum.Enum,
) -> None:
    assert all(row[events["ENDED"]] is over for row in table.values())
    assert set(table[over].values()) == {over}


def test_every_turn_of_ftrace_ends_where_it_began() -> None:
    nothing = ftrace.Event.GAVE_NOTHING
    after = {state: row[nothing] for state, row in ftrace.TRANSITIONS.items()}
    assert after.pop(ftrace.State.OVER) is ftrace.State.OVER
    assert set(after.values()) == {ftrace.State.FILLING}
