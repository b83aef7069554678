"""What stands behind ``event: `` in a line: by the event's print fmt, else ``name=value``.

Rule: an event type is tried once, on a made-up event of zeros; one whose print fmt cannot be
expressed is shown as ``name=value`` throughout, never silently as nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import Field, Format, Kind
from lttd.abi.print_fmt import Conversion, PrintFmt, Unparsable, parse_print_fmt
from lttd.view.cexpr import Buffer, Evaluation, Inexpressible, Value, folded
from lttd.view.columns import Batch, Rows
from lttd.view.conversions import Context, Symbols, converted
from lttd.view.formats import EventType, FormatFile
from lttd.view.glyphs import Strip, decimal, hexadecimal, strings_of, words_of
from lttd.view.kernel_functions import FUNCTIONS, evaluate

__all__ = ["Renderer", "why_inexpressible"]

# Formats with dynamic strings make columns as wide as the longest one: fewer rows at once.
DYNAMIC_ROWS: Final = 2048
STATIC_ROWS: Final = 1 << 17
MOST_WIDTH: Final = 4096
_DYNAMIC: Final = (Kind.STRING, Kind.DYNAMIC, Kind.BITMASK, Kind.TAIL)


class Renderer:
    """Makes the text of one event type's fields."""

    def __init__(
        self, format_: Format | None, symbols: Symbols, fields: Sequence[str] | None = None
    ) -> None:
        self._format = format_
        self._only = fields
        self._parsed: PrintFmt | None = None
        self.reason: str | None = None
        """Why the print fmt is not used."""
        dynamic = False
        if format_ is not None:
            self._context = Context(format_.long_bytes, format_.byteorder, symbols)
            dynamic = any(field.kind in _DYNAMIC for field in format_.fields)
            if fields is None:
                self._prepare(format_)
        self.rows_at_once = DYNAMIC_ROWS if dynamic or format_ is None else STATIC_ROWS

    def _prepare(self, format_: Format) -> None:
        try:
            self._parsed = parse_print_fmt(format_.print_fmt, format_.long_bytes)
            made_up = _made_up(format_)
            self._parsed = _folded(self._parsed, made_up)
            self._printed(made_up)
        except (Unparsable, Inexpressible, RecursionError) as error:
            self._parsed, self.reason = None, str(error)

    def strip(self, rows: Rows) -> Strip:
        """Return the text of each row, one strip."""
        if self._format is None:
            return [b"bytes=", words_of(strings_of([raw.hex().encode() for raw in rows.raw()]))]
        if self._parsed is not None:
            try:
                return self._printed(rows)
            except Inexpressible as error:
                self._parsed, self.reason = None, str(error)
        return self._named(rows)

    def _printed(self, rows: Rows) -> Strip:
        assert self._parsed is not None
        strip: Strip = []
        for piece in self._parsed.pieces:
            if isinstance(piece, bytes):
                strip.append(piece)
            else:
                strip += _settled(self._conversion(piece, rows), len(rows))
        return _joined(strip)

    def _conversion(self, conversion: Conversion, rows: Rows) -> Strip:
        value = evaluate(conversion.argument, rows)
        widths = [_width(one, rows) for one in (conversion.width, conversion.precision)]
        if all(isinstance(one, int | None) for one in widths):
            return self._at_width(conversion, value, len(rows), widths)
        # ``%.*s`` and its like, where each row has its own width.
        columns = [
            np.broadcast_to(np.asarray(w if w is not None else -1), len(rows)) for w in widths
        ]
        told = []
        for number in range(len(rows)):
            mine = [
                None if w is None else int(c[number]) for w, c in zip(widths, columns, strict=True)
            ]
            strip = self._at_width(conversion, _row_of(value, number), 1, mine)
            told.append(_plain(strip))
        return [words_of(strings_of(told))]

    def _at_width(
        self, conversion: Conversion, value: Value, count: int, widths: Sequence[Any]
    ) -> Strip:
        if any(width is not None and abs(width) > MOST_WIDTH for width in widths):
            raise Inexpressible(f"a width of more than {MOST_WIDTH}")
        self._context.width, self._context.precision = widths
        return converted(conversion, value, count, self._context)

    def _named(self, rows: Rows) -> Strip:
        assert self._format is not None
        strip: Strip = []
        for field in self._format.own:
            if self._only is not None and field.name not in self._only:
                continue
            strip.append(f"{' ' if strip else ''}{field.name}=".encode())
            strip += _settled(_value_of(field, rows), len(rows))
        return _joined(strip)


