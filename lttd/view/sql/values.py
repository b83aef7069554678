"""The values of a result for people and for other programs: as Python's values, as JSON, as text.

A sum of integers is a whole number of 38 digits to DuckDB, and becomes an integer again.  A time of
the wall clock has no zone, which is UTC, and nine digits after the point if DuckDB has ns.
"""

import datetime as dt
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

from lttd.terminal import printable
from lttd.view.times import seconds

Array = Any  # pyarrow has no types
_TIMES: Final = frozenset(("time", "begin", "end"))
_AGGREGATES: Final = ("min", "max", "first", "last", "any_value")
TIME_NAMES: Final = _TIMES | {
    f"{made}({quote}{name}{quote})"
    for made in _AGGREGATES
    for name in _TIMES
    for quote in ('"', "")
}
"""The columns with times of the trace clock: those of views, and what DuckDB calls these."""


def rows_of(batch: Any) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    """Yield the rows of a batch as tuples."""
    return zip(*(_plain(column) for column in batch.columns), strict=True)


def _plain(column: Array) -> list[Any]:
    if _is_whole(column.type):
        return [None if value is None else int(value) for value in column.to_pylist()]
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = texts(column)
    values: list[Any] = column.to_pylist()
    return values


def _is_whole(kind: Any) -> bool:  # noqa: ANN401
    return bool(pa.types.is_decimal(kind) and kind.scale == 0)


def is_number(kind: Any) -> bool:  # noqa: ANN401
    """Tell whether values of a type are numbers, which are aligned on the right."""
    is_decimal = pa.types.is_decimal(kind)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or is_decimal)


def texts(column: Array) -> Array:
    """Return values as an Arrow array of strings; null stays null."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return texts(column.dictionary).take(column.indices)
    if pa.types.is_string(kind):
        return column
    is_time = pa.types.is_timestamp(kind) and kind.tz is None
    if is_time or is_number(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.string())
    return pa.array(
        [None if one is None else as_json(one) for one in column.to_pylist()], pa.string()
    )


def as_json(value: Any) -> str:  # noqa: ANN401
    """Return a value as JSON; a string as it is."""
    return value if isinstance(value, str) else json.dumps(value, default=other_json)


def other_json(value: Any) -> Any:  # noqa: ANN401
    """Return a value that JSON knows for one that it does not know."""
    match value:
        case Decimal():
            whole = int(value)
            return whole if whole == value else float(value)
        case bytes():
            return value.hex()
        case dt.datetime():
            return value.isoformat(" ")
        case _:
            return str(value)


def readable(name: str, column: Array, *, counts_ns: bool) -> list[str]:
    """Return values for a table: times in seconds with nine digits, as ``--begin`` takes them."""
    show: Callable[[Any], str] = str
    if counts_ns and name in TIME_NAMES and pa.types.is_int64(column.type):
        show = seconds
        values = column.to_pylist()
    else:
        values = texts(column).to_pylist()
        show = printable
    return ["NULL" if value is None else show(value) for value in values]
