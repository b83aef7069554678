"""Parse TSDL (CTF 1.8's metadata) into a tree: what the text says, and nothing of what it means.

The grammar is in ``tsdl.lark``.  lark needs no recursion for it, so no text is too deep; the time
is proportional to the length.  The declarations of events that lttng writes are read before, by
``ctf_tsdl_usual``, and become the same nodes: the grammar alone takes seconds for those of all
system calls.

Rule: a name is a ``lark.Token``, a string that knows its line; whatever needs a line takes it from
one.  A value is an int, a text (``Text``), or a path of names.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedInput, UnexpectedToken
from lark.exceptions import VisitError

from lttd.abi.ctf_classes import MetadataError
from lttd.abi.ctf_tsdl_usual import UsualEvent, without_usual_events
from lttd.limits import CTF_WORDS, NUMBER_DIGITS


class Text(str):
    """A string literal, which is not a name."""

    __slots__ = ()


Value: TypeAlias = int | Text | tuple[str, ...]


class Assign(NamedTuple):
    """``model.emf.uri = "..."``."""

    path: tuple[str, ...]
    value: Value


class Place(NamedTuple):
    """``event.header := struct ...``."""

    path: tuple[str, ...]
    of: "Class"
    dimensions: tuple[int | tuple[str, ...], ...]


class Alias(NamedTuple):
    """``typealias ... := name``."""

    of: "Class"
    dimensions: tuple[int | tuple[str, ...], ...]
    name: "Class"
    pointers: str


class Declarator(NamedTuple):
    """``*name[4]`` of a field or a typedef."""

    pointers: str
    name: Token
    dimensions: tuple[int | tuple[str, ...], ...]


class Typedef(NamedTuple):
    """``typedef ... name, name``."""

    of: "Class"
    declarators: tuple[Declarator, ...]


class Fields(NamedTuple):
    """``... name, name`` in a structure or a variant."""

    of: "Class"
    declarators: tuple[Declarator, ...]


class Define(NamedTuple):
    """A structure, variant or enumeration that is declared for its name."""

    of: "Class"


class Block(NamedTuple):
    """``trace { ... }``."""

    kind: Token
    items: tuple[Any, ...]
    """Assign, Place, Alias, Typedef and Define, in their order."""


class Words(NamedTuple):
    """``unsigned long``."""

    words: tuple[Token, ...]


class Named(NamedTuple):
    """The name of a typedef or a typealias."""

    name: Token


class Structure(NamedTuple):
    """``struct name { ... } align(8)``; members is None for a mere ``struct name``."""

    name: Token | None
    members: tuple[Any, ...] | None
    align: int = 1


class VariantOf(NamedTuple):
    """``variant name <tag> { ... }``; options is None for a mere ``variant name <tag>``."""

    name: Token | None
    tag: tuple[str, ...]
    options: tuple[Any, ...] | None


class Enumerator(NamedTuple):
    """``label = 1 ... 5``; first is None if it follows from the one before."""

    label: str
    first: int | None
    last: int | None


class Enum(NamedTuple):
    """``enum name : container { ... }``; enumerators is None for a mere ``enum name``."""

    name: Token | None
    container: "Class | None"
    enumerators: tuple[Enumerator, ...] | None


class Scalar(NamedTuple):
    """``integer { ... }``, ``floating_point { ... }`` or ``string { ... }``."""

    kind: str
    attributes: tuple[Assign, ...]
    line: int = 0
    """Of a whole ``integer { ... }``, whose attributes do not know their lines."""


Class: TypeAlias = Words | Named | Structure | VariantOf | Enum | Scalar
Item: TypeAlias = Block | Alias | Typedef | Define

_EVENT: Final = "event"
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_ATTRIBUTE: Final = re.compile(
    r"\s*([A-Za-z_]\w*)\s*=\s*(?:([+-]*\d[\dA-Fa-fxXuUlL]*)|([\w.]+))\s*"
)
# About what the grammar takes as one; the class of an integer is one, too.
_WORD: Final = re.compile(r'\binteger\s*\{[^{}"/]*\}|\w+|[^\w\s]')


def number_of(text: str) -> int:
    """Read an integer of C: decimal, octal or hexadecimal, with a suffix that means nothing.

    Raises:
        ValueError: it is not one.
    """
    digits = text.rstrip("uUlL")
    if len(digits) > NUMBER_DIGITS.most:
        raise ValueError(f"'{digits[:40]}' is too long a number")
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "xX"
    return int(digits, 8 if octal else 0)


def _unquoted(literal: str) -> str:
    quote = literal[-1]
    inside = literal[literal.index(quote) + 1 : -1]
    return _ESCAPE.sub(_escaped, inside) if "\\" in inside else inside


def _escaped(match: re.Match[str]) -> str:
    code = match[1]
    if code[0] == "x" and len(code) > 1:
        return chr(int(code[1:], 16))
    return chr(int(code, 8) & 0xFF) if code[0] in "01234567" else _ESCAPES.get(code, code)


@lru_cache(4096)
def _attributes_of(text: str) -> tuple[Assign, ...]:
    """Read ``integer { size = 8; align = 8; }``; a ValueError says what is not an assignment."""
    inside = text[text.index("{") + 1 : -1]
    found = []
    for statement in inside.split(";"):
        if not statement.strip():
            continue
        match = _ATTRIBUTE.fullmatch(statement)
        if match is None:
            raise ValueError(f"'{statement.strip()}' is not an attribute of an integer")
        value = number_of_signed(match[2]) if match[2] else tuple(match[3].split("."))
        found.append(Assign((match[1],), value))
    return tuple(found)


def number_of_signed(text: str) -> int:
    """Read an integer with any number of signs before it."""
    digits = text.lstrip("+-")
    number = number_of(digits)
    return -number if text[: len(text) - len(digits)].count("-") % 2 else number


class _Nodes(Transformer[Token, tuple[Any, ...]]):
    """Makes a node of each rule, by the rule's name."""

    def start(self, found: list[Any]) -> tuple[Any, ...]:
        return tuple(found)

    def block(self, found: list[Any]) -> Block:
        return Block(found[0], tuple(found[1:]))

    def assign(self, found: list[Any]) -> Assign:
        return Assign(found[0], found[1])

    def place(self, found: list[Any]) -> Place:
        return Place(found[0], found[1], tuple(found[2:]))

    def typealias(self, found: list[Any]) -> Alias:
        return Alias(found[0], found[1], found[2], "*" * len(found[3:]))

    def typedef(self, found: list[Any]) -> Typedef:
        return Typedef(found[0], tuple(found[1:]))

    def fields(self, found: list[Any]) -> Fields:
        return Fields(found[0], tuple(found[1:]))

    def define(self, found: list[Any]) -> Define:
        return Define(found[0])

    def declarator(self, found: list[Any]) -> Declarator:
        at = next(at for at, each in enumerate(found) if each != "*")
        return Declarator("*" * at, found[at], tuple(found[at + 1 :]))

    def specifiers(self, found: list[Any]) -> Any:  # noqa: ANN401
        return next(each for each in found if not isinstance(each, Token))

    def words(self, found: list[Token]) -> Words:
        return Words(tuple(found))

    def named(self, found: list[Token]) -> Named:
        return Named(found[0])

    def struct(self, found: list[Any]) -> Structure:
        name = found.pop(0) if isinstance(found[0], Token) else None
        return Structure(name, *found)

    def struct_of(self, found: list[Token]) -> Structure:
        return Structure(found[0], None)

    def variant(self, found: list[Any]) -> VariantOf:
        name = found.pop(0) if isinstance(found[0], Token) else None
        return VariantOf(name, found[0] if len(found) > 1 else (), found[-1])

    def variant_of(self, found: list[Any]) -> VariantOf:
        return VariantOf(found[0], found[1] if len(found) > 1 else (), None)

    def enum(self, found: list[Any]) -> Enum:
        name = found.pop(0) if found and isinstance(found[0], Token) else None
        container = None
        if found and not isinstance(found[0], Enumerator):
            container = found.pop(0)
        return Enum(name, container, tuple(found))

    def enum_of(self, found: list[Token]) -> Enum:
        return Enum(found[0], None, None)

    def enumerator(self, found: list[Any]) -> Enumerator:
        first = found[1] if len(found) > 1 else None
        return Enumerator(str(found[0]), first, found[2] if len(found) > 2 else first)

    def integer(self, found: list[Any]) -> Scalar:
        return Scalar("integer", found[0])

    def integer_of(self, found: list[Token]) -> Scalar:
        line = found[0].line or 0
        try:
            return Scalar("integer", _attributes_of(str(found[0])), line)
        except ValueError as error:
            raise MetadataError(str(error), line) from None

    def float(self, found: list[Any]) -> Scalar:
        return Scalar("floating_point", found[0])

    def string(self, found: list[Any]) -> Scalar:
        return Scalar("string", found[0] if found else ())

    def number(self, found: list[Token]) -> int:
        try:
            return number_of_signed("".join(found))
        except ValueError:
            raise MetadataError(f"'{found[-1]}' is not a number", found[-1].line or 0) from None

    def character(self, found: list[Token]) -> int:
        return ord(_unquoted(found[0]))

    def text(self, found: list[Token]) -> Text:
        return Text("".join(map(_unquoted, found)))

    def _inside(self, found: list[Any]) -> tuple[Any, ...]:
        return tuple(found)

    def _only(self, found: list[Any]) -> Any:  # noqa: ANN401
        return found[0]

    path = members = attributes = abstract = _inside
    dimension = align = container = tag = _only


