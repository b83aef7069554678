"""The metrics of an always-on recorder: its store, its rolls and its triggers.

Rule: each value of a label is there with 0 from the first scrape on in which its part runs.
Rule: a part that does not run, a limit that is not set and a reach that is not known have no
sample; 0 would be a lie.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lttd.catalogue import StoreState
from lttd.metric import Metric, Sample, Table
from lttd.retention import Limits, Reason
from lttd.roll import RollReason
from lttd.trigger import SENDERS, Refusal
from lttd.triggers import TriggerCounts

ROLL_REASONS: Final = tuple(reason.name.lower() for reason in RollReason)


@dataclass(slots=True)
class Parts:
    """The numbers of each part, as of the call; None: the part has not begun."""

    store: Callable[[], StoreState] | None = None
    limits: Callable[[], Limits] | None = None
    rolls: Callable[[], Mapping[str, int]] | None = None
    """By ROLL_REASONS."""
    triggers: Callable[[], TriggerCounts] | None = None
    flight_waits: Callable[[], bool] | None = None
    """Whether nothing is written now, because no trigger came; None: not in mode flight."""


STORE_BYTES: Final = Metric(
    "lttd_store_bytes", "gauge", "Disk space of all segments, open and kept ones included."
)
STORE_LIMIT: Final = Metric(
    "lttd_store_limit_bytes", "gauge", "Limit of --max-size, for the segments that are not kept."
)
STORE_REACH: Final = Metric(
    "lttd_store_reach_seconds", "gauge", "How far back the trace is complete on all CPUs."
)
KEPT_SEGMENTS: Final = Metric(
    "lttd_kept_segments", "gauge", "Segments that a trigger or a person keeps."
)
KEPT_BYTES: Final = Metric("lttd_kept_bytes", "gauge", "Disk space of kept segments.")
DELETED: Final = Metric(
    "lttd_segments_deleted_total", "counter", "Segments that retention deleted.", ("reason",)
)
UNCOMPRESSED: Final = Metric(
    "lttd_compression_backlog_segments", "gauge", "Closed segments that wait for the compressor."
)
ROLLS: Final = Metric(
    "lttd_rolls_total", "counter", "Segments that were closed and followed by another.", ("reason",)
)
TRIGGERS: Final = Metric(
    "lttd_triggers_total", "counter", "Triggers that were accepted, by their sender.", ("by",)
)
TRIGGERS_REFUSED: Final = Metric(
    "lttd_triggers_refused_total", "counter", "Triggers that were refused.", ("reason",)
)
TRIGGERS_COMPLETED: Final = Metric(
    "lttd_triggers_completed_total", "counter", "Triggers whose window is on disk and kept."
)
TRIGGERS_WAITING: Final = Metric(
    "lttd_triggers_waiting", "gauge", "Triggers whose window is not complete."
)
FLIGHT_WAITING: Final = Metric(
    "lttd_flight_waiting",
    "gauge",
    "Mode flight: 1 while nothing is read or written, because no trigger wants it; else 0.",
)

SERVICE_FAMILIES: Final = (
    STORE_BYTES,
    STORE_LIMIT,
    STORE_REACH,
    KEPT_SEGMENTS,
    KEPT_BYTES,
    DELETED,
    UNCOMPRESSED,
    ROLLS,
    TRIGGERS,
    TRIGGERS_REFUSED,
    TRIGGERS_COMPLETED,
    TRIGGERS_WAITING,
    FLIGHT_WAITING,
)


def service_tables(parts: Parts) -> Iterator[Table]:
    """Yield the families of the parts that have begun."""
    if parts.store is not None:
        yield from _store(parts.store())
    if parts.limits is not None:
        yield STORE_LIMIT, _one(parts.limits().size_bytes)
    if parts.rolls is not None:
        yield ROLLS, _all_of(ROLL_REASONS, parts.rolls())
    if parts.triggers is not None:
        yield from _triggers(parts.triggers())
    if parts.flight_waits is not None:
        yield FLIGHT_WAITING, _one(int(parts.flight_waits()))


def _store(state: StoreState) -> Iterator[Table]:
    yield STORE_BYTES, _one(state.allocated_bytes)
    yield STORE_REACH, _one(state.reach_seconds)
    yield KEPT_SEGMENTS, _one(state.kept_segments)
    yield KEPT_BYTES, _one(state.kept_bytes)
    yield DELETED, _all_of([reason.value for reason in Reason], state.deletions)
    yield UNCOMPRESSED, _one(state.compression_backlog)


def _triggers(counts: TriggerCounts) -> Iterator[Table]:
    yield TRIGGERS, _all_of(SENDERS, counts.accepted)
    yield TRIGGERS_REFUSED, _all_of([each.name.lower() for each in Refusal], counts.refused)
    yield TRIGGERS_COMPLETED, _one(counts.completed)
    yield TRIGGERS_WAITING, _one(counts.waiting)


def _one(value: float | None) -> list[Sample]:
    return [] if value is None else [((), value)]


def _all_of(values: Sequence[str], counts: Mapping[str, int]) -> list[Sample]:
    return [((value,), counts.get(value, 0)) for value in values]
