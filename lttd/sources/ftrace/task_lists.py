"""The kernel's lists of thread ids: of an instance's events, and of the functions of its tracer.

    of events            of functions            what
    set_event_pid        set_ftrace_pid          only these threads are recorded; empty: all
    set_event_notrace_pid set_ftrace_notrace_pid these are left out
    options/event-fork   options/function-fork   children of a listed thread are listed, too

Rule: the list of functions matters only while a tracer of functions is set.
"""

import os
from typing import Final, NamedTuple

from lttd.errors import LttdError
from lttd.sources.ftrace.additions import PIDS_FILE
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.settings import read_setting
from lttd.sources.tracefs import read_text

FUNCTION_TRACERS: Final = ("function", "function_graph")


class TaskList(NamedTuple):
    """The files of one kind of list."""

    file: str
    left_out: str
    """Before Linux 5.7 there is none."""
    fork: str
    """An option."""


EVENTS: Final = TaskList("set_event_pid", PIDS_FILE, "options/event-fork")
FUNCTIONS: Final = TaskList("set_ftrace_pid", "set_ftrace_notrace_pid", "options/function-fork")
TASK_LISTS: Final = {each.file: each for each in (EVENTS, FUNCTIONS)}


def lists_of(instance: Instance, tracer: str | None = None) -> tuple[TaskList, ...]:
    """Return the lists that limit what *instance* records; *tracer* is one that will be set."""
    return (EVENTS, FUNCTIONS) if _has_functions(instance, tracer) else (EVENTS,)


def _has_functions(instance: Instance, tracer: str | None) -> bool:
    try:
        now = tracer or read_setting(instance.file("current_tracer"))
    except LttdError:
        return False  # it is built without tracers
    return now in FUNCTION_TRACERS and os.path.exists(instance.file(FUNCTIONS.file))


def ids_in(text: str) -> frozenset[int]:
    """Return the ids in the text of a list; an empty one of functions is ``no pid``."""
    return frozenset(int(word) for word in text.split() if word.isdigit())


def read_ids(instance: Instance, file: str) -> frozenset[int]:
    """Read a list.

    Raises:
        LttdError: it cannot be read.
    """
    return ids_in(read_text(instance.file(file)))
