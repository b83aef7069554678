"""Set up a tracefs instance for recording, and read back the kernel's actual settings.

Rule: an instance of lttd's own inherits options of the top level, so each option that matters is
set.  In another instance only the requested settings are set, through an Undo.
Rule: a setting that has the value already is not written: even then, writing a clock empties the
ring.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from lttd.abi.ftrace import PageLayout, parse_header_page
from lttd.errors import LttdError, UsageError
from lttd.namespaces import kernel_knows_our_pids
from lttd.sources.ftrace.asked import FtraceSettings
from lttd.sources.ftrace.filters import filters_by_event, set_filters
from lttd.sources.ftrace.instance import Instance, make_own, unread_events
from lttd.sources.ftrace.mark_symbol import by_a_mark, by_kallsyms
from lttd.sources.ftrace.markers import take_marks
from lttd.sources.ftrace.modules import KALLSYMS, hides_symbols
from lttd.sources.ftrace.options import USER_STACK, set_options, set_stacks
from lttd.sources.ftrace.pids import is_limited, record_only
from lttd.sources.ftrace.probes import make_probes, name_functions, probe_events, refuse_disabled
from lttd.sources.ftrace.settings import read_setting
from lttd.sources.ftrace.task_lists import FUNCTIONS, ids_in, lists_of
from lttd.sources.ftrace.tracer import set_tracer
from lttd.sources.ftrace.triggers import change_triggers, stores_stacks, triggers_by_event
from lttd.sources.ftrace.wanted import OWN_EVENTS, wanted_events
from lttd.sources.tracefs import (
    EnableFile,
    event_file,
    events_of,
    one_by_one,
    read_bytes,
    read_text,
    systems,
    without,
    write_text,
)

OWN_CLOCK: Final = "mono"
_CPUS: Final = "/sys/devices/system/cpu"
OWN_BUFFER_BYTES: Final = 4 << 20
# Wake up at the smaller of these: a quarter of the ring leaves time, and a take has no more room.
WAKE_PERCENT: Final = 25
WAKE_BYTES: Final = 4 << 20
# Options that a new instance inherits from the top level, and that change the events that it
# records, or whether it records.  The other options change how the kernel prints.
OWN_OPTIONS: Final = (
    ("overwrite", "1"),
    ("record-tgid", "1"),
    ("irq-info", "1"),
    ("markers", "1"),
    ("stacktrace", "0"),
    ("userstacktrace", "0"),
    ("func_stack_trace", "0"),
    ("event-fork", "0"),
    ("function-fork", "0"),
    ("pause-on-trace", "0"),
    ("disable_on_free", "0"),
)


class Wanted(NamedTuple):
    """The events to record, and what the kernel does with them."""

    files: list[EnableFile]
    filters: dict[str, str]
    """By event."""
    triggers: dict[str, list[str]]
    """By event."""


def stores_addresses(instance: Instance, settings: FtraceSettings) -> bool:
    """Tell whether events will hold addresses of kernel functions, so that symbols are needed."""
    has_stacks = _read_or(instance, "options/stacktrace", "0") == "1"  # of somebody else, perhaps
    with_stacks = has_stacks or stores_stacks(settings.event_trigger)
    return bool(with_stacks or settings.tracer) or name_functions(settings.probe)


def stores_user_stacks(instance: Instance) -> bool:
    """Tell whether events will be followed by stacks of programs."""
    return _read_or(instance, f"options/{USER_STACK}", "0") == "1"


def configure_own(instance: Instance, settings: FtraceSettings) -> None:
    """Set up a new instance; it records nothing before tracing_on is 1."""
    _set(instance, "tracing_on", "0")
    clock = settings.clock or OWN_CLOCK
    instance.mark_symbols = by_a_mark(instance, stays_empty=clock_of(instance) == clock)
    _set_clock(instance, clock)
    if settings.subbuffer_bytes is not None:
        _set_subbuffer_bytes(instance, settings.subbuffer_bytes)
    _set_buffer_bytes(
        instance, settings.buffer_bytes if settings.buffer_bytes is not None else OWN_BUFFER_BYTES
    )
    for name, text in OWN_OPTIONS:
        if os.path.exists(instance.file(f"options/{name}")):
            _try_to_set(instance, f"options/{name}", text)
    _set_options(instance, settings)
    _try_to_set(instance, "buffer_percent", str(wake_percent(instance.ring_bytes)))
    instance.began_empty = True
    record_only(instance, settings)
    set_tracer(instance, settings)
    _record_events(instance, settings)
    _tell_differences(instance, settings)


def configure_foreign(instance: Instance, settings: FtraceSettings) -> None:
    """Write the requested settings, and one that keeps poll from spinning; note the old values."""
    undo = instance.undo
    instance.triggered = _triggered(instance)
    instance.began_empty = not unread_events(instance.path)
    instance.mark_symbols = by_kallsyms() or _by_an_own_mark(instance)
    if settings.clock is not None:
        _set_clock(instance, settings.clock)
    if settings.subbuffer_bytes is not None:
        _set_subbuffer_bytes(instance, settings.subbuffer_bytes)
    if settings.buffer_bytes is not None:
        _set_buffer_bytes(instance, settings.buffer_bytes)
    _set_options(instance, settings)
    if not undo.keep("buffer_percent") and _read_or(instance, "buffer_percent", "50") == "0":
        _try_to_set(instance, "buffer_percent", str(wake_percent(instance.ring_bytes)))
    record_only(instance, settings)
    set_tracer(instance, settings)
    _record_events(instance, settings)
    undo.keep("tracing_on")
    instance.notes += undo.drop_inherited()
    _tell_differences(instance, settings)
    turned_on = instance.switched.difference(instance.events)
    instance.events = [each for each in enabled_events(instance.path) if each not in turned_on]
    if not is_limited(settings):
        _tell_pids(instance)


def _by_an_own_mark(instance: Instance) -> bytes:
    """Find the symbols of marks where the kernel hides its list: in an instance made for that."""
    try:
        made = make_own(instance.root)
    except LttdError:
        return b""  # this user may not make one: marks are printed with an address
    try:
        return by_a_mark(made, stays_empty=False)
    finally:
        made.close()
        instance.notes += made.notes


def wake_percent(ring_size_bytes: int) -> int:
    """Return the buffer_percent to set; with 0 poll would always report data."""
    return max(1, min(WAKE_PERCENT, 100 * WAKE_BYTES // max(ring_size_bytes, 1)))


def wakes_sensibly(instance: Instance) -> bool:
    """Tell whether poll waits for some fill; before Linux 5.0, or with 0, it would spin."""
    return _read_or(instance, "buffer_percent", "0") != "0"


def page_layout(instance: Instance) -> PageLayout:
    """Read the layout of the instance's sub-buffers."""
    order = "<" if sys.byteorder == "little" else ">"
    try:
        return parse_header_page(read_bytes(instance.file("events/header_page")), order)
    except (LttdError, ValueError):
        size_kb = int(_read_or(instance, "buffer_subbuf_size_kb", "0"))
        return PageLayout((size_kb << 10) or os.sysconf("SC_PAGESIZE"), byteorder=order)


