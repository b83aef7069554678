"""Leave lttd's own threads out of what an instance records, if the user asks for it.

The kernel's list of left-out ids makes each event of every task some 10 % dearer, and while it is
cleared the kernel may lose events of others (docs/ARCHITECTURE.md).  So it is set from the start,
or never; and a list of somebody else stays as it is.
"""

import os
from collections.abc import Iterable

from lttd.errors import LttdError
from lttd.namespaces import kernel_knows_our_pids
from lttd.sources.ftrace.asked import FtraceSettings
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.pids import is_limited
from lttd.sources.ftrace.task_lists import TaskList, lists_of, read_ids
from lttd.sources.tracefs import read_text


class LeftOut:
    """The threads that one instance leaves out."""

    def __init__(
        self, instance: Instance, settings: FtraceSettings, *, previous_run: bool = False
    ) -> None:
        """*previous_run*: the ring is a killed lttd's, which records nothing any more."""
        self._instance = instance
        # With recording by process, lttd's own threads are not listed, or by the user's wish.
        asked = settings.trace_self is False and not is_limited(settings)
        self._is_asked = asked and not previous_run
        self._says_namespace = not previous_run
        self._ours: set[TaskList] = set()
        """The lists that have been found unused."""
        self._ids: set[int] = set()

    def add(self, thread_ids: Iterable[int]) -> None:
        """Leave these threads out, too.

        Raises:
            LttdError: the kernel refuses.
        """
        new = set(thread_ids) - self._ids
        self._ids |= new
        if not kernel_knows_our_pids():
            if self._says_namespace:
                self._note_once(
                    "lttd runs in a pid namespace, whose process ids the kernel's trace does not"
                    " know: nothing can leave its own threads out, and names of tasks come from"
                    " saved_cmdlines alone; run lttd in the initial pid namespace for both"
                )
            return
        if not self._is_asked:
            return
        for each in lists_of(self._instance):
            if self._instance.own or each in self._ours or self._is_free(each):
                self._ours.add(each)
                self._instance.undo.leave_out(each.left_out, new)

    def _is_free(self, tasks: TaskList) -> bool:
        """Tell whether nobody uses the list, and nobody's children would come into it."""
        if read_ids(self._instance, tasks.left_out):
            return False
        if self._inherits(tasks):
            self._note_once(
                f"{os.path.basename(tasks.fork)} is set, so leaving lttd's threads out would leave"
                " out COMMAND and whatever else they start: they are recorded; write 0 to"
                f" {tasks.fork} to leave them out"
            )
            return False
        return True

    def _inherits(self, tasks: TaskList) -> bool:
        """Tell whether children of a task that is left out are left out, too."""
        try:
            return read_text(self._instance.file(tasks.fork)) == "1"
        except LttdError:
            return False  # before Linux 4.13

    def _note_once(self, note: str) -> None:
        if note not in self._instance.notes:
            self._instance.notes.append(note)
