"""Make Arrow arrays of the fields of events, from whole buffers; place times on the wall clock."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lttd.abi.ftrace_format import Encoding, Field
from lttd.clock import Conversion, Snapshot
from lttd.view.columns import EventRows, inside, until_nul
from lttd.view.export.ctf_events import is_text

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Array = Any  # pyarrow has no types
_MOST_TIME: Final = np.uint64(1 << 62)


def field_array(rows: EventRows, name: str) -> Array:
    """Return one field of some events: integers, strings, lists, or binary for other types."""
    one = rows.field(name)
    if one.encoding in (Encoding.INT, Encoding.REAL):
        return pa.array(_native(rows.records[name]))
    if one.encoding is Encoding.TOLD:
        texts = [text.decode(errors="replace") for text in rows.records[name].tolist()]
        return pa.array(texts, pa.string())
    if one.encoding is Encoding.ARRAY:
        values = _native(rows.records[name])
        bounds = np.arange(len(values) + 1, dtype=np.int64) * one.elements
        return _lists(bounds, values.reshape(-1))
    begin, end = rows.spans(name)
    raw = np.frombuffer(rows.batch.data, np.uint8)
    if one.encoding is Encoding.BYTES:
        return _binary(raw, begin, end - begin, pa.binary())
    if one.encoding in (Encoding.CHARS, Encoding.SPAN) or is_text(one):
        return _strings(raw, begin, until_nul(raw, begin, end - begin))
    return _dynamic(raw, begin, end - begin, one, rows)


def _dynamic(raw: U8, begin: I64, length: I64, one: Field, rows: EventRows) -> Array:
    count = length // one.element_bytes
    assert rows.event_type.format is not None
    dtype = one.element_dtype(rows.event_type.format.byteorder)
    values = _native(_gathered(raw, begin, count * one.element_bytes).view(dtype))
    return _lists(np.concatenate((np.zeros(1, np.int64), np.cumsum(count))), values)


def _lists(bounds: I64, values: npt.NDArray[Any]) -> Array:
    return pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), pa.array(values))


def _native(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def _gathered(raw: U8, begin: I64, length: I64) -> U8:
    gathered: U8 = raw[np.repeat(begin, length) + inside(length)]
    return gathered


def _binary(raw: U8, begin: I64, length: I64, into: Array) -> Array:
    bounds = np.concatenate((np.zeros(1, np.int64), np.cumsum(length))).astype(np.int32)
    data = _gathered(raw, begin, length)
    return pa.Array.from_buffers(into, len(begin), [None, pa.py_buffer(bounds), pa.py_buffer(data)])


def _strings(raw: U8, begin: I64, length: I64) -> Array:
    found = _binary(raw, begin, length, pa.string())
    try:
        found.validate(full=True)
    except pa.ArrowInvalid:  # not UTF-8
        values = _binary(raw, begin, length, pa.binary()).to_pylist()
        return pa.array([value.decode(errors="replace") for value in values], pa.string())
    return found


def realtimes_ns(time: U64, wall: Conversion, snapshots: Sequence[Snapshot]) -> tuple[I64, Mask]:
    """Return wall-clock times by a conversion, and which of them are beyond a century: damage.

    *snapshots* are those of the conversion: between two of them it is a straight line.  Floats
    compute only the drift between the clocks, so the result is exact to a ns.
    """
    beyond = time > _MOST_TIME
    if beyond.all():
        return np.zeros(len(time), np.int64), beyond
    time = np.where(beyond, time[~beyond][0], time)
    first, last = int(time.min()), int(time.max())
    bends = {snapshot.trace for snapshot in snapshots}
    begins = [first, *sorted(bend for bend in bends if first < bend <= last)]
    ends = [*(begin - 1 for begin in begins[1:]), last]
    real = [
        (_bounded(wall.to_realtime_ns(a)), _bounded(wall.to_realtime_ns(b)))
        for a, b in zip(begins, ends, strict=True)
    ]
    slopes = [
        (b_ns - a_ns - (b - a)) / max(b - a, 1)
        for a, b, (a_ns, b_ns) in zip(begins, ends, real, strict=True)
    ]
    at = time.astype(np.int64)
    piece = np.searchsorted(np.array(begins, np.int64), at, "right") - 1
    since = at - np.array(begins, np.int64)[piece]
    drift = np.floor(since * np.array(slopes)[piece]).astype(np.int64)
    return np.array([a_ns for a_ns, _ in real], np.int64)[piece] + since + drift, beyond


def _bounded(realtime_ns: int) -> int:
    return min(max(realtime_ns, 0), int(_MOST_TIME))
