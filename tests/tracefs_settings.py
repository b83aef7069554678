"""All settings of tracefs, to compare what was there before lttd with what is there after it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

# Files of the top level and of each instance.  A kernel lacks some of them.
FILES = ("current_tracer", "trace_clock", "tracing_on", "tracing_cpumask", "tracing_thresh")
FILES += ("buffer_size_kb", "buffer_subbuf_size_kb", "buffer_percent", "max_graph_depth")
FILES += ("set_event", "set_event_pid", "set_event_notrace_pid", "trace_options", "trace_flags")
FILES += ("set_ftrace_filter", "set_ftrace_notrace", "set_ftrace_pid", "set_ftrace_notrace_pid")
FILES += ("set_graph_function", "set_graph_notrace")
FILES += ("dynamic_events", "kprobe_events", "uprobe_events", "synthetic_events")
PER_EVENT = ("enable", "filter", "trigger")
# A ring has its size only once somebody used it.
_EXPANDED = re.compile(r" \(expanded: .*\)")


def settings_of(root: Path, instances: str = "*") -> dict[str, str]:
    """Return the settings of the top level and of *instances* (a glob), by file."""
    there = sorted(root.glob(f"instances/{instances}"))
    found = {"instances": " ".join(path.name for path in there)}
    for place in (root, *there):
        found |= {str(file.relative_to(root)): _read(file) for file in _files(place)}
    return found


def _files(place: Path) -> Iterator[Path]:
    yield from (place / name for name in FILES if (place / name).exists())
    yield from sorted(place.glob("options/*"))
    yield from sorted(place.glob("per_cpu/cpu*/buffer_size_kb"))
    for system in sorted(path for path in place.glob("events/*") if path.is_dir()):
        for event in sorted(path for path in system.iterdir() if path.is_dir()):
            yield from (event / name for name in PER_EVENT if (event / name).exists())


def _read(file: Path) -> str:
    """Return a setting without what changes by itself; the kernel may say a list in parts."""
    try:
        with file.open("rb", buffering=0) as opened:
            text = b"".join(iter(lambda: opened.read(1 << 16), b"")).decode(errors="replace")
    except OSError as error:
        return str(error)
    return _EXPANDED.sub("", text)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the settings that differ, each with both values; empty if a file is not there."""
    return {
        file: (before.get(file, ""), after.get(file, ""))
        for file in sorted(before.keys() | after.keys())
        if before.get(file, "") != after.get(file, "")
    }
