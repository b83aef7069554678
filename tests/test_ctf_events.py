"""Events of CTF packets, walked in lockstep, beside values that were encoded one by one."""

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.abi import ctf_events, ctf_walk
from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_classes import EVENT_FIELDS, Array, FieldClass, Sequence, Struct, Variant
from lttd.abi.ctf_fields import References, Scan
from lttd.abi.ctf_heads import Packets, heads_of
from lttd.abi.ctf_metadata import read_metadata
from lttd.abi.ctf_nodes import Choice, Group, Leaf, Listed, Node, Text, is_text
from lttd.abi.ctf_plan import Plan
from tests.ctf_model import Recorded

NIGHTLY = 20 if os.environ.get("LTTD_NIGHTLY") else 1


def packets_of(recorded: Recorded) -> Packets:
    return Packets(
        np.array(recorded.offsets),
        np.array(recorded.first_bits),
        np.array(recorded.end_bits),
        np.array(recorded.begin, np.uint64),
    )


def walked(
    recorded: Recorded, data: bytes | None = None
) -> tuple[Plan, Bits, list[ctf_events.Walked]]:
    plan, bits = Plan(recorded.trace, recorded.trace.streams[0]), Bits(data or recorded.data)
    return plan, bits, list(ctf_events.walk(bits, packets_of(recorded), plan))


def values_of(of: FieldClass, node: Node, rows: int) -> list[Any]:
    """Return the values of a node as the model has them."""
    match node:
        case Leaf():
            return node.values().tolist()
        case Text():
            raw = node.bits.raw.tobytes()
            return [raw[a:b] for a, b in zip(node.begin.tolist(), node.end.tolist(), strict=True)]
        case Group(members=members):
            columns = {name: values_of(one, inner, rows) for name, one, inner in members}
            return [{name: column[row] for name, column in columns.items()} for row in range(rows)]
        case Listed():
            every = values_of(of.element, node.node(), len(node.row))  # type: ignore[union-attr]
            return [[every[at] for at in np.flatnonzero(node.row == row)] for row in range(rows)]
        case Choice(parts=parts):
            found: list[Any] = [None] * rows
            for name, one, some, inner in parts:
                for row, value in zip(some.tolist(), values_of(one, inner, len(some)), strict=True):
                    found[row] = (name, value)
            return found


def told(of: FieldClass, value: Any) -> Any:  # noqa: ANN401  (of the model)
    """Return a value of the model with its texts as bytes, up to their first NUL."""
    match of:
        case Struct(members=members):
            return {name: told(one, value[name]) for name, one in members}
        case Array() | Sequence():
            if is_text(of):
                return bytes(value).partition(b"\0")[0]
            return [told(of.element, each) for each in value]
        case Variant(options=options):
            return (value[0], told(dict(options)[value[0]], value[1]))
        case _:
            return value


@given(st.integers(0, 1 << 32))
@settings(max_examples=20 * NIGHTLY, deadline=None)
def test_every_field_of_random_events_has_the_value_that_was_encoded(seed: int) -> None:
    recorded = Recorded(seed, packets=3, events=7)
    plan, bits, found = walked(recorded)
    assert [one.damage for one in found] == [[]]
    assert plan.events[0].id in plan.number_of
    ids = [plan.events[number].id for number in found[0].number.tolist()]
    assert ids == [one for one, _, _ in recorded.events]
    assert found[0].time.tolist() == [time for _, time, _ in recorded.events]
    assert found[0].row_events.tolist() == [7, 7, 7]
    packets = packets_of(recorded)
    for number, event in enumerate(plan.events):
        rows = np.flatnonzero(found[0].number == number)
        row = found[0].row[rows]
        base, end = packets.offset_bytes[row] << 3, packets.end_bits[row]
        heads = heads_of(bits, found[0].at[rows] << 3, base, end, plan)
        at = heads.behind
        for of, path in plan.bodies(event):
            node, at = heads.scan.locate(of, at, path)
            expected = [told(of, recorded.events[row][2][path]) for row in rows.tolist()]
            assert values_of(of, node, len(rows)) == expected
        assert not heads.scan.wrong.any(), heads.scan.reason


@pytest.mark.parametrize(
    ("fields", "raw"),
    [
        ("u8 n; u4 list[n]; u8 after; u4 last;", b"\1\3\5\7"),
        ("struct { string text; u4 small; } inside; u8 after; u4 last;", b"ab\0\3\5\7"),
        ("u8 n; struct { string text; u4 small; } list[n]; u8 after; u4 last;", b"\1\0\3\5\7"),
    ],
    ids=["numbers", "structure", "structures"],
)
def test_a_byte_after_a_field_that_ends_inside_one_is_aligned_in_each_way_of_reading(
    fields: str, raw: bytes
) -> None:
    text = f"""/* CTF 1.8 */
    typealias integer {{ size = 8; align = 8; }} := u8;
    typealias integer {{ size = 4; align = 1; }} := u4;
    trace {{ major = 1; minor = 8; byte_order = le; }}; stream {{ id = 0; }};
    event {{ id = 0; stream_id = 0; fields := struct {{ {fields} }}; }};"""
    trace = read_metadata(text.encode())
    payload = trace.streams[0].events[0].payload
    assert payload is not None
    at, end, referred = np.zeros(1, np.int64), np.array([8 * len(raw)]), References([payload])
    measured = Scan(Bits(raw), at, end, referred).measure(payload, at, EVENT_FIELDS)
    _, located = Scan(Bits(raw), at, end, referred).locate(payload, at, EVENT_FIELDS)
    assert measured.tolist() == located.tolist() == [8 * len(raw) - 4]


@given(st.integers(0, 1 << 32), st.sampled_from([64, 256, 1024]))
@settings(max_examples=5 * NIGHTLY, deadline=None)
def test_packets_that_are_cut_into_chunks_have_the_same_events(seed: int, chunk: int) -> None:
    recorded = Recorded(seed, packets=2, events=60)
    plan, _, (whole,) = walked(recorded)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctf_walk, "_CHUNK_BYTES", chunk)
        cut = walked(recorded)[2][0]
    assert cut.at.tolist() == whole.at.tolist()
    assert cut.time.tolist() == whole.time.tolist()
    ids = [plan.events[number].id for number in cut.number.tolist()]
    assert ids == [one for one, _, _ in recorded.events]


@given(st.integers(0, 1 << 32), st.data())
@settings(max_examples=20 * NIGHTLY, deadline=None)
def test_damage_ends_its_packet_alone_and_never_raises(seed: int, data: st.DataObject) -> None:
    recorded = Recorded(seed, packets=3, events=9)
    raw = bytearray(recorded.data)
    low, high = recorded.first_bits[1] // 8, recorded.end_bits[1] // 8
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(low, max(high - 1, low)))] = data.draw(st.integers(0, 255))
    chunk = data.draw(st.sampled_from([64, 4096]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctf_walk, "_CHUNK_BYTES", chunk)
        found = walked(recorded, bytes(raw))[2][0]
    assert {one.row for one in found.damage} <= {1}
    for row in (0, 2):
        times = [time for _, time, _ in recorded.events[9 * row : 9 * row + 9]]
        assert found.time[found.row == row].tolist() == times
    assert found.row_events.sum() == len(found.at)
