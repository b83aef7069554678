"""Values from 2^63 to 2^64 - 1, such as kernel addresses, pass through every numeric helper."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from lttd.abi.print_fmt_nodes import Conversion, FieldRef
from lttd.view.addresses import Symbols
from lttd.view.conversions import Context, converted
from lttd.view.ftrace.lines import Texter
from lttd.view.glyphs import decimal, distinct, hexadecimal, per_distinct
from lttd.view.merge import order_by_time
from lttd.view.strips import right_aligned
from lttd.view.task_names import Names
from tests.print_fmts import event, lines, lines_of, rows_of

MANY = 100
"""More rows than the few that are left to np.unique."""
TOP, HIGH = (1 << 64) - 1, 1 << 63
NARROW, WIDE = 65_535, 1 << 20


def spread(low: int, span: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return MANY values from *low* to *low* + *span*, out of order, several of them twice."""
    values = [low + span * (37 * at % MANY) // (MANY - 1) for at in range(MANY - 10)]
    return np.array([*values, *values[:10]], dtype)


SPREADS = [
    *(spread(low, span, np.uint64) for span in (0, 1, 255, NARROW, WIDE, HIGH - 1)
      for low in (0, HIGH - 1, HIGH, TOP - span)),
    *(spread(low, span, np.int64) for span in (0, 255, NARROW, WIDE)
      for low in (-HIGH, -1, HIGH - 1 - span)),
    spread(-128, 255, np.int8), spread(0, 255, np.uint8),
    spread(-(1 << 15), NARROW, np.int16), spread(0, NARROW, np.uint16),
    spread(-(1 << 31), NARROW, np.int32), spread((1 << 32) - 1 - NARROW, NARROW, np.uint32),
    spread(HIGH, NARROW, ">u8"),
]  # fmt: skip


@pytest.mark.parametrize("values", SPREADS, ids=lambda v: f"{v.dtype}-{min(v)}-{max(v)}")
def test_distinct_wide_values_and_their_rows_equal_those_of_python(
    values: npt.NDArray[Any],
) -> None:
    found, which = distinct(values)
    assert found.dtype == values.dtype.newbyteorder("=")
    assert found.tolist() == sorted(set(values.tolist()))
    assert found[which].tolist() == values.tolist()
    told = per_distinct(values, lambda value: b"%d" % value)
    assert told.tolist() == [b"%d" % value for value in values.tolist()]


@pytest.mark.parametrize("kind", [np.uint64, np.int64, np.uint32, np.int32])
@pytest.mark.parametrize("different", [2, 300, 2_000, 90_000])
def test_values_far_apart_are_found_among_many_rows(
    kind: type[np.integer[Any]], different: int
) -> None:
    """A table has a slot for each hash: of 300 values some share one, of 2,000 many."""
    random = np.random.default_rng(different)
    limits = np.iinfo(kind)
    some = random.integers(limits.min, limits.max, different, kind, endpoint=True)
    values = np.concatenate([some, some[random.integers(0, different, 20_000)]])
    found, which = distinct(values)
    assert found.dtype == values.dtype
    assert found.tolist() == sorted(set(values.tolist()))
    assert (found[which] == values).all()


@pytest.mark.parametrize(
    "values",
    [v for v in SPREADS if v.dtype.isnative],
    ids=lambda v: f"{v.dtype}-{min(v)}-{max(v)}",
)
def test_the_digits_of_wide_columns_equal_those_of_python(values: npt.NDArray[Any]) -> None:
    plain, bits = values.tolist(), 8 * values.dtype.itemsize
    assert lines_of(decimal(values), MANY) == [str(value) for value in plain]
    assert lines_of(right_aligned(decimal(values), MANY, 21), MANY) == [f"{v:21}" for v in plain]
    unsigned = [value % (1 << bits) for value in plain]
    assert lines_of(hexadecimal(values), MANY) == [f"{value:x}" for value in unsigned]
    assert lines_of(hexadecimal(values, 16), MANY) == [f"{value:016x}" for value in unsigned]


@pytest.mark.parametrize("most", [0, 9, 9_999, 10_000, 65_535, 65_536, HIGH, TOP])
def test_the_digits_of_a_few_wide_values_among_many_small_ones_equal_those_of_python(
    most: int,
) -> None:
    plain = [min(most, at % 70_000 if at % 3 else at % 7) for at in range(0, 40_000, 17)]
    plain[5::400] = [most] * len(plain[5::400])
    values = np.array(plain, np.uint64)
    assert lines_of(decimal(values), len(plain)) == [str(value) for value in plain]
    assert lines_of(hexadecimal(values), len(plain)) == [f"{value:x}" for value in plain]


@pytest.mark.parametrize(
    ("letter", "flags", "told"),
    [("u", "", "%d"), ("x", "", "%x"), ("X", "", "%X"), ("x", "#", "0x%x"), ("o", "", "%o"),
     ("u", "0", "%021d"), ("u", "-", "%-21d"), ("p", "", "%016x")],
)  # fmt: skip
@pytest.mark.parametrize("low", [HIGH - 1, HIGH, TOP - NARROW])
def test_conversions_print_wide_values(letter: str, flags: str, told: str, low: int) -> None:
    values = spread(low, NARROW, np.uint64)
    width = 21 if flags in ("0", "-") else None
    one = Conversion(flags, width, None, "ll", letter, "", FieldRef("q"))
    strip = converted(one, values, MANY, Context(8, "<", Symbols()))
    assert lines_of(strip, MANY) == [told % value for value in values.tolist()]


@pytest.mark.parametrize("low", [-HIGH, -NARROW - 1, HIGH - 1 - NARROW])
def test_the_functions_of_print_fmts_accept_wide_values(low: int) -> None:
    """Print a 64-bit field by flags, symbol, address and arithmetic, on more than 64 rows."""
    printed = (
        '"%s|%s|%ps|%llu|%llx|%lld", __print_flags((u64)REC->q, "|", { 1ULL << 63, "TOP" }),'
        ' __print_symbolic((u64)REC->q, { 0xffffffffffffffffULL, "ALL" }), (void *)REC->q,'
        " (u64)REC->q, ~(u64)REC->q, REC->q / 2"
    )
    values = spread(low, NARROW, np.int64).tolist()
    expected = []
    for value in values:
        wide = value % (1 << 64)
        rest = wide & ~HIGH
        flags = [*(["TOP"] if wide & HIGH else []), *([f"0x{rest:x}"] if rest else [])]
        symbol = "ALL" if wide == TOP else f"0x{wide:x}"
        half = abs(value) // 2 * (-1 if value < 0 else 1)
        expected.append(f"{'|'.join(flags)}|{symbol}|0x{wide:x}|{wide}|{wide ^ TOP:x}|{half}")
    assert lines(printed, *(event(q=value) for value in values)) == expected


def test_events_are_ordered_up_to_the_largest_time() -> None:
    times = spread(TOP - NARROW, NARROW, np.uint64)
    order = order_by_time(times)
    assert order is not None
    assert times[order].tolist() == sorted(times.tolist())


def test_a_line_shows_the_largest_time() -> None:
    """The kernel rounds 2^64 - 1 ns to us; adding half a us first would wrap."""
    texter = Texter(Names([]), Symbols())
    batch = rows_of('"%d", REC->i', [event()] * MANY).batch
    times = spread(TOP - NARROW, NARROW, np.uint64)
    found = b"".join(texter.lines(replace(batch, time=times))).decode().splitlines()
    us = [(time + 500) // 1000 for time in times.tolist()]
    assert [line.split()[3] for line in found] == [
        f"{each // 1_000_000}.{each % 1_000_000:06}:" for each in us
    ]
