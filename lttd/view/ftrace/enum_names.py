"""Print the names of enum constants where a print fmt prints the number of a field.

    "lru=%d", REC->lru    becomes    "lru=%s", __print_symbolic(REC->lru, {1, "LRU_ACTIVE_ANON"})

Rule: only what prints a field's plain number is changed, and only if the user asks: the kernel's
own text stays the default.
"""

from typing import Final

from lttd.abi.ftrace_format import Encoding, Format
from lttd.abi.print_fmt_nodes import (
    Call,
    Cast,
    Conversion,
    FieldRef,
    Node,
    Number,
    Pairs,
    PrintFmt,
)
from lttd.view.enums import Enums

_PLAIN: Final = "diuxX"


def named_enums(parsed: PrintFmt, format_: Format, enums: Enums) -> PrintFmt:
    """Return a print fmt that prints the known enums of fields by name."""
    return PrintFmt(
        tuple(
            piece if isinstance(piece, bytes) else _named(piece, format_, enums)
            for piece in parsed.pieces
        )
    )


def _named(conversion: Conversion, format_: Format, enums: Enums) -> Conversion:
    field = _field_of(conversion.argument)
    known = format_.by_name.get(field) if field else None
    if known is None or known.encoding is not Encoding.INT or conversion.letter not in _PLAIN:
        return conversion
    names = enums.of_field(known.type)
    if not names:
        return conversion
    pairs = tuple(
        (Number(value, 64, signed=value < 0), name.encode()) for value, name in names.items()
    )
    argument = Call("__print_symbolic", (FieldRef(known.name), Pairs(pairs)))
    return Conversion("", None, None, "", "s", "", argument)


def _field_of(argument: Node) -> str:
    while isinstance(argument, Cast):
        argument = argument.operand
    return argument.name if isinstance(argument, FieldRef) else ""
