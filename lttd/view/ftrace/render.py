"""Print the fields of an event by its print fmt, else as ``name=value``.

Rule: each event type is tried once, on a synthetic event of zeros.  A conversion that cannot be
evaluated is left out with its label, and fields that no other conversion prints are added as
``name=value``.  If no conversion can be evaluated, all fields are printed that way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace_format import Encoding, Field, Format
from lttd.abi.print_fmt import parse_print_fmt
from lttd.abi.print_fmt_nodes import (
    Conversion,
    FieldRef,
    Node,
    PrintFmt,
    Unary,
    Unparsable,
    fields_of,
)
from lttd.terminal import printable
from lttd.view.addresses import Symbols
from lttd.view.columns import EventBatch, EventRows
from lttd.view.conversions import (
    Buffer,
    Context,
    Inexpressible,
    Value,
    converted,
    printable_literals,
)
from lttd.view.enums import NO_ENUMS, Enums
from lttd.view.formats import EventName, EventType
from lttd.view.ftrace.cexpr import MOST_STRING_BYTES, Evaluation, folded
from lttd.view.ftrace.enum_names import named_enums
from lttd.view.ftrace.kernel_functions import FUNCTIONS, evaluate
from lttd.view.ftrace.own_events import Printer, printer_of
from lttd.view.ftrace.probes import as_probes_print
from lttd.view.glyphs import per_distinct
from lttd.view.lines import FieldPrinter
from lttd.view.strips import Strip, joined, settled, strings_of, words_of

__all__ = ["Renderer", "tried", "why_inexpressible"]

MOST_WIDTH: Final = 4096


class LeftOut(NamedTuple):
    """A conversion that cannot be evaluated."""

    label: str
    """The text before it."""
    why: str


class Renderer(FieldPrinter):
    """Prints the fields of one event type by its print fmt."""

    def __init__(
        self,
        format_: Format | None,
        symbols: Symbols,
        fields: Sequence[str] | None = None,
        enums: Enums = NO_ENUMS,
    ) -> None:
        super().__init__(format_, fields)
        self.symbols = symbols
        self._enums = enums
        self._parsed: PrintFmt | None = None
        self._added: tuple[Field, ...] = ()
        self._own: Printer | None = None
        self.reason: str | None = None
        """Why the print fmt is not used, or only in part."""
        self.left_out: list[LeftOut] = []
        self.conversions = 0
        """The number of the print fmt's conversions."""
        if format_ is not None:
            self._context = Context(format_.long_bytes, format_.byteorder, symbols)
            if fields is None:
                self._own = printer_of(format_)
                self._prepare(format_)

    def _prepare(self, format_: Format) -> None:
        try:
            parsed = parse_print_fmt(format_.print_fmt, format_.long_bytes, self._enums.values)
        except (Unparsable, RecursionError) as error:
            self.reason = str(error)
            return
        made_up = _made_up(format_)
        parsed = printable_literals(as_probes_print(parsed, format_))
        if self._enums.naming:
            parsed = named_enums(parsed, format_, self._enums)
        pieces: list[bytes | Conversion | None] = []
        for number, piece in enumerate(parsed.pieces):
            if isinstance(piece, bytes):
                pieces.append(piece)
                continue
            self.conversions += 1
            try:
                pieces.append(self._tried(piece, made_up))
            except (Inexpressible, RecursionError) as error:
                before = parsed.pieces[number - 1] if number else b""
                label = before if isinstance(before, bytes) else b""
                self.left_out.append(LeftOut(label.decode(errors="replace"), str(error)))
                pieces.append(None)
        self.reason = self.left_out[0].why if self.left_out else None
        if not self.left_out or any(isinstance(piece, Conversion) for piece in pieces):
            self._parsed = PrintFmt(tuple(_without_left_out(pieces)))
            self._added = _shown_by_none(parsed, pieces, format_)

    def _tried(self, conversion: Conversion, made_up: EventRows) -> Conversion:
        """Return a conversion with its constants computed.

        Raises:
            Inexpressible: it cannot be printed.
        """
        with np.errstate(all="ignore"):
            argument = folded(conversion.argument, Evaluation(made_up, FUNCTIONS))
        conversion = conversion._replace(argument=argument)
        self._conversion(conversion, made_up)
        return conversion

    def strip(self, rows: EventRows) -> Strip:
        """Return the text of all rows as one strip."""
        if self._own is not None:
            return joined(settled(self._own(rows, self._context), len(rows)))
        return super().strip(rows) if self._parsed is None else self._printed(rows)

    def _printed(self, rows: EventRows) -> Strip:
        assert self._parsed is not None
        strip: Strip = []
        for piece in self._parsed.pieces:
            if isinstance(piece, bytes):
                strip.append(piece)
            else:
                strip += settled(self._conversion(piece, rows), len(rows))
        for field in self._added:
            strip += [
                f" {printable(field.name)}=".encode(),
                *settled(self._value_of(field, rows), len(rows)),
            ]
        return joined(strip)

    def _value_of(self, field: Field, rows: EventRows) -> Strip:
        names = self._enums.of_field(field.type) if self._enums.naming else {}
        if not names or field.encoding is not Encoding.INT:
            return super()._value_of(field, rows)
        table = {number: name.encode() for number, name in names.items()}
        column = rows.records[field.name]
        return [words_of(per_distinct(column, lambda one: table.get(one, b"%d" % one)))]

    def _conversion(self, conversion: Conversion, rows: EventRows) -> Strip:
        value = evaluate(_argument(conversion, rows), rows, self._context.pointed_to)
        widths = [
            _width(one, rows, most)
            for one, most in (
                (conversion.width, MOST_WIDTH),
                (conversion.precision, MOST_STRING_BYTES),
            )
        ]
        if all(isinstance(one, int | None) for one in widths):
            return self._at_width(conversion, value, len(rows), widths)
        # ``%.*s`` and similar: each row has its own width.
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
        width, precision = self._context.width, self._context.precision = widths
        if isinstance(conversion.width, int):
            conversion = conversion._replace(width=width)
        if isinstance(conversion.precision, int):
            conversion = conversion._replace(precision=precision)
        return converted(conversion, value, count, self._context)


