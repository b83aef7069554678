"""Read the files that decoding an ftrace segment needs beside the pages: tracefs's, and task names.

Rule: files are copied verbatim, to the same path below ``tracefs/``.  Two files are lttd's own:
``tracefs/formats.gz`` has the formats of events (see lttd.abi.formats_file); ``tracefs/commands``
has lines of trace-clock time, pid, tgid (or nothing) and command, tab separated, and a line end or
a backslash inside a command stands as ``\\n`` or ``\\\\``.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from lttd.abi import formats_file
from lttd.abi.formats_file import Key, pack
from lttd.abi.ftrace import OWN_SYSTEM
from lttd.errors import LttdError
from lttd.namespaces import kernel_knows_our_pids
from lttd.sources.base import Attachment, When
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.setup import enabled_events
from lttd.sources.ftrace.stream import FtraceStream
from lttd.sources.tracefs import events_of, read_bytes, systems

KALLSYMS: Final = "/proc/kallsyms"
_COPIED: Final = ("events/header_page", "events/header_event", "trace_clock")


class FtraceFiles:
    """Remembers the files that one segment has, so that only new or changed ones come again."""

    def __init__(
        self,
        instance: Instance,
        now: Callable[[], int],
        streams: Sequence[FtraceStream],
        *,
        kallsyms: bool,
    ) -> None:
        self._instance = instance
        self._now = now
        self._streams = streams
        self._kallsyms = kallsyms
        self._kernel_knows_our_pids = kernel_knows_our_pids()
        self._given: dict[str | Key, int] = {}
        """The hash of each file and format that the segment has already."""
        self._saved: set[bytes] = set()
        self._commands: dict[int, tuple[bytes, bytes]] = {}

    def due(self, when: When) -> Iterator[Attachment]:
        """Return the files that are due; leave out those that cannot be read."""
        if when is not When.PERIODIC:
            yield from self._copies(when)
            if formats := self._formats(when):
                yield Attachment(f"tracefs/{formats_file.NAME}", pack(formats), append=True)
        yield from self._who_ran(when)
        if when is When.CLOSE:
            for stream in self._streams:
                name = f"tracefs/per_cpu/cpu{stream.info.id.cpu}/stats"
                yield Attachment(name, stream.stats_text())

    def _copies(self, when: When) -> Iterator[Attachment]:
        instance = self._instance
        paths = {name: instance.file(name) for name in _COPIED}
        paths["printk_formats"] = f"{instance.root}/printk_formats"
        if self._kallsyms and when is When.OPEN:
            paths["kallsyms"] = KALLSYMS
        for name, path in paths.items():
            data = self._if_new(name, path)
            if data is not None:
                yield Attachment(f"tracefs/{name}", data)

    def _formats(self, when: When) -> dict[Key, bytes]:
        """Return the formats of events that the rings can hold and the segment lacks."""
        found: dict[Key, bytes] = {}
        for key in self._events(when):
            data = self._if_new(key, self._instance.file(f"events/{key[0]}/{key[1]}/format"))
            if data is not None:
                found[key] = data
        return found

    def _events(self, when: When) -> Iterator[Key]:
        """Yield the events of every system that is or was recorded.

        A ring that others filled may hold any event, also one that is off by now.
        """
        instance = self._instance
        recorded = {OWN_SYSTEM, *(name.partition(":")[0] for name in instance.events)}
        try:
            if when is When.CLOSE:  # another process may have enabled more of them meanwhile
                recorded |= {name.partition(":")[0] for name in enabled_events(instance.path)}
            there = (OWN_SYSTEM, *systems(instance.file("events")))
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
        seen = self._new_saved(when)
        if self._kernel_knows_our_pids:
            seen.update(_tasks())
        lines = [
            b"%d\t%d\t%b\t%b\n" % (now, pid, tgid, _escaped(command))
            for pid, (tgid, command) in sorted(seen.items())
            if self._commands.get(pid) != (tgid, command)
        ]
        self._commands.update(seen)
        if lines:
            yield Attachment("tracefs/commands", b"".join(lines), append=True)

    def _new_saved(self, when: When) -> dict[int, tuple[bytes, bytes]]:
        """Return the new names in the kernel's saved_cmdlines, by pid; up to 6552 names."""
        root = self._instance.root
        lines = _lines(f"{root}/saved_cmdlines")
        new, self._saved = lines - self._saved, lines
        if not new or (when is When.OPEN and self._instance.began_empty):
            # A task that ended before the ring was made cannot be in it.
            return {}
        tgids = dict(_pairs(_lines(f"{root}/saved_tgids")))
        return {
            pid: (tgids.get(pid, b""), command)
            for pid, command in _pairs(new)
            if command != b"<...>"
        }


def _lines(path: str) -> set[bytes]:
    try:
        return set(read_bytes(path).splitlines())
    except LttdError:
        return set()


def _pairs(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (pid, the rest) of each line."""
    for line in lines:
        pid, _, rest = line.partition(b" ")
        if pid.isdigit():
            yield int(pid), rest


def _tasks() -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Yield (pid, (tgid, command)) of every thread (97 threads take 2 ms)."""
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        try:
            threads = os.listdir(f"/proc/{process}/task")
        except OSError:
            continue  # the thread ended meanwhile
        for thread in threads:
            try:
                fd = os.open(f"/proc/{process}/task/{thread}/comm", os.O_RDONLY)
                try:
                    command = os.read(fd, 256)
                finally:
                    os.close(fd)
            except OSError:
                continue
            yield int(thread), (process.encode(), command.removesuffix(b"\n"))


def _escaped(command: bytes) -> bytes:
    return command.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
