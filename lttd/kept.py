"""The file ``kept.json`` of a segment: why retention must not delete it.

    {"by_person": true, "triggers": [{"number": 1, "reason": "...", ...}]}

A segment is kept if a person asked for it (``lttd keep``), or if a trigger's window touches it.
Without the file it is not kept.

Rule: the file is replaced as a whole, and removed when nothing keeps the segment any more.
Rule: a file that cannot be read keeps its segment, as if a person had asked for that: the reason
for it is unknown, and a deletion is final.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lttd.errors import LttdError, StorageError, TraceDamagedError
from lttd.files import Disk
from lttd.limits import KEPT as KEPT_LIMIT
from lttd.limits import KEPT_TRIGGERS
from lttd.plausible import Test, parse_json, refuse_unless
from lttd.readfile import read_limited
from lttd.tracedir import SegmentPaths
from lttd.trigger import Trigger


@dataclass(frozen=True, slots=True)
class Kept:
    """The reasons that keep a segment; without any it may be deleted."""

    by_person: bool = False
    triggers: tuple[Trigger, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether anything keeps the segment."""
        return self.by_person or bool(self.triggers)

    @property
    def by_http_only(self) -> bool:
        """Tell whether only triggers of the metrics port keep it: those go before all others."""
        return bool(self) and not self.by_person and all(t.by == "http" for t in self.triggers)

    def with_trigger(self, trigger: Trigger) -> "Kept":
        """Return the same with *trigger*; it replaces one of the same number.

        Raises:
            LttdError: too many triggers keep the segment already.
        """
        others = [one for one in self.triggers if one.number != trigger.number]
        if len(others) >= KEPT_TRIGGERS.most:
            raise LttdError(f"trigger {trigger.number}: {len(others):,} others keep its segment")
        triggers = sorted([*others, trigger], key=lambda one: one.number)
        return Kept(self.by_person, tuple(triggers))

    def without_trigger(self, number: int) -> "Kept":
        """Return the same without the trigger *number*."""
        return Kept(self.by_person, tuple(one for one in self.triggers if one.number != number))

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return {
            "by_person": self.by_person,
            "triggers": [trigger.to_json() for trigger in self.triggers],
        }

    @classmethod
    def from_json(cls, value: object) -> "Kept":
        """Read back what to_json() returned; unknown keys pass.

        Raises:
            ValueError: it has another form.
        """
        try:
            told = refuse_unless(value, "kept", _MUST, {})
        except KeyError as error:
            raise ValueError(f"kept lacks {error}") from None
        return cls(told["by_person"], tuple(map(Trigger.from_json, told["triggers"])))


_MUST: Final[Mapping[str, Test]] = {
    "by_person": lambda value: isinstance(value, bool),
    "triggers": lambda value: isinstance(value, list) and len(value) <= KEPT_TRIGGERS.most,
}
NOT_KEPT: Final = Kept()
BY_PERSON: Final = Kept(by_person=True)


def read_kept(segment: SegmentPaths) -> Kept:
    """Read why *segment* is kept.

    Raises:
        TraceDamagedError: the file cannot be read, so its segment counts as BY_PERSON.
    """
    path = segment.kept
    try:
        return Kept.from_json(parse_json(read_limited(segment.place(path), KEPT_LIMIT)))
    except FileNotFoundError:
        return NOT_KEPT
    except OSError as error:
        raise TraceDamagedError(path, 0, error.strerror or str(error)) from None
    except (ValueError, TypeError) as error:
        raise TraceDamagedError(path, 0, f"{error}; the segment stays kept") from None


def is_kept(segment: SegmentPaths) -> bool:
    """Tell whether anything keeps *segment*; a file that cannot be read does."""
    try:
        return bool(read_kept(segment))
    except TraceDamagedError:
        return True


def write_kept(segment: SegmentPaths, kept: Kept, disk: Disk) -> None:
    """Replace the reasons that keep *segment*.

    Raises:
        StorageError: they could not be written; the reasons before are still there.
        LttdError: they are too many or too long; likewise.
    """
    if kept:
        text = json.dumps(kept.to_json(), indent=1, ensure_ascii=False)
        data = text.encode() + b"\n"
        if len(data) > KEPT_LIMIT.most:
            raise LttdError(f"{segment.kept}: {len(data):,} bytes; {KEPT_LIMIT}")
        disk.replace(segment.kept, data)
        return
    disk.remove(segment.kept)
    if disk.status(segment.kept) is not None:
        raise StorageError(segment.kept, "cannot be removed; the segment stays kept")
    disk.sync_directory(segment.directory)


def next_trigger_number(all_kept: Iterable[Kept]) -> int:
    """Return the number of the next trigger of a trace, from the reasons of all its segments."""
    return 1 + max((t.number for kept in all_kept for t in kept.triggers), default=0)
