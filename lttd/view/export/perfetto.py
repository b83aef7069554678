"""Export ftrace's events to a Perfetto trace, which is a protobuf message.

    Trace       = packet*                       each is a TracePacket, field 1
    TracePacket = SystemInfo | ClockSnapshot | ProcessTree | InternedData | FtraceStats
                | FtraceEventBundle             events of one CPU, in the order of time

Source: Perfetto's protos/perfetto/trace/trace.proto, trace_packet.proto,
protos/perfetto/trace/ftrace/ftrace_event_bundle.proto.

Rule: memory holds a piece of the window; all events of a piece are encoded at once, CPU by CPU.
Rule: a bundle begins after each loss and says so; the numbers are in the FtraceStats at the end.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

import numpy as np

from lttd.errors import NotATraceError
from lttd.files import Disk
from lttd.view.addresses import Symbols
from lttd.view.columns import EventBatch
from lttd.view.export.perfetto_clock import Clock, clock_of
from lttd.view.export.perfetto_events import Encoder
from lttd.view.export.perfetto_packets import (
    END,
    START,
    Tally,
    renamed,
    system_info,
    tasks_at,
)
from lttd.view.export.protobuf import content, head, number
from lttd.view.export.systrace import group_of_one_clock
from lttd.view.ftrace.family import with_symbols
from lttd.view.library import ClockGroup
from lttd.view.lines import BLOCK_ROWS
from lttd.view.losses import Loss
from lttd.view.notes import Notes
from lttd.view.output import nothing_within
from lttd.view.progress import pieces_of
from lttd.view.task_names import Names
from lttd.view.times import Window
from lttd.view.trace import Trace

MOST_CPUS: Final = 1024
"""Perfetto refuses a trace with other CPUs: kMaxCpuCount in ftrace_tokenizer.cc."""
_PACKET: Final = 1
# Fields of TracePacket.
_BUNDLE, _PROCESS_TREE, _CLOCKS, _TIME, _SEQUENCE, _INTERNED = 1, 2, 6, 8, 10, 12
_SEQUENCE_FLAGS, _STATS, _SYSTEM, _TIME_CLOCK = 13, 34, 45, 58
_CLEARED, _NEEDED = 1, 2
_KERNEL_SYMBOLS: Final = 26
_CPU, _LOST = 1, 3


def export(trace: Trace, window: Window, out: Path, disk: Disk) -> list[str]:
    """See ``lttd.view.export.Exporter``."""
    group = group_of_one_clock(trace, window)
    notes = Notes()
    with disk.create(out) as file:
        tally = _Writer(file, group, notes).write()
    if not tally.events and not tally.losses:
        raise NotATraceError(nothing_within(trace))
    told = [f"{tally.events} events"]
    if tally.losses:
        told.append(f"{tally.losses} losses, which are in Perfetto's stats, by CPU")
    if tally.holes:
        told.append(f"{tally.holes} holes between windows, which Perfetto does not show")
    return [*notes.told(), *told]


class _Run(NamedTuple):
    """Some events of a batch that make one bundle."""

    cpu: int
    low: int
    high: int
    lost: bool
    """Whether some were lost just before."""


class _Writer:
    """Writes the packets of one clock group."""

    def __init__(self, file: IO[bytes], group: ClockGroup, notes: Notes) -> None:
        self._file = file
        self._group = group
        self._notes = notes
        segments = group.segments
        self._names = Names((each.paths.tracefs / "commands" for each in segments), notes)
        self._encoder = Encoder(Symbols(with_symbols(segments).paths.tracefs, notes))
        self._clock: Clock = clock_of(group)
        self._tally = Tally()

    def write(self) -> Tally:
        """Write all packets; return the number of events and losses."""
        self._packet(_SYSTEM, system_info(self._group.segments[-1].manifest), _CLEARED)
        for snapshot in self._clock.snapshots:
            self._packet(_CLOCKS, snapshot)
        self._packet(_PROCESS_TREE, tasks_at(self._names, self._group.begin))
        for time, tree in renamed(self._names, self._group.begin, self._group.end):
            self._packet(_PROCESS_TREE, tree, time=time)
        for piece in pieces_of(self._group):
            batch = self._group.batch(piece)
            self._notes.add(*batch.notes)
            self._bundles(batch)
        for phase in (START, END):
            self._packet(_STATS, self._tally.stats(phase))
        return self._tally

    def _packet(
        self, field: int, message: bytes, flags: int = _NEEDED, *, time: int | None = None
    ) -> None:
        told = self._head(flags)
        if time is not None:
            told += number(_TIME, time)
            if self._clock.of_packet is not None:
                told += number(_TIME_CLOCK, self._clock.of_packet)
        self._file.write(content(_PACKET, told + content(field, message)))

    def _head(self, flags: int = _NEEDED) -> bytes:
        return number(_SEQUENCE, 1) + number(_SEQUENCE_FLAGS, flags)

    def _bundles(self, batch: EventBatch) -> None:
        """Write the events of a piece, and its losses."""
        losses = [loss for loss in batch.losses if self._shows(loss.cpu)]
        for loss in losses:
            self._tally.lose(loss)
        batch = batch.select(np.argsort(batch.cpu, kind="stable"))
        runs = list(_runs(batch, [loss for loss in losses if loss.was_wanted]))
        cuts = sorted({*range(0, len(batch), BLOCK_ROWS), len(batch)} | {run.low for run in runs})
        blocks = self._encoder.blocks(batch, cuts)
        functions = self._encoder.take_functions()
        if functions:
            told = b"".join(content(_KERNEL_SYMBOLS, each) for each in functions)
            self._packet(_INTERNED, told)
        described = self._encoder.take_descriptors()
        for run in runs:
            if self._shows(run.cpu):
                some = slice(bisect_left(cuts, run.low), bisect_left(cuts, run.high))
                self._bundle(run, blocks[some], described)
                described = b""

    def _shows(self, cpu: int) -> bool:
        if cpu < MOST_CPUS:
            return True
        self._notes.add(f"CPU {cpu} is left out: Perfetto shows CPUs 0 to {MOST_CPUS - 1} only")
        return False

    def _bundle(self, run: _Run, blocks: Sequence[memoryview], described: bytes) -> None:
        self._tally.add(run.cpu, run.high - run.low)
        first = number(_CPU, run.cpu) + self._clock.of_bundle + described
        if run.lost:
            first += number(_LOST, 1)
        size = len(first) + sum(map(len, blocks))
        told = self._head() + head(_BUNDLE, size)
        self._file.write(head(_PACKET, len(told) + size) + told + first)
        self._file.writelines(blocks)


def _runs(batch: EventBatch, losses: Sequence[Loss]) -> Iterator[_Run]:
    """Yield the events of each CPU between its losses; *batch* is in the order of CPU and time."""
    lost: dict[int, list[int]] = {cpu: [] for cpu in np.unique(batch.cpu).tolist()}
    for loss in losses:
        lost.setdefault(loss.cpu, []).append(loss.time)
    for cpu, times in sorted(lost.items()):
        low, high = np.searchsorted(batch.cpu, (cpu, cpu + 1)).tolist()
        after = np.searchsorted(batch.time[low:high], np.array(times, np.uint64), "left")
        places = set((low + after).tolist())
        starts = sorted({low, *places})
        for begin, end in zip(starts, [*starts[1:], high], strict=True):
            if begin < end or begin in places:
                yield _Run(cpu, begin, end, begin in places)
