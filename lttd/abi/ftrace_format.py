"""Parse a ``format`` file of tracefs: the fields of an event, and how to print them.

    name: sched_switch
    ID: 372
    format:
            field:unsigned short common_type;  offset:0;  size:2;  signed:0;
            ...
            field:char prev_comm[16];          offset:8;  size:16; signed:0;

    print fmt: "prev_comm=%s ...", REC->prev_comm, ...

A ``__data_loc`` field is a u32: length << 16 | offset from the event's first byte; a ``__rel_loc``
field counts its offset from its own end.  Linux 2.6.31 had a u16 with the offset only: such data
reaches to the event's end.  ``__data_loc char[][2] arg`` is two fields, ``arg[0]`` and ``arg[1]``.

Source of the layout: Linux Documentation/trace/events.rst; ``f_show`` in
kernel/trace/trace_events.c; include/trace/stages/.

Rule: pure; a stated size is right, even if the type's name suggests another one.
"""

import enum
import re
import string
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, NamedTuple

import numpy as np

from lttd.limits import NUMBER_DIGITS

LOC_OFFSET_MASK: Final = 0xFFFF
LOC_LENGTH_SHIFT: Final = 16
DATA_LOC: Final = "__data_loc_"
"""Linux include/trace/stages/stage1_struct_define.h: what a C struct puts before the name."""
SYSCALL_NUMBER: Final = "__syscall_nr"
"""The name of a system call's number since Linux 026842d148b9; before, it was ``nr``."""


class Encoding(enum.Enum):
    """The meaning of a field's bytes."""

    INT = enum.auto()
    """An integer of 1, 2, 4 or 8 bytes, or a pointer."""
    ARRAY = enum.auto()
    """A fixed number of integers."""
    CHARS = enum.auto()
    """A fixed number of characters; the string ends at the first NUL."""
    STRING = enum.auto()
    """``__data_loc char[]`` and similar types."""
    DYNAMIC = enum.auto()
    """``__data_loc`` of integers."""
    BITMASK = enum.auto()
    """``__data_loc`` of a cpumask."""
    TAIL = enum.auto()
    """A flexible array: all bytes after the fixed part, to the event's end."""
    BYTES = enum.auto()
    """A value of another size: a struct, an address."""
    SPAN = enum.auto()
    """A string at any place: the record holds its begin and end, as offsets in the event."""
    REAL = enum.auto()
    """A floating-point number of 8 bytes."""
    TOLD = enum.auto()
    """A value that has no other form: the record holds its text, as an object."""


class Field(NamedTuple):
    """One field of an event."""

    name: str
    type: str
    """The declared type of one element."""
    offset_bytes: int
    size_bytes: int
    signed: bool
    encoding: Encoding
    element_bytes: int
    relative: bool = False
    """Whether the field is a ``__rel_loc``."""

    @property
    def elements(self) -> int:
        """The number of elements of the fixed part."""
        return self.size_bytes // self.element_bytes if self.element_bytes else 0

    @property
    def is_text(self) -> bool:
        """True: its bytes are a string."""
        tail_of_text = self.encoding is Encoding.TAIL and self.type in ("char", "const char")
        texts = (Encoding.CHARS, Encoding.STRING, Encoding.SPAN, Encoding.TOLD)
        return self.encoding in texts or tail_of_text

    def element_dtype(self, byteorder: str) -> np.dtype[np.generic]:
        """Return the dtype of one element."""
        return np.dtype(f"{byteorder}{'i' if self.signed else 'u'}{self.element_bytes}")

    def dtype(self, byteorder: str) -> "np.dtype[np.generic]":
        """Return the dtype of the fixed part."""
        if self.encoding in (Encoding.STRING, Encoding.DYNAMIC, Encoding.BITMASK):
            return np.dtype(f"{byteorder}u{self.size_bytes}")
        if self.encoding is Encoding.SPAN:
            return np.dtype((np.int64, (2,)))
        if self.encoding in (Encoding.REAL, Encoding.TOLD):
            return np.dtype(np.float64 if self.encoding is Encoding.REAL else np.object_)
        if self.encoding is Encoding.INT:
            return self.element_dtype(byteorder)
        if self.encoding is Encoding.ARRAY:
            return np.dtype((self.element_dtype(byteorder), (self.elements,)))
        return np.dtype(f"V{self.size_bytes}")


