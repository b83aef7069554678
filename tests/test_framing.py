"""Find the records in any bytes of a relay channel, and report all other bytes."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.abi.blktrace import BadBytes
from lttd.abi.framing import Framing, Scan, parse_framing, scan
from lttd.errors import UsageError

LENGTHS = parse_framing("u32le-length")
NUMBERED = parse_framing("u32le-length", sequence_at=4)
FIXED = parse_framing("fixed:16", time_at=8, sequence_at=0)
BLKTRACE = parse_framing("blktrace")


def prefixed(number: int, size_bytes: int = 12) -> bytes:
    return struct.pack("<II", size_bytes - 4, number) + b"x" * (size_bytes - 8)


def fixed(number: int, time: int = 0) -> bytes:
    return struct.pack("<IIQ", number, 0, time or number)


def blk(sequence: int, pdu: bytes = b"", *, time: int = 0, action: int = 1) -> bytes:
    head = struct.pack("<IIQQIIIII", 0x65617407, sequence, time, 0, 0, action, 1, 2, 0)
    return head + struct.pack("<HH", 0, len(pdu)) + pdu


def blk8(sequence: int, pdu: bytes = b"", *, time: int = 0) -> bytes:
    head = struct.pack("<IIQQIIQII", 0x65617408, sequence, time, 0, 0, 1, 1, 2, 0)
    return head + struct.pack("<HH", 0, len(pdu)) + bytes(12) + pdu


def scanned(data: bytes, framing: Framing, *, complete: bool = True, **more: object) -> Scan:
    return scan(memoryview(data), framing, complete=complete, **more)  # type: ignore[arg-type]


def test_records_of_every_length_are_found_with_their_times() -> None:
    for make in (blk, blk8):
        records = [make(n + 1, b"p" * (n % 3 * 8), time=1000 + n) for n in range(50)]
        found = scanned(b"".join(records), BLKTRACE)
        assert found.size_bytes.tolist() == [len(each) for each in records]
        assert found.time is not None
        assert found.time.tolist() == [1000 + n for n in range(50)]
        assert not found.damage


def test_many_equal_records_are_all_found() -> None:
    data = b"".join(blk(n + 1) for n in range(5000)) + blk(5001, b"8 bytes!") + blk(5002)
    found = scanned(data, BLKTRACE)
    assert len(found.offset_bytes) == 5002
    assert found.whole_bytes == len(data)
    assert found.last_sequence == 5002


def test_an_incomplete_record_is_left_for_later_or_is_damage_at_the_end() -> None:
    data = prefixed(0) + prefixed(1)[:-1]
    assert scanned(data, LENGTHS, complete=False).whole_bytes == 12
    found = scanned(data, LENGTHS)
    assert found.whole_bytes == len(data)
    assert found.damage == [BadBytes(12, 11, "a record is cut short")]


def test_blktrace_framing_resumes_at_the_next_magic_after_damage() -> None:
    data = blk(1) + b"\xee" * 21 + blk(2) + blk(3)
    found = scanned(data, BLKTRACE)
    assert found.offset_bytes.tolist() == [0, 69, 117]
    assert [each[:2] for each in found.damage] == [(48, 21)]


def test_impossible_record_lengths_are_damage_up_to_the_end() -> None:
    for length in (0, 0xFFFFFFFF):
        data = prefixed(0) + struct.pack("<I", length) + bytes(100)
        for complete in (False, True):
            found = scanned(data, LENGTHS, complete=complete)
            assert [each[:2] for each in found.damage] == [(12, 104)]


def test_records_after_damage_are_found_by_their_numbers() -> None:
    data = b"".join(prefixed(n, 12 + n % 3 * 8) for n in range(100, 120))
    found = scanned(data[:30] + data[41:], NUMBERED)
    assert len(found.damage) == 1
    assert len(found.offset_bytes) == 19
    assert [each.records for each in found.missing] == [1]
    assert found.last_sequence == 119


@pytest.mark.parametrize("part_bytes", [4, 7, 30])
@pytest.mark.parametrize("times", [1, 3])
def test_a_record_that_comes_again_from_its_begin_after_a_part_of_it_is_found(
    part_bytes: int, times: int
) -> None:
    before, record, after = (
        b"".join(prefixed(n, 34) for n in numbers)
        for numbers in (range(100, 105), [105], range(106, 110))
    )
    found = scanned(before + record[:part_bytes] * times + record + after, NUMBERED)
    assert len(found.offset_bytes) == 10
    assert not found.missing
    assert sum(each.size_bytes for each in found.damage) == part_bytes * times


def test_a_stale_record_is_damage_and_the_replaced_record_is_missing() -> None:
    for stale in (11590, 40000):
        data = b"".join(fixed(n) for n in (22508, 22509, stale, 22511, 22512))
        found = scanned(data, FIXED)
        assert found.offset_bytes.tolist() == [0, 16, 48, 64]
        assert [each[:2] for each in found.damage] == [(32, 16)]
        assert found.missing == [(48, 1)]


def test_a_repeated_record_is_damage_once() -> None:
    data = b"".join(fixed(n) for n in [*range(10, 20), *range(10, 20), 20, 21])
    found = scanned(data, FIXED)
    assert [each[:2] for each in found.damage] == [(160, 160)]
    assert not found.missing
    assert found.last_sequence == 21


def test_record_numbers_continue_over_takes_wrap_and_restart() -> None:
    assert not scanned(fixed(8) + fixed(9), FIXED, last_sequence=7).missing
    assert scanned(fixed(8), FIXED, last_sequence=4).missing == [(0, 3)]
    assert not scanned(fixed(0xFFFFFFFF) + fixed(0) + fixed(1), FIXED).damage
    again = scanned(b"".join(fixed(n) for n in (500, 501, 0, 1, 2)), FIXED)
    assert (again.damage, again.missing, again.last_sequence) == ([], [], 2)


def test_the_record_before_a_gap_in_the_numbers_may_be_overwritten() -> None:
    data = b"".join(fixed(n) for n in (1, 2, 90, 91))
    found = scanned(data, FIXED, suspect_before_missing=True)
    assert found.missing == [(32, 87)]
    assert found.offset_bytes.tolist() == [0, 32, 48]


def test_blktrace_notes_are_not_numbered() -> None:
    data = blk(1) + blk(77777, b"comm", action=1 << 26) + blk(2)
    found = scanned(data, BLKTRACE)
    assert len(found.offset_bytes) == 3
    assert not found.damage


@pytest.mark.parametrize(
    "text", ["fixed", "fixed:0", "fixed:x", "u32le", "blktrace:8", "fixed:99999999"]
)
def test_an_unknown_framing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="framing"):
        parse_framing(text)


def test_fields_outside_of_the_record_are_refused() -> None:
    with pytest.raises(UsageError, match="within the 8 bytes"):
        parse_framing("fixed:8", time_at=4)
    with pytest.raises(UsageError, match="its own"):
        parse_framing("blktrace", time_at=4)


PARTS = st.lists(
    st.one_of(
        st.builds(lambda n, p, same: blk(n, p) * same, st.integers(0, 99), st.binary(max_size=20),
                  st.integers(1, 12)),
        st.builds(prefixed, st.integers(0, 99), st.integers(8, 60)),
        st.binary(max_size=30),
        st.just(bytes(40)),
    )
)  # fmt: skip


@settings(deadline=None)
@given(PARTS, st.sampled_from([LENGTHS, NUMBERED, FIXED, BLKTRACE]), st.booleans())
def test_every_byte_is_in_a_record_or_damage_or_left_over(
    parts: list[bytes], framing: Framing, complete: bool
) -> None:
    data = b"".join(parts)
    found = scanned(data, framing, complete=complete)
    spans = sorted(
        [*zip(found.offset_bytes.tolist(), found.size_bytes.tolist(), strict=True)]
        + [each[:2] for each in found.damage]
    )
    at = 0
    for offset, size in spans:
        assert offset == at
        assert size > 0
        at += size
    assert at == found.whole_bytes <= len(data)
    if complete:
        assert at == len(data)


@settings(deadline=None)
@given(st.lists(st.integers(5, 300), max_size=200), st.integers(0, 400))
def test_the_array_framer_and_the_plain_framer_find_the_same_records(
    lengths: list[int], repeat: int
) -> None:
    lengths = [*lengths, *[64] * repeat]
    data = b"".join(struct.pack("<I", n - 4) + bytes(n - 4) for n in lengths)
    found = scanned(data, LENGTHS)
    assert np.array_equal(found.size_bytes, lengths)
