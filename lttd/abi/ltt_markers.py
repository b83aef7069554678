"""The markers of an LTTng 0.x trace: the metadata channel declares the fields of every event.

Two events declare a marker, in any order: one gives its id within its channel and the sizes of C's
types, the other its format string.  The format string has, for each field, a name, optionally the
form in which it is stored, and the conversion that prints it::

    pid %d  state #2d%ld  ip 0x%lX  protocol #n2u%hu  filename %s

Source of the grammar: LTTng 0.x ltt/ltt-serialize.c, LTTV ltt/marker.c and
doc/developer/lttng-format-string.txt.  Where the two differ, the kernel is right, because it wrote
the bytes: it ignores ``#8``, so only the C type determines the size of such a field.

Rule: pure; no bytes of a trace make it raise.  If two declarations differ, the first one counts,
and the conflict is reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lttd.limits import MARKER_FORMAT, MARKER_SIZES, MARKERS

ID_EVENT: Final = 0
FORMAT_EVENT: Final = 1
PER_CHANNEL_SINCE: Final = 3
"""Minor version from which each channel has its own ids, and declarations name the channel."""

_FLAGS: Final = "-+ #0"
_QUALIFIERS: Final = "hlLZztS"
_SIGNED: Final = "di"
_UNSIGNED: Final = "ouxX"
_POSSIBLE_BYTES: Final = frozenset((1, 2, 4, 8))
_ALIGNMENTS: Final = (0, 4, 8)
MOST_CONFLICTS: Final = 100


class Sizes(NamedTuple):
    """The sizes on the traced machine, by a marker's id event, in bytes."""

    int_bytes: int = 4
    long_bytes: int = 8
    pointer_bytes: int = 8
    size_t_bytes: int = 8
    alignment: int = 0
    """The largest alignment of a field; 0: none."""


class Stored(NamedTuple):
    """The form in which a trace stores a value."""

    size_bytes: int
    """0: a string."""
    signed: bool = False
    pointer: bool = False


class MarkerField(NamedTuple):
    """One field of a marker."""

    name: str
    stored: Stored
    network: bool = False
    """Whether the value is big-endian, whatever the trace's byte order."""
    literal: str = ""
    """The text directly before the value: the ``0x`` of ``ip 0x%lX``."""
    flags: str = ""
    letter: str = "d"
    """The conversion's letter; with the flags, it prints the value as a long long in C."""

    @property
    def is_string(self) -> bool:
        """Tell whether the field is a string that ends at its NUL."""
        return not self.stored.size_bytes


@dataclass(frozen=True, slots=True)
class Marker:
    """One type of events."""

    channel: str
    name: str
    id: int
    format: str
    sizes: Sizes
    fields: tuple[MarkerField, ...] = field(compare=False, repr=False)
    """The fields that the format declares, with these sizes."""


def parse_fields(text: str, sizes: Sizes) -> tuple[MarkerField, ...]:
    """Return the fields that a format string declares."""
    return tuple(_Parser(text, sizes).parse())


class _Parser:
    """Parses a format string as LTTV does: a name is the first word after a conversion."""

    def __init__(self, text: str, sizes: Sizes) -> None:
        self._text = text
        self._sizes = sizes
        self._at = 0
        self._stored: Stored | None = None
        self._network = False
        self._literal = ""
        self._name: str | None = None
        self._word: str | None = ""
        """The letters of the name that is being read."""
        self._fields: list[MarkerField] = []

    def parse(self) -> list[MarkerField]:
        while self._at < len(self._text):
            letter = self._text[self._at]
            self._at += 1
            if letter in "#%" and self._peek() == letter:
                self._at += 1
                self._literal += letter
            elif letter == "#":
                self._take_stored()
            elif letter == "%":
                self._take_conversion()
            elif letter == " ":
                self._literal = ""
                if self._word is not None and self._name is None:
                    self._name = self._word
            else:
                self._literal += letter
                if self._name is None:
                    self._word = (self._word or "") + letter
        return self._fields

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        """Take a letter; at the end return an empty string, at every call."""
        letter = self._peek()
        self._at += len(letter)
        return letter

    def _take_stored(self) -> None:
        """Parse the part after a ``#``; skip letters without a meaning there."""
        self._network = False
        while self._peek() == "n":
            self._network = True
            self._at += 1
        qualifier = self._qualifier(_QUALIFIERS + "1248")
        found = self._typed(qualifier, self._next())
        if found is not None and qualifier != "8":
            self._stored = found

    def _take_conversion(self) -> None:
        """Parse the part after a ``%``, and make the field."""
        flags = ""
        while (letter := self._peek()) and letter in _FLAGS:
            flags += self._next()
        qualifier = self._qualifier(_QUALIFIERS)
        letter = self._next()
        declared = self._typed(qualifier, letter)
        if declared is not None:
            stored = declared if self._stored is None or letter == "s" else self._stored
            name = self._name or f"field {len(self._fields) + 1}"
            self._fields.append(
                MarkerField(name, stored, self._network, self._literal, flags, letter)
            )
        self._stored, self._network, self._literal = None, False, ""
        self._name = self._word = None

    def _qualifier(self, known: str) -> str:
        letter = self._peek()
        if not letter or letter not in known:
            return ""
        self._at += 1
        if letter == "l" and self._peek() == "l":
            self._at += 1
            return "L"
        return letter

    def _typed(self, qualifier: str, letter: str) -> Stored | None:
        sizes = self._sizes
        if letter in ("c", "s"):
            return Stored(1 if letter == "c" else 0)
        if letter == "p":
            return Stored(sizes.pointer_bytes, pointer=True)
        if not letter or letter not in _SIGNED + _UNSIGNED:
            return None
        told = {"L": 8, "l": sizes.long_bytes, "Z": sizes.size_t_bytes, "z": sizes.size_t_bytes,
                "t": sizes.pointer_bytes, "h": 2, "1": 1, "2": 2, "4": 4, "8": 8}  # fmt: skip
        return Stored(told.get(qualifier, sizes.int_bytes), letter in _SIGNED)


