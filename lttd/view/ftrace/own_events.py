"""Print events of ftrace itself, which the kernel does not print by their print fmt.

    kernel_stack: <stack trace>
     => __schedule
     => schedule
    bprint: my_function: count=3

Source: Linux kernel/trace/trace_output.c, trace_stack_print(), trace_user_stack_print(),
trace_bprint_print(), trace_bputs_print(), trace_raw_data(); lib/vsprintf.c, vbin_printf() and
bstr_printf().

Rule: the text ends with the event's bytes, whatever number of elements they state.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from lttd.abi.ftrace import OWN_SYSTEM
from lttd.abi.ftrace_format import Encoding, Format
from lttd.abi.print_fmt import parse_conversions
from lttd.abi.print_fmt_nodes import Conversion, PrintFmt, Unparsable
from lttd.terminal import printable_bytes
from lttd.view.columns import EventRows
from lttd.view.conversions import Buffer, Context, Value, converted, printable_literals
from lttd.view.ftrace import graph_text
from lttd.view.ftrace.frames import frames_of
from lttd.view.glyphs import per_distinct
from lttd.view.strips import Column, Strip, strings_of, words_of

# Linux kernel/trace/trace.h.
FTRACE_TRAMPOLINE_MARKER: Final = (1 << 31) - 1
# Linux lib/vsprintf.c: %p with one of these stores the pointer, with others the finished text.
_KEPT_POINTERS: Final = ("", "S", "s", "x", "K", "e", "f", "F")
_SIZES: Final = {"hh": 1, "h": 2, "": 4}

Printer = Callable[[EventRows, Context], Strip]


def printer_of(format_: Format) -> Printer | None:
    """Return what prints the events of a format; None where its print fmt says it all."""
    if format_.system != OWN_SYSTEM or format_.name not in _PRINTERS:
        return None
    needed, printer = _PRINTERS[format_.name]
    fields = format_.by_name
    fits = all(fields[name].encoding in those for name, those in needed.items() if name in fields)
    return printer if fits and needed.keys() <= fields.keys() else None


def _kernel_stack(rows: EventRows, context: Context) -> Strip:
    def told(address: int) -> bytes:
        if address == FTRACE_TRAMPOLINE_MARKER:
            return b"\n => [FTRACE TRAMPOLINE]"
        return b"\n => " + context.symbols.name(address)

    return [b"<stack trace>", *_frames(rows, told)]


def _user_stack(rows: EventRows, context: Context) -> Strip:
    digits = 2 * context.long_bytes
    return [
        b"<user stack trace>",
        *_frames(rows, lambda at: b"\n =>  <%0*x>" % (digits, at)),
    ]


def _frames(rows: EventRows, told: Callable[[int], bytes]) -> Iterator[Column]:
    """Yield the first line of each stack, the second, ..."""
    for addresses, going in frames_of(rows):
        yield words_of(np.where(going, per_distinct(addresses, told), b""))


def _bputs(rows: EventRows, context: Context) -> Strip:
    def told(address: int) -> bytes:
        text = context.symbols.text(address)
        return b"0x%x" % address if text is None else printable_bytes(text.rstrip(b"\n"))

    return [*_function(rows, context), words_of(per_distinct(rows.records["str"], told))]


def _bprint(rows: EventRows, context: Context) -> Strip:
    formats: dict[int, PrintFmt | None] = {}
    arguments = Buffer.of(rows, "buf", 4, context.byteorder).pieces
    told = []
    for address, piece in zip(rows.records["fmt"].tolist(), arguments, strict=True):
        if address not in formats:
            formats[address] = _parsed(context.symbols.text(address))
        known = formats[address]
        told.append(_raw(address, piece) if known is None else _binary_text(known, piece, context))
    return [*_function(rows, context), words_of(strings_of(told))]


def _raw_data(rows: EventRows, context: Context) -> Strip:
    pieces = Buffer.of(rows, "buf", 1, context.byteorder).pieces
    ids = rows.records["id"].tolist()
    told = [
        b"# %x buf: %b" % (number, piece.hex(" ").encode()) if piece else b"# %x buf:" % number
        for number, piece in zip(ids, pieces, strict=True)
    ]
    return [words_of(strings_of(told))]


def _function(rows: EventRows, context: Context) -> Strip:
    return [words_of(per_distinct(rows.records["ip"], context.symbols.name)), b": "]


def _parsed(text: bytes | None) -> PrintFmt | None:
    if text is None:
        return None
    try:
        return printable_literals(parse_conversions(text))
    except Unparsable:
        return None


def _raw(address: int, piece: bytes) -> bytes:
    """Return the address of the format and the arguments' bytes, if the format is unknown."""
    return b"0x%x %b" % (address, piece.hex().encode())


