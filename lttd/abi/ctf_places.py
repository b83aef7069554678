"""Put field classes into their scopes: find the fields that lengths and tags refer to.

A declaration may be used in several places, so a reference in it gets its meaning only where it is
placed.  A reference is looked up as babeltrace2 does it: as a path from a root; among the earlier
members of the structures around it, from the innermost; among the members of the roots before.

Rule: a class is walked as a whole at each of its places, so all places of a metadata together are
limited before: a few lines of declarations can mean more fields than a machine can hold.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from lttd.abi.ctf_classes import (
    ROOTS,
    Array,
    Enumeration,
    FieldClass,
    Integer,
    MetadataError,
    Path,
    Sequence,
    Struct,
    Variant,
)
from lttd.limits import CTF_FIELDS

Leaf = Callable[[Path, FieldClass], FieldClass]
"""Changes a class that has no members, where it is placed: gives it a role or a clock."""


def unchanged(_path: Path, of: FieldClass) -> FieldClass:
    """Return a class as it is."""
    return of


@dataclass
class _Frame:
    """A structure or variant that is being placed."""

    path: Path
    members: "dict[str, FieldClass | _Frame]" = field(default_factory=dict)
    is_struct: bool = True


class Places:
    """The scopes of one metadata."""

    def __init__(self) -> None:
        self._left = CTF_FIELDS.most
        self._sizes: dict[int, tuple[FieldClass, int]] = {}
        self._names: dict[int, tuple[FieldClass, dict[str, FieldClass]]] = {}

    def place(
        self,
        root: Path,
        of: Struct,
        before: Mapping[Path, Struct],
        leaf: Leaf = unchanged,
    ) -> Struct:
        """Return the structure of a root with all its references resolved.

        Raises:
            MetadataError: a reference leads to no field, or to one of the wrong class, or there are
                too many fields.
        """
        self._left -= self._fields_of(of)
        if self._left < 0:
            raise MetadataError(str(CTF_FIELDS))
        placed = _Placing(self, before, leaf).at(root, of)
        assert isinstance(placed, Struct)
        return placed

    def count_event(self) -> None:
        """Count an event, which may have no fields.

        Raises:
            MetadataError: there are too many.
        """
        self._left -= 1
        if self._left < 0:
            raise MetadataError(str(CTF_FIELDS))

    def member(self, of: Struct | Variant, name: str) -> FieldClass | None:
        """Return a member or option by its name; None if there is none."""
        known = self._names.get(id(of))
        if known is None:
            members = of.members if isinstance(of, Struct) else of.options
            known = self._names[id(of)] = of, dict(members)
        return known[1].get(name)

    def _fields_of(self, of: FieldClass) -> int:
        """Return the number of classes in a class; those that several share count each time."""
        known = self._sizes.get(id(of))
        if known is not None:
            return known[1]
        match of:
            case Struct(members) | Variant(_, members):
                size = 1 + sum(self._fields_of(member) for _, member in members)
            case Array() | Sequence():
                size = 1 + self._fields_of(of.element)
            case _:
                return 1
        self._sizes[id(of)] = of, size  # which keeps the class, and so its id
        return size


class _Placing:
    def __init__(self, places: Places, before: Mapping[Path, Struct], leaf: Leaf) -> None:
        self._places: Final = places
        self._before: Final = before
        self._leaf: Final = leaf
        self._frames: list[_Frame] = []

    def at(self, path: Path, of: FieldClass) -> FieldClass:
        """Return a class as it is at *path*."""
        match of:
            case Struct():
                return replace(of, members=self._members(_Frame(path), of.members))
            case Variant():
                tag = self._tag(of, path)
                frame = _Frame(path, is_struct=False)
                return replace(of, tag=tag, options=self._members(frame, of.options))
            case Sequence():
                length = self._found(of.length, path)
                if not _is_length(self._class_at(length)):
                    raise MetadataError(
                        f"the length of {_told(path)} is {_told(length)},"
                        " which is not an unsigned integer"
                    )
                return replace(of, length=length, element=self.at(path, of.element))
            case Array():
                # The elements keep a role's meaning: they are bytes of an identifier.
                return self._leaf(path, replace(of, element=self.at(path, of.element)))
            case _:
                return self._leaf(path, of)

    def _members(
        self, frame: _Frame, members: tuple[tuple[str, FieldClass], ...]
    ) -> tuple[tuple[str, FieldClass], ...]:
        name = frame.path[-1]
        if self._frames:
            self._frames[-1].members[name] = frame
        self._frames.append(frame)
        placed = []
        for member, of in members:
            frame.members[member] = found = self.at((*frame.path, member), of)
            placed.append((member, found))
        self._frames.pop()
        return tuple(placed)

    def _tag(self, of: Variant, path: Path) -> Path:
        if not of.tag:
            raise MetadataError(f"the variant {_told(path)} has no tag")
        tag = self._found(of.tag, path)
        found = self._class_at(tag)
        if not isinstance(found, (Enumeration, Integer) if of.ranges else Enumeration):
            raise MetadataError(
                f"the tag of {_told(path)} is {_told(tag)}, which is not an enumeration"
            )
        return tag

    def _found(self, reference: Path, path: Path) -> Path:
        """Return the path from the root of the field that a reference means."""
        for root in ROOTS:
            if reference[: len(root)] == root and len(reference) > len(root):
                if self._class_at(reference) is None:
                    break
                return _plain(reference)
        for frame in reversed(self._frames):
            if frame.is_struct and reference[0] in frame.members:
                found = (*frame.path, *_plain(reference))
                if self._class_at(found) is not None:
                    return found
        for root in reversed(ROOTS):
            found = (*root, *_plain(reference))
            if root in self._before and self._class_at(found) is not None:
                return found
        line = getattr(reference[0], "line", 0)
        raise MetadataError(f"{_told(path)} refers to {_told(reference)}, which is not there", line)

    def _class_at(self, path: Path) -> FieldClass | None:
        """Return the class of an earlier field; None if there is none."""
        root = next(root for root in ROOTS if path[: len(root)] == root)
        at: FieldClass | _Frame | None = self._before.get(root)
        if self._frames and self._frames[0].path == root:
            at = self._frames[0]
        for name in path[len(root) :]:
            match at:
                case _Frame():
                    at = at.members.get(name)
                case Struct() | Variant():
                    at = self._places.member(at, name)
                case _:
                    return None
        return None if isinstance(at, _Frame) else at


def _is_length(of: FieldClass | None) -> bool:
    number = of.container if isinstance(of, Enumeration) else of
    return isinstance(number, Integer) and not number.signed


def _plain(reference: Path) -> Path:
    """Return a reference without what its names know of their lines."""
    return tuple(map(str, reference))


def _told(path: Path) -> str:
    return ".".join(path)
