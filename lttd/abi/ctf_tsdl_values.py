"""The values of TSDL's attributes, such as ``size = 32``, with the types that they have to have."""

from collections.abc import Mapping
from typing import Final

from lttd.abi.ctf_classes import ByteOrder, MetadataError
from lttd.abi.ctf_tsdl_nodes import Assign, Value

_ORDERS: Final[Mapping[str, ByteOrder]] = {
    "le": "little",
    "be": "big",
    "network": "big",
}


def line_of(*names: str | None) -> int:
    """Return the line of the first name that knows its line; 0 if none does."""
    return next((line for name in names if (line := getattr(name, "line", 0))), 0)


def word_of(value: Value) -> str:
    """Return a value that is a name or a text; of a number its digits."""
    return ".".join(value) if isinstance(value, tuple) else str(value)


def number_in(assign: Assign, least: int = 0, most: int = (1 << 64) - 1) -> int:
    """Return a value that has to be a number within bounds.

    Raises:
        MetadataError: it is not.
    """
    value = assign.value
    if not isinstance(value, int) or not least <= value <= most:
        name = ".".join(assign.path)
        raise MetadataError(
            f"{name} = {word_of(value)[:40]}: it is a number from {least} to {most}",
            line_of(*assign.path),
        )
    return value


def true_in(assign: Assign) -> bool:
    """Return a value that has to be a boolean.

    Raises:
        MetadataError: it is not.
    """
    found = {"true": True, "1": True, "false": False, "0": False}.get(word_of(assign.value).lower())
    if found is None:
        raise MetadataError(
            f"{'.'.join(assign.path)} = {word_of(assign.value)[:40]}: it is true or false",
            line_of(*assign.path),
        )
    return found


def listed_in(table: Mapping[str, "int | str"], assign: Assign) -> "int | str":
    """Return the value that a table has for the word of an attribute.

    Raises:
        MetadataError: the table does not have the word.
    """
    word = word_of(assign.value)
    found = table.get(word.lower())
    if found is None:
        known = ", ".join(table)
        raise MetadataError(
            f"{assign.path[0]} = {word[:40]}: known are {known}", line_of(*assign.path)
        )
    return found


def order_of(assign: Assign, native: ByteOrder) -> ByteOrder:
    """Return the byte order that an attribute states.

    Raises:
        MetadataError: it is not a byte order.
    """
    if word_of(assign.value) == "native":
        return native
    found = listed_in(_ORDERS, assign)
    return "big" if found == "big" else "little"
