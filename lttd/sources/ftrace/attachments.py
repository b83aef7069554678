"""What decoding an ftrace segment needs beside the pages: tracefs's own files, and who ran.

Rule: files are copied verbatim, to the same path below ``tracefs/``; only ``tracefs/commands`` is
ours: lines of trace-clock time, pid, tgid (or nothing) and command, tab separated; a line end or a
backslash inside a command stands as ``\\n`` or ``\\\\``.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from lttd.errors import LttdError
from lttd.namespaces import kernel_knows_our_pids
from lttd.sources.base import Attachment, When
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.setup import enabled_events
from lttd.sources.ftrace.stream import FtraceStream
from lttd.sources.tracefs import events_of, read_bytes, systems

KALLSYMS: Final = "/proc/kallsyms"


class FtraceFiles:
    """Remembers what it gave already, so that only what is new or changed comes again."""

    def __init__(
        self,
        instance: Instance,
        now: Callable[[], int],
        *,
        kallsyms: bool,
        previous_run: bool,
    ) -> None:
        self._instance = instance
        self._now = now
        self._kallsyms = kallsyms
        self._kernel_knows_our_pids = kernel_knows_our_pids()
        self._starts_empty = instance.own and not previous_run
        # A ring that others filled may hold any event, also one that is switched off by now.
        self._knows_events = self._starts_empty
        self._given: dict[str, int] = {}
        self._saved: set[bytes] = set()
        self._commands: dict[int, tuple[bytes, bytes]] = {}

    def attachments(self, when: When, streams: Iterable[FtraceStream]) -> Iterator[Attachment]:
        """Return what is due; files that cannot be read are left out."""
        if when is not When.PERIODIC:
            yield from self._copies(self._wanted(when))
        yield from self._who_ran(when)
        if when is When.CLOSE:
            for stream in streams:
                name = f"tracefs/per_cpu/cpu{stream.info.id.cpu}/stats"
                yield Attachment(name, stream.stats_text())

    def _wanted(self, when: When) -> Iterator[tuple[str, str]]:
        """Return (name below the segment, path) of the files to copy."""
        instance = self._instance
        local = ["events/header_page", "events/header_event", "trace_clock"]
        for system in ("ftrace", *self._systems(when)):
            events = events_of(instance.file(f"events/{system}"))
            local += [f"events/{system}/{event}/format" for event in events]
        for name in local:
            yield f"tracefs/{name}", instance.file(name)
        yield "tracefs/printk_formats", f"{instance.root}/printk_formats"
        if self._kallsyms and when is When.OPEN:
            yield "tracefs/kallsyms", KALLSYMS

    def _systems(self, when: When) -> list[str]:
        """Return the systems whose events the ring can hold."""
        enabled = {name.partition(":")[0] for name in self._instance.events}
        try:
            if when is When.CLOSE and self._knows_events:
                # Somebody may have enabled more of them meanwhile.
                enabled |= {name.partition(":")[0] for name in enabled_events(self._instance.path)}
            if "*" in enabled or not self._knows_events:
                return systems(self._instance.file("events"))
            return sorted(enabled)
        except LttdError:
            return []  # tracefs was unmounted underneath: what was copied at open will do

    def _copies(self, wanted: Iterable[tuple[str, str]]) -> Iterator[Attachment]:
        for name, path in wanted:
            try:
                data = read_bytes(path)
            except LttdError:
                continue
            if self._given.get(name) != hash(data):
                self._given[name] = hash(data)
                yield Attachment(name, data)

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
        """Return what the kernel remembers by pid, as far as it is new; up to 6552 names."""
        root = self._instance.root
        lines = _lines(f"{root}/saved_cmdlines")
        new, self._saved = lines - self._saved, lines
        if not new or (when is When.OPEN and self._starts_empty):
            # Who ended before we came cannot be in a ring that is new.
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
    """Return (pid, the rest) of each line."""
    for line in lines:
        pid, _, rest = line.partition(b" ")
        if pid.isdigit():
            yield int(pid), rest


def _tasks() -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Return (pid, (tgid, command)) of every thread there is (97 of them: 2 ms)."""
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        try:
            threads = os.listdir(f"/proc/{process}/task")
        except OSError:
            continue  # ended meanwhile
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
