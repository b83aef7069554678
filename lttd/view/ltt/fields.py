"""Copy the fields of LTTng 0.x events to records: fields after a string have no fixed place.

Rule: callers pass only events that were walked, so all fields are within the event's own bytes.
"""

import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import Encoding, Field, Format
from lttd.abi.gather import gather
from lttd.abi.ltt import Layout
from lttd.abi.ltt_markers import Marker, MarkerField
from lttd.abi.ltt_shape import aligned_to
from lttd.view.columns import EventRows, inside

I64 = npt.NDArray[np.int64]
_NATIVE: Final = "<" if sys.byteorder == "little" else ">"
_SPAN_BYTES: Final = 16


def format_of(marker: Marker, layout: Layout) -> Format:
    """Return the format of the records of a marker's events, with the marker's field names."""
    fields: list[Field] = []
    taken: set[str] = set()
    at = 0
    for one in marker.fields:
        name, number = one.name, len(fields) + 1
        while name in taken:
            name, number = f"{one.name}_{number}", number + 1
        taken.add(name)
        field = _field(name, one, at)
        fields.append(field)
        at += field.size_bytes
    return Format(
        marker.channel, marker.name, marker.id, tuple(fields), "", _NATIVE, layout.pointer_bytes
    )


def _field(name: str, one: MarkerField, at: int) -> Field:
    if one.is_string:
        return Field(name, "char *", at, _SPAN_BYTES, False, Encoding.SPAN, 1)
    size, signed, pointer = one.stored
    declared = "void *" if pointer else f"{'s' if signed else 'u'}{8 * size}"
    return Field(name, declared, at, size, signed, Encoding.INT, size)


class MarkerRecords:
    """Makes records of the events of one marker; see ``lttd.view.formats.RecordsOf``."""

    def __init__(self, marker: Marker, layout: Layout, format_: Format) -> None:
        self.marker = marker
        self._dtype = format_.dtype
        self._fields = [
            (field, *_stored(one, marker, layout))
            for field, one in zip(format_.fields, marker.fields, strict=True)
        ]
        self._has_strings = any(one.is_string for one in marker.fields)

    def __call__(self, rows: EventRows) -> npt.NDArray[np.void]:
        """Return the fields of some events."""
        data, at, payload_bytes = rows.batch.data, rows.at, rows.payload_bytes
        records = np.empty(len(at), self._dtype)
        ends = _Ends(data, at, payload_bytes) if self._has_strings else None
        place = np.zeros(len(at), np.int64)
        for field, stored, alignment in self._fields:
            if ends is not None and field.encoding is Encoding.SPAN:
                behind = ends.behind(place)
                records[field.name] = np.stack((place, behind), axis=1)
                place = behind + 1
            else:
                place = (place + (alignment - 1)) & -alignment
                records[field.name] = gather(data, at + place, stored)
                place = place + stored.itemsize
        return records


def _stored(one: MarkerField, marker: Marker, layout: Layout) -> tuple[np.dtype[Any], int]:
    """Return the dtype of a field in an event, and its alignment there."""
    size, signed, _ = one.stored
    if one.is_string:
        return np.dtype("V1"), 1
    order = ">" if one.network else layout.order
    dtype = np.dtype(f"{order}{'i' if signed else 'u'}{size}")
    return dtype, aligned_to(layout, size, marker.sizes.alignment)


class _Ends:
    """The ends of the strings of some events; all NULs are searched once."""

    def __init__(self, data: memoryview, at: I64, payload_bytes: I64) -> None:
        raw = np.frombuffer(data, np.uint8)
        self._begin = np.cumsum(payload_bytes) - payload_bytes
        self._nuls = np.flatnonzero(raw[np.repeat(at, payload_bytes) + inside(payload_bytes)] == 0)

    def behind(self, place: I64) -> I64:
        """Return the end of the string that begins at *place* of each event."""
        number = np.searchsorted(self._nuls, self._begin + place)
        behind: I64 = self._nuls[number] - self._begin
        return behind
