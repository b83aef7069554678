"""Take back what lttd added to lists of tracefs: pids, triggers, functions, probes.

    set_event_pid                     4711
    events/sched/sched_switch/trigger traceoff:1 if prev_pid == 7
    set_ftrace_filter                 vfs_*
    /dynamic_events                   p:lttd/opens do_sys_openat2 file=+0($arg2):ustring

Rule: ADDITIONS lists every such file, and which items lttd adds.  A record that names another file
or item is refused.
Rule: an item that the list had before is not lttd's, and stays.
Rule: one write takes back one item, because the kernel stops at the first that it refuses.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from lttd.limits import ADDED
from lttd.sources.tracefs import explained, read_text, write_text

PIDS_FILE: Final = "set_event_notrace_pid"
PROBES_FILE: Final = "/dynamic_events"
NAME: Final = r"[\w-][\w.-]*"
PROBE_GROUP: Final = "lttd"
SYNTHETIC_GROUP: Final = "synthetic"
# The kinds of dynamic events, and the groups to which lttd adds them.
_PROBE: Final = rf"(?:[prfte]\d*:{PROBE_GROUP}/|s:)([A-Za-z_]\w{{0,63}})"
_FIELD: Final = r"[^\n\0]{1,4096}"
_COUNT: Final = r":(unlimited|count=\d+|\d+)$"
_LISTED_PROBE: Final = r"[a-z]\d*:(\S+)"


def _ids(text: str) -> Set[str]:
    """Return the ids of a list; ``no pid`` is an empty one."""
    return {word for word in text.split() if word.isdigit()}


def _functions(text: str) -> Set[str]:
    """Return the functions of a list; ``#### all functions enabled ####`` is an empty one."""
    return {line.split()[0] for line in text.splitlines() if line and line[0] != "#"}


def _triggers(text: str) -> Set[str]:
    return {trigger_name(line) for line in text.splitlines() if line and line[0] != "#"}


def trigger_name(trigger: str) -> str:
    """Return the part of a trigger that is unique in an event: without count and filter."""
    return re.sub(_COUNT, "", trigger.partition(" if ")[0].strip())


def probe_names(text: str) -> frozenset[str]:
    """Return ``group/name`` of each line of dynamic_events."""
    return frozenset(
        match[1] for line in text.splitlines() if (match := re.match(_LISTED_PROBE, line))
    )


def probe_name(line: str) -> str:
    """Return ``group/name`` of a line that lttd writes to dynamic_events."""
    found = re.match(_PROBE, line)
    group = SYNTHETIC_GROUP if line.startswith("s:") else PROBE_GROUP
    return f"{group}/{found[1]}" if found else ""


class Addition(NamedTuple):
    """A kind of list in tracefs to which lttd may add items."""

    file: str
    """A regular expression, as all of these: they are compiled when they are needed first."""
    item: str
    listed: Callable[[str], Set[str]]
    """Returns the names of the items in the list's text."""
    name_of: Callable[[str], str] = str
    """Returns the name of an item, as the list has it."""
    removal: str = ""
    """The line that takes an item back; empty: the list is written without it."""
    grows: bool = False
    """Whether the kernel adds to it: if the list was empty before lttd came, it is emptied."""
    produces: bool = False
    """Whether it makes the kernel record; then it is taken back as soon as recording stops."""
    empties: bool = False
    """Whether taking back empties rings; then it is done only when the ring is empty."""
    after: str = ""
    """The setting that must be put back before: without its list, a tracer records everything."""


_PID: Final = r"\d{1,10}"
_FUNCTION: Final = r"[\w.*?\[\]-]{1,256}"
ADDITIONS: Final = (
    Addition("set_(event|ftrace)_notrace_pid", _PID, _ids),
    # With event-fork or function-fork, the kernel adds the children of listed tasks.
    Addition("set_event_pid", _PID, _ids, grows=True),
    Addition("set_ftrace_pid", _PID, _ids, grows=True, after="current_tracer"),
    Addition(
        rf"events/{NAME}/{NAME}/trigger",
        (
            r"(traceon|traceoff|stacktrace|(enable|disable)_event:[\w-]+:[\w.-]+)(:\d{1,9})?"
            rf"( if {_FIELD})?"
        ),
        _triggers,
        trigger_name,
        removal="!{}",
        produces=True,
    ),
    Addition(
        "set_ftrace_(filter|notrace)",
        _FUNCTION,
        _functions,
        removal="!{}",
        grows=True,
        after="current_tracer",
    ),
    Addition(
        PROBES_FILE,
        rf"{_PROBE}[ \t;]{_FIELD}",
        probe_names,
        probe_name,
        removal="-:{}",
        empties=True,
    ),
)


