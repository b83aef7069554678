"""The field classes of TSDL: from the nodes of a text to ``ctf_classes``, with C's scopes of names.

Rule: defaults are those of CTF 1.8: an integer is aligned to a byte if its size is whole bytes,
else to a bit; it has the trace's byte order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from lttd.abi.ctf_classes import (
    Array,
    ByteOrder,
    Enumeration,
    FieldClass,
    Float,
    Integer,
    MetadataError,
    Sequence,
    String,
    Struct,
    UnsupportedError,
    Variant,
    alignment,
)
from lttd.abi.ctf_shapes import Shapes
from lttd.abi.ctf_tsdl_nodes import (
    Alias,
    Assign,
    Class,
    Declarator,
    Define,
    Enum,
    Fields,
    Named,
    Scalar,
    Structure,
    Text,
    Typedef,
    VariantOf,
    Words,
)
from lttd.abi.ctf_tsdl_values import line_of, listed_in, number_in, order_of, true_in, word_of
from lttd.limits import CTF_DEPTH, CTF_LABELS

_BASES: Final[Mapping[str, int]] = {
    **dict.fromkeys(("decimal", "dec", "d", "i", "u"), 10),
    **dict.fromkeys(("hexadecimal", "hex", "x", "p"), 16),
    **dict.fromkeys(("octal", "oct", "o"), 8),
    **dict.fromkeys(("binary", "bin", "b"), 2),
}
_ENCODINGS: Final[Mapping[str, Literal["none", "UTF8", "ASCII"]]] = {
    "none": "none",
    "utf8": "UTF8",
    "utf-8": "UTF8",
    "ascii": "ASCII",
}
_MOST_ALIGN: Final = 1 << 16


@dataclass
class Scope:
    """Names of classes, as seen from within a block or a structure."""

    parent: "Scope | None" = None
    names: dict[str, FieldClass | UnsupportedError] = field(default_factory=dict)

    def find(self, name: str) -> FieldClass | UnsupportedError | None:
        """Return the class of a name in this scope or one around it."""
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return None


class Classes:
    """Makes the classes of one text."""

    def __init__(self, native: ByteOrder) -> None:
        self._native: Final = native
        self._shapes: Final = Shapes()
        self._depth = 0

    def declare(self, item: Alias | Typedef | Define, scope: Scope) -> None:
        """Enter the names that a declaration makes into *scope*.

        One of a class that lttd cannot read is an error where it is used.
        """
        names = _names_in(item)
        try:
            match item:
                case Alias():
                    of = self.made(item.of, scope)
                    scope.names[names[0]] = self._arrays(of, item.dimensions)
                case Typedef():
                    of = self.made(item.of, scope)
                    for each in item.declarators:
                        scope.names[str(each.name)] = self._declared(each, item.of, of, scope)
                case Define():
                    self.made(item.of, scope)
        except UnsupportedError as error:
            scope.names.update(dict.fromkeys(names, error))

    def struct(
        self, of: Class, dimensions: "tuple[int | tuple[str, ...], ...]", scope: Scope
    ) -> Struct:
        """Return the structure that is placed in a scope.

        Raises:
            MetadataError: it is not a structure, or not a valid one.
        """
        found = self._arrays(self.made(of, scope), dimensions)
        if not isinstance(found, Struct):
            raise MetadataError("a header, context or payload has to be a structure", _line(of))
        return found

    def made(self, of: Class, scope: Scope) -> FieldClass:
        """Return the class that a node describes or names; enter its name into *scope*.

        Raises:
            MetadataError: it is not valid.
        """
        self._depth += 1
        if self._depth > CTF_DEPTH.most:
            raise MetadataError(str(CTF_DEPTH), _line(of))
        try:
            return self._made(of, scope)
        finally:
            self._depth -= 1

    def _made(self, of: Class, scope: Scope) -> FieldClass:
        match of:
            case Words() | Named():
                return self._known(_key(of), scope, _line(of))
            case Structure():
                return self._struct(of, scope)
            case VariantOf():
                return self._variant(of, scope)
            case Enum():
                return self._enum(of, scope)
            case Scalar():
                try:
                    return self._scalar(of)
                except MetadataError as error:
                    raise type(error)(error.reason, error.line or of.line) from None

    def _known(self, name: str, scope: Scope, line: int) -> FieldClass:
        found = scope.find(name)
        if found is None:
            raise MetadataError(f"'{name}' is not declared", line)
        if isinstance(found, UnsupportedError):
            raise UnsupportedError(found.reason, found.line or line)
        return found

    def _struct(self, of: Structure, scope: Scope) -> Struct:
        key = f"struct {of.name}"
        if of.members is None:
            found = self._known(key, scope, line_of(of.name))
            assert isinstance(found, Struct)
            return found
        if not 0 < of.align <= _MOST_ALIGN or of.align & (of.align - 1):
            raise MetadataError(f"align({of.align}): it is a power of two", line_of(of.name))
        members = self._members(of.members, Scope(scope))
        align = max([of.align, *(alignment(member) for _, member in members)])
        made = self._shapes.checked(Struct(members, align))
        if of.name is not None:
            scope.names[key] = made
        return made

    def _members(
        self, items: tuple[Alias | Typedef | Define | Fields, ...], scope: Scope
    ) -> tuple[tuple[str, FieldClass], ...]:
        members: dict[str, FieldClass] = {}
        for item in items:
            if not isinstance(item, Fields):
                self.declare(item, scope)
                continue
            of = self.made(item.of, scope)
            for each in item.declarators:
                name = str(each.name)
                if name in members:
                    raise MetadataError(f"two members are named '{name}'", line_of(each.name))
                members[name] = self._declared(each, item.of, of, scope)
        return tuple(members.items())

    def _declared(
        self, declarator: Declarator, node: Class, of: FieldClass, scope: Scope
    ) -> FieldClass:
        if declarator.pointers:  # only a typealias says what a pointer looks like
            key = _key(node) + declarator.pointers
            of = self._known(key, scope, line_of(declarator.name))
        return self._arrays(of, declarator.dimensions)

    def _arrays(
        self, of: FieldClass, dimensions: "tuple[int | tuple[str, ...], ...]"
    ) -> FieldClass:
        if len(dimensions) > CTF_DEPTH.most:
            raise MetadataError(str(CTF_DEPTH))
        for length in reversed(dimensions):
            if isinstance(length, tuple):
                of = self._shapes.checked(Sequence(of, length))
            elif 0 <= length < 1 << 32:
                of = self._shapes.checked(Array(of, length))
            else:
                raise MetadataError(f"an array of {length} elements is not possible")
        return of

    def _variant(self, of: VariantOf, scope: Scope) -> Variant:
        key = f"variant {of.name}"
        if of.options is None:
            found = self._known(key, scope, line_of(of.name))
            assert isinstance(found, Variant)
            return self._shapes.checked(replace(found, tag=of.tag)) if of.tag else found
        made = self._shapes.checked(Variant(of.tag, self._members(of.options, Scope(scope))))
        if of.name is not None:
            scope.names[key] = made
        return made

    def _enum(self, of: Enum, scope: Scope) -> Enumeration:
        key, line = f"enum {of.name}", line_of(of.name)
        if of.enumerators is None:
            found = self._known(key, scope, line)
            assert isinstance(found, Enumeration)
            return found
        container = (
            self.made(of.container, scope)
            if of.container is not None
            else self._known("int", scope, line)
        )
        if not isinstance(container, Integer):
            raise MetadataError("an enumeration is not of integers", line)
        if len(of.enumerators) > CTF_LABELS.most:
            raise MetadataError(str(CTF_LABELS), line)
        labels, following = [], 0
        for label, first, last in of.enumerators:
            first = following if first is None else first  # noqa: PLW2901
            last = first if last is None else last  # noqa: PLW2901
            if last < first:
                raise MetadataError(f"'{label}' of an enumeration ends before it begins", line)
            labels.append((label, first, last))
            following = last + 1
        made = Enumeration(container, tuple(labels))
        if of.name is not None:
            scope.names[key] = made
        return made

    def _scalar(self, of: Scalar) -> FieldClass:
        said = {assign.path[0]: assign for assign in of.attributes}
        match of.kind:
            case "integer":
                return self._integer(said)
            case "string":
                encoding = listed_in(_ENCODINGS, said["encoding"]) if "encoding" in said else "UTF8"
                return String("ASCII" if encoding == "ASCII" else "UTF8")
            case _:
                return self._float(said)

    def _integer(self, said: Mapping[str, Assign]) -> Integer:
        if "size" not in said:
            raise MetadataError("an integer has no size", line_of(*said))
        size = number_in(said["size"], 1, _MOST_ALIGN)
        if size > 64:
            raise UnsupportedError(f"an integer of {size} bits", line_of(*said))
        base, clock = 10, None
        if "base" in said:
            value = said["base"].value
            number = value if isinstance(value, int) else listed_in(_BASES, said["base"])
            base = int(number) if number in (2, 8, 10, 16) else 10
        if "map" in said:
            clock = _clock(said["map"])
        return Integer(
            size,
            _align(said, size),
            signed="signed" in said and true_in(said["signed"]),
            byteorder=self._order(said),
            base=base,
            encoding=_encoding(said),
            clock=clock,
        )

    def _float(self, said: Mapping[str, Assign]) -> Float:
        for needed in ("exp_dig", "mant_dig"):
            if needed not in said:
                raise MetadataError(f"a floating_point has no {needed}", line_of(*said))
        exponent = number_in(said["exp_dig"], 1, 64)
        mantissa = number_in(said["mant_dig"], 1, 256)
        if (exponent, mantissa) not in ((5, 11), (8, 24), (11, 53)):
            raise UnsupportedError(
                f"a floating_point of {exponent} + {mantissa} bits", line_of(*said)
            )
        align = _align(said, exponent + mantissa)
        return Float(exponent, mantissa, align, self._order(said))

    def _order(self, said: Mapping[str, Assign]) -> ByteOrder:
        if "byte_order" not in said:
            return self._native
        return order_of(said["byte_order"], self._native)


def _align(said: Mapping[str, Assign], size: int) -> int:
    if "align" not in said:
        return 1 if size % 8 else 8
    align = number_in(said["align"], 1, _MOST_ALIGN)
    if align & (align - 1):
        raise MetadataError(f"align = {align}: it is a power of two", line_of(*said))
    return align


def _encoding(said: Mapping[str, Assign]) -> Literal["none", "UTF8", "ASCII"]:
    if "encoding" not in said:
        return "none"
    word = listed_in(_ENCODINGS, said["encoding"])
    return "none" if word == "none" else "ASCII" if word == "ASCII" else "UTF8"


def _clock(assign: Assign) -> str:
    """Return the clock of ``clock.NAME.value``."""
    path = assign.value
    if isinstance(path, Text):
        path = tuple(path.split("."))
    if not isinstance(path, tuple) or len(path) != 3 or (path[0], path[2]) != ("clock", "value"):
        raise MetadataError(
            f"map = {word_of(assign.value)[:40]}: it is clock.NAME.value", line_of(*assign.path)
        )
    return str(path[1])


def _key(of: Class) -> str:
    """Return the name under which a class is declared."""
    match of:
        case Words():
            return " ".join(of.words)
        case Named():
            return str(of.name)
        case Structure(name) if name is not None:
            return f"struct {name}"
        case VariantOf(name) if name is not None:
            return f"variant {name}"
        case Enum(name) if name is not None:
            return f"enum {name}"
        case _:
            raise MetadataError("a typealias needs a name", _line(of))


def _names_in(item: Alias | Typedef | Define) -> list[str]:
    """Return the names that a declaration makes."""
    match item:
        case Alias():
            return [_key(item.name) + item.pointers]
        case Typedef():
            return [str(each.name) for each in item.declarators]
        case Define():
            return [_key(item.of)] if getattr(item.of, "name", None) is not None else []


def _line(of: Class) -> int:
    match of:
        case Words():
            return line_of(*of.words)
        case Named() | Structure() | VariantOf() | Enum():
            return line_of(of.name)
        case Scalar():
            return line_of(*(assign.path[0] for assign in of.attributes))
