"""Change what an instance records (events, filters, triggers), while lttd records from it.

Rule: the formats of new events are stored before the first of these events is recorded.  So the
caller announces the change, stores the attachments, and makes it then.
Rule: filters are set before new events are turned on, and those of events that are no longer
recorded are put back after these are off.
Rule: new events are turned on before others are turned off; a refusal turns the new ones off again.
Rule: in an instance that is not lttd's own, only events that lttd turned on are turned off, and the
record has each change as at the start.
"""

from collections.abc import Callable, Iterable, Sequence, Set

from lttd.errors import LttdError
from lttd.sources.ftrace.filters import clear_filters, set_filters
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.setup import Wanted, enable_files, enabled_events
from lttd.sources.ftrace.triggers import change_triggers, switched_event
from lttd.sources.ftrace.watch import FtraceWatch
from lttd.sources.tracefs import event_file, write_text


class EventsChange:
    """See ``lttd.sources.base.Change``."""

    def __init__(
        self,
        instance: Instance,
        watch: FtraceWatch,
        asked: Wanted,
        done: Callable[[], None],
    ) -> None:
        """*asked* is all that is wanted; *done* is called once the change is made."""
        self._asked = asked
        self._instance = instance
        self._watch = watch
        self._before = list(instance.events)
        self._done = done

    def announce(self) -> None:
        """Let the formats of the new events be stored, too."""
        self._instance.events = [*self._before, *(file.name for file in self._asked.files)]
        items = [item for each in self._asked.triggers.values() for item in each]
        self._instance.switched |= {name for item in items if (name := switched_event(item))}

    def withdraw(self) -> None:
        """Undo announce()."""
        self._instance.events = self._before

    def make(self) -> None:
        """Set filters and triggers, and turn events on and off; undo that if the kernel refuses.

        Raises:
            LttdError: it refuses.
        """
        instance, asked = self._instance, self._asked
        names = [file.name for file in asked.files]
        before, on_before = frozenset(self._before), instance.enabled()
        filters_before = dict(instance.filters)
        triggers_before = {event: list(items) for event, items in instance.triggers.items()}
        wanted = frozenset(names)
        changed = {each[0] for each in filters_before.items() ^ asked.filters.items()}
        self._watch.expect((each for each in on_before if is_named(each, wanted)), changed)
        try:
            set_filters(instance, asked.filters)
            change_triggers(instance, asked.triggers)
            names = enable_files(instance, asked.files)
        except LttdError:
            self._turn_off(instance.enabled() - on_before)
            change_triggers(instance, triggers_before)
            set_filters(instance, filters_before)
            clear_filters(instance, instance.filters.keys() - filters_before.keys())
            self._watch.expect(on_before)
            raise
        wanted = frozenset(names)
        ours = {each for each in instance.enabled() if is_named(each, before)}
        self._turn_off(each for each in ours if not is_named(each, wanted))
        clear_filters(instance, instance.filters.keys() - asked.filters.keys())
        instance.earlier_events = sorted({*instance.earlier_events, *before})
        instance.events = names if instance.own else enabled_events(instance.path)
        self._tell_differences(names)
        self._watch.expect(instance.enabled())
        self._done()

    def _turn_off(self, names: Iterable[str]) -> None:
        instance = self._instance
        if not instance.own:
            instance.notes += instance.undo.disable_events(sorted(names))
            return
        for name in sorted(names):
            try:
                write_text(instance.file(event_file(name, "enable")), "0")
            except LttdError as error:
                instance.notes.append(str(error))

    def _tell_differences(self, names: Sequence[str]) -> None:
        """Read back which events are on, and note what differs from the request."""
        enabled = self._instance.enabled()
        systems = {each.partition(":")[0] for each in enabled}
        known = {*enabled, *(f"{system}:*" for system in systems), "*:*"}
        if missing := sorted(set(names) - known):
            self._instance.notes.append(f"the kernel did not turn on {', '.join(missing)}")
        wanted = frozenset(names)
        more = sorted(each for each in enabled if not is_named(each, wanted))
        if more and not self._instance.own:
            words = f"{len(more)} more events were on before lttd came, such as {more[0]}"
            self._instance.notes.append(f"{words}: they stay on, and are recorded")


def is_named(event: str, names: Set[str]) -> bool:
    """Tell whether ``system:event`` is one of *names*, or of a ``system:*`` or ``*:*`` in it."""
    return not names.isdisjoint((event, f"{event.partition(':')[0]}:*", "*:*"))