def described(instance: Instance, layout: PageLayout, *, overwrite: bool) -> dict[str, Any]:
    """Return the settings of an instance for the manifest, without events."""
    return {
        "events": [],
        "buffer_bytes": instance.ring_bytes,
        "subbuffer_bytes": layout.subbuffer_bytes,
        "overwrite": overwrite,
        "instance": instance.name,
    }


def overwrites(instance: Instance) -> bool:
    """Tell whether a full ring loses its oldest events rather than the newest."""
    return read_text(instance.file("options/overwrite")) == "1"


def clock_of(instance: Instance) -> str:
    """Return the name of the instance's trace clock."""
    return read_setting(instance.file("trace_clock"))


def enabled_events(path: str) -> list[str]:
    """Return the enabled events of an instance: ``system:*``, or single events."""
    names = []
    for system in systems(f"{path}/events"):
        directory = f"{path}/events/{system}"
        state = _state(f"{directory}/enable")
        if state == "1":
            names.append(f"{system}:*")
        elif state == "X":
            names += [
                f"{system}:{event}"
                for event in events_of(directory)
                if _state(f"{directory}/{event}/enable") == "1"
            ]
    return names


def _state(enable_file: str) -> str:
    try:
        return read_setting(enable_file)
    except LttdError:
        return ""  # some events have no such file; a module may have been removed


