"""Parse format files of tracefs: every type of field, and invalid texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.abi.ftrace_format import Encoding, Field, id_of, parse_format
from tests.ftraced import FORMATS, format_text


def field(declared: str, size: int, signed: int = 0, **kernel: int) -> Field:
    text = format_text("made", 9, [f"{declared};8;{size};{signed}"], '""')
    return parse_format(text, **kernel).own[0]


def test_names_ids_and_common_fields_are_read() -> None:
    found = parse_format(FORMATS["clock/tick"], "clock")
    assert (found.system, found.name, found.id) == ("clock", "tick", 1)
    assert [one.name for one in found.own] == ["count", "flags"]
    assert found.by_name["common_pid"].offset_bytes == 4
    assert found.fixed_bytes == 16
    assert found.print_fmt.startswith('"count=%d')
    assert id_of(FORMATS["clock/tick"]) == 1


@pytest.mark.parametrize(
    ("declared", "size", "encoding", "element"),
    [
        ("int x", 4, Encoding.INT, 4),
        ("unsigned long long x", 8, Encoding.INT, 8),
        ("const char * x", 8, Encoding.INT, 8),
        ("bool x", 1, Encoding.INT, 1),
        ("int dfd", 8, Encoding.INT, 8),  # system calls widen their arguments
        ("unsigned long args[6]", 48, Encoding.ARRAY, 8),
        ("u8 uuid[16]", 16, Encoding.ARRAY, 1),
        ("__u8 addr[28]", 28, Encoding.ARRAY, 1),
        ("char comm[16]", 16, Encoding.CHARS, 1),
        ("char comm[TASK_COMM_LEN]", 16, Encoding.CHARS, 1),
        ("__data_loc char[] name", 4, Encoding.STRING, 1),
        ("__rel_loc char[] name", 4, Encoding.STRING, 1),
        ("__data_loc u64[] list", 4, Encoding.DYNAMIC, 8),
        ("__data_loc cpumask_t cpus", 4, Encoding.BITMASK, 8),
        ("u32 buf[]", 0, Encoding.TAIL, 4),
        ("char buf[]", 0, Encoding.TAIL, 1),
        ("u32 buf", 0, Encoding.TAIL, 4),  # Linux 3.10 to 4.14 leave out the brackets
        ("char buf", 0, Encoding.TAIL, 1),
        ("unsigned long caller", 0, Encoding.TAIL, 8),
        ("struct empty x", 0, Encoding.BYTES, 1),
        ("struct big x", 24, Encoding.BYTES, 1),
    ],
)
def test_every_type_of_field_is_parsed(
    declared: str, size: int, encoding: Encoding, element: int
) -> None:
    found = field(declared, size)
    assert (found.encoding, found.element_bytes) == (encoding, element)
    assert found.relative == declared.startswith("__rel_loc")


def test_a_32_bit_kernel_has_longs_of_4_bytes() -> None:
    assert field("unsigned long args[]", 0, long_bytes=4).element_bytes == 4
    assert field("unsigned long args[6]", 24, long_bytes=4).elements == 6


def test_a_big_endian_kernel_has_big_endian_columns() -> None:
    found = parse_format(FORMATS["clock/tick"], byteorder=">", long_bytes=4)
    raw = np.frombuffer(bytes(8) + b"\xff\xff\xff\xfe\x00\x00\x00\x03", found.dtype)
    assert (raw["count"][0], raw["flags"][0]) == (-2, 3)


@pytest.mark.parametrize("text", [b"", b"name: x\n", b"name: x\nID: 3\nformat:\n", b"\xff\0"])
def test_a_text_that_is_not_a_format_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="format"):
        parse_format(text)


@given(st.binary(max_size=300))
def test_garbage_in_a_format_raises_only_its_own_error(garbage: bytes) -> None:
    text = FORMATS["clock/tick"]
    for broken in (garbage, text[:100] + garbage + text[100:], text + garbage):
        try:
            parse_format(broken)
        except ValueError:
            continue
