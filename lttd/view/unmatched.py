"""Explain an empty result: misspelt names, a CPU that the trace lacks, times outside of it.

Rule: these reasons are reported; a result that is empty without such a reason is not.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from lttd.view.filters import COMMON, Filter, matches
from lttd.view.formats import EventName, Formats
from lttd.view.library import ClockGroup
from lttd.view.times import seconds
from lttd.view.window import extent

_MOST_NEAR: Final = 3
_ALIKE: Final = 0.75


def unmatched(
    groups: Sequence[ClockGroup], chosen: Filter, fields: Sequence[str] | None = None
) -> list[str]:
    """Return a line for each requested name, CPU or time that the trace does not have.

    Names are looked for in saved formats, so only where every family saves them.
    """
    if not any(group.sources for group in groups):
        return list(_cpus(groups, chosen))
    if told := _outside(groups):
        return [told]
    found: dict[Formats, None] = {}
    for group in groups:
        if group.family is None or group.family.formats_of is None:
            return []
        # Those of the window come first: they have been read.
        ordered = dict.fromkeys([*group.touching, *group.sources])
        found |= dict.fromkeys(map(group.family.formats_of, ordered))
    formats = list(found)
    return [*_events(formats, chosen), *_fields(formats, chosen, fields or ())]


def _cpus(groups: Sequence[ClockGroup], chosen: Filter) -> Iterator[str]:
    there = sorted(
        {s.info.id.cpu for group in groups for segment in group.segments for s in segment.streams}
    )
    if there and not any(chosen.wants_cpu(cpu) for cpu in there):
        yield f"--cpu: no such CPU in the trace; it has {', '.join(map(str, there))}"


def _outside(groups: Sequence[ClockGroup]) -> str | None:
    """Return a line for an empty window, with the times that the trace has."""
    held = [(group, found) for group in groups if (found := extent(group.sources))]
    if not held or any(b <= group.end and e >= group.begin for group, (b, e) in held):
        return None
    there = " and ".join(f"{seconds(begin)} to {seconds(end)}" for _, (begin, end) in held)
    return f"nothing was recorded within these times; there is {there}"


def _files(formats: Sequence[Formats]) -> Iterator[tuple[EventName, Formats, int]]:
    """Yield the format file of each event type; a segment is read when those before have ended."""
    known: set[EventName] = set()
    for one in formats:
        for number, file in one.files.items():
            if file not in known:
                known.add(file)
                yield file, one, number


def _events(formats: Sequence[Formats], chosen: Filter) -> Iterator[str]:
    for glob in chosen.globs or ():
        if any(matches(*file, glob) for file, _, _ in _files(formats)):
            continue
        known = [file for file, _, _ in _files(formats)]
        if known:
            names = [file.name for file in known] + [":".join(file) for file in known]
            yield f"--event {glob}: no event of the trace matches{_near(glob, names)}"


def _fields(formats: Sequence[Formats], chosen: Filter, fields: Sequence[str]) -> Iterator[str]:
    named = chosen.where.names if chosen.where else ()
    sought = {name: "--where" for name in named if not _is_common(name)}
    sought |= dict.fromkeys(fields, "--fields")
    if not sought:
        return
    there: set[str] = set()
    for file, one, number in _files(formats):
        if not chosen.globs or any(matches(*file, glob) for glob in chosen.globs):
            found = one.get(number)
            there.update(field.name for field in found.own) if found else None
            if sought.keys() <= there:
                return
    for name, option in sought.items():
        if there and name not in there:
            quoted = f"; a string is quoted: '{name}'" if option == "--where" else ""
            near = _near(name, sorted(there))
            yield f"{option}: no such event has a field {name}{near}{quoted}"


def _is_common(name: str) -> bool:
    return name in COMMON or name.startswith("common_")


def _near(name: str, names: Sequence[str]) -> str:
    import difflib  # noqa: PLC0415  (only a misspelt name needs it)

    near = difflib.get_close_matches(name, names, n=_MOST_NEAR, cutoff=_ALIKE)
    return f"; near: {', '.join(near)}" if near else ""
