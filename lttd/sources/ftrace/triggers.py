"""Set triggers of events: what the kernel does when an event comes.

    sched:sched_process_exit: traceoff:1 if comm == "db"
    sched:sched_process_exec: stacktrace
    sched:sched_process_exec: enable_event:sched:sched_process_exit:5

Rule: an event has at most one trigger of each kind; traceon and traceoff are one kind.  One that
somebody else has set stays, and none of the same kind is added.
Rule: the kernel counts stacks and switched events also while tracing is off, so a trigger with a
count is set anew when recording starts.
Rule: an event that enable_event has turned on stays on without its trigger, so it is turned off.
"""

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from lttd.errors import LttdError, UsageError
from lttd.parsers import shown
from lttd.sources.ftrace.additions import append_line, trigger_name
from lttd.sources.ftrace.error_log import ErrorLog
from lttd.sources.ftrace.instance import Instance
from lttd.sources.tracefs import event_file, explained, find_events, is_match, one_by_one, read_text

_GLOB: Final = r"[\w*?\[\]!.-]+(?::[\w*?\[\]!.-]*)?"
_ACTION: Final = r"stacktrace|traceoff|traceon|(?:enable|disable)_event:[\w-]+:[\w.-]+"
_TRIGGER: Final = rf"({_GLOB})\s*:\s*({_ACTION})(:[1-9]\d{{0,8}})?(?:\s+if\s+(\S.*))?"
_OTHER: Final = rf"{_GLOB}\s*:\s*(snapshot|hist)\b.*"
_REFUSED: Final = {
    "snapshot": "it would take the unread events out of the ring, which lttd reads; traceoff stops"
    " the ring at such an event, and lttd stores what it holds",
    "hist": "it counts within the kernel, and lttd would not store its result",
}
_SWITCHES: Final = r"(?:enable|disable)_event:([\w-]+:[\w.-]+)"


class Trigger(NamedTuple):
    """One trigger as the user wrote it."""

    glob: str
    action: str
    times: str
    """``:N``, or nothing."""
    condition: str
    """The filter, or nothing."""

    @property
    def item(self) -> str:
        """The line to write to the event's ``trigger``."""
        return f"{self.action}{self.times}" + (f" if {self.condition}" if self.condition else "")


def parse_trigger(text: str) -> Trigger:
    """Parse ``EVENT: ACTION[:N] [if FILTER]``; EVENT is a glob.

    Raises:
        UsageError: it has another form, or an action that lttd does not set.
    """
    text = text.strip()
    if found := re.fullmatch(_OTHER, text, re.DOTALL):
        raise UsageError(f"event-trigger {found[1]} is not possible: {_REFUSED[found[1]]}")
    found = re.fullmatch(_TRIGGER, text, re.DOTALL)
    if found is None:
        raise UsageError(
            f"event-trigger {shown(text)}: write EVENT: ACTION[:N] [if FILTER]; ACTION is traceoff,"
            " traceon, stacktrace, enable_event:SYSTEM:EVENT or disable_event:SYSTEM:EVENT"
        )
    return Trigger(found[1], found[2], found[3] or "", found[4] or "")


def stores_stacks(texts: Iterable[str]) -> bool:
    """Tell whether one of these triggers stores stacks."""
    return any(parse_trigger(text).action == "stacktrace" for text in texts)


def switched_event(item: str) -> str | None:
    """Return the event that a trigger turns on or off."""
    found = re.match(_SWITCHES, item)
    return found[1] if found else None


def triggers_by_event(events_directory: str, texts: Iterable[str]) -> dict[str, list[str]]:
    """Return the triggers of each event (``system:event``), as they are written to its file.

    Raises:
        UsageError: a text is not a trigger, or names no event; or an event has two of a kind.
    """
    found: dict[str, list[str]] = {}
    for one in map(parse_trigger, texts):
        target = switched_event(one.action)
        if target is not None:
            find_events(events_directory, [target])
        for file in one_by_one(events_directory, find_events(events_directory, [one.glob])):
            if one.item not in found.setdefault(file.name, []):
                found[file.name].append(one.item)
    for event, items in found.items():
        kinds = [_kind(item) for item in items]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise UsageError(f"event-trigger {event}: the kernel takes one {kind} of an event")
    return found


