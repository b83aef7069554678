"""Notice that other tools change the lists of tasks that are recorded, or left out.

Rule: where the kernel follows forks, it changes the lists by itself; then only a write is reported.
Rule: lttd's own changes, and its own threads in the list of those left out, are not.
"""

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lttd.health import Trouble
from lttd.sources.ftrace.listener import Listener, Masks
from lttd.sources.ftrace.task_lists import TASK_LISTS, TaskList, ids_in, lists_of
from lttd.subbuffer import Reason


class _Own(enum.Enum):
    """Whether lttd itself changes the lists."""

    NOT = "others do"
    NOW = "it does"
    UNTIL_HEARD = "it did, and inotify has not reported all of it yet"


class TasksWatch:
    """Knows who changes the lists of tasks of one instance."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._own = _Own.NOT
        self._left_out: list[_LeftOut] = []

    def arm(self) -> None:
        """Remember the tasks that are left out, and report others from now on."""
        self._left_out = [_LeftOut(self._listener, t) for t in lists_of(self._listener.instance)]

    @contextmanager
    def changes(self) -> Iterator[None]:
        """Take what happens to the lists in the block as lttd's own."""
        self._own = _Own.NOW
        try:
            yield
        finally:
            self._own = _Own.UNTIL_HEARD

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Handle reports of inotify in the block: after it, all on lttd's own writes are known."""
        heard_all = self._own is _Own.UNTIL_HEARD
        yield
        if heard_all:
            self._own = _Own.NOT

    def explains(self, file: str, writes: int, reason: Reason | None) -> bool:
        """Tell whether a list may have any value, by lttd or by the kernel; report *writes*."""
        tasks = TASK_LISTS.get(file)
        if tasks is None:
            return False
        if self._own is not _Own.NOT:
            return True
        if not _follows_forks(self._listener, tasks):
            return False
        if writes:
            _report_write(self._listener, file, reason)
        return True

    def look(self) -> None:
        """Compare the tasks that are left out with those when recording began."""
        for each in self._left_out:
            each.look()


class _LeftOut:
    """One list of tasks that are left out."""

    def __init__(self, listener: Listener, tasks: TaskList) -> None:
        self._listener = listener
        self._tasks = tasks
        self._before: Final = self._by_others() or frozenset()
        self._more: frozenset[int] = frozenset()
        listener.hear(tasks.left_out, self._on_write)

    def _by_others(self) -> frozenset[int] | None:
        """Return the ids that others have excluded; None if that is unknown."""
        text = self._listener.read(self._tasks.left_out)
        if text is None or _follows_forks(self._listener, self._tasks):
            return None
        # Read after the list, so that ids that lttd adds meanwhile are in it.
        return ids_in(text) - self._ours()

    def _ours(self) -> frozenset[int]:
        return frozenset(map(int, self._listener.instance.undo.added(self._tasks.left_out)))

    def _on_write(self, _: Masks) -> None:
        """Look at the list: lttd or another process has written it."""
        if _follows_forks(self._listener, self._tasks) and not self._ours():
            _report_write(self._listener, self._tasks.left_out, Reason.FILTERED)
        self.look()

    def look(self) -> None:
        listener, found = self._listener, self._by_others()
        if found is None:
            return
        more, path = found - self._before, listener.instance.file(self._tasks.left_out)
        if more:
            words = f"another process has {len(more)} pids more left out, such as {min(more)}"
            listener.health.begins(Trouble.FILTER_SET, words, path)
        else:
            words = "no more pids are left out than before"
            listener.health.ends(Trouble.FILTER_SET, words, path)
        if more != self._more:
            self._more = more
            listener.suspect(Reason.FILTERED)


def _follows_forks(listener: Listener, tasks: TaskList) -> bool:
    """Tell whether the kernel adds children to the lists, and removes dead processes."""
    return listener.read(tasks.fork) == "1"


def _report_write(listener: Listener, file: str, reason: Reason | None) -> None:
    path = listener.instance.file(file)
    listener.health.happened(Trouble.FILTER_SET, "another process wrote it", path)
    listener.suspect(reason)
