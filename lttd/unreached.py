"""Report limits of a store that no deletion can reach: once when that begins, once when it ends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lttd.health import Limiter
from lttd.retention import Deletion, Held, bytes_of
from lttd.stats import human_bytes
from lttd.terminal import Level

MAX_SIZE: Final = "max-size"
MIN_FREE: Final = "min-free"


class UnreachedLimits:
    """The limits of one trace that are out of reach."""

    def __init__(self, trace: Path, limiter: Limiter) -> None:
        self._trace = trace
        self._limiter = limiter
        self._options: set[str] = set()

    def report(self, option: str, why: str) -> None:
        """Write a line if *option* is out of reach since now, or is reached again.

        *why* is empty if it is reached.
        """
        if why and option not in self._options:
            self._options.add(option)
            line = f"{self._trace}: {option} is out of reach: {why}"
            self._limiter.say(option, line, Level.WARNING)
        elif not why and option in self._options:
            self._options.discard(option)
            line = f"{self._trace}: {option} is reached again"
            self._limiter.say((option, "again"), line, Level.NOTICE)


def why_too_large(
    limit_bytes: int | None, held: Sequence[Held], plan: Sequence[Deletion], hidden_bytes: int
) -> str:
    """Return the reason why the trace is larger than its limit after the deletions of *plan*."""
    going = {deletion.held.key for deletion in plan}
    plain = [one for one in held if not one.counts_as_kept and one.key not in going]
    used_bytes = bytes_of(plain) + hidden_bytes
    if limit_bytes is None or used_bytes <= limit_bytes:
        return ""
    return f"{human_bytes(used_bytes)} cannot be deleted: open segments, or parts left"


def why_not_free(
    limit_bytes: int | None, free_bytes: int, plan: Sequence[Deletion], *, is_futile: bool
) -> str:
    """Return the reason why less is free than the limit after the deletions of *plan*.

    *is_futile*: the deletions so far have not helped.
    """
    going_bytes = bytes_of(deletion.held for deletion in plan)
    if limit_bytes is None or free_bytes + going_bytes >= limit_bytes:
        return ""
    left = f"{human_bytes(free_bytes)} are free"
    if is_futile:
        return f"{left}, and deleting segments does not raise that; deleting no more"
    return f"{left}, and only segments that must stay are left"
