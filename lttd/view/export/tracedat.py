"""Export to ``trace.dat`` version 6, for ``trace-cmd report``, KernelShark and Trace Compass.

    magic, version, sizes | header_page, header_event | formats | kallsyms, printk, commands
    CPU count | options | "flyrecord", a table of (offset, size) per CPU, the clock | pages

Consecutive segments are joined per CPU.  A segment that ran at the same time as others becomes an
instance of its own (a BUFFER option with its own table).  Pages are whole and padded again, as the
kernel's (see ``pages``).  All integers have the recorded machine's byte order.

Source of the layout: trace-cmd Documentation/trace-cmd/trace-cmd.dat.v6.5.txt and
lib/trace-cmd/trace-input.c; verified with trace-cmd 3.1.6.

Rule: the tables are written last, into reserved room, so that pages stream.
Invariant: the times of the trace clock do not change.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lttd.abi.ftrace import OWN_SYSTEM, PageLayout, layout_of
from lttd.errors import NotATraceError, UsageError
from lttd.files import Disk
from lttd.view.export.pages import PageMaker, Tally
from lttd.view.ftrace.saved import SavedFiles
from lttd.view.output import nothing_within
from lttd.view.part import Selection, parts_within
from lttd.view.times import Window
from lttd.view.trace import Segment, Trace
from lttd.writefile import File

_MAGIC: Final = b"\x17\x08\x44tracing6\0"
_FLYRECORD: Final = b"flyrecord\0"
_CPUSTAT, _BUFFER, _TRACECLOCK, _UNAME, _OFFSET, _CPUCOUNT, _VERSION = 2, 3, 4, 5, 7, 8, 9
_TSC2NSEC: Final = 14


@dataclass(slots=True)
class _Buffer:
    """One ring buffer of the recorded machine, with the parts to be joined for each CPU."""

    name: str
    cpus: dict[int, list[Selection]] = field(default_factory=dict)
    table_at: int = 0
    """The offset of its "flyrecord" in the file."""

    def takes(self, parts: list[Selection]) -> bool:
        """Tell whether *parts*, of one segment, come after all parts of this buffer."""
        return all(
            _begins_after(self.cpus.get(part.stream.info.id.cpu, []), part) for part in parts
        )

    def join(self, parts: list[Selection]) -> None:
        for part in parts:
            self.cpus.setdefault(part.stream.info.id.cpu, []).append(part)


def _begins_after(joined: list[Selection], part: Selection) -> bool:
    before = [one for one in joined if len(one.entries)]
    if not before or not len(part.entries):
        return True
    return bool(before[-1].entries[-1]["begin"] <= part.entries[0]["begin"])


def export(trace: Trace, window: Window, out: Path, disk: Disk) -> list[str]:
    """See ``lttd.view.export.Exporter``."""
    found = [(segment, parts_within(segment, window)) for segment in trace.segments]
    found = [(s, parts) for s, parts in found if any(len(part.entries) for part in parts)]
    if not found:
        raise NotATraceError(nothing_within(trace))
    used = [segment for segment, _ in found]
    layout = _common_layout(trace, used)
    tally = Tally()
    writing = _Writing(used, layout, _buffers(found))
    file = disk.open(out)
    try:
        writing.write(file, window, tally)
    finally:
        file.close()
    return tally.told("pages")


def _common_layout(trace: Trace, used: list[Segment]) -> PageLayout:
    """Return the layout of all segments.

    Raises:
        UsageError: they do not.
    """
    layouts: dict[tuple[object, ...], PageLayout] = {}
    for segment in used:
        for stream in segment.streams:
            machine = segment.manifest.machine.get("boot_id")
            layout = layout_of(stream.info, stream.byteorder)
            layouts.setdefault((layout, segment.manifest.clock, machine), layout)
    if len(layouts) > 1:
        raise UsageError(
            f"{trace.path}: its segments differ in boot, clock or sub-buffer size, of which"
            f" a trace.dat has one: export them one by one, as {used[0].paths.directory} first"
        )
    return next(iter(layouts.values()))


def _buffers(found: list[tuple[Segment, list[Selection]]]) -> list[_Buffer]:
    """Distribute streams to buffers: join consecutive segments, separate simultaneous ones."""
    buffers: list[_Buffer] = []
    for _, parts in found:
        for channel in dict.fromkeys(part.stream.info.id.channel for part in parts):
            own = [part for part in parts if part.stream.info.id.channel == channel]
            same = [one for one in buffers if one.name.partition("#")[0] == channel]
            home = next((one for one in same if one.takes(own)), None)
            if home is None:
                number = f"#{len(same) + 1}" if same else ""
                home = _Buffer(channel + number)
                buffers.append(home)
            home.join(own)
    return buffers


class _Writing:
    """The writer of one file."""

    def __init__(self, used: list[Segment], layout: PageLayout, buffers: list[_Buffer]) -> None:
        self._segments = used
        self._layout = layout
        self._buffers = buffers
        self._cpus = max(cpu for buffer in buffers for cpu in buffer.cpus) + 1
        self._order = layout.byteorder
        self._clock = f"[{used[-1].manifest.clock}]\n".encode()

    def write(self, file: File, window: Window, tally: Tally) -> None:
        """Write head, room for the tables, pages, tables."""
        files = [SavedFiles(segment) for segment in self._segments]
        head = b"".join(self._head(files, window))
        options, buffer_at = self._options(files[-1], window)
        at = len(head) + len(options)
        for buffer in self._buffers:
            buffer.table_at = at
            at += len(_FLYRECORD) + 16 * self._cpus + 8 + len(self._clock)
        for buffer, where in zip(self._buffers[1:], buffer_at, strict=True):
            struct.pack_into(f"{self._order}Q", options, where, buffer.table_at)
        file.write_at([head, bytes(options)], 0)
        size = self._layout.subbuffer_bytes
        at = -(-at // size) * size
        for buffer in self._buffers:
            table = []
            for cpu in range(self._cpus):
                behind = self._write_cpu(file, at, buffer.cpus.get(cpu, []), tally)
                table.append(struct.pack(f"{self._order}QQ", at, behind - at))
                at = behind
            clock = struct.pack(f"{self._order}Q", len(self._clock)) + self._clock
            file.write_at([_FLYRECORD, *table, clock], buffer.table_at)

    def _write_cpu(self, file: File, at: int, parts: list[Selection], tally: Tally) -> int:
        maker = PageMaker(self._layout, tally)
        for part in parts:
            for pages in maker.pages(part):
                at = file.write_at([memoryview(pages)], at)
        return file.write_at([memoryview(maker.rest())], at)

    def _number(self, code: str, value: int) -> bytes:
        return struct.pack(f"{self._order}{code}", value)

    def _sized(self, code: str, data: bytes) -> bytes:
        return self._number(code, len(data)) + data

    def _head(self, files: list[SavedFiles], window: Window) -> Iterator[bytes]:
        """Yield everything up to the number of CPUs."""
        number, sized = self._number, self._sized
        layout = self._layout
        yield _MAGIC
        yield bytes([0 if self._order == "<" else 1, layout.long_bytes])
        yield number("I", layout.subbuffer_bytes)
        yield b"header_page\0" + sized("Q", files[-1].header_page(layout))
        yield b"header_event\0" + sized("Q", files[-1].read("events/header_event"))
        # All segments are of one boot, in which an event keeps its id: any segment's format fits.
        formats = {key: text for one in files for key, text in one.formats().items()}
        systems: dict[str, list[bytes]] = {}
        for (system, _), text in sorted(formats.items()):
            systems.setdefault(system, []).append(text)
        own = systems.pop(OWN_SYSTEM, [])
        yield number("I", len(own)) + b"".join(sized("Q", text) for text in own)
        yield number("I", len(systems))
        for system, texts in systems.items():
            yield os.fsencode(system) + b"\0" + number("I", len(texts))
            yield from (sized("Q", text) for text in texts)
        yield sized("I", next((text for one in files if (text := one.read("kallsyms"))), b""))
        yield sized("I", files[-1].read("printk_formats"))
        commands: dict[int, bytes] = {}
        for segment, one in zip(self._segments, files, strict=True):
            commands |= one.last_commands(window.bounds(segment)[1])
        # trace-cmd reads "%d %m[^\n]": after a name of blanks only it loses all further names.
        named = ((pid, name) for pid, name in sorted(commands.items()) if name.strip())
        lines = (b"%d %b\n" % each for each in named)
        yield sized("Q", b"".join(lines))
        yield number("I", self._cpus)

    def _options(self, files: SavedFiles, window: Window) -> tuple[bytearray, list[int]]:
        """Return the options, and the places in them for the offsets of further buffers."""
        options = bytearray(b"options  \0")
        machine = self._segments[-1].manifest.machine
        told = (machine.get(name, "") for name in ("host", "kernel", "architecture"))
        self._option(options, _TRACECLOCK, self._clock + b"\0")
        self._option(options, _UNAME, f"Linux {' '.join(told)}\0".encode())
        version = self._segments[-1].manifest.lttd_version
        self._option(options, _VERSION, f"lttd {version}\0".encode())
        self._option(options, _CPUCOUNT, self._number("I", self._cpus))
        if scale := self._layout.scale:
            self._option(options, _OFFSET, b"%d\0" % scale.add)
            if (scale.multiplier, scale.shift) != (1, 0):
                numbers = struct.pack(f"{self._order}IIQ", scale.multiplier, scale.shift, 0)
                self._option(options, _TSC2NSEC, numbers)
        if window.everything and len(self._buffers) == 1:
            for cpu in range(self._cpus):
                stats = files.read(f"per_cpu/cpu{cpu}/stats")
                if stats:
                    self._option(options, _CPUSTAT, b"CPU: %d\n%b\0" % (cpu, stats))
        where = []
        for buffer in self._buffers[1:]:
            where.append(len(options) + struct.calcsize("=HI"))
            self._option(options, _BUFFER, bytes(8) + buffer.name.encode() + b"\0")
        options += self._number("H", 0)
        return options, where

    def _option(self, options: bytearray, number: int, data: bytes) -> None:
        options += struct.pack(f"{self._order}HI", number, len(data)) + data
