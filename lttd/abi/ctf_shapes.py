"""The depth and the size of field classes, checked while a metadata is read.

Names nest classes that their text does not nest: 40,000 short lines can mean a structure of 40,000
levels, and ``x[4294967295][4294967295]`` an array that no number of 64 bits counts.

Rule: a class is checked when its parts have been, so each call looks at its parts alone.
"""

from typing import Final, NamedTuple, TypeVar

from lttd.abi.ctf_classes import (
    Array,
    FieldClass,
    MetadataError,
    Sequence,
    Struct,
    UnsupportedError,
    Variant,
    aligned,
    alignment,
    fixed_bits,
)
from lttd.limits import CTF_DEPTH, CTF_PACKET

_MOST_BITS: Final = CTF_PACKET.most * 8
AnyClass = TypeVar("AnyClass", Array, Sequence, Struct, Variant)


class _Shape(NamedTuple):
    of: FieldClass
    """Kept, and so is its id()."""
    levels: int
    size_bits: int | None
    """None: it depends on the data."""


class Shapes:
    """The shapes of the classes of one metadata."""

    def __init__(self) -> None:
        self._known: dict[int, _Shape] = {}

    def checked(self, of: AnyClass) -> AnyClass:
        """Return a class whose depth and size are possible.

        Raises:
            MetadataError: it has too many levels.
            UnsupportedError: no packet can hold it, or its elements have no size.
        """
        if isinstance(of, Struct):
            parts = [self._shape(member) for _, member in of.members]
            size = self._size(parts)
        elif isinstance(of, Variant):
            parts, size = [self._shape(option) for _, option in of.options], None
        else:
            parts = [self._shape(of.element)]
            size = _size_of_list(of, parts[0].size_bits)
        levels = 1 + max((part.levels for part in parts), default=0)
        if levels > CTF_DEPTH.most:
            raise MetadataError(str(CTF_DEPTH))
        if size is not None and size > _MOST_BITS:
            raise UnsupportedError(f"a field of {size // 8:,} bytes: {CTF_PACKET}")
        self._known[id(of)] = _Shape(of, levels, size)
        return of

    def _shape(self, of: FieldClass) -> _Shape:
        known = self._known.get(id(of))
        return known if known is not None else _Shape(of, 1, fixed_bits(of))

    def _size(self, parts: list[_Shape]) -> int | None:
        at = 0
        for part in parts:
            if part.size_bits is None:
                return None
            at = aligned(at, alignment(part.of)) + part.size_bits
        return at


def _size_of_list(of: Array | Sequence, element_bits: int | None) -> int | None:
    length = of.length if isinstance(of, Array) else None
    if element_bits == 0 and length != 0:
        raise UnsupportedError("an array of elements without a size")
    if not length:
        return length
    if element_bits is None:
        return None
    return aligned(element_bits, alignment(of.element)) * (length - 1) + element_bits
