"""Record only some tasks, by the kernel's lists of thread ids; see task_lists.py.

Rule: an empty list means that every task is recorded.  So a wish that means no task is refused, and
ids are added to the list; it is truncated only if some must go, and then one write has all of them.
Rule: a thread that was born between the look at /proc and the write is found by another look; if
the kernel follows forks, it adds all later ones by itself.
Rule: what the kernel has is read back: a task that it does not have, or that it leaves out
(the list of those wins), would be missing without a word.
Rule: functions are limited before their tracer is set: it would record all tasks meanwhile.
Rule: in an instance that is not lttd's own, a list of somebody's stays as it is: nobody could tell
its children from ours.

An event of a listed task is recorded.  So is sched_switch if either task is listed, and
sched_waking or sched_wakeup if the waker or the woken one is.

If it follows forks, the kernel removes tasks that exit; a list that becomes empty so still lets
nothing through, until somebody truncates it.

Source: Linux kernel/trace/trace_events.c, event_pid_write() and ignore_this_task(); ftrace.c,
pid_write() and ftrace_pid_func().
"""

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final

from lttd.errors import LttdError, NothingToRecordError, SourceError, UsageError
from lttd.namespaces import kernel_knows_our_pids
from lttd.sources.ftrace.asked import FtraceSettings
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.task_lists import EVENTS, FUNCTIONS, TaskList, lists_of, read_ids
from lttd.sources.ftrace.tasks import Wish, find_tasks, is_alive
from lttd.sources.tracefs import explained

# A process that starts threads all the time is never listed whole unless the kernel follows forks.
_LOOKS: Final = 20


def wish_of(settings: FtraceSettings) -> Wish | None:
    """Return the tasks that *settings* ask for; None: all.

    Raises:
        UsageError: the settings contradict each other.
    """
    if settings.only_command and settings.command is None:
        raise UsageError("only-command records COMMAND alone; write COMMAND after '--'")
    if not is_limited(settings):
        if settings.follow_fork:
            raise UsageError("follow-fork follows the tasks of pid or comm; name some")
        return None
    command = settings.command if settings.only_command else None
    more = frozenset([command.pid] if command else [])
    return Wish(settings.pid, settings.comm, follows(settings), more)


def is_limited(settings: FtraceSettings) -> bool:
    """Tell whether only some tasks are to be recorded."""
    return bool(settings.pid or settings.comm or settings.only_command)


def follows(settings: FtraceSettings) -> bool:
    """Tell whether children of the recorded tasks are recorded, too."""
    return bool(settings.follow_fork or settings.only_command)


def record_only(instance: Instance, settings: FtraceSettings) -> None:
    """Limit *instance* to the tasks that *settings* ask for, before its tracer and events are on.

    Raises:
        UsageError: there are no such tasks.
        NothingToRecordError: this machine does not allow it; the message has the remedy.
        LttdError: the kernel refuses.
    """
    wish, tracer = wish_of(settings), settings.tracer
    lists = lists_of(instance, tracer)
    if wish is None:
        if tracer is not None:  # that of a killed lttd may be set, and limited
            instance.notes += instance.undo.take_back(FUNCTIONS.file)
        return
    refuse_other_lists(instance, lists)
    wanted = find_tasks(wish)
    for each in lists:
        if follows(settings):
            instance.undo.change(each.fork, "1")
        of_killed = bool(instance.undo.added(each.file))
        limit(instance, each, wish, wanted, anew=of_killed)
    if tracer is not None and FUNCTIONS not in lists:
        words = "pid, comm and only-command limit events and calls of functions"
        instance.notes.append(f"{words}; the tracer {tracer} records all tasks")


def refuse_other_lists(instance: Instance, lists: Iterable[TaskList]) -> None:
    """Refuse to limit an instance with a list that somebody else has written.

    Raises:
        NothingToRecordError: it has such a list, or the kernel knows other ids than this process.
    """
    if not kernel_knows_our_pids():
        words = "lttd runs in a pid namespace, whose process ids the kernel's trace does not know"
        raise NothingToRecordError(
            f"pid, comm, only-command: {words}",
            "run lttd in the initial pid namespace (docker: --pid=host)",
        )
    for each in lists if not instance.own else ():
        path, listed = instance.file(each.file), read_ids(instance, each.file)
        if listed and not instance.undo.added(each.file):
            some = f"{path} lists pids such as {min(listed)} ({len(listed)} in all)"
            raise NothingToRecordError(
                f"{some}, which another tool wrote: pid, comm and only-command would mix with them",
                f"echo > {path} clears the list; or leave these options out",
            )