@cache
def _parser() -> "Lark":
    grammar = Path(__file__).with_name("tsdl.lark").read_text()
    return Lark(grammar, parser="lalr", maybe_placeholders=False, transformer=_Nodes())


def parse(text: str) -> Sequence[Item]:
    """Return the statements of a text, in their order.

    Raises:
        MetadataError: the text is not TSDL; it says where, and what is wrong.
    """
    rest, usual = without_usual_events(text)
    words = _WORD.finditer(rest) if len(rest) > CTF_WORDS.most else iter(())
    if next(islice(words, CTF_WORDS.most, None), None):
        raise MetadataError(str(CTF_WORDS))
    return tuple(_in_order(_parsed(rest, text), usual))


def _in_order(items: Sequence[Item], usual: Sequence[UsualEvent]) -> Iterator[Item]:
    """Yield all statements; declarations of events are in the order of the text."""
    left = list(reversed(usual))
    for item in items:
        if isinstance(item, Block) and item.kind == _EVENT:
            while left and left[-1].at < (item.kind.start_pos or 0):
                yield _usual(left.pop())
        yield item
    yield from map(_usual, reversed(left))


def _usual(event: UsualEvent) -> Block:
    """Return the nodes of a usual declaration."""

    def name(text: str, line: int) -> Token:
        return Token("NAME", text, line=line)

    members = []
    for field in event.fields:
        scalar = Scalar("string", ())
        if field.of != "string":
            scalar = Scalar("integer", _attributes_of(field.of), field.line)
        lengths = [
            (name(one, field.line),) if isinstance(one, str) else one for one in field.lengths
        ]
        members.append(
            Fields(scalar, (Declarator("", name(field.name, field.line), tuple(lengths)),))
        )
    assigns = [
        Assign((name(of, line),), Text(value) if isinstance(value, str) else value)
        for of, value, line in event.assigns
    ]
    place = Place((name("fields", event.fields_line),), Structure(None, tuple(members)), ())
    kind = Token("EVENT", _EVENT, start_pos=event.at, line=event.line)
    return Block(kind, (*assigns, place))


def _parsed(rest: str, text: str) -> Sequence[Item]:
    """Return the statements of what is left of a text."""
    try:
        return tuple(_parser().parse(rest))  # type: ignore[arg-type]
    except UnexpectedToken as error:
        if error.token.type == "$END":
            raise MetadataError(
                "the text ends inside a declaration", text.count("\n") + 1
            ) from None
        raise MetadataError(f"'{error.token[:40]}' is not expected here", error.line) from None
    except UnexpectedCharacters as error:
        at = error.pos_in_stream or 0
        raise MetadataError(f"'{text[at : at + 12]}' cannot be read", error.line) from None
    except UnexpectedInput as error:
        raise MetadataError("it cannot be read", getattr(error, "line", 0)) from None
    except VisitError as error:
        if isinstance(error.orig_exc, MetadataError):
            raise error.orig_exc from None
        raise
