"""Arrays of characters that were printed before are found by their bytes."""

import random

import numpy as np
import pytest

from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_nodes import Text
from lttd.view.ctf.texts import KNOWN_WIDTHS, KnownTexts, quoted


def told(column: np.ndarray) -> list[bytes]:
    return [bytes(one).rstrip(b"\0") for one in column.tolist()]


def node(raw: bytes, width: int) -> Text:
    begin = np.arange(0, len(raw), width)
    return Text(Bits(raw), begin, begin + width, width)


@pytest.mark.parametrize("width", KNOWN_WIDTHS)
def test_known_texts_are_printed_as_new_ones_though_many_share_a_slot(width: int) -> None:
    draw = random.Random(width)
    signs = b'ab\0\0"\\?\n\x01\x7f\xff'
    known = KnownTexts(width)
    old = [bytes(draw.choices(signs, k=width)) for _ in range(6000)]
    for _ in range(4):
        new = [bytes(draw.choices(signs, k=width)) for _ in range(500)]
        raw = b"".join(draw.choices(old, k=1500) + new + [bytes(width), b"\0" * (width - 1) + b"x"])
        assert told(known.quoted(node(raw, width))) == told(quoted(node(raw, width)))


def test_a_text_at_the_end_of_a_buffer_that_is_cut_is_printed() -> None:
    raw = b"0123456789abcdef" + b"short"
    at = np.array([0, 16])
    text = Text(Bits(raw), at, np.array([16, 21]), 16)
    assert told(KnownTexts(16).quoted(text)) == [b"0123456789abcdef", b"short"]