def limit(
    instance: Instance,
    tasks: TaskList,
    wish: Wish,
    wanted: Collection[int],
    *,
    anew: bool = False,
) -> None:
    """Have the kernel list *wanted*, and what else *wish* means meanwhile.

    *anew*: nothing else, so the list is truncated, and all tasks are recorded until the next write.

    Raises:
        LttdError: the kernel does not list all of them, or leaves some out.
    """
    path = instance.file(tasks.file)
    _write_down(instance, tasks, wanted)
    known = set(wanted)
    if anew:
        _write_anew(path, known, read_ids(instance, tasks.file))
    else:
        _write(path, known)
    for _ in range(_LOOKS):
        # Those that the kernel has added by itself are not new.
        new = find_tasks(wish, all_there=False) - known - read_ids(instance, tasks.file)
        if not new:
            break
        _write_down(instance, tasks, new)
        _write(path, new)
        known |= new
    _check(instance, tasks, known)


def release(instance: Instance, tasks: TaskList) -> None:
    """Have the kernel record all tasks again.

    Raises:
        LttdError: it refuses.
    """
    if instance.own:
        _write(instance.file(tasks.file), (), os.O_TRUNC)
    else:
        instance.notes += instance.undo.take_back(tasks.file)


class Ended:
    """Notices that no task is left of those that are recorded, and notes it once."""

    def __init__(self, instance: Instance, settings: FtraceSettings) -> None:
        self._instance = instance
        self.follow(settings)

    def follow(self, settings: FtraceSettings) -> None:
        """Look at the tasks of *settings* from now on."""
        # A recording of COMMAND ends with it.
        self._is_known = not (settings.pid or settings.comm)

    def look(self) -> bool:
        """Tell whether there is a new note."""
        if self._is_known:
            return False
        with suppress(LttdError):
            listed = read_ids(self._instance, EVENTS.file)
            self._is_known = not any(map(is_alive, listed))
        if self._is_known:
            self._instance.notes.append(
                "all tasks to which recording is limited have ended: no event of a task is recorded"
                " any more; end this recording, or name others"
            )
        return self._is_known


def _write_down(instance: Instance, tasks: TaskList, ids: Collection[int]) -> None:
    """Note that *ids* will be listed, so that a kill does not leave them; an own instance goes."""
    if not instance.own:
        instance.undo.add(tasks.file, map(str, sorted(ids)))


def _check(instance: Instance, tasks: TaskList, wanted: Collection[int]) -> None:
    """Read back what the kernel lists, and what it leaves out.

    Raises:
        LttdError: a living task is not listed, or left out.
    """
    path = instance.file(tasks.file)
    missing = [each for each in set(wanted) - read_ids(instance, tasks.file) if is_alive(each)]
    if missing:
        words = f"the kernel did not take {len(missing)} ids, such as {missing[0]}"
        raise SourceError(f"{path}: {words}; their tasks would not be recorded")
    file = instance.file(tasks.left_out)
    if not os.path.exists(file):
        return
    left_out = sorted(read_ids(instance, tasks.left_out) & set(wanted))
    if left_out:
        words = f"{file} lists {left_out[0]}, so that task is not recorded"
        raise NothingToRecordError(words, f"echo > {file} clears the list")


def _write(path: str, ids: Collection[int], flags: int = os.O_APPEND) -> None:
    """Write *ids* with one write: a list that is written in parts cuts numbers in two.

    Raises:
        LttdError: the kernel refuses.
    """
    data = " ".join(map(str, sorted(ids))).encode()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags)
        try:
            taken_bytes = os.write(fd, data) if data else 0
        finally:
            os.close(fd)
    except OSError as error:
        raise explained(path, error, f"writing {len(ids)} ids: ") from error
    if taken_bytes < len(data):
        raise SourceError(f"{path}: the kernel took {taken_bytes} of {len(data)} bytes")


def _write_anew(path: str, ids: Collection[int], before: Collection[int]) -> None:
    """Replace the list, which has the ids *before*.

    Raises:
        LttdError: the kernel refuses; the list is as it was, if it takes that.
    """
    try:
        _write(path, ids, os.O_TRUNC)
    except LttdError:
        _write(path, before, os.O_TRUNC)
        raise
