"""Make lines of LTTng 0.x batches, in the form of LTTV's textDump, as far as events determine it:

    <channel>.<event>: <s>.<ns, 9> (<segment>/<channel>_<cpu>) { <f> = <v>, <f> = "<text>" }

Values are printed by the marker's own conversions, pointers as 0x%x, strings quoted; a marker
without fields has no braces.  LTTV also printed pid, process and state, which it derived from all
earlier events of the trace; these lines lack them.

Source of the form: LTTV lttv/lttv/print.c, lttv_event_to_string and lttv_print_field.

Rule: the lines of a block are one matrix of bytes.  Only strings of similar length share a block,
so that a long one does not widen all the others.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ltt_markers import MarkerField
from lttd.abi.print_fmt_nodes import Conversion, Number
from lttd.terminal import printable
from lttd.view.addresses import Symbols
from lttd.view.columns import EventBatch, EventRows
from lttd.view.conversions import Context, converted
from lttd.view.formats import EventType
from lttd.view.glyphs import decimal, hexadecimal, printable_words
from lttd.view.lines import BlockTexter, Body, body_of
from lttd.view.losses import Loss
from lttd.view.ltt.fields import MarkerRecords
from lttd.view.strips import Column, Strip, words_of
from lttd.view.window import WindowStream

I64 = npt.NDArray[np.int64]
_SECOND_NS: Final = 1_000_000_000


class LttTexter(BlockTexter):
    """Makes the lines of one clock group's batches."""

    def __init__(
        self, sources: Sequence[WindowStream], fields: Sequence[str] | None = None
    ) -> None:
        self._sources = sources
        self._fields = fields
        self._values: dict[int, list[_Value]] = {}

    def lost(self, loss: Loss) -> str:
        """Return the line of a loss, which names the channel: each channel has its own losses."""
        return f"{loss} ({loss.channel}_{loss.cpu})"

    def prefix(self, batch: EventBatch) -> Strip:
        """Return the prefixes: event, time and stream."""
        assert batch.stream is not None
        names = [f"{printable(f'{one.system}.{one.name}')}: ".encode() for one in batch.types]
        places = [
            printable(f" ({one.stream.segment.directory}/{one.stream.info.id.name})").encode()
            for one in self._sources
        ]
        seconds = batch.time // np.uint64(_SECOND_NS)
        return [
            words_of(np.array(names, np.bytes_))[batch.type],
            *decimal(seconds),
            b".",
            *decimal((batch.time - seconds * np.uint64(_SECOND_NS)).astype(np.uint32), 9),
            words_of(np.array(places, np.bytes_))[batch.stream],
        ]

    def bodies(self, batch: EventBatch) -> Iterator[Body]:
        """Yield the bodies: the fields of all events."""
        for rows in batch.by_type():
            values = self._values_of(rows.event_type)
            for some in _of_one_length(rows, [one.name for one in values if one.is_string]):
                strip: Strip = []
                for value in values:
                    strip += [f"{', ' if strip else ' { '}{printable(value.name)} = ".encode()]
                    strip += value.strip(some)
                yield body_of(some.rows, [*strip, b" }\n" if strip else b"\n"])

    def _values_of(self, event_type: EventType) -> "list[_Value]":
        if event_type.number not in self._values:
            assert isinstance(event_type.records_of, MarkerRecords)
            assert event_type.format is not None
            fields = zip(event_type.format.fields, event_type.records_of.marker.fields, strict=True)
            self._values[event_type.number] = [
                _Value(field.name, one, event_type.format.long_bytes)
                for field, one in fields
                if self._fields is None or field.name in self._fields
            ]
        return self._values[event_type.number]


class _Value:
    """Prints one field of a marker."""

    def __init__(self, name: str, field: MarkerField, long_bytes: int) -> None:
        self.name = name
        self.is_string = field.is_string
        self._pointer = field.stored.pointer
        self._before = printable(field.literal).encode()
        self._context = Context(long_bytes, "<", Symbols())
        self._conversion = Conversion(
            field.flags, None, None, "ll", field.letter, "", Number(0, 32, True)
        )

    def strip(self, rows: EventRows) -> Strip:
        """Return the text of the value in each row."""
        if self.is_string:
            return [b'"', _words(rows, self.name), b'"']
        value: Column = rows.records[self.name]
        if self._pointer:
            return [b"0x", *hexadecimal(value)]
        return [self._before, *converted(self._conversion, value, len(rows), self._context)]


def _of_one_length(rows: EventRows, strings: Sequence[str]) -> Iterator[EventRows]:
    """Yield rows in groups by the length of their longest string, which differs by at most 2x.

    So the matrix of a group is not much larger than its content.
    """
    longest = np.zeros(len(rows), np.int64)
    for name in strings:
        begin, end = rows.spans(name)
        longest = np.maximum(longest, end - begin)
    group = np.frexp(longest.astype(np.float64))[1]
    for one in np.unique(group):
        yield rows.some(np.flatnonzero(group == one))


def _words(rows: EventRows, name: str) -> Column:
    """Return strings as a column of a strip."""
    begin, end = rows.spans(name)
    length = end - begin
    width = max(int(length.max()), 1)
    within = np.arange(width) < length[:, np.newaxis]
    raw = np.frombuffer(rows.batch.data, np.uint8)
    matrix = np.zeros((len(rows), width), np.uint8)
    matrix[within] = raw[(begin[:, np.newaxis] + np.arange(width))[within]]
    return printable_words(matrix.view(f"S{width}").reshape(-1))