def _without_left_out(pieces: Sequence[bytes | Conversion | None]) -> Iterator[bytes | Conversion]:
    """Yield the pieces, without the labels of left-out conversions; ``?`` for one without label."""
    kept: list[bytes | Conversion] = []
    cut = False
    for piece in pieces:
        if piece is not None:
            literal = (
                piece.removeprefix(b",").lstrip(b" ") if cut and isinstance(piece, bytes) else piece
            )
            kept.append(literal)
            cut = False
            continue
        before = kept.pop() if kept and isinstance(kept[-1], bytes) else b""
        assert isinstance(before, bytes)
        stem = before.rstrip(b"=: ")
        begin = max(stem.rfind(b" "), stem.rfind(b","), stem.rfind(b"("), stem.rfind(b"\t")) + 1
        if len(stem) == len(before.rstrip(b" ")) or begin == len(stem):
            kept.append(before + b"?")
        else:
            kept.append(before[:begin])
            cut = True
    if cut and isinstance(kept[-1], bytes):
        kept[-1] = kept[-1].rstrip(b" ,")
    yield from (piece for piece in kept if piece != b"")


def _shown_by_none(
    parsed: PrintFmt, pieces: Sequence[bytes | Conversion | None], format_: Format
) -> tuple[Field, ...]:
    """Return the fields that no remaining conversion prints."""
    shown: set[str] = set()
    hidden: set[str] = set()
    for whole, kept in zip(parsed.pieces, pieces, strict=True):
        if isinstance(whole, Conversion):
            (hidden if kept is None else shown).update(fields_of(whole.argument))
    return tuple(field for field in format_.own if field.name in hidden - shown)


def _argument(conversion: Conversion, rows: EventRows) -> Node:
    """Return the node to print: the bytes of a char array that is not text, but an address, say."""
    argument = conversion.argument
    if conversion.extension[:1] in tuple("UIiMmh") and isinstance(argument, FieldRef):
        known = (
            rows.event_type.format.by_name.get(argument.name) if rows.event_type.format else None
        )
        if known is not None and known.encoding is Encoding.CHARS:
            return Unary("&", argument)
    return argument


def _width(stated: Any, rows: EventRows, most: int) -> Any:  # noqa: ANN401  (int | None | a column)
    """Return the width for each row, at most *most*, so that memory is bounded."""
    if stated is None or isinstance(stated, int):
        return stated if stated is None else max(min(stated, most), -most)
    value = evaluate(stated, rows)
    if isinstance(value, Buffer) or value.dtype.kind not in "iu":
        raise Inexpressible("a width that is not a number")
    # The kernel reads it as a vararg of type int.
    value = value.astype(np.int32).clip(-most, most)
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


def _made_up(format_: Format) -> EventRows:
    """Return one synthetic event of zeros, on which a print fmt can be tried."""
    data = memoryview(bytes(format_.fixed_bytes + 8))
    event_type = EventType(0, EventName(format_.system, format_.name), format_.id, "")
    event_type.format = format_
    zero: npt.NDArray[Any] = np.zeros(1, np.int64)
    batch = EventBatch(
        data,
        [event_type],
        zero.astype(np.uint64),
        zero.astype(np.uint16),
        zero.astype(np.int32),
        zero.astype(np.int32),
        zero.astype(np.uint8),
        zero.astype(np.uint8),
        zero,
        np.array([format_.fixed_bytes], np.uint32),
    )
    return EventRows(batch, event_type, zero)


@cache
def _no_symbols() -> Symbols:
    return Symbols()


def why_inexpressible(format_: Format) -> str | None:
    """Return why a format's print fmt cannot be used, or only in part; None if it can."""
    return Renderer(format_, _no_symbols()).reason


def tried(format_: Format) -> Renderer:
    """Return a renderer of a format, tried on a synthetic event."""
    return Renderer(format_, _no_symbols())
