"""The places of the fields of many events of one class: a node for each field, with all events.

    Struct              Group of nodes
    Integer, Float...   Leaf
    String              Text, with begin and end in bytes
    Array, Sequence     Listed, whose elements are rows of a node of their own
    Variant             Choice: for each option that occurs the rows that have it, and its node

Places count bits from the begin of the buffer.  Values are read from them on access.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ctf_bits import Bits
from lttd.abi.ctf_classes import Array, Enumeration, FieldClass, Float, Integer, Sequence

I64 = npt.NDArray[np.int64]
Column = npt.NDArray[Any]

_BYTE: Final = 8


@dataclass(slots=True)
class Leaf:
    """A number in each row."""

    of: Integer | Enumeration | Float
    bits: Bits
    at: I64

    def values(self) -> Column:
        """Return the numbers: u64, i64 or f64."""
        match self.of:
            case Float():
                return self.bits.floats(self.at, self.of)
            case Enumeration(container=container):
                return self.bits.integers(self.at, container)
            case _:
                return self.bits.integers(self.at, self.of)


@dataclass(slots=True)
class Text:
    """A string in each row; or an array of characters, which ends at its first NUL."""

    bits: Bits
    begin: I64
    """In bytes."""
    limit: I64
    """Where the field ends; at the latest, if it is an array."""
    width_bytes: int = 0
    """Of an array, if it is the same in each row; 0: of a string, or unknown."""
    _end: I64 | None = None

    @property
    def end(self) -> I64:
        """Where the text ends."""
        if self._end is None:
            self._end = self.bits.nuls(self.begin, self.limit)
        return self._end


@dataclass(slots=True)
class Group:
    """The members of a structure."""

    members: list[tuple[str, FieldClass, "Node"]]


@dataclass(slots=True)
class Listed:
    """The elements of each row, as rows of their own."""

    count: I64
    row: I64
    """For each element the row that it belongs to; ascending."""
    node: Callable[[], "Node"]
    """Returns the node of all the elements."""


@dataclass(slots=True)
class Choice:
    """The selected options; a row that is in none of them has no option for its tag."""

    parts: list[tuple[str, FieldClass, I64, "Node"]]
    """Name and class of an option, the rows that have it, and its node."""


Node = Leaf | Text | Group | Listed | Choice


def is_text(of: Array | Sequence) -> bool:
    """Return whether an array is a text: bytes that its element's encoding makes characters."""
    element = of.element.container if isinstance(of.element, Enumeration) else of.element
    return (
        isinstance(element, Integer)
        and element.size_bits == _BYTE
        and element.align_bits == _BYTE
        and element.encoding != "none"
    )
