"""The columns of a view: those that every event has, then the event's own fields.

Rule: an event's own field hides a common column of its name, as in ``--where``; the common one is
then ``common_`` and its name.  DuckDB ignores case, so names that differ in it alone get a number.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa

from lttd.view.columns import no_rows
from lttd.view.export.arrow import field_array
from lttd.view.formats import EventType

Type = Any  # pyarrow has no types
TEXT: Final = pa.dictionary(pa.int32(), pa.string())
COMMON: Final[dict[str, Type]] = {
    "time": pa.int64(),
    "realtime": pa.timestamp("ns"),
    "cpu": pa.int32(),
    "comm": TEXT,
    "pid": pa.int32(),
    "tgid": pa.int32(),
    "flags": pa.uint8(),
    "preempt_count": pa.uint8(),
}
"""The columns that every event has."""
NAMED: Final[dict[str, Type]] = {"event": TEXT, "system": TEXT}
"""The columns that the view of all events has besides."""
_PREFIX: Final = "common_"
_RAW: Final = "raw"


class Column(NamedTuple):
    """One column of a view."""

    name: str
    type: Type
    common: str | None = None
    """The name of the common column; None: it is a field of the event."""
    field: str = ""


def of_all_events() -> list[Column]:
    """Return the columns of the view of all events."""
    return [Column(name, kind, name) for name, kind in (COMMON | NAMED).items()]


def of_types(types: Sequence[EventType]) -> list[Column]:
    """Return the columns of the view of one event, whose types are those of several segments."""
    fields: dict[str, Type] = {}
    for event_type in types:
        for name, kind in _fields(event_type):
            fields[name] = kind if name not in fields else _both(fields[name], kind)
    taken: set[str] = set()
    own = [Column(_free(name, taken), kind, None, name) for name, kind in fields.items()]
    common = [
        Column(_free(name if name not in taken else _PREFIX + name, taken), kind, name)
        for name, kind in COMMON.items()
    ]
    return [*common, *own]


def schema_of(columns: Iterable[Column]) -> Any:  # noqa: ANN401
    """Return the columns as an Arrow schema."""
    return pa.schema([(one.name, one.type) for one in columns])


def _fields(event_type: EventType) -> Iterable[tuple[str, Type]]:
    if event_type.format is None:
        return [(_RAW, pa.binary())]
    rows = no_rows(event_type)
    return [(name, field_array(rows, name).type) for name in rows.names]


def _both(one: Type, other: Type) -> Type:
    """Return a type that holds the values of two types; text holds any."""
    if one == other:
        return one
    try:
        schemas = [pa.schema([("", each)]) for each in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return pa.string()


def _free(name: str, taken: set[str]) -> str:
    """Return a name that is not taken yet, and take it."""
    found, number = name, 2
    while found.lower() in taken:
        found, number = f"{name}_{number}", number + 1
    taken.add(found.lower())
    return found
