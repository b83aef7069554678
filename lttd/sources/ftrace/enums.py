"""Find the values of the enum constants that print fmts name, in the kernel's type information.

    print fmt: "state=%s", __print_flags(REC->state, "|", {I_NEW, "I_NEW"}, ...)

The kernel knows I_NEW; the text of its format does not say that it is 1.  lttd saves the
values that the saved formats need, and the enums of their fields: 12 KB for all of Linux 6.18.

Rule: nothing is read unless a format needs it (those of irq and raw_syscalls do not), and then
beside the reading loop: it takes 0.1 s of CPU time.
Rule: a name that stands for several values in different enums is left out.
Rule: the types of modules are read only if those of the kernel itself lack a name.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Final

from lttd.abi.btf import Btf, Enum
from lttd.errors import LttdError
from lttd.sources.tracefs import read_bytes

BTF: Final = "/sys/kernel/btf"
_KERNEL: Final = "vmlinux"
_PRINT_FMT: Final = b"\nprint fmt:"
_STRING: Final = re.compile(rb'"(?:\\.|[^"\\])*+"')
# Constants are in capitals; a function, a member and a part of a number (10UL) are not meant.
_WORD: Final = re.compile(rb"(?<![\w.>])[A-Z_][A-Z0-9_]*+(?!\s*+[(\w])")
_ENUM_FIELD: Final = re.compile(rb"field:(?:const )?enum (\w+) ")
_NO_VALUES: Final = {"REC", "NULL"}


def names_in(format_text: bytes) -> tuple[set[str], set[str]]:
    """Return the names of values in a format's print fmt, and the enums of its fields."""
    fields, _, print_fmt = format_text.partition(_PRINT_FMT)
    words = {word.decode() for word in _WORD.findall(_STRING.sub(b'""', print_fmt))}
    enums = {name.decode() for name in _ENUM_FIELD.findall(fields)}
    return words - _NO_VALUES, enums


class EnumNames:
    """The values that the formats of a run need; its segments share them."""

    def __init__(self, btf: str = BTF) -> None:
        self._btf = btf
        self._texts: list[bytes] = []
        """The formats of which nothing is known yet."""
        self._wanted: tuple[set[str], set[str]] = (set(), set())
        self._content = b""

    def note(self, format_text: bytes) -> None:
        """Remember a format that is saved."""
        self._texts.append(format_text)

    def content(self) -> bytes:
        """Return the content of the file that lttv reads; nothing if no format needs any."""
        texts, self._texts = self._texts, []
        values, enums = self._wanted
        before = len(values), len(enums)
        for text in texts:
            more, fields = names_in(text)
            values |= more
            enums |= fields
        if (len(values), len(enums)) != before:
            self._content = packed(_found(self._btf, values, enums), values, enums)
        return self._content


def packed(found: Iterable[Enum], values: set[str], enums: set[str]) -> bytes:
    """Return the values and enums of these names as JSON; nothing if there are none."""
    known: dict[str, set[int]] = {}
    whole: dict[str, list[tuple[str, int]] | None] = {}
    for one in found:
        for name, value in one.members:
            if name in values:
                known.setdefault(name, set()).add(value)
        if one.name in enums:
            # Of two enums with one name nothing tells which one a field has.
            members = list(one.members)
            whole[one.name] = members if whole.get(one.name, members) == members else None
    sure = {name: min(each) for name, each in sorted(known.items()) if len(each) == 1}
    named = {name: dict(each) for name, each in sorted(whole.items()) if each}
    if not sure and not named:
        return b""
    return json.dumps({"values": sure, "enums": named}, separators=(",", ":")).encode() + b"\n"


def _found(directory: str, values: set[str], enums: set[str]) -> Iterator[Enum]:
    """Yield the enums of the kernel, and those of modules if names are missing."""
    kernel = _read(f"{directory}/{_KERNEL}", None)
    if kernel is None:
        return  # CONFIG_DEBUG_INFO_BTF is off, or /sys is hidden
    missing = (set(values), set(enums))
    for one in _enums(kernel, enums, values):
        yield one
        missing[0].difference_update(name for name, _ in one.members)
        missing[1].discard(one.name)
    if not any(missing):
        return
    for module in sorted(os.listdir(directory)):
        if module != _KERNEL and (types := _read(f"{directory}/{module}", kernel)) is not None:
            yield from _enums(types, enums, values)


def _read(path: str, base: Btf | None) -> Btf | None:
    try:
        return Btf(read_bytes(path), base)
    except (LttdError, ValueError):
        return None


def _enums(types: Btf, names: set[str], members: set[str]) -> Iterator[Enum]:
    try:
        yield from types.enums(names, members)
    except ValueError:
        return  # of a kind that only later kernels have