def addition_of(file: str) -> Addition | None:
    """Return the row of ADDITIONS for *file*; see undo.place_of() for its path."""
    return next((one for one in ADDITIONS if re.fullmatch(one.file, file)), None)


class Added(NamedTuple):
    """The items that lttd added to one file, in their order."""

    file: str
    items: tuple[str, ...]
    alone: bool
    """Whether the list was empty before."""

    @property
    def row(self) -> Addition:
        """The row of ADDITIONS."""
        row = addition_of(self.file)
        assert row is not None
        return row

    def to_json(self) -> dict[str, Any]:
        """Return the items as an object of a record."""
        return {"added": self.file, "items": list(self.items), "alone": self.alone}

    def with_more(self, items: Iterable[str]) -> "Added":
        """Return these items and more, each once.

        Raises:
            ValueError: they are too many.
        """
        every = tuple(dict.fromkeys((*self.items, *items)))
        if len(every) > ADDED.most:
            raise ValueError(f"{self.file}: {ADDED}")
        return self._replace(items=every)

    def without(self, items: Iterable[str]) -> "Added":
        """Return the items but *items*."""
        gone = frozenset(items)
        return self._replace(items=tuple(item for item in self.items if item not in gone))


def added_of(value: Mapping[str, Any]) -> Added:
    """Return the items of an object that Added.to_json() made.

    Raises:
        ValueError: it names a file or an item that lttd never adds.
    """
    file, items = str(value["added"]), value["items"]
    row = addition_of(file)
    if row is None:
        raise ValueError(f"{file!r} is not a list to which lttd adds")
    for item in items:
        if not (isinstance(item, str) and re.fullmatch(row.item, item)):
            raise ValueError(f"{item!r} is not an item of {file}")
    return Added(file, (), value.get("alone") is True).with_more(items)


def take_back(path: str, added: Added, items: Sequence[str]) -> dict[str, str]:
    """Take *items* of *added* out of the list at *path*; return the reason for each that stays.

    Raises:
        LttdError: the list cannot be read or written.
    """
    row = added.row
    if row.grows and added.alone and len(items) == len(added.items):
        write_text(path, "", truncate=True)
        return {}
    there = row.listed(read_text(path))
    if not row.removal:
        if ours := there & set(items):
            # One write: a list that is written in parts cuts numbers in two.
            write_text(path, " ".join(sorted(there - ours, key=int)), truncate=True)
        return {}
    stay = {}
    for item in reversed(items):
        name = row.name_of(item)
        # A wildcard stands for the functions that it matched.
        if name in there or any(fnmatchcase(each, name) for each in there):
            reason = _write_removal(path, row.removal.format(name), name)
            if reason:
                stay[item] = reason
    return stay


def _write_removal(path: str, line: str, name: str) -> str:
    """Write a line that takes an item back; return the reason if the kernel refuses."""
    try:
        append_line(path, line)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return ""  # somebody else took it back just now
        if error.errno == errno.EBUSY and path.endswith(PROBES_FILE):
            return f"{path}: {name} stays, because {_who_has(os.path.dirname(path), name)}"
        return str(explained(path, error, f"writing {line!r}: "))
    return ""


def append_line(path: str, line: str) -> None:
    """Add one line to a list with one write.

    Opening dynamic_events with O_TRUNC would delete every probe of the machine.

    Raises:
        OSError: the kernel refuses.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, os.fsencode(f"{line}\n"))
    finally:
        os.close(fd)


def _who_has(root: str, name: str) -> str:
    """Return words on who has a probe enabled, and the remedy."""
    places = [("the top level", root)]
    try:
        names = sorted(os.listdir(f"{root}/instances"))
    except OSError:
        names = []
    places += [(f"the instance {each}", f"{root}/instances/{each}") for each in names]
    using = [what for what, path in places if is_on(f"{path}/events/{name}/enable")]
    if not using:
        return "somebody uses it, perf perhaps: end that; the next lttd removes it"
    return f"{' and '.join(using)} has its event on: turn it off; the next lttd removes it"


def is_on(enable_file: str) -> bool:
    """Tell whether an event is on, or has a trigger."""
    try:
        with open(enable_file, "rb", buffering=0) as file:
            return file.read(8).strip() != b"0"  # a trigger makes it "0*"
    except OSError:
        return False
