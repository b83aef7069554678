"""The names of a trace's views, and the view of a name in a query.

An event is called by its name, if no other system has the name, or as ``"system.name"``.

Rule: only formats of views that a query names are parsed, and the code of intervals is loaded only
for a query that names them: 40 ms.
"""

import difflib
from collections.abc import Iterator
from functools import cached_property
from typing import Final

from lttd.errors import UsageError
from lttd.view.formats import EventName, EventType
from lttd.view.intervals.names import KIND_NAMES
from lttd.view.library import ClockGroup
from lttd.view.sql.columns import of_types
from lttd.view.sql.reading import Reading
from lttd.view.sql.views import LossesView, View, all_events, one_event
from lttd.view.window import WindowStream

EVENTS: Final = "events"
LOSSES: Final = "losses"
_OURS: Final = (EVENTS, LOSSES, *KIND_NAMES)
_MOST_NEAR: Final = 3
_ALIKE: Final = 0.6
_SIGNS: Final = ".:"


class Catalogue:
    """The views of a trace."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    @cached_property
    def _sources(self) -> list[tuple[ClockGroup, WindowStream]]:
        """A stream of each channel of each segment within the window; without any, of all."""
        found: list[tuple[ClockGroup, WindowStream]] = []
        for group in self._reading.groups():
            known = set()
            for source in group.touching or group.sources:
                key = source.stream.segment.directory, source.stream.info.id.channel
                if key not in known:
                    known.add(key)
                    found.append((group, source))
        return found

    @cached_property
    def every(self) -> list[EventName]:
        """The names of all events that the trace declares, in the order of the alphabet."""
        found: dict[EventName, None] = {}
        for group, source in self._sources:
            found |= dict.fromkeys(group.types.names(source))
        return sorted(found)

    @cached_property
    def _called(self) -> dict[str, list[EventName]]:
        """The events that a query may mean, by the words for them; a name wins over the others."""
        found: dict[str, list[EventName]] = {}
        for one in self.every:
            found.setdefault(one.name.lower(), []).append(one)
        for one in self.every:
            for sign in _SIGNS:
                found.setdefault(f"{one.system}{sign}{one.name}".lower(), [one])
        return found

    def view(self, written: str) -> View | None:
        """Return the view of a name in a query; None: there is none, or there are several."""
        name = written.lower()
        if name == EVENTS:
            return all_events(self._reading, self.every)
        if name == LOSSES:
            return LossesView(self._reading)
        if name in KIND_NAMES:
            return self._intervals(name)
        found = self._called.get(name, [])
        return one_event(self._reading, found[0], self.types(found[0])) if len(found) == 1 else None

    def _intervals(self, name: str) -> View:
        from lttd.view.sql.intervals import view_of  # noqa: PLC0415  (see the rule)

        return view_of(self._reading, name, self.every)

    def types(self, name: EventName) -> list[EventType]:
        """Return the types of one event, which differ between segments of several kernels."""
        found = (
            group.types.find(":".join(name), [source])
            for group, source in self._sources
            if name in group.types.names(source)
        )
        return list({id(one.format): one for one in found if one is not None}.values())

    def spellings(self) -> Iterator[tuple[str, EventName]]:
        """Yield how a query calls each event, and its name."""
        for one in self.every:
            is_free = len(self._called[one.name.lower()]) == 1 and one.name.lower() not in _OURS
            yield (one.name if is_free else f"{one.system}.{one.name}"), one

    def columns(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each view, and its columns: of events those besides the common ones."""
        yield EVENTS, ", ".join(all_events(self._reading, []).schema.names)
        yield LOSSES, ", ".join(LossesView.schema.names)
        for name in KIND_NAMES:
            yield name, ", ".join(self._intervals(name).schema.names)
        for spelt, one in self.spellings():
            names = [column.name for column in of_types(self.types(one)) if not column.common]
            yield spelt, ", ".join(names)

    def unknown(self, written: str) -> UsageError:
        """Return the error for a name that is not that of one view."""
        if several := self._called.get(written.lower()):
            spelt = " or ".join(f'"{one.system}.{one.name}"' for one in several)
            return UsageError(f"{written}: several systems have this event; write {spelt}")
        names = [*_OURS, *(spelt for spelt, _ in self.spellings())]
        near = difflib.get_close_matches(written, names, n=_MOST_NEAR, cutoff=_ALIKE)
        hint = f"; near: {', '.join(near)}" if near else f"; it has {len(names)}"
        return UsageError(
            f"{written}: the trace has no such view{hint}; lttv sql TRACE --tables lists them"
        )