def _triggered(instance: Instance) -> set[str]:
    """Return the events that have a trigger of somebody else, and may be on for it only."""
    names = _read_or(instance, "set_event", "").splitlines()
    files = {name: event_file(name, "enable") for name in names}
    return {name for name, file in files.items() if _read_or(instance, file, "").endswith("*")}


def _set(instance: Instance, name: str, text: str) -> None:
    instance.undo.change(name, text)


def _set_options(instance: Instance, settings: FtraceSettings) -> None:
    if settings.overwrite is not None:
        _set(instance, "options/overwrite", str(int(settings.overwrite)))
    set_stacks(instance, kernel=settings.stack, user=settings.user_stack)
    set_options(instance, settings.option)


def _try_to_set(instance: Instance, name: str, text: str) -> None:
    try:
        _set(instance, name, text)
    except LttdError as error:
        instance.notes.append(str(error))


def _read_or(instance: Instance, name: str, default: str) -> str:
    try:
        return read_text(instance.file(name))
    except LttdError:
        return default


def _set_clock(instance: Instance, clock: str) -> None:
    known = read_text(instance.file("trace_clock")).replace("[", "").replace("]", "").split()
    if clock not in known:
        raise UsageError(f"this kernel has no trace clock {clock!r}; it has {', '.join(known)}")
    _set_and_tell_loss(instance, "trace_clock", clock)


def _set_subbuffer_bytes(instance: Instance, size_bytes: int) -> None:
    if size_bytes <= 0 or size_bytes % 1024:
        raise UsageError(
            f"a sub-buffer of {size_bytes} bytes is not possible; write a multiple of 1024"
        )
    try:
        _set_and_tell_loss(instance, "buffer_subbuf_size_kb", str(size_bytes >> 10))
    except LttdError as error:
        instance.notes.append(str(error))


def _set_and_tell_loss(instance: Instance, name: str, text: str) -> None:
    """Write a setting that empties the ring; note the number of events in it."""
    before = read_setting(instance.file(name))
    events = 0 if instance.own or before == text else unread_events(instance.path)
    _set(instance, name, text)
    if events:
        what = f"setting {name} emptied the ring: its {events:,} events are lost"
        instance.notes.append(what)


