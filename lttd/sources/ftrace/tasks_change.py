"""Change the tasks to which an instance is limited, while lttd records from it.

Rule: tasks that are added are added to the list; only if some must go is it written anew, and then
other tasks are recorded for the moment between the truncation and the write.
"""

from lttd.errors import LttdError
from lttd.sources.base import Change
from lttd.sources.ftrace.asked import FtraceSettings
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.pids import limit, refuse_other_lists, release, wish_of
from lttd.sources.ftrace.task_lists import lists_of
from lttd.sources.ftrace.tasks import Wish, find_tasks
from lttd.sources.ftrace.watch import FtraceWatch


class TasksChange:
    """See ``lttd.sources.base.Change``; the tasks change before the events do."""

    def __init__(
        self,
        events: Change,
        instance: Instance,
        watch: FtraceWatch,
        before: FtraceSettings,
        after: FtraceSettings,
    ) -> None:
        """Find the tasks; *events* is the change of the events.

        Raises:
            UsageError: there are no such tasks.
            NothingToRecordError: the instance cannot be limited.
        """
        self._events = events
        self._instance = instance
        self._watch = watch
        self._before, self._after = wish_of(before), wish_of(after)
        if self._after is not None:
            find_tasks(self._after)
            refuse_other_lists(instance, lists_of(instance))

    def announce(self) -> None:
        """Let attachments() describe what will be recorded, too."""
        self._events.announce()

    def withdraw(self) -> None:
        """Undo announce()."""
        self._events.withdraw()

    def make(self) -> None:
        """Change the lists, then the events; put the lists back if the kernel refuses either.

        Raises:
            LttdError: it refuses.
        """
        with self._watch.list_changes():
            try:
                self._change(self._before, self._after)
                self._events.make()
            except LttdError:
                self._change(self._after, self._before)
                raise

    def _change(self, old: Wish | None, new: Wish | None) -> None:
        some_go = old is not None and not (
            new is not None and set(old.pids) <= set(new.pids) and set(old.globs) <= set(new.globs)
        )
        for each in lists_of(self._instance):
            if new is None:
                release(self._instance, each)
            else:
                wanted = find_tasks(new, all_there=False)
                limit(self._instance, each, new, wanted, anew=some_go)
