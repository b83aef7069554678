"""What a ``format`` file of tracefs says: an event's fields, and how to print them.

    name: sched_switch
    ID: 372
    format:
            field:unsigned short common_type;  offset:0;  size:2;  signed:0;
            ...
            field:char prev_comm[16];          offset:8;  size:16; signed:0;

    print fmt: "prev_comm=%s ...", REC->prev_comm, ...

A ``__data_loc`` field is a u32: length << 16 | offset from the event's first byte; a ``__rel_loc``
one counts its offset from its own end.

Source of the layout: Linux Documentation/trace/events.rst; ``f_show`` in
kernel/trace/trace_events.c; include/trace/stages/.

Rule: pure; a size that is stated wins over what a type's name suggests.
"""

import enum
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

LOC_OFFSET_MASK: Final = 0xFFFF
LOC_LENGTH_SHIFT: Final = 16


class Kind(enum.Enum):
    """How a field's bytes are to be taken."""

    INT = enum.auto()
    """An integer of 1, 2, 4 or 8 bytes; a pointer is one."""
    ARRAY = enum.auto()
    """Integers, a fixed number of them."""
    CHARS = enum.auto()
    """A fixed number of characters; the string ends at the first NUL."""
    STRING = enum.auto()
    """``__data_loc char[]``, and its like."""
    DYNAMIC = enum.auto()
    """``__data_loc`` of integers."""
    BITMASK = enum.auto()
    """``__data_loc`` of a cpumask."""
    TAIL = enum.auto()
    """A flexible array: whatever stands behind the fixed part, to the event's end."""
    BYTES = enum.auto()
    """Of another size: a struct, an address."""
    SPAN = enum.auto()
    """A string wherever it lies: the record holds its begin and end, counted from the event's."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an event."""

    name: str
    type: str
    """As declared, of one element."""
    offset_bytes: int
    size_bytes: int
    signed: bool
    kind: Kind
    element_bytes: int
    relative: bool = False
    """``__rel_loc``."""

    @property
    def elements(self) -> int:
        """How many elements the fixed part holds."""
        return self.size_bytes // self.element_bytes if self.element_bytes else 0

    @property
    def is_text(self) -> bool:
        """Whether its bytes are a string."""
        tail_of_text = self.kind is Kind.TAIL and self.type in ("char", "const char")
        return self.kind in (Kind.CHARS, Kind.STRING, Kind.SPAN) or tail_of_text

    def element_dtype(self, byteorder: str) -> np.dtype[np.generic]:
        """Return the dtype of one element."""
        return np.dtype(f"{byteorder}{'i' if self.signed else 'u'}{self.element_bytes}")

    def dtype(self, byteorder: str) -> "np.dtype[np.generic]":
        """Return the dtype of the fixed part."""
        if self.kind in (Kind.STRING, Kind.DYNAMIC, Kind.BITMASK):
            return np.dtype(f"{byteorder}u4")
        if self.kind is Kind.SPAN:
            return np.dtype((np.int64, (2,)))
        if self.kind is Kind.INT:
            return self.element_dtype(byteorder)
        if self.kind is Kind.ARRAY:
            return np.dtype((self.element_dtype(byteorder), (self.elements,)))
        return np.dtype(f"V{self.size_bytes}")