def core_markers(minor: int, alignment: int) -> dict[int, Marker]:
    """Return the markers of the metadata channel itself, by id."""
    channel = "channel %s " if minor >= PER_CHANNEL_SINCE else ""
    sizes = "int #1u%zu long #1u%zu pointer #1u%zu size_t #1u%zu alignment #1u%u"
    size = Sizes(alignment=alignment)
    told = {
        ID_EVENT: ("core_marker_id", f"{channel}name %s event_id %hu {sizes}"),
        FORMAT_EVENT: ("core_marker_format", f"{channel}name %s format %s"),
    }
    return {
        number: Marker("metadata", name, number, text, size, parse_fields(text, size))
        for number, (name, text) in told.items()
    }


class Markers:
    """The declarations of one trace, from the metadata of all its CPUs."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, int], tuple[str, Sizes]] = {}
        self._formats: dict[tuple[str, str], str] = {}
        self._machines: set[Sizes] = set()
        self._parsed: dict[tuple[str, Sizes], tuple[MarkerField, ...]] = {}
        self._left_bytes = MARKERS.most
        self.conflicts: list[str] = []
        """A line for each impossible declaration, and for each that differs from an earlier one."""

    def add_event(self, number: int, payload: bytes, *, minor: int, byteorder: str) -> bool:
        """Add an event of the metadata channel; return whether it is a valid one.

        *byteorder* is ``<`` or ``>``.
        """
        strings = (1 if minor >= PER_CHANNEL_SINCE else 0) + (2 if number == FORMAT_EVENT else 1)
        *told, rest = payload.split(b"\0", strings)
        if len(told) != strings:
            return False
        if not self._has_room(sum(map(len, told))):
            return True
        words = [word.decode(errors="replace") for word in told]
        channel = words.pop(0) if minor >= PER_CHANNEL_SINCE else ""
        if number == FORMAT_EVENT:
            self._add_format(channel, words[0], words[1])
            return True
        # One byte may align the id after the strings.
        place = len(rest) - 7
        if number != ID_EVENT or place not in (0, 1):
            return False
        order = "little" if byteorder == "<" else "big"
        one = int.from_bytes(rest[place : place + 2], order)  # type: ignore[arg-type]
        self._add_id(channel, words[0], one, Sizes(*rest[place + 2 :]))
        return True

    def _add_id(self, channel: str, name: str, one: int, sizes: Sizes) -> None:
        possible = all(size in _POSSIBLE_BYTES for size in sizes[:4])
        if not possible or sizes.alignment not in _ALIGNMENTS or not self._fits(sizes):
            self._refuse(channel, name, f"types of {tuple(sizes)} bytes; not read")
            return
        known = self._ids.setdefault((channel, one), (name, sizes))
        if known != (name, sizes):
            what = "other sizes" if known[0] == name else f"the id of {_joined(channel, known[0])}"
            self._refuse(channel, name, f"id {one} is declared with {what}; the first counts")

    def _has_room(self, size_bytes: int) -> bool:
        """Tell whether the limits allow one more declaration of that size."""
        if 0 <= self._left_bytes < size_bytes:
            self.conflicts.append(f"{MARKERS}; later ones are left out")
            self._left_bytes = -1
        self._left_bytes -= size_bytes
        return self._left_bytes >= 0

    def _fits(self, sizes: Sizes) -> bool:
        """Tell whether the limit of kinds of machines allows these sizes."""
        if len(self._machines) < MARKER_SIZES.most:
            self._machines.add(sizes)
        return sizes in self._machines

    def _refuse(self, channel: str, name: str, why: str) -> None:
        if len(self.conflicts) < MOST_CONFLICTS:
            self.conflicts.append(f"{_joined(channel, name)}: {why}")

    def _add_format(self, channel: str, name: str, text: str) -> None:
        if len(text) > MARKER_FORMAT.most:
            self._refuse(channel, name, f"a format of {len(text)} bytes; not read")
            return
        known = self._formats.setdefault((channel, name), text)
        if known != text:
            what = f"declared as {known!r} and {text!r}; the first counts"
            self._refuse(channel, name, what)

    def of(self, channel: str) -> Mapping[int, Marker]:
        """Return the markers of *channel*, by id."""
        found = {}
        for (declared, one), (name, sizes) in self._ids.items():
            text = self._formats.get((declared, name))
            if declared in (channel, "") and text is not None:
                if (text, sizes) not in self._parsed:
                    self._parsed[text, sizes] = parse_fields(text, sizes)
                fields = self._parsed[text, sizes]
                found[one] = Marker(channel, name, one, text, sizes, fields)
        return found


def _joined(channel: str, name: str) -> str:
    return f"{channel}.{name}" if channel else name
