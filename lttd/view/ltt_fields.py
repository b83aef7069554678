"""The fields of LTTng 0.x events as records: what follows a string lies elsewhere in every event.

Rule: an event that was walked has all its fields within its own bytes; only such are given here.
"""

import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import Field, Format, Kind
from lttd.abi.ltt import Layout
from lttd.abi.ltt_events import aligned_to
from lttd.abi.ltt_markers import Marker, MarkerField
from lttd.view.columns import gather, until_nul

I64 = npt.NDArray[np.int64]
_NATIVE: Final = "<" if sys.byteorder == "little" else ">"
_SPAN_BYTES: Final = 16


def format_of(marker: Marker, layout: Layout) -> Format:
    """Return the format of the records of a marker's events; fields are called as it says."""
    fields: list[Field] = []
    at = 0
    for one in marker.fields:
        name, number = one.name, 2
        while name in [field.name for field in fields]:
            name, number = f"{one.name}_{number}", number + 1
        field = _field(name, one, at)
        fields.append(field)
        at += field.size_bytes
    return Format(
        marker.channel, marker.name, marker.id, tuple(fields), "", _NATIVE, layout.pointer_bytes
    )


def _field(name: str, one: MarkerField, at: int) -> Field:
    if one.is_string:
        return Field(name, "char *", at, _SPAN_BYTES, False, Kind.SPAN, 1)
    size, signed, pointer = one.stored
    declared = "void *" if pointer else f"{'s' if signed else 'u'}{8 * size}"
    return Field(name, declared, at, size, signed, Kind.INT, size)


class MarkerRecords:
    """Makes records of the events of one marker; see ``lttd.view.formats.RecordsOf``."""

    def __init__(self, marker: Marker, layout: Layout, format_: Format) -> None:
        self.marker = marker
        self._dtype = format_.dtype
        self._fields = [
            (field, one, self._stored(one, layout), self._alignment(marker, one, layout))
            for field, one in zip(format_.fields, marker.fields, strict=True)
        ]

    @staticmethod
    def _stored(one: MarkerField, layout: Layout) -> np.dtype[Any]:
        if one.is_string:
            return np.dtype("V1")
        order = ">" if one.network else layout.order
        return np.dtype(f"{order}{'i' if one.stored.signed else 'u'}{one.stored.size_bytes}")

    @staticmethod
    def _alignment(marker: Marker, one: MarkerField, layout: Layout) -> int:
        return 1 if one.is_string else aligned_to(layout, one.stored.size_bytes, marker.alignment)

    def __call__(self, data: memoryview, at: I64, size_bytes: I64) -> npt.NDArray[np.void]:
        """Return the fields of the events at some places."""
        records = np.empty(len(at), self._dtype)
        raw = np.frombuffer(data, np.uint8)
        place = np.zeros(len(at), np.int64)
        for field, one, stored, alignment in self._fields:
            if one.is_string:
                behind = place + until_nul(raw, at + place, size_bytes - place)
                records[field.name] = np.stack((place, behind), axis=1)
                place = behind + 1
            else:
                place = (place + (alignment - 1)) & -alignment
                records[field.name] = gather(data, at + place, stored)
                place = place + stored.itemsize
        return records
