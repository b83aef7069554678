"""Count events and losses by CPU and slice of time, for ``lttv plot``.

Times are on one axis for the whole trace: ns since its begin, as for ``--begin +T``.  They follow
the trace clock if all segments share one that counts ns, else the wall clock.

Rule: memory holds one piece of the window and the counts, whatever the length of the trace.
Invariant: every event of the window is in exactly one slice.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.clock import COUNTING_CLOCKS, Conversion
from lttd.errors import NotATraceError, UsageError
from lttd.index import FOREVER
from lttd.subbuffer import Unit
from lttd.view.columns import EventBatch
from lttd.view.filters import Filter
from lttd.view.library import ClockGroup, EventWindow
from lttd.view.losses import Loss
from lttd.view.notes import TakesNotes
from lttd.view.output import nothing_within
from lttd.view.progress import pieces_of
from lttd.view.times import Window
from lttd.view.trace import Span, Trace
from lttd.view.unmatched import unmatched
from lttd.view.window import PIECE_BYTES, WindowStream, extent

MOST_SLICES: Final = 480
FEWEST_SLICES: Final = 24
"""The least number of slices, however few events there are."""
EVENTS_PER_SLICE: Final = 8
MOST_LOST: Final = 1 << 50
"""The largest count of one loss: a damaged number must not overflow a sum."""
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass
class CpuRates:
    """One CPU's counts per slice."""

    events: I64
    lost: I64
    """Lost events; a loss of unknown number, or in another unit, is only in ``losses``."""
    losses: I64
    """The number of losses in each slice."""


