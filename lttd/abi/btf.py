"""Read the enums in the kernel's type information (BTF), which ``/sys/kernel/btf/vmlinux`` holds.

    offset  bytes  content
    0       24     magic 0xEB9F, version, flags, the header's size; places and sizes of the rest:
    ...     12     a type: offset of its name, ``info`` (vlen, kind, kind_flag), size or a type
            8 n    members of an enum: offset of the name, value; 12 n for values of 64 bits
    ...            names, each with a NUL

Source: Linux Documentation/bpf/btf.rst, include/uapi/linux/btf.h.

Rule: a type ends where its kind and number of members say, so all types are walked to find enums.
The places of all possible ends are computed as one array; the walk only follows them.
Rule: the names of a module begin after those of vmlinux (``base``), whose offsets it may use.
"""

import struct
from collections.abc import Iterator, Set
from typing import Final, NamedTuple

import numpy as np

_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("=HBBIIIII")
_ENUM, _ENUM64 = 6, 19
_TYPE_WORDS: Final = 3
_ENUM_WORDS: Final = 2
_KINDS: Final = 20
# Kind: the words after the 3 of a type, fixed and for each member.
_FIXED_WORDS: Final = {1: 1, 3: 3, 14: 1, 17: 1}
_MEMBER_WORDS: Final = {4: 3, 5: 3, _ENUM: 2, 13: 2, 15: 3, _ENUM64: 3}
_SIGNED: Final = 1 << 31


class Enum(NamedTuple):
    """An enum; an anonymous one has an empty name."""

    name: str
    members: tuple[tuple[str, int], ...]


class Btf:
    """The types of a kernel or of a module."""

    def __init__(self, data: bytes, base: "Btf | None" = None) -> None:
        """*base*: those of vmlinux, for a module.

        Raises:
            ValueError: it is not BTF of this machine's byte order.
        """
        if len(data) < _HEADER.size or _HEADER.unpack_from(data)[0] != _MAGIC:
            raise ValueError("no BTF")
        _, _, _, head, types_at, types_bytes, strings_at, strings_bytes = _HEADER.unpack_from(data)
        types = data[head + types_at : head + types_at + types_bytes]
        self._words = np.frombuffer(types, np.uint32, len(types) // 4)
        self._base = base
        self._strings = data[head + strings_at : head + strings_at + strings_bytes]
        self._first = base.strings_bytes if base else 0

    @property
    def strings_bytes(self) -> int:
        """The size of the names, with those of vmlinux."""
        return self._first + len(self._strings)

    def enums(self, names: Set[str], members: Set[str]) -> Iterator[Enum]:
        """Yield the enums of these names, and those that have one of these members.

        Raises:
            ValueError: a type has an unknown kind, or reaches beyond the end.
        """
        words = self._words
        at = np.array(self._enums_at(), np.int64)
        info = words[at + 1]
        size = np.where(info >> np.uint32(24) & np.uint32(31) == _ENUM64, 3, 2)
        count = (info & np.uint32(0xFFFF)).astype(np.int64)
        first = np.cumsum(count) - count
        number = np.repeat(np.arange(len(at)), count)
        place = at[number] + _TYPE_WORDS + size[number] * (np.arange(len(number)) - first[number])
        wanted = np.isin(words[at], self._places_of(names))
        wanted[number[np.isin(words[place], self._places_of(members))]] = True
        for one in np.flatnonzero(wanted).tolist():
            yield self._enum(int(at[one]), int(size[one]), int(count[one]))

    def _enum(self, at: int, size: int, count: int) -> Enum:
        first, signed = at + _TYPE_WORDS, bool(self._words[at + 1] & _SIGNED)
        table = self._words[first : first + size * count].reshape(count, size)
        if size > _ENUM_WORDS:
            low, high = table[:, 1].astype(np.uint64), table[:, 2].astype(np.uint64)
            values = (low | high << np.uint64(32)).view(np.int64 if signed else np.uint64)
        else:
            values = table[:, 1].copy().view(np.int32 if signed else np.uint32)
        names = map(self._name, table[:, 0].tolist())
        return Enum(
            self._name(int(self._words[at])), tuple(zip(names, values.tolist(), strict=True))
        )

    def _enums_at(self) -> list[int]:
        words = self._words
        fixed, each = np.zeros(32, np.int32), np.zeros(32, np.int32)
        for table, sizes in ((fixed, _FIXED_WORDS), (each, _MEMBER_WORDS)):
            table[list(sizes)] = list(sizes.values())
        info = np.append(words[1:], np.uint32(0))
        kind = (info >> np.uint32(24) & np.uint32(31)).astype(np.uint8)
        after = np.arange(_TYPE_WORDS, _TYPE_WORDS + len(words), dtype=np.int64)
        after += fixed[kind]
        after += each[kind] * (info & np.uint32(0xFFFF)).astype(np.int32)
        behind, kinds = after.data, kind.data
        at, found, end = 0, [], len(words)
        while at < end:
            if not 0 < kinds[at] < _KINDS:
                raise ValueError(f"BTF: word {at}: a type of kind {kinds[at]}")
            if kinds[at] in (_ENUM, _ENUM64):
                found.append(at)
            at = behind[at]
        if at > end:
            raise ValueError("BTF: a type reaches beyond the end")
        return found

    def _places_of(self, names: Set[str]) -> list[int]:
        """Return the offsets of some names; each is there once."""
        told = [b"\0%b\0" % name.encode() for name in names if name]
        found = [self._first + at + 1 for name in told if (at := self._strings.find(name)) >= 0]
        if self._base is None:
            return found
        own = [self._first] if self._strings.startswith(tuple(name[1:] for name in told)) else []
        return found + own + self._base._places_of(names)  # noqa: SLF001  (same class)

    def _name(self, at: int) -> str:
        if at < self._first:
            return self._base._name(at) if self._base else ""  # noqa: SLF001  (same class)
        at -= self._first
        end = self._strings.find(b"\0", at)
        return self._strings[at : max(end, 0)].decode("ascii", "replace")
