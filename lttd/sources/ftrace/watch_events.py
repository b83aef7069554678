"""Check that the recorded events are still enabled and have their first filters."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from lttd.errors import LttdError
from lttd.health import Trouble
from lttd.sources.ftrace.filters import filter_file
from lttd.sources.ftrace.listener import Listener, Masks
from lttd.subbuffer import Reason

# Reading so many files takes a tenth of a second, beside the reading loop; changes of further files
# are noticed by inotify only.
MOST_FILTERS: Final = 8192
# To read a file makes some 50 events if all are recorded.  There are 2,300 files then.
FILTERS_A_LOOK: Final = 256


class EventsWatch:
    """Compares the enabled events, and their filters, with those at the begin."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._events_off = 0
        self._filters: dict[str, str] = {}
        self._next_filter = 0
        self._complete = False
        """Whether _filters has the events that are expected now."""
        self._filtered: set[str] = set()
        self.events: frozenset[str] = frozenset()
        """Those that were enabled when recording began."""

    def arm(self) -> None:
        """Remember the present state, and watch the files of all events."""
        self.expect(self._enabled() or frozenset())
        for name in ("set_event", "events/enable"):
            self._listener.hear(name, lambda _: self.look())

    def expect(self, events: Iterable[str], filters: Collection[str] = ()) -> None:
        """Compare with *events* from now on; the filters of those that stay are still known.

        Those of the events *filters* are not: lttd changes them.
        """
        forget = {filter_file(event) for event in filters}
        self._filters = {file: text for file, text in self._filters.items() if file not in forget}
        self.events = frozenset(events) - self._listener.instance.switched
        self._complete = False

    def filters(self) -> dict[str, str]:
        """Read some filters again, each time those that follow, for judge_filters()."""
        files = list(self._filters)
        at = self._next_filter if self._next_filter < len(files) else 0
        self._next_filter = at + FILTERS_A_LOOK
        return self._values(files[at : self._next_filter])

    def hear_filters(self) -> None:
        """Watch the files of each event, once; this takes a tenth of a second."""
        if self._complete:
            return
        self._complete = True
        known, filters = self._filters, {}
        for name in sorted(self.events)[: MOST_FILTERS // 2]:
            directory = f"events/{name.replace(':', '/')}"
            file = f"{directory}/filter"
            filters[file] = known.get(file) or self._listener.read(file) or "none"
            self._listener.hear(file, self._on_filters([file]))
            self._listener.hear(f"{directory}/enable", self._on_enable(name))
        for system in sorted({name.partition(":")[0] for name in self.events}):
            start = f"events/{system}/"
            self._listener.hear(f"{start}enable", lambda _: self.look())
            files = [file for file in filters if file.startswith(start)]
            self._listener.hear(f"{start}filter", self._on_filters(files))
        self._filters = filters

    def _on_enable(self, event: str) -> Callable[[Masks], None]:
        def written(_: Masks) -> None:
            # Somebody may have set a trigger on it: then only this file tells whether it is on.
            self._listener.instance.triggered.add(event)
            self.look()

        return written

    def _on_filters(self, files: Sequence[str]) -> Callable[[Masks], None]:
        return lambda _: self.judge_filters(self._values(files))

    def _values(self, files: Iterable[str]) -> dict[str, str]:
        return {file: value for file in files if (value := self._listener.read(file)) is not None}

    def judge_filters(self, values: Mapping[str, str]) -> None:
        """Compare the filters of events with the first ones."""
        before = set(self._filtered)
        self._filtered &= self._filters.keys()
        for file, value in values.items():
            if value == self._filters.get(file, value):
                self._filtered.discard(file)
            else:
                self._filtered.add(file)
        path = self._listener.instance.file("events")
        if self._filtered:
            example = min(self._filtered)
            text = f"the filters of {len(self._filtered)} events were changed, such as {example}"
            self._listener.health.begins(
                Trouble.FILTER_SET, f"{text}: {self._listener.read(example)}", path
            )
        else:
            self._listener.health.ends(Trouble.FILTER_SET, "all filters are as they were", path)
        if before != self._filtered:
            self._listener.suspect(Reason.FILTERED)

    def _enabled(self) -> frozenset[str] | None:
        try:
            return self._listener.instance.enabled()
        except LttdError:
            return None

    def look(self) -> None:
        """Compare the enabled events with the first ones; further events are ignored.

        A reload changes both in another thread, and then causes another look.
        """
        path, expected = self._listener.instance.file("set_event"), self.events
        enabled = self._enabled()
        if enabled is None or self.events is not expected:
            return
        missing = expected - enabled
        if missing:
            words = f"{len(missing)} of {len(expected)} events were turned off, such as "
            self._listener.health.begins(Trouble.EVENTS_OFF, words + min(missing), path)
        else:
            self._listener.health.ends(Trouble.EVENTS_OFF, "all events are on again", path)
        if len(missing) != self._events_off:
            self._events_off = len(missing)
            self._listener.suspect(Reason.SWITCHED_OFF)
