"""Read the files that decoding an ftrace segment needs beside the pages: tracefs's, and task names.

Rule: files are copied verbatim, to the same path below ``tracefs/``.  Others are lttd's own:
``tracefs/formats.gz`` has the formats of events (see lttd.abi.formats_file); ``tracefs/commands``
has lines of trace-clock time, pid, tgid (or nothing) and command, tab separated, and a line end or
a backslash inside a command is written as ``\\n`` or ``\\\\``; ``tracefs/traceoffs`` has lines of a
trace-clock time by which tracing was off, and the event whose trigger did it;
``tracefs/enums.json`` has the values of constants that print fmts name (see enums.py);
``tracefs/maps`` says where code is in processes (see maps.py).
Rule: a later segment of a run shares the files that have not changed with the segment before, and
begins with the names of all living tasks and of those that ended lately.
Rule: an id can be another event's once a probe was removed and another one made, so their formats
are read again when the kernel's list of probes changed.
Rule: names are read once for a roll, when data goes to the new segment.  It may have been made long
before; until then, names go to the segment before it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Final

from lttd.abi import formats_file
from lttd.abi.formats_file import Key, pack
from lttd.abi.ftrace import OWN_SYSTEM
from lttd.errors import LttdError
from lttd.limits import FORMAT_MEMBERS
from lttd.sources.base import Attachment, Child, When
from lttd.sources.ftrace.additions import PROBES_FILE, probe_names
from lttd.sources.ftrace.enums import EnumNames
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.modules import KALLSYMS, loaded_modules, symbols_since
from lttd.sources.ftrace.setup import enabled_events
from lttd.sources.ftrace.stream import FtraceStream
from lttd.sources.ftrace.task_names import NAMES, Name, is_copy_of_this_process
from lttd.sources.tracefs import events_of, read_bytes, systems

if TYPE_CHECKING:
    from lttd.sources.ftrace.maps import Maps

# So many names of ended tasks go on to the next segment: 34 KB.
MOST_ENDED: Final = 1024
ENUMS_FILE: Final = "enums.json"
_COPIED: Final = ("events/header_page", "events/header_event", "trace_clock")


class FtraceFiles:
    """Remembers the files that one segment has, so that only new or changed ones come again."""

    def __init__(
        self,
        instance: Instance,
        now: Callable[[], int],
        streams: Sequence[FtraceStream],
        before: "FtraceFiles | None" = None,
        *,
        kallsyms: bool,
        names_since_ns: Callable[[], int] = lambda: 0,
    ) -> None:
        """*before*: those of the segment before in the same run.

        *names_since_ns* returns the time before which names of tasks are too old, on
        CLOCK_MONOTONIC.
        """
        self._instance = instance
        self._now = now
        self._streams = streams
        self._kallsyms = kallsyms
        self._modules = before.modules if before else loaded_modules() if kallsyms else {}
        self._given: dict[str | Key, int] = before.to_share() if before else {}
        """The hash of each file and format that the segment has already."""
        self._format_parts = 0
        """The number of times that formats were added to their file."""
        self._probes: bytes = before._probes if before else self._read_probes()  # noqa: SLF001 (same class)
        """The kernel's list of probes, as it was when formats were read last."""
        self._enums: EnumNames = before._enums if before else EnumNames()  # noqa: SLF001  (same class)
        self._names_since_ns = names_since_ns
        self._names_read_ns = 0
        self.command: Child | None = None
        """The child that becomes COMMAND."""
        self.traceoffs: deque[tuple[int, str]] = deque()
        """Those that no segment has yet (see TraceoffWatch); the segments of a run share them."""
        self.maps: Maps | None = None
        """Where stacks of programs are stored: what the segment has of their code."""
        self._saved: Set[bytes] = frozenset()
        self._commands: dict[int, Name] = {}
        """The names in the segment, the latest at the end."""
        self._living: Set[int] = frozenset()
        """The tasks that lived when they were read last."""
        self._before = before
        """Those of the segment before, until data goes to this one."""
        self._after: FtraceFiles | None = None
        """Those of the segment to which data goes now."""

    def to_share(self) -> dict[str | Key, int]:
        """Return the hash of each file that the next segment can share; of formats, all or none.

        A file that was added to is made anew, so that its parts do not become more and more.
        """
        whole = self._format_parts <= 1
        return {key: each for key, each in self._given.items() if whole or isinstance(key, str)}

    @property
    def modules(self) -> Mapping[bytes, bytes]:
        """The kernel modules whose symbols are in the segment, with their addresses."""
        return self._modules

    def due(self, when: When) -> Iterator[Attachment]:
        """Return the files that are due; leave out those that cannot be read."""
        if when not in (When.PERIODIC, When.ROLLED):
            yield from self._copies(when)
            yield from self._formats_due(when)
        elif self._have_probes_changed():
            yield from self._formats_due(when)
        yield from self._enums_due(when)
        if self.maps is not None and (lines := self.maps.new_lines()):
            yield Attachment("tracefs/maps", lines, append=True)
        yield from self._who_ran(when)
        if when in (When.PERIODIC, When.CLOSE) and self.traceoffs:
            noted = [self.traceoffs.popleft() for _ in range(len(self.traceoffs))]
            lines = b"".join(b"%d\t%b\n" % (off_by, who.encode()) for off_by, who in noted)
            yield Attachment("tracefs/traceoffs", lines, append=True)
        if when is When.CLOSE:
            if self._kallsyms and (new := symbols_since(self._modules)):
                yield Attachment("tracefs/kallsyms", new, append=True)
            for stream in self._streams:
                name = f"tracefs/per_cpu/cpu{stream.info.id.cpu}/stats"
                yield Attachment(name, stream.stats_text())

    def _copies(self, when: When) -> Iterator[Attachment]:
        instance = self._instance
        paths = {name: instance.file(name) for name in _COPIED}
        paths["printk_formats"] = f"{instance.root}/printk_formats"
        if self._kallsyms and when is When.OPEN:
            if "kallsyms" in self._given:
                yield Attachment("tracefs/kallsyms", same=True)
            else:
                paths["kallsyms"] = KALLSYMS
        if when is When.OPEN and instance.mark_symbols:
            yield Attachment("tracefs/mark_symbols", instance.mark_symbols)
        for name, path in paths.items():
            data = self._if_new(name, path)
            if data is not None:
                yield Attachment(f"tracefs/{name}", data)
            elif when is When.OPEN and name in self._given:
                yield Attachment(f"tracefs/{name}", same=True)

    def _formats_due(self, when: When) -> Iterator[Attachment]:
        name = f"tracefs/{formats_file.NAME}"
        if when is When.OPEN and any(not isinstance(key, str) for key in self._given):
            if not self._have_probes_changed():
                self._format_parts = 1
                yield Attachment(name, same=True)
                return
            self._given = {key: each for key, each in self._given.items() if isinstance(key, str)}
        if formats := self._formats(when):
            self._format_parts += 1
            yield Attachment(name, pack(formats), append=True)

    def _enums_due(self, when: When) -> Iterator[Attachment]:
        name = f"tracefs/{ENUMS_FILE}"
        if when is When.OPEN and ENUMS_FILE in self._given:
            yield Attachment(name, same=True)
        elif when in (When.PERIODIC, When.CLOSE):
            content = self._enums.content()
            if content and self._given.get(ENUMS_FILE) != hash(content):
                self._given[ENUMS_FILE] = hash(content)
                yield Attachment(name, content)

    def _have_probes_changed(self) -> bool:
        """Tell whether a probe was made or removed since the last look: ids may be others'."""
        before, self._probes = self._probes, self._read_probes()
        return self._probes != before

    def _read_probes(self) -> bytes:
        try:
            return read_bytes(f"{self._instance.root}{PROBES_FILE}")
        except LttdError:
            return b""  # this kernel has none, or tracefs was unmounted

    def _formats(self, when: When) -> dict[Key, bytes]:
        """Return the formats of events that the rings can hold and the segment lacks."""
        found: dict[Key, bytes] = {}
        if when is not When.CLOSE and self._format_parts > FORMAT_MEMBERS.most - 2:
            return found  # those of many more reloads come at the end, as one member
        for key in self._events(when):
            data = self._if_new(key, self._instance.file(f"events/{key[0]}/{key[1]}/format"))
            if data is not None:
                found[key] = data
                self._enums.note(data)
        return found

    def _events(self, when: When) -> Iterator[Key]:
        """Yield the events of every system that is or was recorded.

        A ring that others filled may hold any event, also one that is off by now.
        """
        instance = self._instance
        names = [*instance.events, *instance.earlier_events, *instance.switched]
        recorded = {OWN_SYSTEM, *(name.partition(":")[0] for name in names)}
        try:
            if when is When.CLOSE:  # another process may have enabled more of them meanwhile
                recorded |= {name.partition(":")[0] for name in enabled_events(instance.path)}
            there = (OWN_SYSTEM, *systems(instance.file("events")))
            if when in (When.PERIODIC, When.ROLLED):  # only those of probes can have changed
                listed = probe_names(self._probes.decode(errors="surrogateescape"))
                recorded = {name.partition("/")[0] for name in listed} & (
                    set(there) if "*" in recorded else recorded
                )
        except LttdError:
            return  # tracefs was unmounted: the files copied at open must be enough
        for system in there:
            is_recorded = system in recorded or "*" in recorded
            if is_recorded or not instance.began_empty:
                for event in events_of(instance.file(f"events/{system}")):
                    # An event that is not recorded has the same format as at open.
                    if is_recorded or (system, event) not in self._given:
                        yield system, event

    def _if_new(self, name: str | Key, path: str) -> bytes | None:
        """Return a file's content; None if the segment has it, or it cannot be read."""
        try:
            data = read_bytes(path)
        except LttdError:
            return None
        if self._given.get(name) == hash(data):
            return None
        self._given[name] = hash(data)
        return data

    def _who_ran(self, when: When) -> Iterator[Attachment]:
        now = self._now()
        seen = self._names_due(when)
        lines = [
            b"%d\t%d\t%b\t%b\n" % (now, pid, tgid, _escaped(command))
            for pid, (tgid, command) in sorted(seen.items())
            if self._commands.get(pid) != (tgid, command)
        ]
        for pid, named in seen.items():
            self._commands.pop(pid, None)
            self._commands[pid] = named
        if lines:
            yield Attachment("tracefs/commands", b"".join(lines), append=True)

    def _names_due(self, when: When) -> dict[int, Name]:
        """Return names that the segment may lack, by pid."""
        before = self._before
        if when is When.OPEN and before is not None:
            return before.names_for_next()
        if when is When.ROLLED and before is not None:
            before._after, self._before = self, None  # noqa: SLF001  (same class)
            self._saved = before._saved  # noqa: SLF001
            return before.names_for_next() | self._read_names(when)
        if self._after is not None:
            return self._after._commands  # noqa: SLF001
        return self._read_names(when)

    def names_for_next(self) -> dict[int, Name]:
        """Return the names of tasks that lived at the last look, or ended shortly before."""
        ended = [pid for pid in self._commands if pid not in self._living]
        left_out = set(ended[:-MOST_ENDED])
        return {pid: name for pid, name in self._commands.items() if pid not in left_out}

    def _read_names(self, when: When) -> dict[int, Name]:
        """Return the names of all living tasks, and the new ones in the kernel's saved_cmdlines."""
        since_ns = max(self._names_since_ns(), self._names_read_ns + 1)
        names = NAMES.read(self._instance.root, since_ns)
        self._names_read_ns = names.read_ns
        self._living = names.living.keys()
        new, self._saved = names.saved - self._saved, names.saved
        if when is When.OPEN and self._instance.began_empty:
            found = dict(names.living)  # no task that ended before the ring was made is in it
        else:
            found = names.ended(new) | names.living
        self._name_command(found, when)
        return found

    def _name_command(self, found: dict[int, Name], when: When) -> None:
        """Leave COMMAND out before its exec: until then its name is lttd's, and none is better.

        The first name that is seen then holds from the begin on.
        """
        if self.command is None:
            return
        pid, name = self.command
        if pid in found:
            if is_copy_of_this_process(pid):
                del found[pid]
        elif when is When.CLOSE and pid not in self._commands:
            # It was too short to be seen, and saved_cmdlines has room for 128 names.
            found[pid] = (b"%d" % pid, name)


def _escaped(command: bytes) -> bytes:
    return command.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
