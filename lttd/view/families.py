"""FAMILIES: how the viewer decodes, prints and names events, by the ABI of their sub-buffers.

A family is a module that defines FAMILY, a ``Family``; it is imported when the first events of
its ABI are decoded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from lttd.view.family import Family

FAMILIES: Final = {
    "ftrace": "lttd.view.ftrace.family",
    "blktrace": "lttd.view.blktrace.family",
    "ltt": "lttd.view.ltt.family",
    "relay": "lttd.view.relay.family",
    "ctf": "lttd.view.ctf.family",
}


class _Module(Protocol):
    FAMILY: "Family"


def family_of(abi: str) -> "Family | None":
    """Return the family of an ABI; None if no family can decode it."""
    module = FAMILIES.get(abi)
    return cast("_Module", import_module(module)).FAMILY if module else None
