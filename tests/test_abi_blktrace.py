"""Walk the records of the block layer in every byte order and version, and find their damage."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from construct import Struct
from hypothesis import given
from hypothesis import strategies as st

from lttd.abi import declared
from lttd.abi.blktrace import (
    ACTIONS,
    Layout,
    layout_of,
    notes,
    pdu_of,
    record_dtype,
    records_at,
    walk,
)
from tests.blk import c, message, process, record, timestamp
from tests.data import SHARED_BLKTRACE, needs

LAYOUTS = [Layout(version, order) for version in (7, 8) for order in "<>"]
PDUS = st.sampled_from([b"", bytes(8), bytes(16), b"m", b"text\n", bytes(127)])


@pytest.mark.parametrize(
    ("declaration", "version", "order"),
    [
        (declared.BlkIoTrace, 7, "<"),
        (declared.BlkIoTraceBig, 7, ">"),
        (declared.BlkIoTrace2, 8, "<"),
    ],
)
def test_the_dtypes_match_the_declared_layouts(
    declaration: Struct, version: int, order: str
) -> None:
    raw = bytearray(range(1, declaration.sizeof() + 1))
    struct.pack_into(f"{order}I", raw, 0, 0x65617400 | version)
    dtype = record_dtype(version, order)
    assert dtype.itemsize == Layout(version, order).record_bytes == declaration.sizeof()
    parsed = declaration.parse(raw)
    (found,) = np.frombuffer(raw, dtype)
    names = [name for name in dtype.names or () if name != "pad"]
    assert {name: int(found[name]) for name in names} == {name: parsed[name] for name in names}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(pdus=st.lists(PDUS, min_size=1, max_size=40))
def test_the_walk_finds_every_record_whatever_its_payload(
    layout: Layout, pdus: list[bytes]
) -> None:
    made = [
        record(at, pdu=pdu, sequence=at, order=layout.byteorder, version=layout.version)
        for at, pdu in enumerate(pdus)
    ]
    data = b"".join(made)
    assert layout_of(data) == layout
    walked = walk(data, 0, len(data), layout)
    assert walked.damage == []
    assert walked.size_bytes.tolist() == [len(one) for one in made]
    records = records_at(data, walked.offset_bytes, layout)
    assert records["sequence"].tolist() == list(range(len(pdus)))
    found = [
        pdu_of(data, at, size, 0, layout)
        for at, size in zip(walked.offset_bytes.tolist(), walked.size_bytes.tolist(), strict=True)
    ]
    assert found == pdus


def test_a_magic_inside_a_payload_does_not_begin_a_record() -> None:
    inner = record(5)
    data = record(1, pdu=inner) + record(2)
    walked = walk(data, 0, len(data), Layout(7, "<"))
    assert walked.offset_bytes.tolist() == [0, 96]
    assert not walked.damage


def test_the_walk_reports_a_cut_record_and_finds_the_next_one() -> None:
    data = record(1) + record(2)[:20] + record(3)
    walked = walk(data, 0, len(data), Layout(7, "<"))
    assert walked.offset_bytes.tolist() == [0, 68]
    assert [(one.offset_bytes, one.size_bytes) for one in walked.damage] == [(48, 20)]


def test_the_walk_reports_a_torn_tail_as_damage() -> None:
    data = record(1) + record(2, pdu=bytes(16))[:-1]
    walked = walk(data, 0, len(data), Layout(7, "<"))
    assert walked.offset_bytes.tolist() == [0]
    assert [(one.offset_bytes, one.size_bytes) for one in walked.damage] == [(48, 63)]


@given(
    parts=st.lists(st.one_of(PDUS.map(lambda pdu: record(pdu=pdu)), st.binary(max_size=80))),
    junk=st.binary(max_size=60),
)
def test_records_and_damage_cover_every_byte_of_any_input(parts: list[bytes], junk: bytes) -> None:
    data = b"".join(parts) + junk
    walked = walk(data, 0, len(data), Layout(7, "<"))
    spans = [
        *zip(walked.offset_bytes.tolist(), walked.size_bytes.tolist(), strict=True),
        *((one.offset_bytes, one.size_bytes) for one in walked.damage),
    ]
    spans.sort()
    assert sum(size for _, size in spans) == len(data)
    assert all(at + size == after for (at, size), (after, _) in pairwise(spans))


def test_bytes_without_a_record_have_no_layout() -> None:
    assert layout_of(b"") is None
    assert layout_of(bytes(48)) is None
    assert layout_of(struct.pack("<I", 0x65617409)) is None


def test_process_and_time_notes_are_distinguished_from_other_records() -> None:
    data = process(1, 5, "sh") + record(2) + timestamp(3, 9) + message(4, b"hello")
    walked = walk(data, 0, len(data), Layout(7, "<"))
    assert notes(data, walked, Layout(7, "<")).tolist() == [0, 2]


def test_a_payload_excludes_the_cgroup_id() -> None:
    data = record(1, 2 | 1 << 8 | c["notify"], bytes(8) + b"hello")
    assert pdu_of(data, 0, len(data), 2 | 1 << 8, Layout(7, "<")) == b"hello"


@needs(SHARED_BLKTRACE)
@pytest.mark.parametrize(("cpu", "count"), [(0, 1650), (1, 1667)])
def test_real_data_contains_records_from_end_to_end(cpu: int, count: int) -> None:
    data = (SHARED_BLKTRACE / f"cap.blktrace.{cpu}").read_bytes()
    layout = layout_of(data)
    assert layout == Layout(7, "<")
    walked = walk(data, 0, len(data), layout)
    assert not walked.damage
    records = records_at(data, walked.offset_bytes, layout)
    assert len(records) == count
    assert set(records["cpu"].tolist()) == {cpu}
    traced = np.delete(records, notes(data, walked, layout))
    assert traced["sequence"].tolist() == list(range(1, len(traced) + 1))
    assert set((traced["action"] & 0xFF).tolist()) <= set(ACTIONS)
