"""The catalogue of a trace's segments in memory, in the order of their numbers.

Rule: any thread may call everything here; nothing waits for the disk.
Rule: all times are CLOCK_BOOTTIME of this boot.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice
from typing import NamedTuple

from sortedcontainers import SortedDict

from lttd.kept import Kept
from lttd.namespaces import kernel_clock_ns
from lttd.retention import Held, Keeper, Reason, bytes_of
from lttd.trigger import Trigger

Key = tuple[int, str]
"""Number and name: a copied segment may have the number of another."""


def boottime_ns() -> int:
    """Return the present CLOCK_BOOTTIME."""
    return kernel_clock_ns(time.CLOCK_BOOTTIME)


class StoreState(NamedTuple):
    """The present numbers of a store."""

    segments: int
    """Also those that the catalogue lacks yet, after a start."""
    allocated_bytes: int
    """Of all segments, also open, kept and hidden ones."""
    kept_segments: int
    kept_bytes: int
    deletions: Mapping[str, int]
    """By reason, in this run."""
    reach_seconds: float | None
    """How far back the trace is complete on all CPUs.

    None: nothing is recorded yet, or lttd records only windows.
    """
    compression_backlog: int
    """The closed segments that wait for the compressor."""


class Catalogue:
    """The segments that are known, those that are being removed, and the windows of triggers."""

    def __init__(self, now_ns: Callable[[], int] = boottime_ns) -> None:
        self.now_ns = now_ns
        self.has_holes = False
        """Whether lttd records only windows (lttd.flight), so that no reach is known."""
        self.compression_backlog: Callable[[], int] = lambda: 0
        self.unread = 0
        """The number of segments that are listed, and not put yet."""
        self._guard = threading.Lock()
        self._held: SortedDict[Key, Held] = SortedDict()
        self._held_bytes = 0
        """Their sum: a deletion must not cost as much as there are segments."""
        self._kept: dict[Key, Kept] = {}
        self._hidden: dict[str, int] = {}
        self._windows: dict[int, int] = {}
        self._tokens = count(1)
        self._deletions: Counter[Reason] = Counter()

    # -- segments

    def put(self, held: Held, kept: Kept) -> None:
        """Add a segment, or replace the facts that are known of it."""
        with self._guard:
            self._set(held.key, held._replace(keeper=keeper_of(kept)))
            self._kept.pop(held.key, None)
            if kept:
                self._kept[held.key] = kept

    def update(self, key: Key, allocated_bytes: int | None = None, *, stuck: bool = False) -> None:
        """Note another size of a segment, or that it cannot be removed."""
        with self._guard:
            held: Held | None = self._held.get(key)
            if held is not None:
                size = held.allocated_bytes if allocated_bytes is None else allocated_bytes
                self._set(key, held._replace(allocated_bytes=size, stuck=held.stuck or stuck))

    def drop(self, key: Key) -> None:
        """Forget a segment, which is gone."""
        with self._guard:
            self._kept.pop(key, None)
            self._set(key, None)

    def take(self, key: Key) -> Held | None:
        """Forget a segment that may go, and return it; None if it must stay now."""
        with self._guard:
            held: Held | None = self._held.get(key)
            if held is None or not self._seen(held).may_go:
                return None
            self._set(key, None)
        return held

    def _set(self, key: Key, held: Held | None) -> None:
        """Replace a segment, or forget it; the caller has the guard."""
        before: Held | None = self._held.pop(key, None)
        self._held_bytes -= before.allocated_bytes if before else 0
        if held is not None:
            self._held[key] = held
            self._held_bytes += held.allocated_bytes

    def deleted(self, key: Key, reason: Reason) -> None:
        """Count a segment that take() returned, and that is deleted now."""
        with self._guard:
            self._kept.pop(key, None)
            self._deletions[reason] += 1

    def numbered(self, number: int) -> list[Held]:
        """Return the segments with a number."""
        with self._guard:
            keys = list(self._held.irange((number, ""), (number + 1, ""), (True, False)))
            return [self._held[key] for key in keys]

    def newest(self, most: int) -> list[Held]:
        """Return at most *most* segments, the last number first."""
        with self._guard:
            return list(islice(reversed(self._held.values()), most))

    def in_order(self) -> list[Held]:
        """Return all segments in the order of their numbers, with the present windows."""
        with self._guard:
            held: list[Held] = list(self._held.values())
            return [self._seen(one) for one in held] if self._windows else held

    def hide(self, name: str, allocated_bytes: int) -> None:
        """Note how much of a hidden segment there is; 0: nothing."""
        with self._guard:
            self._hidden[name] = allocated_bytes
            if not allocated_bytes:
                del self._hidden[name]

    def hidden(self) -> list[str]:
        """Return the hidden names that are counted."""
        with self._guard:
            return list(self._hidden)

    @property
    def hidden_bytes(self) -> int:
        """The bytes of segments that are made ahead, or whose removal is not complete."""
        with self._guard:
            return sum(self._hidden.values())

    @property
    def allocated_bytes(self) -> int:
        """The bytes of all segments, also of open, kept and hidden ones."""
        with self._guard:
            return self._held_bytes + sum(self._hidden.values())

    # -- reasons to keep them

    def kept(self, key: Key) -> Kept:
        """Return why a segment is kept."""
        with self._guard:
            return self._kept.get(key, Kept())

    def all_kept(self) -> list[Kept]:
        """Return the reasons of all kept segments, in no order."""
        with self._guard:
            return list(self._kept.values())

    def latest_triggers(self, most: int) -> list[Trigger]:
        """Return at most *most* triggers that keep segments, newest first."""
        found: dict[int, Trigger] = {}
        for kept in self.all_kept():
            for trigger in kept.triggers:
                if trigger.complete or trigger.number not in found:
                    found[trigger.number] = trigger
        return [found[number] for number in sorted(found, reverse=True)[:most]]

    def protect(self, begin_ns: int) -> int:
        """Let no segment go that has data from *begin_ns* on; return a token."""
        with self._guard:
            token = next(self._tokens)
            self._windows[token] = begin_ns
        return token

    def unprotect(self, token: int) -> None:
        """End what protect() began."""
        with self._guard:
            self._windows.pop(token, None)

    def _seen(self, held: Held) -> Held:
        begin_ns = min(self._windows.values(), default=None)
        return held._replace(in_window=begin_ns is not None and held.has_since(begin_ns))

    def in_window(self, begin_ns: int, end_ns: int) -> list[Held]:
        """Return the segments that may have data between two times, both included."""
        with self._guard:
            held: list[Held] = list(self._held.values())
        return [one for one in held if one.has_since(begin_ns) and one.begin_ns <= end_ns]

    # -- numbers

    def reach_ns(self) -> int:
        """Return since when no segment is missing; now, if there is none."""
        begin_ns = complete_since(self.in_order())
        return self.now_ns() if begin_ns is None else begin_ns

    def state(self) -> StoreState:
        """Return the present numbers."""
        with self._guard:
            held: list[Held] = list(self._held.values())
            deletions = {reason.value: self._deletions[reason] for reason in Reason}
            allocated_bytes = self._held_bytes + sum(self._hidden.values())
        kept = [one for one in held if one.keeper is not Keeper.NOBODY]
        begin_ns = None if self.has_holes else complete_since(held)
        return StoreState(
            segments=len(held) + self.unread,
            allocated_bytes=allocated_bytes,
            kept_segments=len(kept),
            kept_bytes=bytes_of(kept),
            deletions=deletions,
            reach_seconds=None if begin_ns is None else max(self.now_ns() - begin_ns, 0) / 1e9,
            compression_backlog=self.compression_backlog(),
        )


def complete_since(held: Sequence[Held]) -> int | None:
    """Return since when no segment is missing; None if there is none.

    It is the latest begin of a source's first segment after the last number that is missing.
    """
    begins: dict[str, int] = {}
    newer = None
    for one in reversed(held):
        if newer is not None and one.number < newer - 1:
            break
        newer = one.number
        begins[one.source] = one.begin_ns
    return max(begins.values(), default=None)


def keeper_of(kept: Kept) -> Keeper:
    """Return who keeps a segment, for the decision."""
    if not kept:
        return Keeper.NOBODY
    return Keeper.HTTP if kept.by_http_only else Keeper.PERSON
