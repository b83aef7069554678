"""FAMILIES: how the viewer decodes, prints and names events, by the ABI of their sub-buffers.

A family is a module with a ``Family`` under the name FAMILY; it is loaded when there is something
of it to decode.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from lttd.view.family import Family

FAMILIES: Final = {
    "ftrace": "lttd.view.ftrace.family",
    "blktrace": "lttd.view.blktrace.family",
    "ltt": "lttd.view.ltt.family",
}


class _Module(Protocol):
    FAMILY: "Family"


def family_of(abi: str) -> "Family | None":
    """Return the family of an ABI; None where nothing can decode it."""
    module = FAMILIES.get(abi)
    return cast("_Module", import_module(module)).FAMILY if module else None
