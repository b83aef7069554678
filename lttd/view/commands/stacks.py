"""``lttv stacks``: count the stacks of a window, as folded lines or as a flame graph."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from lttd.errors import LttdError, UsageError
from lttd.files import Disk
from lttd.malloc import keep_freed_memory
from lttd.terminal import put
from lttd.view.addresses import Symbols
from lttd.view.filters import Filter
from lttd.view.ftrace.family import FAMILY, with_symbols
from lttd.view.library import EventWindow
from lttd.view.notes import Notes
from lttd.view.output import new_output
from lttd.view.stacks.folded import Folded, fold, lines_of
from lttd.view.stacks.samples import SWITCH, Samples, Wanted
from lttd.view.stacks.user_code import UserCode
from lttd.view.times import Window
from lttd.view.trace import Trace
from lttd.view.window import PIECE_BYTES

if TYPE_CHECKING:
    from lttd.view.stacks.flame import Head

SVG: Final = ".svg"
FOLDED: Final = (".folded", ".txt")
MOST_NAMED: Final = 5
_REMEDY: Final = (
    "record with --stack (every event), --event-trigger 'EVENT: stacktrace' (some), or --user-stack"
)


def show_stacks(
    trace: Trace, window: Window, cpus: Sequence[int] | None, wanted: Wanted, out: Path | None
) -> list[str]:
    """Write the stacks of *window* to *out*, or as folded lines to stdout; return notes.

    Raises:
        LttdError: there are no stacks.
        UsageError: the suffix of *out* is unknown; *out* exists already.
        StorageError: *out* could not be written.
    """
    suffix = out.suffix.lower() if out else FOLDED[0]
    if suffix not in (SVG, *FOLDED):
        raise UsageError(f"{out}: name a flame graph .svg, or folded lines .folded")
    keep_freed_memory()
    notes = Notes()
    if out is None:
        lines = lines_of(_counted(trace, window, cpus, wanted, notes).folded)
        put("".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
        return notes.told()
    disk = Disk()
    with new_output(out, disk, trace) as made, disk.create(made) as file:
        found = _counted(trace, window, cpus, wanted, notes)
        text = "\n".join(lines_of(found.folded))
        if suffix == SVG:
            from lttd.view.stacks.flame import svg  # noqa: PLC0415  (only if asked for)

            text = svg(found.folded, _head(trace, wanted, found))
        file.write(f"{text}\n".encode(errors="backslashreplace"))
    return notes.told()


class _Counted(NamedTuple):
    """The stacks of all segments."""

    folded: Folded
    samples: int
    names: frozenset[str]
    """Of the events that they belong to."""


def _counted(
    trace: Trace, window: Window, cpus: Sequence[int] | None, wanted: Wanted, notes: Notes
) -> _Counted:
    found = EventWindow([trace], window, Filter(cpus), PIECE_BYTES)
    folded: Folded = {}
    names: set[str] = set()
    samples = stacks = 0
    for group in found.clocks():
        if group.family is not FAMILY or not group.sources:
            continue
        one = Samples(wanted)
        tasks = FAMILY.names(group.near(), notes)
        assert tasks is not None
        for piece in group.pieces():
            one.add(group.batch(piece), tasks)
        symbols = Symbols(with_symbols(group.segments).paths.tracefs, notes)
        code = UserCode(group.near())
        for frames, weight in fold(one.counts, symbols.name, code.name).items():
            folded[frames] = folded.get(frames, 0) + weight
        names |= one.names
        samples += one.samples
        stacks += one.stacks
        notes.add(*_notes(trace, one), *_unnamed(trace, one, symbols, code))
    notes.add(*found.notes.take())
    if not stacks:
        raise LttdError(f"{trace.path}: no stacks are in it; {_REMEDY}")
    if not samples:
        notes.add(f"{trace.path}: none of its {stacks:,} stacks is of such an event")
    if len(names) > 1 and "event" not in wanted.by:
        notes.add(f"{_of(names)} are counted together; --event or --by event,comm separates them")
    return _Counted(folded, samples, frozenset(names))


def _notes(trace: Trace, samples: Samples) -> Iterator[str]:
    wanted, path = samples.wanted, trace.path
    if samples.losses:
        yield f"{path}: events were lost in {samples.losses:,} places: the counts are too low"
    if samples.without_weight:
        count = f"{samples.without_weight:,} stacks"
        yield f"{path}: {count} are left out: their events have no field {wanted.weight}"
    if samples.unknown:
        yield f"{path}: {samples.unknown:,} off-CPU times are unknown, because events were lost"
    if wanted.off_cpu and SWITCH not in samples.names:
        yield f"{path}: no {SWITCH} with a stack: record sched:sched_switch with --stack"


def _unnamed(trace: Trace, samples: Samples, symbols: Symbols, code: UserCode) -> Iterator[str]:
    below = next((stack.kernel[0] for stack in samples.counts if stack.kernel), None)
    if below is not None and symbols.find(below) is None:
        yield f"{trace.path}: no names of kernel functions: record with --kallsyms, as root"
    if any(stack.user for stack in samples.counts) and not code.is_known:
        yield f"{trace.path}: no names of programs' functions: record with --user-stack"


def _of(names: Collection[str]) -> str:
    told = sorted(names)
    more = f" and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
    return f"stacks of {', '.join(told[:MOST_NAMED])}{more}"


def _head(trace: Trace, wanted: Wanted, found: _Counted) -> "Head":
    from lttd.view.stacks.flame import Head  # noqa: PLC0415  (only if asked for)

    unit = "ns" if wanted.off_cpu else wanted.weight or "samples"
    told = [f"{found.samples:,} samples", f"{len(found.folded):,} different stacks"]
    if found.names:
        told.append(_of(found.names))
    if wanted.off_cpu:
        told.append("width: time off the CPU, blocked")
    elif wanted.weight:
        told.append(f"width: sum of {wanted.weight}")
    if wanted.chosen:
        told.append(f"only {wanted.chosen}")
    return Head(trace.path.resolve().name, " · ".join(told), unit)
