"""Set filters of events: the kernel drops an event whose fields do not fit before it is stored.

    sched:sched_switch: prev_pid == 42 || next_comm == "sshd"
    sched_*: common_pid != 0

The glob before the colon selects among the events that are recorded.  An event that several filters
name must pass all of them.

Rule: a filter that the kernel refuses replaces the one before, and lets all events pass.  So a
filter is set before its event is enabled and read back; if one is refused, all are put back.
Rule: a filter is written to each event, never to a system's ``filter`` file: that write succeeds
although events without the field then have no filter.
"""

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from lttd.errors import LttdError, UsageError
from lttd.parsers import shown
from lttd.sources.ftrace.error_log import ErrorLog
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.settings import read_setting
from lttd.sources.tracefs import event_file, is_match, read_text

_NO_FILTER: Final = "none"
_FILTER: Final = r"([\w*?\[\]!.-]+(?::[\w*?\[\]!.-]*)?)\s*:\s*(\S.*)"
_LISTED: Final = 3


class Filter(NamedTuple):
    """One filter as the user wrote it."""

    glob: str
    expression: str


def parse_filter(text: str) -> Filter:
    """Parse ``EVENT: EXPRESSION``; EVENT is a glob, with or without a system.

    Raises:
        UsageError: it has another form.
    """
    found = re.fullmatch(_FILTER, text.strip(), re.DOTALL)
    if found is None:
        raise UsageError(
            f"filter {shown(text)}: write EVENT: EXPRESSION, as 'sched:sched_switch: prev_pid == 1'"
        )
    return Filter(found[1], found[2])


def filters_by_event(texts: Iterable[str], events: Sequence[str]) -> dict[str, str]:
    """Return the filter of each of *events* (``system:event``) that has one.

    Raises:
        UsageError: a text is not a filter, names none of *events*, or is too long for the kernel.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        one = parse_filter(text)
        names = [event for event in events if is_match(one.glob, *event.split(":", 1))]
        if not names:
            words = f"{shown(one.glob)} names no event that is recorded; add it to events"
            raise UsageError(f"filter {words}")
        for name in names:
            found.setdefault(name, []).append(one.expression)
    return {name: _joined(name, expressions) for name, expressions in found.items()}


def _joined(event: str, expressions: Sequence[str]) -> str:
    unlike = list(dict.fromkeys(expressions))
    text = unlike[0] if len(unlike) == 1 else " && ".join(f"({one})" for one in unlike)
    size_bytes, page_bytes = len(os.fsencode(text)), os.sysconf("SC_PAGESIZE")
    if size_bytes >= page_bytes:
        raise UsageError(
            f"filter {event}: {size_bytes:,} bytes are too long for the kernel, which takes fewer"
            f" than {page_bytes:,}; a list of processes goes into pid"
        )
    return text


def set_filters(instance: Instance, filters: Mapping[str, str]) -> None:
    """Set the filter of each event, and read it back; if one is refused, put all back.

    Raises:
        UsageError: the kernel refuses some; the line has its words.
    """
    before: dict[str, str] = {}
    refused: dict[str, str] = {}
    try:
        for event, text in filters.items():
            was = read_setting(instance.file(filter_file(event)))
            if reason := _refusal(instance, event, text):
                refused[event] = reason
            else:
                before[event] = was
        if refused:
            raise UsageError(_words(refused))
    except LttdError:
        for event, text in before.items():
            instance.undo.change(filter_file(event), text)
        raise
    instance.filters |= filters


def clear_filters(instance: Instance, events: Iterable[str]) -> None:
    """Put back the filters of *events* to what they were before lttd set them."""
    for event in events:
        del instance.filters[event]
        if not instance.own:
            instance.notes += instance.undo.restore([filter_file(event)])
            continue
        try:
            instance.undo.change(filter_file(event), _NO_FILTER)
        except LttdError as error:  # its module was removed
            instance.notes.append(str(error))


def filter_file(event: str) -> str:
    """Return the file of the filter of ``system:event``, below the instance."""
    return event_file(event, "filter")


def _refusal(instance: Instance, event: str, text: str) -> str:
    """Set a filter; return the kernel's words if it refuses, else nothing.

    Raises:
        LttdError: the file cannot be written at all.
    """
    log = ErrorLog(instance.file("error_log"))
    try:
        instance.undo.change(filter_file(event), text)
    except LttdError as error:
        known = log.newest()
        if known is None and not _is_of_syntax(error):
            raise
        return str(known) if known else f"the kernel refuses {shown(text)}"
    now = read_text(instance.file(filter_file(event)))
    return "" if now == text else f"the kernel made {shown(now)} of {shown(text)}"


def _is_of_syntax(error: LttdError) -> bool:
    """Tell whether the kernel did not understand a filter; its errno depends on the mistake."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.EINVAL, errno.ENOENT, errno.EPERM)


def _words(refused: Mapping[str, str]) -> str:
    (event, reason), more = next(iter(refused.items())), len(refused) - 1
    if not more:
        return f"filter {event}: {reason}"
    others = ", ".join(list(refused)[1 : 1 + _LISTED])
    rest = f" and {more - _LISTED} more" if more > _LISTED else ""
    return f"filter {event}: {reason}; so also {others}{rest}: name fewer events, or exclude them"