@dataclass
class Rates:
    """The counts of a window."""

    span: Span
    """The first and last time of the trace within the window."""
    begin_ns: int
    """The begin of the first slice, since the trace's begin."""
    slice_ns: int
    slices: int
    cpus: dict[int, CpuRates] = field(default_factory=dict)
    types: Counter[str] = field(default_factory=Counter)
    """The number of events, by ``system:name``."""
    lost: Counter[Unit] = field(default_factory=Counter)
    unknown_losses: int = 0
    recorded: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    """The slices in which something was being recorded."""

    @property
    def events(self) -> int:
        """The number of all events."""
        return self.types.total()

    @property
    def end_ns(self) -> int:
        """The end of the last slice."""
        return self.begin_ns + self.slice_ns * self.slices

    def cpu(self, number: int) -> CpuRates:
        """Return the counts of a CPU; the first call for a CPU makes them, as zeros."""
        if number not in self.cpus:
            self.cpus[number] = CpuRates(*(np.zeros(self.slices, np.int64) for _ in range(3)))
        return self.cpus[number]

    def merged(self, factor: int) -> "Rates":
        """Return the same counts in slices that are *factor* times as long."""
        slices = -(-self.slices // factor)
        fill = slices * factor - self.slices

        def merge(counts: I64) -> I64:
            summed: I64 = np.pad(counts, (0, fill)).reshape(slices, factor).sum(axis=1)
            return summed

        cpus = {
            number: CpuRates(merge(one.events), merge(one.lost), merge(one.losses))
            for number, one in self.cpus.items()
        }
        recorded = merge(self.recorded.astype(np.int64)) > 0
        return Rates(
            self.span, self.begin_ns, self.slice_ns * factor, slices, cpus,
            self.types, self.lost, self.unknown_losses, recorded,
        )  # fmt: skip


class _Axis:
    """Places trace-clock times of clock groups in slices."""

    def __init__(self, trace: Trace, groups: Sequence[ClockGroup]) -> None:
        counting = any(s.manifest.clock in COUNTING_CLOCKS for s in trace.segments)
        self._wall = len(groups) > 1 or counting
        self._conversions: dict[int, Conversion] = {}
        if self._wall:
            for group in groups:
                snapshots = [s for one in group.segments for s in one.manifest.clock_snapshots]
                if not snapshots:
                    raise UsageError(f"{trace.path}: no clock snapshot relates its clocks")
                self._conversions[id(group)] = Conversion(snapshots)
        self._origin = 0
        begins = [self.at(group, held[0]) for group in groups if (held := extent(group.sources))]
        self._origin = min(begins, default=0)

    def at(self, group: ClockGroup, time: int) -> int:
        """Return ns since the trace's begin."""
        if self._wall:
            return self._conversions[id(group)].to_realtime_ns(time) - self._origin
        return time - self._origin

    def edges(self, group: ClockGroup, rates: Rates) -> U64:
        """Return the begins of the second and all later slices, on the group's trace clock."""
        at = range(rates.begin_ns + rates.slice_ns, rates.end_ns, rates.slice_ns)
        if self._wall:
            back = self._conversions[id(group)].to_trace
            times = [back(each + self._origin) for each in at]
        else:
            times = [each + self._origin for each in at]
        return np.array([min(max(time, 0), FOREVER) for time in times], np.uint64)


def rates_of(trace: Trace, window: Window, chosen: Filter, notes: TakesNotes) -> Rates:
    """Count the events of *trace* in *window*; *notes* get lines on data that cannot be counted.

    Raises:
        NotATraceError: nothing was recorded within the window.
        UsageError: the segments have different clocks, and no clock snapshots relate them.
    """
    found = EventWindow([trace], window, chosen, PIECE_BYTES)
    every = found.clocks()
    groups = [group for group in every if group.sources]
    axis = _Axis(trace, groups)
    held = [(group, span) for group in groups if (span := _held(group, group.sources))]
    if not held:
        why = [*found.notes.take(), *(f"{trace.path}: {line}" for line in unmatched(every, chosen))]
        raise NotATraceError(why[0] if why else nothing_within(trace))
    rates = _empty(
        _span(held),
        min(axis.at(group, begin) for group, (begin, _) in held),
        max(axis.at(group, time) for group, times in held for time in times),
    )
    for group in groups:
        edges = axis.edges(group, rates)
        for source in group.sources:
            rates.cpu(source.cpu)
            _note_recorded(rates, source, group, edges)
        for piece in pieces_of(group):
            batch = group.batch(piece)
            notes.add(*batch.notes)
            _count(rates, batch, edges)
    notes.add(*found.notes.take(), *unmatched(every, chosen))
    for factor in _coarser(rates):
        rates = rates.merged(factor)
    return rates


def _held(group: ClockGroup, sources: Sequence[WindowStream]) -> tuple[int, int] | None:
    """Return begin and end of the data of some streams within the window."""
    held = extent(sources)
    if held is None or held[1] < group.begin or held[0] > group.end:
        return None
    return max(held[0], group.begin), min(held[1], group.end)


def _span(held: Sequence[tuple[ClockGroup, tuple[int, int]]]) -> Span:
    (first, (begin, _)), (last, (_, end)) = held[0], held[-1]
    begins, ends = first.segments[0].conversion, last.segments[-1].conversion
    return Span(
        begin,
        end,
        begins.to_realtime_ns(begin) if begins else None,
        ends.to_realtime_ns(end) if ends else None,
    )


def _empty(span: Span, begin_ns: int, end_ns: int) -> Rates:
    """Return empty slices of a round length, which begin at a multiple of it."""
    unit, number = 1, 0
    while (end_ns - begin_ns) // (unit * (1, 2, 5)[number]) + 2 > MOST_SLICES:
        number += 1
        if number == 3:
            unit, number = unit * 10, 0
    slice_ns = unit * (1, 2, 5)[number]
    first = begin_ns // slice_ns
    slices = end_ns // slice_ns - first + 1
    rates = Rates(span, first * slice_ns, slice_ns, slices)
    rates.recorded = np.zeros(slices, np.bool_)
    return rates


def _coarser(rates: Rates) -> Iterator[int]:
    """Yield factors for longer slices, 1, 2, 5, 10, ..., until each has enough events."""
    slices, slice_ns = rates.slices, rates.slice_ns
    while slices > 5 * FEWEST_SLICES and rates.events < EVENTS_PER_SLICE * slices:
        factor = 2 if str(slice_ns)[0] in "15" else 5
        slices, slice_ns = -(-slices // factor), slice_ns * factor
        yield factor


def _note_recorded(rates: Rates, source: WindowStream, group: ClockGroup, edges: U64) -> None:
    held = _held(group, [source])
    if held is None:
        return
    bounds = np.array(held, np.uint64)
    first, last = np.searchsorted(edges, bounds, "right").tolist()
    rates.recorded[first : last + 1] = True


def _count(rates: Rates, batch: EventBatch, edges: U64) -> None:
    slices = rates.slices
    if len(batch):
        at = np.searchsorted(edges, batch.time, "right") + batch.cpu.astype(np.int64) * slices
        counts = np.bincount(at, minlength=(int(batch.cpu.max()) + 1) * slices)
        for cpu, events in enumerate(counts.reshape(-1, slices)):
            if events.any():
                rates.cpu(cpu).events[:] += events
        for number, count in enumerate(np.bincount(batch.type, minlength=len(batch.types))):
            if count:
                event_type = batch.types[number]
                system, name = event_type.system, event_type.name
                rates.types[f"{system}:{name}" if system else name] += count
    for loss in batch.losses:
        if loss.was_wanted:
            _count_loss(rates, loss, int(np.searchsorted(edges, np.uint64(loss.time), "right")))


def _count_loss(rates: Rates, loss: Loss, at: int) -> None:
    one = rates.cpu(loss.cpu)
    one.losses[at] += 1
    if loss.lost is None:
        rates.unknown_losses += 1
    else:
        rates.lost[loss.unit] += loss.lost
        if loss.unit is Unit.EVENTS:
            one.lost[at] += min(loss.lost, MOST_LOST)
