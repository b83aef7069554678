r"""Make lines of the data of relay channels:

    [<cpu, 3>] <s>.<us>: <channel>: entry=<n> begin=<s>.<us> offset=<n> size=<n> "<text>"
    [<cpu, 3>] <s>.<us>: <channel>: sequence=<n> entry=<n> offset=<n> size=<n> <bytes in hex>

A line shows at most SHOWN_BYTES of the data, or LONG_BYTES if ``--fields`` asks for them, and then
how many more there are; JSON has all of them.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.terminal import printable, printable_bytes
from lttd.view.columns import EventBatch, EventRows
from lttd.view.glyphs import decimal
from lttd.view.lines import BlockTexter, Body, body_of
from lttd.view.losses import Loss
from lttd.view.strips import Strip, right_aligned, strings_of, words_of

U64 = npt.NDArray[np.uint64]

SHOWN_BYTES: Final = 64
LONG_BYTES: Final = 4096
NO_TEXT: Final = b'""'
_SECOND_WIDTH: Final = 5
_ESCAPES: Final = str.maketrans({"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"})


class RelayTexter(BlockTexter):
    """Makes the lines of one clock group's batches."""

    def __init__(self, *, nanoseconds: bool = False, fields: Sequence[str] | None = None) -> None:
        """*fields*: the names of the fields to print."""
        self._nanoseconds = nanoseconds
        self._fields = fields

    def lost(self, loss: Loss) -> str:
        """Return the line of a loss, which names the channel: each channel has its own losses."""
        return f"{loss} ({loss.channel}_{loss.cpu})"

    def prefix(self, batch: EventBatch) -> Strip:
        """Return the prefixes: CPU, time and channel."""
        cpus = [b"[%03d] " % cpu for cpu in range(int(batch.cpu.max()) + 1)]
        names = [f": {printable(one.system)}: ".encode() for one in batch.types]
        return [
            words_of(np.array(cpus, np.bytes_))[batch.cpu],
            *right_aligned(self._time(batch.time), len(batch), _SECOND_WIDTH + self._digits + 1),
            words_of(np.array(names, np.bytes_))[batch.type],
        ]

    @property
    def _digits(self) -> int:
        return 9 if self._nanoseconds else 6

    def _time(self, time_ns: U64) -> Strip:
        unit = np.uint64(10**self._digits)
        time = time_ns
        if not self._nanoseconds:
            rounds_up = time_ns % np.uint64(1000) >= np.uint64(500)
            time = time_ns // np.uint64(1000) + rounds_up
        seconds = time // unit
        return [*decimal(seconds), b".", *decimal((time - seconds * unit), self._digits)]

    def bodies(self, batch: EventBatch) -> Iterator[Body]:
        """Yield the bodies: the fields of all events."""
        for rows in batch.by_type():
            yield body_of(rows.rows, [*self._fields_of(rows), b"\n"])

    def _fields_of(self, rows: EventRows) -> Strip:
        strip: Strip = []
        for name in rows.names:
            if self._fields is not None and name not in self._fields:
                continue
            value = self._value(rows, name)
            if value:
                strip += [b" " if strip else b"", *value]
        return strip

    def _value(self, rows: EventRows, name: str) -> Strip:
        if name not in ("text", "data"):
            column = rows.records[name]
            told = self._time(column) if name == "begin" else decimal(column)
            return [f"{name}=".encode(), *told]
        most = SHOWN_BYTES if self._fields is None else LONG_BYTES
        texts = [_quoted(rows, *span, most) for span in _spans(rows, "text")]
        if self._fields is not None:
            if name == "data":
                texts = [_hex(rows, *span, most) for span in _spans(rows, name)]
            return [f"{name}=".encode(), words_of(strings_of(texts))]
        if name == "data":
            return []
        # One of the two: text needs no hex.
        datas = _spans(rows, "data")
        shown = [
            text if text != NO_TEXT else _hex(rows, *span, most)
            for text, span in zip(texts, datas, strict=True)
        ]
        return [words_of(strings_of(shown))]


def _spans(rows: EventRows, name: str) -> list[tuple[int, int]]:
    begin, end = rows.spans(name)
    return list(zip(begin.tolist(), end.tolist(), strict=True))


def _quoted(rows: EventRows, begin: int, end: int, most: int) -> bytes:
    """Return a text in quotes, cut after about *most* bytes; and how many bytes are left out."""
    raw = bytes(rows.batch.data[begin : min(end, begin + most)])
    if len(raw) < end - begin:  # not in the middle of a character
        raw = raw.decode(errors="ignore").encode()
    words = printable_bytes(raw.decode(errors="replace").translate(_ESCAPES).encode())
    return b'"%b"%b' % (words, _more(end - begin - len(raw)))


def _hex(rows: EventRows, begin: int, end: int, most: int) -> bytes:
    """Return bytes in hex, cut after *most* of them; and how many are left out."""
    raw = bytes(rows.batch.data[begin : min(end, begin + most)])
    return raw.hex().encode() + _more(end - begin - len(raw))


def _more(left_out_bytes: int) -> bytes:
    return b"... %d more bytes" % left_out_bytes if left_out_bytes else b""