def _kind(item: str) -> str:
    name = trigger_name(item)
    if name.startswith("traceo"):
        return "traceon or traceoff"
    return name.removeprefix("enable_").removeprefix("disable_")


def trigger_file(event: str) -> str:
    """Return the file of the triggers of ``system:event``, below the instance."""
    return event_file(event, "trigger")


def change_triggers(instance: Instance, wanted: Mapping[str, Sequence[str]]) -> None:
    """Add the triggers that are missing, and take back those that lttd set and that are not wanted.

    Raises:
        UsageError: the kernel refuses one; the triggers are as they were before.
    """
    before: dict[str, Sequence[str]] = {
        event: list(items) for event, items in instance.triggers.items()
    }
    try:
        _change(instance, wanted)
    except LttdError:
        _change(instance, before)
        raise


def _change(instance: Instance, wanted: Mapping[str, Sequence[str]]) -> None:
    for event, items in list(instance.triggers.items()):
        _take_back(instance, event, [item for item in items if item not in wanted.get(event, ())])
    for event in wanted:
        for item in wanted[event]:
            if item not in instance.triggers.get(event, ()):
                _add(instance, event, item)


def _add(instance: Instance, event: str, item: str) -> None:
    file, target = trigger_file(event), switched_event(item)
    _refuse_second(instance, event, item)
    log = ErrorLog(instance.file("error_log"))
    if target is not None:
        instance.undo.foresee(event_file(target, "enable"), "1")
        instance.switched.add(target)
    instance.undo.add(file, [item])
    try:
        append_line(instance.file(file), item)
    except OSError as error:
        instance.undo.take_back(file, [item])
        known = log.newest()
        if known is None and error.errno != errno.EINVAL:
            raise explained(instance.file(file), error, f"writing {item!r}: ") from error
        words = str(known) if known else f"the kernel refuses {shown(item)}"
        raise UsageError(f"event-trigger {event}: {words}") from error
    instance.triggers.setdefault(event, []).append(item)
    instance.triggered.add(event)


def _refuse_second(instance: Instance, event: str, item: str) -> None:
    path = instance.file(trigger_file(event))
    size_bytes, page_bytes = len(os.fsencode(item)), os.sysconf("SC_PAGESIZE")
    if size_bytes >= page_bytes - 1:
        words = f"{size_bytes:,} bytes are too long; the kernel takes fewer than {page_bytes:,}"
        raise UsageError(f"event-trigger {event}: {words}")
    for line in read_text(path).splitlines():
        if not line.startswith("#") and _kind(line) == _kind(item):
            remedy = f"echo '!{trigger_name(line)}' > {path} removes it"
            raise UsageError(f"event-trigger {event}: somebody has set {shown(line)}; {remedy}")


def _take_back(instance: Instance, event: str, items: Sequence[str]) -> None:
    if not items:
        return
    instance.notes += instance.undo.take_back(trigger_file(event), items)
    kept = [item for item in instance.triggers[event] if item not in items]
    instance.triggers[event] = kept
    if not kept:
        del instance.triggers[event]
    for item in items:
        target = switched_event(item)
        if target is not None:
            _switch_off(instance, target)


def _switch_off(instance: Instance, target: str) -> None:
    """Turn an event off that its trigger has turned on, unless it is recorded anyway."""
    file = event_file(target, "enable")
    is_recorded = any(is_match(name, *target.split(":", 1)) for name in instance.events)
    if not is_recorded and (instance.own or instance.undo.has_changed(file)):
        instance.undo.change(file, "0")


def renew_counts(instance: Instance) -> None:
    """Set triggers anew that have counted events before recording starts."""
    for event, items in list(instance.triggers.items()):
        text = read_text(instance.file(trigger_file(event)))
        used = [item for item in items if _has_counted(item, text)]
        if used:
            _take_back(instance, event, used)
            for item in used:
                _add(instance, event, item)


def _has_counted(item: str, text: str) -> bool:
    head = item.partition(" if ")[0]
    name = trigger_name(item)
    if head == name:
        return False
    count = head.removeprefix(f"{name}:")
    return f"{name}:count={count}" not in text.split()
