"""The metadata of a CTF trace as values: field classes, events, streams and clocks.

CTF 1.8 states them in TSDL and CTF 2 in JSON; both become these classes.  Sources: The Common
Trace Format 1.8.3, section 4 (types) and 7 (TSDL); CTF2-SPEC-2.0, section 5.

Rule: an offset counts bits from the begin of the packet, and every class is aligned in it: an
integer to its own alignment, a structure to the largest of its members', also if it is empty.
Rule: parsing resolves all references.  A ``Path`` names a field from the root of the scopes:
``("stream", "event", "context", "len")``.  Its first part is a name of ROOTS; the rest are names
of members, and of options where it leads into a variant.  Inside the element of an array, it means
the element that is being read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

ByteOrder = Literal["little", "big"]
Path = tuple[str, ...]
Role = Literal[
    "packet-magic-number",
    "metadata-stream-uuid",
    "data-stream-class-id",
    "data-stream-id",
    "packet-total-length",
    "packet-content-length",
    "packet-sequence-number",
    "discarded-event-record-counter-snapshot",
    "packet-end-default-clock-timestamp",
    "default-clock-timestamp",
    "event-record-class-id",
]
"""The purpose of a field in a header, in the words of CTF 2; CTF 1.8 has names for it."""

PACKET_HEADER: Final[Path] = ("trace", "packet", "header")
PACKET_CONTEXT: Final[Path] = ("stream", "packet", "context")
EVENT_HEADER: Final[Path] = ("stream", "event", "header")
STREAM_EVENT_CONTEXT: Final[Path] = ("stream", "event", "context")
EVENT_CONTEXT: Final[Path] = ("event", "context")
EVENT_FIELDS: Final[Path] = ("event", "fields")
ROOTS: Final[tuple[Path, ...]] = (
    PACKET_HEADER,
    PACKET_CONTEXT,
    EVENT_HEADER,
    STREAM_EVENT_CONTEXT,
    EVENT_CONTEXT,
    EVENT_FIELDS,
)
"""The scopes in the order in which they are in a packet; a reference only leads back."""


class MetadataError(ValueError):
    """The metadata is not valid: one line that says where, and what is wrong."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {reason}" if line else reason)
        self.reason = reason
        self.line = line
        """0: it is unknown, or of no line."""


class UnsupportedError(MetadataError):
    """The metadata is valid, and has a field class that lttd cannot read."""


@dataclass(frozen=True, slots=True)
class Integer:
    """A number of 1 to 64 bits at any bit of a packet."""

    size_bits: int
    align_bits: int
    signed: bool
    byteorder: ByteOrder
    base: int = 10
    """2, 8, 10 or 16: how people want to read it."""
    encoding: Literal["none", "UTF8", "ASCII"] = "none"
    """Not ``none``: it is a character, and an array of them a text."""
    clock: str | None = None
    """The name of the clock whose low bits it is."""
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True)
class Enumeration:
    """An integer whose values have labels."""

    container: Integer
    labels: tuple[tuple[str, int, int], ...]
    """Label, first and last value; ranges may overlap, and a label may have several."""


@dataclass(frozen=True, slots=True)
class Float:
    """A number of IEEE 754; the sign is one bit of the mantissa, as CTF 1.8 counts."""

    exponent_bits: int
    mantissa_bits: int
    align_bits: int
    byteorder: ByteOrder

    @property
    def size_bits(self) -> int:
        """All of its bits."""
        return self.exponent_bits + self.mantissa_bits


@dataclass(frozen=True, slots=True)
class String:
    """Bytes up to a NUL, aligned to a byte."""

    encoding: Literal["UTF8", "ASCII"] = "UTF8"


@dataclass(frozen=True, slots=True)
class Struct:
    """Fields, one after the other, each at its own alignment."""

    members: tuple[tuple[str, "FieldClass"], ...]
    align_bits: int = 1
    """The largest of all members and of the least one that its ``align()`` asks for."""


@dataclass(frozen=True, slots=True)
class Array:
    """A fixed number of elements."""

    element: "FieldClass"
    length: int
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True)
class Sequence:
    """As many elements as an earlier field says."""

    element: "FieldClass"
    length: Path


@dataclass(frozen=True, slots=True)
class Variant:
    """One of several classes: the one that has the label of an earlier enumeration as its name."""

    tag: Path
    options: tuple[tuple[str, "FieldClass"], ...]
    ranges: tuple[tuple[str, int, int], ...] = ()
    """CTF 2: option, first and last value of the tag that means it, which may be any integer then.
    Empty: the labels of the tag decide."""


FieldClass: TypeAlias = Integer | Enumeration | Float | String | Struct | Array | Sequence | Variant


@dataclass(frozen=True, slots=True)
class Event:
    """A kind of event of one stream class."""

    id: int
    name: str
    stream_id: int
    context: Struct | None = None
    payload: Struct | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Other attributes in the metadata: ``loglevel``, ``model.emf.uri``."""
    unsupported: str = ""
    """Not empty: the field class that lttd cannot read.  Context and payload are None then."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A class of data streams: a channel of LTTng."""

    id: int
    packet_context: Struct | None = None
    event_header: Struct | None = None
    event_context: Struct | None = None
    events: Mapping[int, Event] = field(default_factory=dict)
    clock: str | None = None
    """The name of the clock of its times; None: it has none."""


@dataclass(frozen=True, slots=True)
class Clock:
    """A clock: the time of a value v is offset_s + (offset + v) / frequency_hz seconds."""

    name: str
    uuid: bytes | None = None
    description: str = ""
    frequency_hz: int = 1_000_000_000
    precision: int = 0
    offset_s: int = 0
    offset: int = 0
    """In cycles."""
    absolute: bool = False
    """True if the origin is 1970-01-01, also if *uuid* is another machine's."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The whole metadata."""

    version: tuple[int, int]
    uuid: bytes | None
    byteorder: ByteOrder
    packet_header: Struct | None = None
    environment: Mapping[str, str | int] = field(default_factory=dict)
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    streams: Mapping[int, Stream] = field(default_factory=dict)


def alignment(of: FieldClass) -> int:
    """Return the bits to a multiple of which a field of a class is aligned."""
    match of:
        case Integer() | Float() | Struct():
            return of.align_bits
        case Enumeration():
            return of.container.align_bits
        case String():
            return 8
        case Array() | Sequence():
            return alignment(of.element)
        case Variant():  # the option aligns itself
            return 1


def aligned(at_bits: int, align_bits: int) -> int:
    """Return the first multiple of *align_bits* from *at_bits* on."""
    return -(-at_bits // align_bits) * align_bits


def fixed_bits(of: FieldClass) -> int | None:
    """Return the size of a field that begins at a multiple of its alignment, without padding.

    None: it depends on the data.
    """
    match of:
        case Integer() | Float():
            return of.size_bits
        case Enumeration():
            return of.container.size_bits
        case Struct():
            return end_bits(of, 0)
        case Array():
            size = fixed_bits(of.element)
            if size is None or not of.length:
                return None if of.length else 0
            return aligned(size, alignment(of.element)) * (of.length - 1) + size
        case String() | Sequence() | Variant():
            return None


def end_bits(of: Struct, at_bits: int) -> int | None:
    """Return where a structure ends that begins at *at_bits* or at the next aligned bit."""
    at = aligned(at_bits, of.align_bits)
    for _, member in of.members:
        size = fixed_bits(member)
        if size is None:
            return None
        at = aligned(at, alignment(member)) + size
    return at