def _binary_text(known: PrintFmt, piece: bytes, context: Context) -> bytes:
    arguments = _Arguments(piece, context)
    parts = []
    for one in known.pieces:
        if isinstance(one, bytes):
            parts.append(one)
            continue
        try:
            parts.append(arguments.text_of(one))
        except struct.error:  # the event ends here
            parts.append(b"[...]")
            break
    return b"".join(parts)


class _Arguments:
    """The arguments of one trace_printk(), as vbin_printf() packs them in words of 32 bits."""

    def __init__(self, piece: bytes, context: Context) -> None:
        self._piece = piece
        self._context = context
        self._at = 0

    def text_of(self, conversion: Conversion) -> bytes:
        """Take the arguments of one conversion; return its text.

        Raises:
            struct.error: the event has no more bytes.
        """
        context = self._context
        widths = [
            self._number(4, signed=True) if stated is not None and not isinstance(stated, int)
            else stated
            for stated in (conversion.width, conversion.precision)
        ]  # fmt: skip
        context.width, context.precision = widths
        value: Value
        if not self._is_kept(conversion):
            return printable_bytes(self._string())
        if conversion.letter == "s":
            value = np.array([self._string()], np.bytes_)
        else:
            size = self._size(conversion)
            signed = conversion.letter in "di"
            number = self._number(size, signed=signed)
            value = np.array([number], f"{'i' if signed else 'u'}{size}")
        strip = converted(_with_widths(conversion, widths), value, 1, context)
        parts = (c if isinstance(c, bytes) else c[:1].tobytes() for c in strip)
        return b"".join(parts).replace(b"\0", b"")

    def _is_kept(self, conversion: Conversion) -> bool:
        if conversion.letter != "p" or conversion.extension in _KEPT_POINTERS:
            return True
        # Linux before v4.20 stored all pointers; a text begins with a printable character.
        return not (self._at < len(self._piece) and 0x20 <= self._piece[self._at] < 0x7F)

    def _size(self, conversion: Conversion) -> int:
        if conversion.letter == "c":
            return 1
        if conversion.letter == "p" or conversion.length in ("l", "z", "Z", "t"):
            return self._context.long_bytes
        return _SIZES.get(conversion.length, 8)

    def _number(self, size: int, *, signed: bool) -> int:
        aligned = min(size, 4)
        at = -(-self._at // aligned) * aligned
        order = "little" if self._context.byteorder == "<" else "big"
        if at + size > len(self._piece):
            raise struct.error
        self._at = at + size
        return int.from_bytes(self._piece[at : at + size], order, signed=signed)  # type: ignore[arg-type]

    def _string(self) -> bytes:
        end = self._piece.find(b"\0", self._at)
        if end < 0:
            raise struct.error
        begin, self._at = self._at, end + 1
        return self._piece[begin:end]


def _with_widths(conversion: Conversion, widths: list[int | None]) -> Conversion:
    width, precision = widths
    flags = conversion.flags
    if width is not None and width < 0:
        flags, width = flags + "-", -width
    return Conversion(
        *(flags, width, precision, conversion.length, conversion.letter, conversion.extension),
        conversion.argument,
    )


_INT: Final = (Encoding.INT,)
_PRINTERS: Final[dict[str, tuple[dict[str, tuple[Encoding, ...]], Printer]]] = {
    "kernel_stack": ({"caller": (Encoding.TAIL,)}, _kernel_stack),
    "user_stack": ({"caller": (Encoding.ARRAY, Encoding.TAIL)}, _user_stack),
    "function": ({"ip": _INT, "parent_ip": _INT}, graph_text.function),
    "funcgraph_entry": ({"func": _INT, "depth": _INT}, graph_text.entries),
    "fgraph_retaddr_entry": ({"func": _INT, "depth": _INT}, graph_text.entries),
    "funcgraph_exit": (
        {"func": _INT, "depth": _INT, "calltime": _INT, "rettime": _INT},
        graph_text.exits,
    ),
    "bprint": ({"ip": _INT, "fmt": _INT, "buf": (Encoding.TAIL,)}, _bprint),
    "bputs": ({"ip": _INT, "str": _INT}, _bputs),
    "raw_data": ({"id": _INT, "buf": (Encoding.TAIL,)}, _raw_data),
}
