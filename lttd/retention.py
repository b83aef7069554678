"""Decide which segments of a trace have to go, in which order, and why.

    reason      limit              may go, in this order
    age         --max-age          segments that nobody keeps, oldest first
    size        --max-size         the same, without the newest of the trace
    kept_size   --max-kept-size    kept ones, without the newest one of a source: first those that
                                   only HTTP keeps, then the others
    free        --min-free         as for size, without the newest two of a source
    full        the disk is full   as for free

Rule: pure.  The caller measures bytes, and reads the clocks and the free space.
Rule: oldest means the lowest number.  No decision depends on the wall clock, which may step.
Rule: no reason takes a segment that is open, or in the window of an accepted trigger.
Rule: a window is about to be kept, so its closed segments count as kept ones.
Invariant: without the segments that go, the rest is within the limits, or nothing more may go.
"""

import enum
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from lttd.errors import UsageError
from lttd.roll import RollLimits

# The present segment of a source, and the one before it: what happened just now.
SPARED: Final = 2
# Where no limit says more, kept segments may fill a tenth of the file system.
KEPT_SHARE: Final = 10
# The journal's share of one file, too: losing the oldest one loses an eighth of the history.
MANY: Final = 8
LEAST_SEGMENT_BYTES: Final = 1 << 16
LEAST_SEGMENT_NS: Final = 100_000_000
USUAL_SEGMENT_BYTES: Final = 64 << 20
# Btrfs frees the blocks of removed files with its next transaction, after 30 s.
PATIENCE_NS: Final = 60_000_000_000


class Reason(enum.StrEnum):
    """Why a segment is deleted."""

    AGE = "age"
    SIZE = "size"
    KEPT_SIZE = "kept_size"
    FREE = "free"
    FULL = "full"


class Keeper(enum.IntEnum):
    """The party that keeps a segment; of two kept segments the lower goes first."""

    NOBODY = 0
    HTTP = 1
    PERSON = 2


class Limits(NamedTuple):
    """The limits of a trace; None: no limit."""

    size_bytes: int | None = None
    kept_bytes: int | None = None
    age_ns: int | None = None
    free_bytes: int | None = None


class Held(NamedTuple):
    """A segment in the catalogue."""

    number: int
    name: str
    """The name of its directory."""
    source: str
    """Its source; empty: unknown, because the manifest is damaged."""
    allocated_bytes: int
    """The blocks of its files and directories."""
    is_open: bool = False
    begin_ns: int = 0
    """On this boot's CLOCK_BOOTTIME; negative: before this boot."""
    end_ns: int = 0
    """Likewise, once it is closed."""
    keeper: Keeper = Keeper.NOBODY
    in_window: bool = False
    """Whether it is in the window of a trigger that is not complete."""
    stuck: bool = False
    """Whether lttd could not, or must not, remove it."""
    is_compressed: bool = False

    @property
    def key(self) -> tuple[int, str]:
        """Its place in the catalogue."""
        return self.number, self.name

    def has_since(self, begin_ns: int) -> bool:
        """Tell whether it may have data from *begin_ns* on."""
        return self.is_open or self.end_ns >= begin_ns

    @property
    def may_go(self) -> bool:
        """Tell whether any reason may delete it."""
        return not (self.is_open or self.in_window or self.stuck)

    @property
    def counts_as_kept(self) -> bool:
        """Tell whether its bytes count for ``--max-kept-size``."""
        return not self.is_open and (self.in_window or self.keeper is not Keeper.NOBODY)


class Deletion(NamedTuple):
    """A segment that has to go."""

    held: Held
    reason: Reason


def what_goes(
    held: Iterable[Held],
    limits: Limits,
    now_ns: int,
    *,
    hidden_bytes: int = 0,
    missing_bytes: int = 0,
) -> list[Deletion]:
    """Return the segments that have to go, in the order of their deletion.

    *held* is in the order of numbers, *now_ns* is CLOCK_BOOTTIME.  *hidden_bytes* are those of
    segments whose deletion is not complete.  *missing_bytes*: see FreeSpace.
    """
    held = list(held)
    plain = [one for one in held if not one.counts_as_kept]
    kept = sorted((one for one in held if one.counts_as_kept), key=lambda one: one.keeper)
    going = {one: Reason.AGE for one in plain if _is_too_old(one, limits.age_ns, now_ns)}
    used_bytes = hidden_bytes + bytes_of(plain) - bytes_of(going)
    # A run that ends may close a segment that alone exceeds the limit: it is all that is left.
    rest = [one for one in plain if one not in going and one is not held[-1]]
    going |= dict.fromkeys(_above(limits.size_bytes, used_bytes, rest), Reason.SIZE)
    promised = _newest([one for one in held if one.counts_as_kept], 1)
    older = [one for one in kept if one not in promised]
    going |= dict.fromkeys(_above(limits.kept_bytes, bytes_of(kept), older), Reason.KEPT_SIZE)
    rest = [one for one in without_newest(held) if one not in going]
    going |= dict.fromkeys(_above(0, missing_bytes - bytes_of(going), rest), Reason.FREE)
    return [Deletion(one, reason) for one, reason in going.items()]


def bytes_of(held: Iterable[Held]) -> int:
    """Return the bytes of some segments."""
    return sum(one.allocated_bytes for one in held)


def without_newest(held: Sequence[Held]) -> list[Held]:
    """Return the segments that may go for want of free space, oldest first.

    The newest two of each source are not among them.
    """
    newest = _newest(held, SPARED)
    return [
        one
        for one in held
        if one.may_go and not one.counts_as_kept and not (one.source and one in newest)
    ]


