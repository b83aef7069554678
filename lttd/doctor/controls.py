"""Say what a recording can ask of the kernel: filters, triggers, stacks, tracers, probes, tasks.

Rule: what can be tried in an instance of lttd's own is tried; of the top level lttd only asks what
it may write.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lttd.doctor.finding import Finding, Findings, Mark, either, refused
from lttd.errors import LttdError
from lttd.presets import OF_USER, read_presets
from lttd.sources.ftrace.additions import PROBES_FILE, append_line
from lttd.sources.ftrace.modules import KALLSYMS, hides_symbols
from lttd.sources.ftrace.probes import kinds_of
from lttd.sources.ftrace.tracer import DEPTH_FILE
from lttd.sources.mounts import find_tracefs, read_write
from lttd.sources.refused import remedy
from lttd.sources.tracefs import read_text, write_text

# No task has this id.
_NEVER: Final = "common_pid == -1"
_ACTIONS: Final = ("traceoff", "traceon", "stacktrace", "enable_event", "disable_event")
_OF_EVENTS: Final = ("enable_event", "disable_event")
_FUNCTION_TRACERS: Final = ("function", "function_graph")
INIT: Final = Path("/proc/1/comm")


def in_instance(path: str) -> Findings:
    """Try what can be asked of an instance in that at *path*, which is lttd's own."""
    yield from _filters(path)
    options = {each.name for each in Path(path, "options").iterdir()}
    stacks = {"stacktrace", "userstacktrace"} & options
    yield either(
        "stacks",
        len(stacks) == 2,
        "of the kernel and of programs can be stored (--stack, --user-stack)",
        f"can be stored only by {', '.join(stacks)}" if stacks else "cannot be stored",
        "a kernel with CONFIG_STACKTRACE",
    )
    yield Finding("options", Mark.OK, f"{len(options)} can be set (--option)")
    yield from _tracers(path)
    yield _tasks(path)
    yield either(
        "marks",
        "copy_trace_marker" in options,
        "of the top level can be recorded, too (--markers)",
        "of the top level cannot be copied into an instance; lttd mark TEXT writes into it",
        "write to the instance's trace_marker, or record ftrace:/; Linux 6.18 copies them",
    )


def of_machine() -> Findings:
    """Say what can be asked whatever is recorded: probes, names of functions, presets."""
    yield from probes()
    hidden = f"{KALLSYMS} hides addresses: stacks, tracers and kprobes get no names of functions"
    yield either(
        "symbols",
        not hides_symbols(),
        f"{KALLSYMS} has the names of functions",
        hidden,
        "a service: docs/SYSTEMD.md has the drop-in; else sysctl kernel.kptr_restrict=1, as root",
    )
    try:
        known = read_presets()
        own = sum(each.file == OF_USER for each in known.values())
        more = f"; {own} of them from {OF_USER}" if own else ""
        yield Finding("presets", Mark.OK, f"{', '.join(known)}{more} (--preset)")
    except LttdError as error:
        yield refused("presets", error, Mark.NOTE)


def probes() -> Findings:
    """Say which kinds of probes the kernel has, and whether lttd may make one."""
    try:
        root = str(find_tracefs())
    except LttdError:
        return
    kinds = kinds_of(root)
    there, absent = ([name for name, has_it in kinds.items() if has_it is x] for x in (True, False))
    path = f"{root}{PROBES_FILE}"
    why, helps = _why_not_written(path)
    if not there:
        why, helps = "this kernel has none", "a kernel with CONFIG_DYNAMIC_EVENTS"
    yield either(
        "probes",
        not why,
        f"{', '.join(there)}" + (f"; this kernel has no {', '.join(absent)}" if absent else ""),
        f"{path}: {why}: --probe needs it",
        helps,
    )


def _why_not_written(path: str) -> tuple[str, str]:
    """Return why this process may not write a file, and the remedy; both empty if it may.

    The file is not opened: to open some for writing has an effect.
    """
    if os.access(path, os.W_OK):
        return "", ""
    if not Path(path).exists():
        return os.strerror(errno.ENOENT), "another kernel"
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        return os.strerror(errno.EROFS), read_write(path)
    return os.strerror(errno.EACCES), remedy(errno.EACCES)


