"""A fragment of CTF 2's metadata as objects whose values have the types that they have to have."""

from typing import Any

from lttd.abi.ctf_classes import MetadataError


class Object:
    """An object, whose values are taken with the types that they have to have.

    Every method raises MetadataError if a value has another type, or is missing without a default.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def plain(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            key: value.plain() if isinstance(value, Object) else value
            for key, value in self._values.items()
        }

    def items(self) -> list[tuple[str, Any]]:
        """Return the members, each with its name."""
        return list(self._values.items())

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text; *default* if there is none."""
        found: str = self._get(key, str, default)
        return found

    def object(self, key: str) -> "Object":
        """Return an object."""
        found: Object = self._get(key, Object, None)
        return found

    def objects(self, key: str) -> "list[Object]":
        """Return a list of objects; empty if there is none."""
        found: list[Any] = self._get(key, list, [])
        if not all(isinstance(each, Object) for each in found):
            raise MetadataError(f"{key} is not a list of objects")
        return found

    def texts(self, key: str) -> list[str]:
        """Return the texts of a list; none if there is no list."""
        found: list[Any] = self._get(key, list, [])
        texts = [each for each in found if isinstance(each, str)]
        for each in texts:
            _refuse_halves(each)
        return texts

    def field(self, key: str) -> "Object | str | None":
        """Return a field class: an object, the name of an alias, or None if there is none."""
        found = self._values.get(key)
        if found is not None and not isinstance(found, str | Object):
            raise MetadataError(f"{key} is not a field class")
        return found

    def number(
        self, key: str, default: int | None = None, least: int = 0, most: int = (1 << 64) - 1
    ) -> int:
        """Return a number within bounds; *default* if there is none."""
        found: int = self._get(key, int, default)
        if isinstance(found, bool) or not least <= found <= most:
            raise MetadataError(f"{key} is not a number from {least} to {most}")
        return found

    def ranges(self, key: str) -> list[tuple[int, int]]:
        """Return a list of ranges."""
        return ranges_of(key, self._get(key, list, None))

    def _get(self, key: str, kind: type[Any], default: Any) -> Any:  # noqa: ANN401
        found = self._values.get(key, default)
        if not isinstance(found, kind):
            named = {str: "a text", int: "a number", list: "a list", Object: "an object"}[kind]
            raise MetadataError(f"{key} is not {named}")
        return found


def object_of(pairs: list[tuple[str, Any]]) -> Object:
    """Return the object of its members, for ``json.loads``."""
    for text in (each for pair in pairs for each in pair if isinstance(each, str)):
        _refuse_halves(text)
    return Object(dict(pairs))


def _refuse_halves(text: str) -> None:
    """Refuse half a character, which JSON can state (``\\ud800``) and no output can show."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MetadataError("a text has half a surrogate pair") from None


def ranges_of(key: str, value: list[Any]) -> list[tuple[int, int]]:
    """Return the ranges in a list of pairs of bounds.

    Raises:
        MetadataError: one of them is not a range.
    """
    found = []
    for each in value:
        if (
            not isinstance(each, list)
            or len(each) != 2
            or not all(type(bound) is int for bound in each)
            or each[0] > each[1]
        ):
            raise MetadataError(f"{key} has a range that is not two numbers in order")
        found.append((each[0], each[1]))
    return found