def _newest(held: Sequence[Held], most: int) -> set[Held]:
    """Return the newest *most* segments of each source; *held* is in the order of numbers."""
    of: defaultdict[str, list[Held]] = defaultdict(list)
    for one in held:
        of[one.source].append(one)
    return {one for each in of.values() for one in each[-most:]}


def _is_too_old(one: Held, age_ns: int | None, now_ns: int) -> bool:
    return age_ns is not None and one.may_go and now_ns - one.end_ns > age_ns


def _above(limit_bytes: int | None, used_bytes: int, in_turn: Iterable[Held]) -> list[Held]:
    """Return the first of some segments that have to go until the rest is within the limit."""
    found: list[Held] = []
    for one in in_turn:
        if limit_bytes is None or used_bytes <= limit_bytes:
            break
        if one.may_go:
            found.append(one)
            used_bytes -= one.allocated_bytes
    return found


class FreeSpace:
    """Notices that deleting does not raise the free space, so that no more history is given for it.

    Another program fills the disk, or a snapshot of the file system holds the deleted blocks.  In
    both cases the sum of free bytes and of those of the trace becomes less; deleting and recording
    leave it as it is.
    """

    def __init__(self) -> None:
        self._room_bytes = 0
        self._unconfirmed_bytes = 0
        self._since_ns = 0

    def missing_bytes(self, limit_bytes: int, free_bytes: int, own_bytes: int, now_ns: int) -> int:
        """Return how many bytes to delete now, for a limit of free bytes."""
        lost_bytes = self._room_bytes - free_bytes - own_bytes
        if free_bytes >= limit_bytes or 2 * lost_bytes <= self._unconfirmed_bytes:
            self._unconfirmed_bytes = 0
        if self.is_futile(now_ns):
            return 0
        return max(limit_bytes - free_bytes - self._unconfirmed_bytes, 0)

    def deleted(self, size_bytes: int, free_bytes: int, own_bytes: int, now_ns: int) -> None:
        """Note that *size_bytes* were deleted; the others are from before."""
        if not self._unconfirmed_bytes:
            self._room_bytes, self._since_ns = free_bytes + own_bytes, now_ns
        self._unconfirmed_bytes += size_bytes

    def is_futile(self, now_ns: int) -> bool:
        """Tell whether the deletions so far have not helped."""
        return bool(self._unconfirmed_bytes) and now_ns - self._since_ns >= PATIENCE_NS


def default_rolls(limits: Limits, sources: int, rolls: RollLimits) -> RollLimits:
    """Return when segments are rolled: as *rolls* say, else so that the limits can be met.

    Each source has about MANY segments within a limit, of which the oldest goes.
    """
    payload_bytes, age_ns = rolls
    if payload_bytes is None and limits.size_bytes is not None:
        payload_bytes = max(limits.size_bytes // (MANY * sources), LEAST_SEGMENT_BYTES)
    if age_ns is None and limits.age_ns is not None:
        age_ns = max(limits.age_ns // MANY, LEAST_SEGMENT_NS)
    if limits.free_bytes is not None and payload_bytes is None and age_ns is None:
        payload_bytes = USUAL_SEGMENT_BYTES
    return RollLimits(payload_bytes, age_ns)


def refuse_contradictions(limits: Limits, sources: int, rolls: RollLimits) -> None:
    """Refuse limits that would leave less than two segments per source.

    Raises:
        UsageError: they contradict the sizes of segments; the line says what to write.
    """
    whole = f"{SPARED} segments" + (f" of each of {sources} sources" if sources > 1 else "")
    least_bytes = SPARED * sources * (rolls.payload_bytes or 0)
    named = (("max-size", limits.size_bytes), ("max-kept-size", limits.kept_bytes))
    for option, limit_bytes in named:
        if limit_bytes is not None and limit_bytes < least_bytes:
            has = f"{option} {size_text(limit_bytes)}"
            needs = f"{whole} need {size_text(least_bytes)}"
            raise UsageError(f"{has}: {needs}; raise it, or lower segment-size")
    least_ns = SPARED * (rolls.age_ns or 0)
    if limits.age_ns is not None and limits.age_ns < least_ns:
        has = f"max-age {limits.age_ns / 1e9:g}s"
        needs = f"{SPARED} segments take {least_ns / 1e9:g}s"
        raise UsageError(f"{has}: {needs}; raise it, or lower segment-duration")


def limits_on(limits: Limits, whole_bytes: int) -> Limits:
    """Return *limits* with one for kept segments: these never grow without limit.

    *whole_bytes* is the size of the file system.

    Raises:
        UsageError: it is too small for them.
    """
    if limits.free_bytes is not None and limits.free_bytes >= whole_bytes:
        has = f"its file system has {whole_bytes >> 20}M in all"
        raise UsageError(f"min-free {size_text(limits.free_bytes)}: {has}; ask for less")
    if limits == Limits() or limits.kept_bytes is not None:
        return limits
    kept_bytes = limits.size_bytes
    if kept_bytes is None:
        kept_bytes = whole_bytes // KEPT_SHARE
    return limits._replace(kept_bytes=kept_bytes)


def size_text(size_bytes: int) -> str:
    """Return a size as the command line takes it: ``20M``, ``1536K``."""
    for shift, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if size_bytes and not size_bytes % (1 << shift):
            return f"{size_bytes >> shift}{unit}"
    return str(size_bytes)