@dataclass(frozen=True)
class Format:
    """One type of events."""

    system: str
    name: str
    id: int
    fields: tuple[Field, ...]
    """All, the common ones first."""
    print_fmt: str
    byteorder: str
    """``<`` or ``>``."""
    long_bytes: int

    @cached_property
    def by_name(self) -> dict[str, Field]:
        """The fields by their names."""
        return {field.name: field for field in self.fields}

    @property
    def own(self) -> tuple[Field, ...]:
        """The fields that other events do not have."""
        return tuple(field for field in self.fields if not field.name.startswith("common_"))

    @cached_property
    def fixed_bytes(self) -> int:
        """Bytes that every event of this type has, before what is dynamic."""
        return max((field.offset_bytes + field.size_bytes for field in self.fields), default=0)

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The fixed part as a structured dtype; flexible arrays are not in it."""
        held = [field for field in self.fields if field.size_bytes]
        return np.dtype(
            {
                "names": [field.name for field in held],
                "formats": [field.dtype(self.byteorder) for field in held],
                "offsets": [field.offset_bytes for field in held],
                "itemsize": self.fixed_bytes,
            }
        )


_ID: Final = re.compile(rb"^ID:[ \t]*(\d+)", re.MULTILINE)
_NAME: Final = re.compile(r"^name:[ \t]*(\S+)", re.MULTILINE)
_FIELD: Final = re.compile(
    r"^\s*field:(?P<declared>[^;]*);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);"
    r"(?:\s*signed:(?P<signed>[01]);)?",
    re.MULTILINE,
)
_PRINT: Final = re.compile(r"^print fmt:[ \t]*(.*)", re.MULTILINE | re.DOTALL)
_DECLARED: Final = re.compile(
    r"(?P<loc>__data_loc|__rel_loc)?\s*(?P<type>.*?)\s*(?P<open>\[[^\]]*\])?\s*"
    r"(?P<name>[A-Za-z_]\w*)\s*(?P<array>\[.*\])?\s*$",
    re.DOTALL,
)
_INT_SIZES: Final = (1, 2, 4, 8)
_CHARS: Final = frozenset({"char", "const char", "unsigned char", "signed char"})
_BITMASKS: Final = frozenset({"cpumask_t", "cpumask"})
_WORDS_OF: Final = {
    "char": 1, "bool": 1, "u8": 1, "s8": 1, "__u8": 1, "__s8": 1, "uint8_t": 1, "int8_t": 1,
    "short": 2, "u16": 2, "s16": 2, "__u16": 2, "__s16": 2, "uint16_t": 2, "int16_t": 2,
    "__le16": 2, "__be16": 2,
    "int": 4, "u32": 4, "s32": 4, "__u32": 4, "__s32": 4, "uint32_t": 4, "int32_t": 4,
    "unsigned": 4, "__le32": 4, "__be32": 4, "pid_t": 4, "dev_t": 4,
    "u64": 8, "s64": 8, "__u64": 8, "__s64": 8, "uint64_t": 8, "int64_t": 8,
    "__le64": 8, "__be64": 8, "sector_t": 8, "loff_t": 8,
}  # fmt: skip


def id_of(text: bytes) -> int | None:
    """Return the id that a format file states, without parsing the rest."""
    found = _ID.search(text)
    return int(found[1]) if found else None


def parse_format(
    text: bytes, system: str = "", *, byteorder: str = "<", long_bytes: int = 8
) -> Format:
    """Return what a format file says; *long_bytes* is the kernel's, see header_page.

    Raises:
        ValueError: no name, no id or no fields, or a field that cannot be.
    """
    told = text.decode(errors="replace")
    number, name = id_of(text), _NAME.search(told)
    if number is None or name is None:
        raise ValueError("no name and ID in the format")
    head, _, _ = told.partition("\nprint fmt:")
    fields = tuple(_field_of(found, long_bytes) for found in _FIELD.finditer(head))
    if not fields:
        raise ValueError("no fields in the format")
    if len({field.name for field in fields}) < len(fields):
        raise ValueError("two fields of one name")
    printed = _PRINT.search(told)
    return Format(
        system,
        name[1],
        number,
        fields,
        printed[1].strip() if printed else "",
        byteorder,
        long_bytes,
    )


def _field_of(found: re.Match[str], long_bytes: int) -> Field:
    declared = _DECLARED.match(found["declared"].strip())
    if declared is None:
        raise ValueError(f"field {found['declared']!r}")
    offset, size = int(found["offset"]), int(found["size"])
    if offset + size > LOC_OFFSET_MASK:
        raise ValueError(f"field {declared['name']} ends at {offset + size}")
    named = " ".join(declared["type"].split())
    kind, element = _kind_of(declared, named, size, long_bytes)
    signed = found["signed"] == "1" if found["signed"] else not _is_unsigned(named)
    return Field(
        declared["name"],
        named,
        offset,
        size,
        signed,
        kind,
        element,
        declared["loc"] == "__rel_loc",
    )


def _kind_of(declared: re.Match[str], named: str, size: int, long_bytes: int) -> tuple[Kind, int]:
    element = element_bytes(named, long_bytes)
    stated = declared["array"] or declared["open"]
    if declared["loc"] is not None and size == 4:
        if named in _BITMASKS:
            return Kind.BITMASK, long_bytes
        return (Kind.STRING, 1) if named in _CHARS else (Kind.DYNAMIC, element or 1)
    if stated is None:
        return (Kind.INT, size) if size in _INT_SIZES else (Kind.BYTES, 1)
    return _array_kind(stated[1:-1], named, size, element)


def _array_kind(stated: str, named: str, size: int, element: int) -> tuple[Kind, int]:
    if not size:
        return Kind.TAIL, element or 1
    if stated.isdigit() and int(stated) and size % int(stated) == 0:
        element = size // int(stated)
    if named in ("char", "const char"):
        return Kind.CHARS, 1
    if element in _INT_SIZES and size % element == 0:
        return Kind.ARRAY, element
    return Kind.BYTES, 1


def element_bytes(named: str, long_bytes: int) -> int:
    """Return the size of a C type by its name; 0 where the name does not tell."""
    if "*" in named:
        return long_bytes
    words = [word for word in named.split() if word not in ("const", "volatile", "signed")]
    if words.count("long") == 2:
        return 8
    if "long" in words or words[-1:] in (["size_t"], ["ssize_t"]):
        return long_bytes
    if words[:1] in (["enum"], ["unsigned"]) and words[-1] not in _WORDS_OF:
        return 4
    return _WORDS_OF.get(words[-1], 0) if words else 0


def _is_unsigned(named: str) -> bool:
    return "*" in named or named.startswith(("unsigned", "u", "__u", "bool"))