@dataclass(frozen=True)
class Format:
    """One type of events."""

    system: str
    name: str
    id: int
    fields: tuple[Field, ...]
    """All fields, the common ones first."""
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
        """The event's own fields, without the common ones."""
        return tuple(field for field in self.fields if not field.name.startswith("common_"))

    @cached_property
    def fixed_bytes(self) -> int:
        """The bytes that every event of this type has, before dynamic data."""
        return max((field.offset_bytes + field.size_bytes for field in self.fields), default=0)

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The fixed part as a structured dtype, without flexible arrays."""
        held = [field for field in self.fields if field.size_bytes]
        return np.dtype(
            {
                "names": [field.name for field in held],
                "formats": [field.dtype(self.byteorder) for field in held],
                "offsets": [field.offset_bytes for field in held],
                "itemsize": self.fixed_bytes,
            }
        )


# Each pattern takes linear time: its repetitions are possessive (``*+``) and never backtrack, and
# none matches over the end of a line.
_ID: Final = re.compile(rb"^ID:[ \t]*+(\d++)", re.MULTILINE)
_NAME: Final = re.compile(r"^name:[ \t]*+(\S++)", re.MULTILINE)
_FIELD: Final = re.compile(
    r"[ \t]*+field:(?P<declared>[^;]*+);[ \t]*+offset:(?P<offset>[0-9]++);"
    r"[ \t]*+size:(?P<size>[0-9]++);(?:[ \t]*+signed:(?P<signed>[01]);)?"
)
_PRINT: Final = "\nprint fmt:"
_WORD: Final = string.ascii_letters + string.digits + "_"
_LOCATED: Final = (Encoding.STRING, Encoding.DYNAMIC, Encoding.BITMASK)
_LINES: Final = 1024
"""Most lines of a format are those of others, too: each is parsed once."""
_LOC_BYTES: Final = 4
_OLD_LOC_BYTES: Final = 2
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
    return int(found[1]) if found and len(found[1]) <= NUMBER_DIGITS.most else None


def parse_format(
    text: bytes, system: str = "", *, byteorder: str = "<", long_bytes: int = 8
) -> Format:
    """Parse a format file; *long_bytes* is the size of the kernel's ``long``, see header_page.

    Raises:
        ValueError: it has no name, no id or no fields, or an impossible field.
    """
    told = text.decode(errors="replace")
    number, name = id_of(text), _NAME.search(told)
    if number is None or name is None:
        raise ValueError("no name and ID in the format")
    head, _, printed = told.partition(_PRINT)
    is_stack = name[1] == "kernel_stack"
    fields = _told_apart(
        [
            one
            for line in head.split("\n")
            for one in _fields_of(line, long_bytes, is_stack=is_stack)
        ]
    )
    if not fields:
        raise ValueError("no fields in the format")
    if len({field.name for field in fields}) < len(fields):
        raise ValueError("two fields of one name")
    return Format(
        system,
        name[1],
        number,
        fields,
        printed.strip(),
        byteorder,
        long_bytes,
    )


def _told_apart(fields: list[Field]) -> tuple[Field, ...]:
    """Give two fields of one name different names.

    A ``__data_loc`` is named as in its C struct (regcache_sync), and the number of a system call as
    by newer kernels if the call has an argument ``nr`` (io_submit).
    """
    plain = [field.name for field in fields if field.encoding not in _LOCATED]
    if plain.count("nr") == 2:
        number = next(field for field in fields if field.name == "nr")
        fields = [f._replace(name=SYSCALL_NUMBER) if f is number else f for f in fields]
    return tuple(
        field._replace(name=f"{DATA_LOC}{field.name}")
        if field.encoding in _LOCATED and field.name in plain
        else field
        for field in fields
    )


class _Declared(NamedTuple):
    """The parts of ``__data_loc char[] name`` or ``char name[16]``."""

    location: str
    type: str
    array: str | None
    """The type with its brackets, wherever these are."""
    name: str


def _declared(text: str) -> _Declared | None:
    """Parse a declaration from its end; return None if it has no name."""
    location = next((word for word in ("__data_loc", "__rel_loc") if text.startswith(word)), "")
    rest, array = text[len(location) :].strip(), None
    if rest.endswith("]"):
        at = rest.find("[")
        if at < 0:
            return None
        rest, array = rest[:at].rstrip(), rest[at:]
    name = rest[len(rest.rstrip(_WORD)) :].lstrip(string.digits)
    of_type = rest[: len(rest) - len(name)].rstrip()
    if array is None and of_type.endswith("]"):
        at = of_type.find("[", of_type.rfind("]", 0, -1) + 1)
        if at >= 0:
            of_type, array = of_type[:at].rstrip(), of_type[at:]
    return _Declared(location, " ".join(of_type.split()), array, name) if name else None


@lru_cache(_LINES)
def _fields_of(line: str, long_bytes: int, *, is_stack: bool) -> tuple[Field, ...]:
    """Return the field that a line declares; of an array of strings, a field for each."""
    found = _FIELD.match(line)
    if found is None:
        return ()
    declared = _declared(found["declared"].strip())
    if declared is None:
        raise ValueError(f"field {found['declared'][:40]!r}")
    offset, size = _number(found["offset"]), _number(found["size"])
    name, named = declared.name, declared.type
    if offset + size > LOC_OFFSET_MASK:
        raise ValueError(f"field {name[:40]} ends at {offset + size}")
    encoding, element = _encoding_of(declared, size, long_bytes)
    if is_stack and name == "caller" and encoding is Encoding.ARRAY:
        # The format declares eight frames, but the array is as long as the event.
        encoding, size = Encoding.TAIL, 0
    signed = found["signed"] == "1" if found["signed"] else not _is_unsigned(named)
    relative = declared.location == "__rel_loc"
    if declared.location and size > _LOC_BYTES and size % _LOC_BYTES == 0 and named == "char[]":
        return tuple(
            Field(
                *(f"{name}[{number}]", "char", offset + number * _LOC_BYTES, _LOC_BYTES),
                *(signed, Encoding.STRING, 1, relative),
            )
            for number in range(size // _LOC_BYTES)
        )
    return (Field(name, named, offset, size, signed, encoding, element, relative),)


def _number(digits: str) -> int:
    if len(digits) > NUMBER_DIGITS.most:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _encoding_of(declared: _Declared, size: int, long_bytes: int) -> tuple[Encoding, int]:
    named, stated = declared.type, declared.array
    element = element_bytes(named, long_bytes)
    if declared.location and size in (_OLD_LOC_BYTES, _LOC_BYTES):
        if named in _BITMASKS:
            return Encoding.BITMASK, long_bytes
        return (Encoding.STRING, 1) if named in _CHARS else (Encoding.DYNAMIC, element or 1)
    if stated is None and not size and element:
        # Linux 3.10 to 4.14, at least, leave out the brackets of a flexible array.
        return Encoding.TAIL, element
    if stated is None:
        return (Encoding.INT, size) if size in _INT_SIZES else (Encoding.BYTES, 1)
    return _array_encoding(stated[1:-1], named, size, element)


def _array_encoding(stated: str, named: str, size: int, element: int) -> tuple[Encoding, int]:
    if not size:
        return Encoding.TAIL, element or 1
    if stated.isdecimal() and len(stated) <= NUMBER_DIGITS.most and int(stated):
        count = int(stated)
        element = size // count if size % count == 0 else element
    if named in ("char", "const char"):
        return Encoding.CHARS, 1
    if element in _INT_SIZES and size % element == 0:
        return Encoding.ARRAY, element
    return Encoding.BYTES, 1


def element_bytes(named: str, long_bytes: int) -> int:
    """Return the size of a C type by its name; 0 if the name does not determine it."""
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
