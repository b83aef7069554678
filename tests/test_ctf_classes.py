"""Hold the sizes of CTF's field classes to CTF 1.8's rules of alignment."""

import pytest

from lttd.abi.ctf_classes import (
    Array,
    Enumeration,
    FieldClass,
    Float,
    Integer,
    Sequence,
    String,
    Struct,
    Variant,
    alignment,
    end_bits,
    fixed_bits,
)

BYTE = Integer(8, 8, signed=False, byteorder="little")
WORD = Integer(32, 32, signed=False, byteorder="little")
FIVE = Integer(5, 1, signed=False, byteorder="little")


def struct(*members: FieldClass, least: int = 1) -> Struct:
    named = tuple((f"m{number}", member) for number, member in enumerate(members))
    return Struct(named, max([least, *map(alignment, members)]))


@pytest.mark.parametrize(
    ("of", "size", "align"),
    [
        (FIVE, 5, 1),
        (Enumeration(FIVE, ()), 5, 1),
        (Float(11, 53, 8, "big"), 64, 8),
        (String(), None, 8),
        (Array(Integer(3, 4, signed=False, byteorder="big"), 3), 11, 4),
        (Array(String(), 0), 0, 8),
        (Array(String(), 1), None, 8),
        (Sequence(WORD, ("event", "fields", "n")), None, 32),
        (Variant(("event", "fields", "n"), (("a", WORD),)), None, 1),
        (struct(BYTE, WORD, FIVE), 69, 32),
        (struct(BYTE, String()), None, 8),
        (struct(least=64), 0, 64),
        (Array(struct(WORD, BYTE), 2), 104, 32),
        (struct(BYTE, struct(FIVE, least=16)), 21, 16),
    ],
)
def test_a_field_has_its_size_and_the_alignment_of_its_parts(
    of: FieldClass, size: int | None, align: int
) -> None:
    assert (fixed_bits(of), alignment(of)) == (size, align)


def test_a_structure_begins_at_its_own_alignment() -> None:
    assert end_bits(struct(BYTE, least=64), 65) == 136