def _filters(path: str) -> Findings:
    event = next(filter(_is_unused, Path(path, "events").glob("*/*/trigger")), None)
    if event is None:
        yield Finding("filters", Mark.NOTE, "not tried: every event has a filter or a trigger")
        return
    try:
        write_text(str(event.with_name("filter")), _NEVER)
        write_text(str(event.with_name("filter")), "0")
        yield Finding("filters", Mark.OK, "drop events in the kernel (--filter)")
    except LttdError as error:
        yield refused("filters", error, Mark.NOTE)
    absent = [action for action in _ACTIONS if not _takes_trigger(event, action)]
    yield either(
        "event triggers",
        not absent,
        f"{', '.join(_ACTIONS)} (--event-trigger)",
        f"this kernel does not take {', '.join(absent)} (--event-trigger)",
        "a kernel with CONFIG_STACKTRACE and Linux 3.14 or later",
    )


def _is_unused(trigger: Path) -> bool:
    """Tell whether an event has neither a trigger nor a filter of this recording."""
    try:
        lines = read_text(str(trigger)).splitlines()
        return all(line[:1] == "#" for line in lines) and (
            read_text(str(trigger.with_name("filter"))) == "none"
        )
    except LttdError:
        return False


def _takes_trigger(file: Path, action: str) -> bool:
    """Set a trigger on an event of lttd's own instance, and take it back."""
    other = f":{file.parents[1].name}:{file.parent.name}" if action in _OF_EVENTS else ""
    try:
        append_line(str(file), f"{action}{other} if {_NEVER}")
        append_line(str(file), f"!{action}{other}")
    except OSError:
        return False
    return True


def _tracers(path: str) -> Findings:
    """Say which tracers an instance and the top level have, and what may be chosen."""
    root = str(Path(path).parents[1])
    here, top = (
        [name for name in read_text(f"{each}/available_tracers").split() if name != "nop"]
        for each in (path, root)
    )
    yield _of_instance(path, here, top)
    if "function_graph" in top and Path(f"{root}{DEPTH_FILE}").exists():
        why, helps = _why_not_written(f"{root}{DEPTH_FILE}")
        words = f"{root}{DEPTH_FILE}: {why}: --graph-depth needs it"
        yield either("graph depth", not why, "can be limited (--graph-depth)", words, helps)


def _of_instance(path: str, here: Sequence[str], top: Sequence[str]) -> Finding:
    only_top = [name for name in _FUNCTION_TRACERS if name in top and name not in here]
    refusal = _refusal_of_functions(path) if "function" in here else None
    if refusal is not None:
        words = f"{', '.join(here)}; the kernel refuses the function tracers: {refusal.strerror}"
        return Finding("tracers", Mark.NOTE, words, remedy(refusal.errno or errno.EPERM))
    if only_top:
        words = f"{', '.join(here) or 'none'}; at the top level only: {', '.join(only_top)}"
        return Finding("tracers", Mark.NOTE, words, "--source ftrace:/ records the top level")
    if not here:
        words = "none, so that --tracer has nothing to set"
        return Finding("tracers", Mark.NOTE, words, "a kernel with CONFIG_FUNCTION_TRACER")
    return Finding("tracers", Mark.OK, f"{', '.join(here)} (--tracer)")


def _refusal_of_functions(path: str) -> OSError | None:
    """Open the list of functions for writing, as --function does; lockdown refuses that."""
    try:
        os.close(os.open(f"{path}/set_ftrace_filter", os.O_WRONLY | os.O_APPEND))
    except FileNotFoundError:
        return None  # without CONFIG_DYNAMIC_FTRACE, all functions are recorded
    except OSError as error:
        return error
    return None


def _tasks(path: str) -> Finding:
    try:
        INIT.read_bytes()
    except OSError:
        words = "/proc hides the processes of others: --pid and --comm do not find them"
        helps = "mount /proc without hidepid= (a service: ProtectProc=default)"
        return Finding("processes", Mark.NOTE, words, helps)
    return either(
        "processes",
        Path(path, "options/event-fork").exists(),
        "can be recorded alone, with their children (--pid, --comm, --only-command)",
        "can be recorded alone, without children: --follow-fork and --only-command fail",
        "Linux 4.7 has the option event-fork",
    )