def _set_buffer_bytes(instance: Instance, size_bytes: int) -> None:
    if size_bytes < 1024:
        raise UsageError(f"a buffer of {size_bytes} bytes is too small; write 64K or more")
    text = str(max(1, -(-size_bytes // 1024)))
    if instance.own:
        _set(instance, "buffer_size_kb", text)
        return
    cpus = sorted(instance.raw_fds)
    # An absent CPU has no ring: the kernel would set its size to 0, whatever is written.
    for cpu in [one for one in cpus if os.path.isdir(f"{_CPUS}/cpu{one}")] or cpus:
        _set(instance, f"per_cpu/cpu{cpu}/buffer_size_kb", text)


def _record_events(instance: Instance, settings: FtraceSettings) -> None:
    """Make probes, set filters, triggers and marks, and turn the events on."""
    if settings.probe:
        make_probes(instance, settings.probe)
    asked = wanted(instance, settings)
    set_filters(instance, asked.filters)
    change_triggers(instance, asked.triggers)
    if settings.markers:
        take_marks(instance)
    instance.events += enable_files(instance, asked.files)
    refuse_disabled(instance, asked.files, settings.probe)


def wanted(instance: Instance, settings: FtraceSettings) -> Wanted:
    """Find what *settings* ask for; this changes nothing.

    Raises:
        UsageError: they ask for what is not there, or for what the kernel never does.
    """
    files, filters = events_to_enable(instance, settings), {}
    directory = instance.file("events")
    if settings.filter:
        names = [file.name for file in one_by_one(directory, files)]
        names += [] if instance.own else sorted(instance.enabled())
        filters = filters_by_event(settings.filter, list(dict.fromkeys(names)))
    return Wanted(files, filters, triggers_by_event(directory, settings.event_trigger))


def events_to_enable(instance: Instance, settings: FtraceSettings) -> list[EnableFile]:
    """Return the files of the events that *settings* ask for.

    An instance of lttd's own records OWN_EVENTS if they ask for nothing.

    Raises:
        UsageError: a glob matches no event, or a preset is not known.
    """
    nothing = not (settings.events or settings.preset or settings.probe or settings.tracer)
    globs = OWN_EVENTS if nothing and instance.own else settings.events
    globs = (*globs, *probe_events(settings.probe))
    files = wanted_events(instance, globs, settings.preset)
    if settings.exclude:
        files = without(instance.file("events"), files, settings.exclude)
    return files


def enable_files(instance: Instance, files: Sequence[EnableFile]) -> list[str]:
    """Turn on events; return the names of those that are on, and note those that are not.

    Raises:
        LttdError: the kernel refuses all of them.
    """
    refused, names = [], []
    for file in files:
        try:
            if instance.own:
                write_text(file.path, "1")
            else:
                _enable_what_is_off(instance, os.path.relpath(file.path, instance.path))
            names.append(file.name)
        except LttdError as error:
            refused.append(error)
    if files and not names:
        raise refused[0]
    instance.notes += map(str, refused)
    return names


def _enable_what_is_off(instance: Instance, file: str) -> None:
    """Enable an event, a system, or all; only events that were off are turned off again."""
    state, directory = _state(instance.file(file)), os.path.dirname(file)
    if state == "X":
        for name in events_of(instance.file(directory)):
            _enable_what_is_off(instance, f"{directory}/{name}/enable")
        return
    instance.undo.keep(directory)
    if state == "0":
        instance.undo.change(file, "1")


def _tell_pids(instance: Instance) -> None:
    """Note the lists of pids that another user has set, and whose tasks these exclude."""
    for tasks in lists_of(instance):
        what = "functions" if tasks is FUNCTIONS else "events"
        path, pids = instance.file(tasks.file), _ids_or_none(instance, tasks.file)
        if pids and not instance.undo.added(tasks.file):  # by a killed lttd, whose tracer is set
            alive = any(os.path.exists(f"/proc/{pid}") for pid in pids)
            dead = kernel_knows_our_pids() and not alive
            some = f"{pids[0]} ({len(pids)} in all{', none of which runs now' * dead})"
            instance.notes.append(
                f"{path} lists pids such as {some}: only their {what} are recorded, and not those "
                f"of COMMAND; echo > {path} has all recorded"
            )
        path, pids = instance.file(tasks.left_out), _ids_or_none(instance, tasks.left_out)
        if pids:
            instance.notes.append(
                f"{path} lists pids such as {pids[0]} ({len(pids)} in all): their {what} are not "
                f"recorded, but lttd's own are; echo > {path} changes both"
            )


def _ids_or_none(instance: Instance, file: str) -> list[int]:
    return sorted(ids_in(_read_or(instance, file, "")))


def _tell_differences(instance: Instance, settings: FtraceSettings) -> None:
    """Note settings that the kernel changed.

    Rounding a ring up to whole sub-buffers is not noted.
    """
    if (settings.kallsyms or stores_addresses(instance, settings)) and hides_symbols():
        words = "hides its addresses, so functions get no names (a service: docs/SYSTEMD.md)"
        instance.notes.append(f"{KALLSYMS} {words}")
    subbuffer_bytes = page_layout(instance).subbuffer_bytes
    asked_and_made = (
        ("buffer size", settings.buffer_bytes, instance.ring_bytes, subbuffer_bytes),
        ("sub-buffer size", settings.subbuffer_bytes, subbuffer_bytes, 0),
    )
    for what, asked, made, more in asked_and_made:
        if asked is not None and not asked <= made <= asked + more:
            instance.notes.append(
                f"{what}: asked for {-(-asked // 1024)} KiB, the kernel made {made >> 10} KiB"
            )
    if settings.overwrite is not None and overwrites(instance) != settings.overwrite:
        instance.notes.append(
            f"overwrite: asked for {settings.overwrite}, the kernel kept the other"
        )