def _folded(parsed: PrintFmt, rows: Rows) -> PrintFmt:
    evaluation = Evaluation(rows, FUNCTIONS)
    with np.errstate(all="ignore"):
        return PrintFmt(
            tuple(
                replace(piece, argument=folded(piece.argument, evaluation))
                if isinstance(piece, Conversion)
                else piece
                for piece in parsed.pieces
            )
        )


def _width(stated: Any, rows: Rows) -> Any:  # noqa: ANN401  (int | None | a column)
    if stated is None or isinstance(stated, int):
        return stated
    value = evaluate(stated, rows)
    if isinstance(value, Buffer) or value.dtype.kind not in "iu":
        raise Inexpressible("a width that is no number")
    same = len(value) and (value == value[0]).all()
    return int(value[0]) if same else value


def _row_of(value: Value, number: int) -> Value:
    if isinstance(value, Buffer):
        one = slice(number, number + 1)
        return replace(value, begin=value.begin[one], end=value.end[one])
    return value[number : number + 1] if len(value) > 1 else value


def _plain(strip: Strip) -> bytes:
    parts = (c if isinstance(c, bytes) else c[:1].tobytes() for c in strip)
    return b"".join(parts).replace(b"\0", b"")


def _settled(strip: Strip, count: int) -> Strip:
    """Make constant bytes of what is the same in every row."""
    if count == 1 or not any(isinstance(c, np.ndarray) and len(c) == 1 for c in strip):
        return strip
    return [
        c.tobytes().replace(b"\0", b"") if isinstance(c, np.ndarray) and len(c) == 1 else c
        for c in strip
    ]


def _joined(strip: Strip) -> Strip:
    """Put constants that adjoin together."""
    joined: Strip = []
    for column in strip:
        last = joined[-1] if joined else None
        if isinstance(column, bytes) and isinstance(last, bytes):
            joined[-1] = last + column
        else:
            joined.append(column)
    return joined


def _value_of(field: Field, rows: Rows) -> Strip:
    """Print a field as its type says: addresses in hex, the rest in decimal."""
    if field.kind is Kind.INT:
        column = rows.records[field.name]
        column = column.astype(column.dtype.newbyteorder("="), copy=False)
        return [b"0x", *hexadecimal(column)] if "*" in field.type else decimal(column)
    value = rows.column(field.name)
    if field.kind is Kind.CHARS:
        return [words_of(value)]
    if field.kind is Kind.ARRAY:
        told = [",".join(str(one) for one in row).encode() for row in value.tolist()]
        return [b"{", words_of(strings_of(told)), b"}"]
    text = field.kind is Kind.STRING or (field.kind is Kind.TAIL and "char" in field.type)
    pieces = [piece.rstrip(b"\n") if text else piece.hex().encode() for piece in value.tolist()]
    return [words_of(strings_of(pieces))]


def _made_up(format_: Format) -> Rows:
    """Return one event of zeros, to try a print fmt on."""
    data = memoryview(bytes(format_.fixed_bytes + 8))
    kind = EventType(0, FormatFile(format_.system, format_.name), format_.id, "")
    kind.format = format_
    zero: npt.NDArray[Any] = np.zeros(1, np.int64)
    batch = Batch(
        data,
        [kind],
        zero.astype(np.uint64),
        zero.astype(np.uint16),
        zero.astype(np.int32),
        zero.astype(np.int32),
        zero.astype(np.uint8),
        zero.astype(np.uint8),
        zero,
        np.array([format_.fixed_bytes], np.uint32),
    )
    return Rows(batch, kind, zero)


@cache
def _no_symbols() -> Symbols:
    return Symbols()


def why_inexpressible(format_: Format) -> str | None:
    """Return why a format's print fmt cannot be used; None where it can."""
    return Renderer(format_, _no_symbols()).reason
