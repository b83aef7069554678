"""Intervals between pairs of events: all of them where nothing is lost, and never a wrong one."""

import random
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lttd
from lttd.view.intervals.kind import Kind, Reading
from lttd.view.intervals.table import KINDS, TASK_STATES
from lttd.view.intervals.tasks import STATES
from tests.scheduled import Machine, recorded

made = settings(
    max_examples=40, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
EVERY = [*KINDS.values(), TASK_STATES]


def rows(
    trace: Path, piece_bytes: int, kinds: list[Kind] = EVERY
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {kind.name: [] for kind in kinds}
    window = lttd.open(trace).window(piece_bytes=piece_bytes)
    for kind, table in Reading(kinds, window):
        ends = table["end_ns"].astype(np.int64)
        assert (np.diff(ends) >= 0).all()
        names = list(table)
        assert set(names) == {name for name, _ in kind.columns}
        found[kind.name] += [
            dict(zip(names, row, strict=True))
            for row in zip(*(table[name].tolist() for name in names), strict=True)
        ]
    return found


def told(found: dict[str, list[dict[str, Any]]]) -> dict[str, set[tuple[Any, ...]]]:
    """Return the complete intervals, as the machine writes them down."""
    whole = {name: [row for row in some if row["complete"]] for name, some in found.items()}
    return {
        "waits": {
            (row["pid"], row["begin_ns"], row["end_ns"], row["cpu"])
            for row in whole["sched_latency"]
        },
        "states": {
            (STATES[row["state"]], row["pid"], row["begin_ns"], row["end_ns"])
            for row in whole["task_states"]
        },
        "calls": {
            (row["pid"], row["number"], row["begin_ns"], row["end_ns"]) for row in whole["syscalls"]
        },
        "interrupts": {
            (row["cpu"], row["number"], row["begin_ns"], row["end_ns"]) for row in whole["irqs"]
        },
    }


def fresh(tmp_path: Path) -> Path:
    return tmp_path / f"t{len(list(tmp_path.iterdir()))}"


@made
@given(seed=st.integers(0, 1 << 32), pieces=st.sampled_from([1 << 12, 1 << 14, 6 << 20]))
def test_all_intervals_are_found_where_nothing_is_lost(
    tmp_path: Path, seed: int, pieces: int
) -> None:
    machine, trace = Machine(random.Random(seed)), fresh(tmp_path)
    machine.run(150)
    recorded(trace, machine, random.Random(seed), 0)
    found = rows(trace, pieces)
    assert all(row["complete"] for some in found.values() for row in some)
    assert told(found) == {
        "waits": machine.waits, "states": machine.states, "calls": machine.calls,
        "interrupts": machine.interrupts,
    }  # fmt: skip


@made
@given(
    seed=st.integers(0, 1 << 32),
    pieces=st.sampled_from([1 << 12, 1 << 14, 6 << 20]),
    loss=st.sampled_from([0.05, 0.2, 0.5]),
)
def test_no_interval_is_wrong_where_events_are_lost(
    tmp_path: Path, seed: int, pieces: int, loss: float
) -> None:
    machine, trace = Machine(random.Random(seed)), fresh(tmp_path)
    machine.run(200)
    holes = recorded(trace, machine, random.Random(seed), loss)
    found = told(rows(trace, pieces))
    for name, some in found.items():
        assert some <= getattr(machine, name), name

    def touched(begin: int, end: int, on: int | None = None) -> bool:
        return any(
            before < end and begin < after for cpu, before, after in holes if on in (None, cpu)
        )

    clear = {one for one in machine.interrupts if not touched(one[2], one[3], one[0])}
    assert clear <= found["interrupts"]
    assert {one for one in machine.calls if not touched(one[2], one[3])} <= found["calls"]
