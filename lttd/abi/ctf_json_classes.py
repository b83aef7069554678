"""The field classes of CTF 2: from JSON objects to ``ctf_classes``.

Rule: strings and blobs of a known length become arrays and sequences of bytes, and a boolean or a
bit array an integer: they are in a packet in the same way.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, get_args

from lttd.abi import ctf_classes as ctf
from lttd.abi.ctf_classes import (
    Array,
    ByteOrder,
    Enumeration,
    FieldClass,
    Float,
    Integer,
    MetadataError,
    Path,
    Role,
    Sequence,
    String,
    Struct,
    UnsupportedError,
    Variant,
    alignment,
)
from lttd.abi.ctf_json_objects import Object, ranges_of
from lttd.abi.ctf_shapes import Shapes
from lttd.limits import CTF_DEPTH, CTF_LABELS

_ORIGINS: Final[Mapping[str, Path]] = {
    "packet-header": ctf.PACKET_HEADER,
    "packet-context": ctf.PACKET_CONTEXT,
    "event-record-header": ctf.EVENT_HEADER,
    "event-record-common-context": ctf.STREAM_EVENT_CONTEXT,
    "event-record-specific-context": ctf.EVENT_CONTEXT,
    "event-record-payload": ctf.EVENT_FIELDS,
}
_ORDERS: Final[Mapping[str, ByteOrder]] = {"little-endian": "little", "big-endian": "big"}
_NATURAL: Final = {"little": "first-to-last", "big": "last-to-first"}
_FLOATS: Final = {16: (5, 11), 32: (8, 24), 64: (11, 53)}
_ROLES: Final[frozenset[str]] = frozenset(get_args(Role))
_MOST_ALIGN: Final = 1 << 16
_MOST_LENGTH: Final = (1 << 32) - 1


class Classes:
    """Makes the classes of one text."""

    def __init__(self) -> None:
        self._aliases: dict[str, FieldClass | UnsupportedError] = {}
        self._shapes: Final = Shapes()
        self._depth = 0

    def declare(self, of: Object) -> None:
        """Enter the name that an alias gives to a class."""
        name = of.text("name")
        try:
            self._aliases[name] = self.made(of.field("field-class"))
        except UnsupportedError as error:
            self._aliases[name] = error

    def made(self, of: Object | str | None) -> FieldClass:
        """Return the class that an object describes or a text names.

        Raises:
            MetadataError: it is not valid.
        """
        if of is None:
            raise MetadataError("a field class is missing")
        if isinstance(of, str):
            found = self._aliases.get(of)
            if found is None:
                raise MetadataError(f"the alias '{of[:40]}' is not declared")
            if isinstance(found, UnsupportedError):
                raise found
            return found
        self._depth += 1
        if self._depth > CTF_DEPTH.most:
            raise MetadataError(str(CTF_DEPTH))
        try:
            return self._described(of, of.text("type"))
        finally:
            self._depth -= 1

    def _described(self, of: Object, kind: str) -> FieldClass:  # noqa: C901, PLR0911  (a table)
        match kind:
            case "structure":
                return self._struct(of)
            case "variant":
                return self._variant(of)
            case "fixed-length-unsigned-integer" | "fixed-length-signed-integer":
                return _integer(of, signed="unsigned" not in kind)
            case "fixed-length-bit-array" | "fixed-length-bit-map" | "fixed-length-boolean":
                found = _bits(of, signed=False)
                return found if kind.endswith("boolean") else replace(found, base=16)
            case "fixed-length-floating-point-number":
                return _float(of)
            case "null-terminated-string":
                _refuse_encoding(of)
                return String()
            case "static-length-array":
                element = self.made(of.field("element-field-class"))
                array = Array(element, of.number("length", most=_MOST_LENGTH))
                return _aligned(of, self._shapes.checked(array))
            case "dynamic-length-array":
                element = self.made(of.field("element-field-class"))
                sequence = Sequence(element, _location(of, "length-field-location"))
                return _aligned(of, self._shapes.checked(sequence))
            case "static-length-string" | "static-length-blob":
                length = of.number("length", most=_MOST_LENGTH)
                return self._shapes.checked(Array(_byte(of, kind), length, _roles(of)))
            case "dynamic-length-string" | "dynamic-length-blob":
                return Sequence(_byte(of, kind), _location(of, "length-field-location"))
            case _:
                raise UnsupportedError(f"a field of class {kind[:60]}")

    def _struct(self, of: Object) -> Struct:
        members: dict[str, FieldClass] = {}
        for each in of.objects("member-classes"):
            name = each.text("name")
            if name in members:
                raise MetadataError(f"two members are named '{name[:60]}'")
            members[name] = self.made(each.field("field-class"))
        least = _alignment(of, "minimum-alignment")
        align = max([least, *map(alignment, members.values())])
        return self._shapes.checked(Struct(tuple(members.items()), align))

    def _variant(self, of: Object) -> Variant:
        options, ranges = dict[str, FieldClass](), list[tuple[str, int, int]]()
        for number, each in enumerate(of.objects("options")):
            name = each.text("name", f"option{number}")
            if name in options:
                raise MetadataError(f"two options are named '{name[:60]}'")
            options[name] = self.made(each.field("field-class"))
            ranges += [(name, *bounds) for bounds in each.ranges("selector-field-ranges")]
        if len(ranges) > CTF_LABELS.most:
            raise MetadataError(str(CTF_LABELS))
        tag = _location(of, "selector-field-location")
        return self._shapes.checked(Variant(tag, tuple(options.items()), tuple(ranges)))


def _order(of: Object) -> ByteOrder:
    order = _ORDERS.get(of.text("byte-order"))
    if order is None:
        raise MetadataError("byte-order is not little-endian or big-endian")
    if of.text("bit-order", _NATURAL[order]) != _NATURAL[order]:
        raise UnsupportedError(f"bits of a {order}-endian field in the other order")
    return order


def _alignment(of: Object, key: str) -> int:
    align = of.number(key, 1, 1, _MOST_ALIGN)
    if align & (align - 1):
        raise MetadataError(f"{key} is not a power of two")
    return align


def _bits(of: Object, *, signed: bool) -> Integer:
    size = of.number("length", None, 1, _MOST_ALIGN)
    if size > 64:
        raise UnsupportedError(f"an integer of {size} bits")
    return Integer(size, _alignment(of, "alignment"), signed, _order(of), roles=_roles(of))


def _integer(of: Object, *, signed: bool) -> Integer | Enumeration:
    base = of.number("preferred-display-base", 10)
    if base not in (2, 8, 10, 16):
        raise MetadataError("preferred-display-base is not 2, 8, 10 or 16")
    number = replace(_bits(of, signed=signed), base=base)
    if "mappings" not in of:
        return number
    labels = [
        (label, *bounds)
        for label, ranges in of.object("mappings").items()
        for bounds in ranges_of("mappings", ranges if isinstance(ranges, list) else [ranges])
    ]
    if len(labels) > CTF_LABELS.most:
        raise MetadataError(str(CTF_LABELS))
    return Enumeration(number, tuple(labels))


def _float(of: Object) -> Float:
    size = of.number("length")
    if size not in _FLOATS:
        raise UnsupportedError(f"a floating point number of {size} bits")
    return Float(*_FLOATS[size], _alignment(of, "alignment"), _order(of))


def _refuse_encoding(of: Object) -> None:
    encoding = of.text("encoding", "utf-8")
    if encoding != "utf-8":
        raise UnsupportedError(f"a string in {encoding[:40]}")


def _byte(of: Object, kind: str) -> Integer:
    """Return the class of a byte of a string or a blob."""
    if kind.endswith("blob"):
        return Integer(8, 8, signed=False, byteorder="little", base=16)
    _refuse_encoding(of)
    return Integer(8, 8, signed=False, byteorder="little", encoding="UTF8")


def _aligned(of: Object, made: Array | Sequence) -> Array | Sequence:
    if _alignment(of, "minimum-alignment") > alignment(made.element):
        raise UnsupportedError("an array that is aligned to more than its elements")
    return made


def _roles(of: Object) -> tuple[Any, ...]:
    return tuple(role for role in of.texts("roles") if role in _ROLES)


def _location(of: Object, key: str) -> Path:
    """Return a reference; without an origin it is among the fields before."""
    location = of.object(key)
    path = tuple(location.texts("path"))
    if not path:
        raise MetadataError(f"{key} has no path")
    if "origin" not in location:
        return path
    origin = _ORIGINS.get(location.text("origin"))
    if origin is None:
        raise MetadataError(f"{key} has an unknown origin")
    return (*origin, *path)
