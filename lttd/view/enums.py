"""Read the values of enum constants that a segment keeps (``tracefs/enums.json``).

    {"values": {"I_DIRTY_SYNC": 16}, "enums": {"lru_list": {"LRU_INACTIVE_ANON": 0}}}

Rule: without the file, or with a damaged one, such constants stay unknown, as for other tools.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Final

from lttd.errors import TraceDamagedError
from lttd.limits import ENUMS
from lttd.readfile import read_limited
from lttd.view.trace import Segment

FILE: Final = "enums.json"
_MOST: Final = 1 << 64


class Enums:
    """The enum constants of one kernel that the formats of a trace need."""

    def __init__(self, content: bytes = b"", *, naming: bool = False) -> None:
        """*naming*: print names also where the kernel prints the numbers of a field's enum."""
        self.naming = naming
        try:
            found = json.loads(content) if content else {}
        except (ValueError, RecursionError):
            found = {}
        parts: Mapping[str, Any] = found if isinstance(found, dict) else {}
        self.values = _numbers(parts.get("values"))
        """The values of the constants in print fmts, by name."""
        enums = parts.get("enums")
        self._of_fields = enums if isinstance(enums, dict) else {}

    def of_field(self, type_: str) -> Mapping[int, str]:
        """Return the names of the values of a field's type; nothing if it is not a known enum."""
        words = type_.removeprefix("const ").split()
        if words[:1] != ["enum"]:
            return {}
        named = _numbers(self._of_fields.get(words[-1]))
        return {value: name for name, value in reversed(named.items())}  # the first of each value

    @classmethod
    def of(cls, segments: Sequence[Segment], *, naming: bool = False) -> "Enums":
        """Return those of the last segment of the last boot that has any."""
        boot = segments[-1].manifest.machine.get("boot_id")
        for segment in takewhile(
            lambda each: each.manifest.machine.get("boot_id") == boot, reversed(segments)
        ):
            try:
                content = read_limited(segment.paths.tracefs / FILE, ENUMS)
            except (OSError, TraceDamagedError):
                continue  # of an earlier lttd, or killed within its first seconds
            if content:
                return cls(content, naming=naming)
        return cls()


def _numbers(value: object) -> dict[str, int]:
    if not isinstance(value, dict):
        return {}
    return {
        name: number
        for name, number in value.items()
        if type(number) is int and -(_MOST >> 1) <= number < _MOST
    }


NO_ENUMS: Final = Enums()
