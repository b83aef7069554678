"""Set the tracer of an instance, and the functions that it records.

Rule: the kernel refuses another tracer while any ``trace_pipe_raw`` of the instance is open.  So
lttd opens its own, the locks, again after it has set the tracer.
Rule: the functions are set before the tracer: it would record all functions meanwhile.
Rule: a write to a list of functions has one word and a line end: the kernel takes one word of each
write, and a word without an end only at close, where its error is lost.
"""

import errno
import os
import re
from collections.abc import Collection, Sequence
from typing import Final

from lttd.errors import LttdError, NothingToRecordError, SourceError, UsageError
from lttd.parsers import nearest, shown
from lttd.sources.ftrace.additions import addition_of, append_line
from lttd.sources.ftrace.asked import FtraceSettings
from lttd.sources.ftrace.instance import Instance, unread_events
from lttd.sources.ftrace.settings import read_setting
from lttd.sources.ftrace.task_lists import FUNCTION_TRACERS
from lttd.sources.processes import holders_below
from lttd.sources.tracefs import explained, read_text

NO_TRACER: Final = "nop"
_CURRENT: Final = "current_tracer"
DEPTH_FILE: Final = "/max_graph_depth"
_ALL_FUNCTIONS: Final = "available_filter_functions"
# As many letters of a misspelt function are taken as right.
_SAME_LETTERS: Final = 3


def set_tracer(instance: Instance, asked: FtraceSettings) -> None:
    """Set the tracer that a run asks for, with its functions.

    Raises:
        UsageError: the tracer or a function is not known, or the options do not fit it.
        NothingToRecordError: this kernel cannot, or this user may not.
        LockedError: another recorder came while the rings were not locked.
    """
    _refuse_half(asked)
    if asked.tracer is None:
        return
    _refuse_unknown(instance, asked.tracer)
    if asked.graph_depth is not None:
        _set_depth(instance, asked.graph_depth)
    _add_functions(instance, "set_ftrace_filter", asked.function)
    _add_functions(instance, "set_ftrace_notrace", asked.notrace)
    if read_setting(instance.file(_CURRENT)) != asked.tracer:
        with instance.rings_closed():
            _change(instance, asked.tracer)
    instance.undo.keep(_CURRENT)


def has_tracer(instance: Instance) -> bool:
    """Tell whether a tracer stores records in the instance, by whomever it was set."""
    try:
        return read_setting(instance.file(_CURRENT)) not in ("", NO_TRACER)
    except LttdError:
        return False


def _refuse_half(asked: FtraceSettings) -> None:
    given = [name for name in ("function", "notrace") if getattr(asked, name)]
    if given and asked.tracer not in FUNCTION_TRACERS:
        raise UsageError(
            f"{given[0]} is of the function tracers; add --tracer function or function_graph"
        )
    if asked.graph_depth is not None and asked.tracer != "function_graph":
        raise UsageError("graph-depth is of one tracer only; add --tracer function_graph")


def _refuse_unknown(instance: Instance, tracer: str) -> None:
    here = read_text(instance.file("available_tracers")).split()
    if tracer in here:
        return
    top = [] if instance.path == instance.root else _words(f"{instance.root}/available_tracers")
    if tracer in top:
        raise NothingToRecordError(
            f"tracer {tracer}: this kernel has it at the top level only",
            "record that: --source ftrace:/",
        )
    near = nearest(tracer, here)
    advice = f"did you mean {near}? " if near else ""
    raise UsageError(
        f"tracer {shown(tracer)}: this kernel does not have it here; {advice}"
        f"it has {', '.join(here)}"
    )


def _words(path: str) -> list[str]:
    try:
        return read_text(path).split()
    except LttdError:
        return []


def _set_depth(instance: Instance, depth: int) -> None:
    if not os.path.exists(f"{instance.root}{DEPTH_FILE}"):
        raise NothingToRecordError(
            "graph-depth: this kernel has no max_graph_depth", "leave graph-depth out"
        )
    instance.undo.change(DEPTH_FILE, str(depth))
    if not (instance.path == instance.root or depth == 0):
        instance.notes.append(
            "graph-depth is a setting of the whole machine: function_graph in other instances"
            " has it, too, until lttd ends"
        )


def _add_functions(instance: Instance, file: str, globs: Sequence[str]) -> None:
    """Add globs to a list of functions.

    Raises:
        UsageError: no function matches.
    """
    path, row = instance.file(file), addition_of(file)
    assert row is not None
    for glob in globs:
        if not re.fullmatch(row.item, glob):
            raise UsageError(f"function {shown(glob)}: write a name, or a glob such as 'vfs_*'")
    if globs and not os.path.exists(path):
        raise NothingToRecordError(f"{path}: this kernel cannot choose functions", "leave it out")
    undo, of_killed = instance.undo, instance.undo.added(file)
    try:
        for glob in undo.add(file, globs) if globs else ():
            _add_function(instance, path, glob)
    except LttdError:
        instance.notes += undo.take_back(file, set(undo.added(file)) - set(of_killed))
        raise
    if stay := sorted(set(of_killed) - set(globs)):
        # A function may match both globs; and with an empty list all would be recorded.
        words = "of an lttd that was killed, too, until this one ends"
        instance.notes.append(f"{path} has {', '.join(stay)} {words}")


def _add_function(instance: Instance, path: str, glob: str) -> None:
    try:
        append_line(path, glob)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            near = _nearest_function(instance, glob)
            advice = f"did you mean {near}?" if near else f"see {instance.root}/{_ALL_FUNCTIONS}"
            words = f"no function of this kernel that can be traced matches {shown(glob)}"
            raise UsageError(f"{words}; {advice}") from None
        raise explained(path, error, f"writing {glob!r}: ") from error


def _nearest_function(instance: Instance, glob: str) -> str:
    known: Collection[str] = [
        name
        for name in _words(f"{instance.root}/{_ALL_FUNCTIONS}")
        if name.startswith(glob[:_SAME_LETTERS])
    ]
    return nearest(glob, known)


def _change(instance: Instance, tracer: str) -> None:
    """Write the tracer; say what that cost if the ring of somebody else held events.

    Raises:
        LttdError: the kernel refuses.
    """
    unread = 0 if instance.own else unread_events(instance.path)
    try:
        instance.undo.change(_CURRENT, tracer)
    except LttdError as error:
        lost = unread - unread_events(instance.path) if unread else 0
        cost = f"; the attempt emptied the ring: its {lost:,} events are lost" if lost > 0 else ""
        holders = holders_below(instance.path)
        if holders and "busy" in str(error):
            who = ", ".join(holders)
            words = f"{instance.file(_CURRENT)}: {who} reads this instance: end that{cost}"
            raise SourceError(words) from None
        if isinstance(error, NothingToRecordError):
            raise NothingToRecordError(error.reason, error.remedy + cost) from None
        raise type(error)(f"{error}{cost}") from None
    if unread:
        instance.notes.append(
            f"setting the tracer emptied the ring: its {unread:,} events are lost"
        )
