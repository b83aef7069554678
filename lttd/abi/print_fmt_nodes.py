"""The syntax tree of a ``print fmt``: C expressions, and the conversions that print them.

Nodes are named tuples: each frozen dataclass would take 0.3 ms of every start.  So nodes of two
kinds may be equal; ask for the kind.
"""

from typing import NamedTuple


class Unparsable(ValueError):  # noqa: N818  (not a fault: the caller falls back)
    """The print fmt has a part that this parser does not know."""


class Number(NamedTuple):
    """An integer constant, with its type in C."""

    value: int
    bits: int
    signed: bool


class Text(NamedTuple):
    """A string constant."""

    value: bytes


class FieldRef(NamedTuple):
    """``REC->name``."""

    name: str


class Unknown(NamedTuple):
    """A name that the format does not define, such as a constant of an enum."""

    name: str


class Unary(NamedTuple):
    """``-``, ``~`` or ``!`` of a value, ``*`` or ``&`` of a place."""

    operator: str
    operand: "Node"


class Binary(NamedTuple):
    """A value of two operands."""

    operator: str
    left: "Node"
    right: "Node"


class Conditional(NamedTuple):
    """``condition ? then : otherwise``."""

    condition: "Node"
    then: "Node"
    otherwise: "Node"


class Cast(NamedTuple):
    """``(type)operand``; a type that ends with ``*`` is a pointer."""

    type: str
    operand: "Node"


class Index(NamedTuple):
    """``base[number]``."""

    base: "Node"
    number: "Node"


class Call(NamedTuple):
    """A call of a function of the kernel, by name."""

    name: str
    arguments: tuple["Node", ...]


class Pairs(NamedTuple):
    """The ``{ value, "name" }`` pairs at the end of a __print_flags or __print_symbolic.

    Pairs with an Unknown value are left out; such a value is printed as a number, as by trace-cmd.
    """

    pairs: tuple[tuple["Node", bytes], ...]


class Unparsed(NamedTuple):
    """An argument that this parser does not understand."""

    why: str
    fields: tuple[str, ...]
    """The fields in it."""


Node = (
    Number | Text | FieldRef | Unknown | Unary | Binary | Conditional | Cast | Index | Call | Pairs
    | Unparsed
)  # fmt: skip


class Conversion(NamedTuple):
    """One ``%`` of a format string."""

    flags: str
    width: int | Node | None
    precision: int | Node | None
    length: str
    letter: str
    extension: str
    """The letters after ``%p``: ``S``, ``I4``, ``Ub``..."""
    argument: Node


class PrintFmt(NamedTuple):
    """Literal bytes and conversions, in order."""

    pieces: tuple[bytes | Conversion, ...]


def fields_of(node: Node) -> set[str]:  # noqa: PLR0911  (a row per kind of node)
    """Return the fields in a value."""
    match node:
        case FieldRef(name):
            return {name}
        case Unparsed(_, names):
            return set(names)
        case Unary(_, operand) | Cast(_, operand):
            return fields_of(operand)
        case Binary(_, left, right) | Index(left, right):
            return fields_of(left) | fields_of(right)
        case Conditional(condition, then, otherwise):
            return fields_of(condition) | fields_of(then) | fields_of(otherwise)
        case Call(_, arguments):
            return set().union(*(fields_of(argument) for argument in arguments))
        case _:
            return set()


def holds_unknown(node: Node) -> bool:
    """Tell whether a value contains an Unknown."""
    match node:
        case Unknown():
            return True
        case Unary(_, operand) | Cast(_, operand):
            return holds_unknown(operand)
        case Binary(_, left, right):
            return holds_unknown(left) or holds_unknown(right)
        case Call(_, arguments):
            return any(holds_unknown(argument) for argument in arguments)
        case _:
            return False
