"""Names, numbers and arguments of system calls, from ``syscalls.txt`` and ``syscall_values.txt``.

Rule: a number has a meaning only with the machine's architecture; an unknown one names nothing.
Rule: the constants of a flag have the value of their architecture, not that of the viewing machine.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_HERE: Final = Path(__file__).parent
_NONE: Final = "-"
_UNKNOWN: Final = "?"
_COLUMN: Final = {"x86_64": 0, "aarch64": 1, "riscv64": 1, "loongarch64": 1}
# The names of the kernel's functions, by which ftrace names its events.
_OF_FUNCTIONS: Final = {
    "newstat": "stat", "newfstat": "fstat", "newlstat": "lstat", "newuname": "uname",
    "umount": "umount2", "sendfile64": "sendfile",
}  # fmt: skip
_SMALL: Final = 4096
_LOW: Final = 0xFFFF_FFFF
_SIGN: Final = 1 << 31


class Argument(NamedTuple):
    """An argument of a system call."""

    name: str
    kind: str
    """See syscalls.txt; ``p``: a pointer."""


class Syscall(NamedTuple):
    """A system call."""

    name: str
    arguments: tuple[Argument, ...] | None
    """None: nobody knows them."""


@cache
def by_number(machine: str) -> Mapping[int, Syscall]:
    """Return the system calls of an architecture, by number; none of an unknown one."""
    column = _COLUMN.get(machine)
    if column is None:
        return {}
    return {int(one[0][column]): one[1] for one in _rows() if one[0][column] != _NONE}


@cache
def by_name() -> Mapping[str, Syscall]:
    """Return the system calls by name."""
    return {one.name: one for _, one in reversed(_rows())}


def named_by_function(name: str) -> str:
    """Return the name of a system call by that of the kernel's function: newfstat is fstat."""
    return _OF_FUNCTIONS.get(name, name)


@cache
def _rows() -> list[tuple[tuple[str, str], Syscall]]:
    rows = []
    for line in (_HERE / "syscalls.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        first, second, name, *words = line.split()
        known = None if words == [_UNKNOWN] else tuple(map(_argument, words))
        rows.append(((first, second), Syscall(name, known)))
    return rows


def _argument(word: str) -> Argument:
    name, _, kind = word.partition(":")
    return Argument(name, kind or "p")


class Values(NamedTuple):
    """Names of the values of an argument."""

    mask: int
    """Of the part that has one name; -1: the whole value is a signed number with one name."""
    last: bool
    """Whether this name follows those of the flags."""
    named: Mapping[int, str]
    flags: tuple[tuple[int, str], ...]

    def told(self, value: int) -> bytes:
        """Return the names of a value; what has no name is a number."""
        low = value & _LOW
        if self.mask < 0:
            signed = low - (1 << 32) if low & _SIGN else low
            name = self.named.get(signed) or self.named.get(low)
            return (name or (str(signed) if abs(signed) < _SMALL else f"{low:#x}")).encode()
        # The kernel takes 32 bits of an int, whose sign the event may have in the upper ones.
        rest = low if value >> 32 in (0, _LOW) else value
        if not rest:
            return self.named.get(0, "0").encode()
        part = rest & self.mask
        name = self.named.get(part, f"{part:#x}" if part else "") if self.mask else ""
        rest &= ~self.mask
        found = []
        for bits, flag in self.flags:
            if rest & bits == bits:
                found.append(flag)
                rest &= ~bits
        found += [f"{rest:#x}"] if rest else []
        if name:
            found.insert(len(found) if self.last else 0, name)
        return "|".join(found).encode()


@cache
def values_of(machine: str) -> Mapping[str, Values]:
    """Return the tables of values on an architecture, by name."""
    text = (_HERE / "syscall_values.txt").read_text().replace("\n  ", " ")
    found: dict[str, Values] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, mask, *words = line.split()
        name, _, only = name.partition("@")
        if not only or only == machine:
            found[name] = _values(mask, words)
    return found


def _values(mask: str, words: list[str]) -> Values:
    bar = words.index("|") if "|" in words else len(words)
    named = dict(map(_pair, reversed(words[:bar])))
    flags = tuple(map(_pair, words[bar + 1 :]))
    return Values(int(mask.rstrip("$"), 0), mask.endswith("$"), named, flags)


def _pair(word: str) -> tuple[int, str]:
    name, _, value = word.partition("=")
    return int(value, 0), name
