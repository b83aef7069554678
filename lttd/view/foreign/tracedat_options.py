"""The options of a trace.dat: clocks, the recorded machine, the buffers and their places.

    option   := id:u16 size:u32 data
    version 6: options end with the id 0 alone; version 7: with id 0 and the offset:u64 of the next
               section of options, 0 in the last one

Source: trace-cmd lib/trace-cmd/trace-input.c, handle_options() and handle_buffer_option().

Rule: an option that is not known, or shorter than it has to be, is passed over, as trace-cmd does.
"""

import re
import struct
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lttd.abi.time_scale import TimeScale
from lttd.limits import CPUS, OPTIONS
from lttd.view.foreign.cursor import Cursor, InMemory
from lttd.view.foreign.parts import Extent
from lttd.view.foreign.tracedat_head import BY_SECTION

DONE, DATE, CPUSTAT, BUFFER, TRACECLOCK, UNAME = 0, 1, 2, 3, 4, 5
OFFSET, CPUCOUNT, VERSION, TIME_SHIFT, TSC2NSEC, BUFFER_TEXT = 7, 8, 9, 12, 14, 22
TSC_CLOCK: Final = "tsc2nsec"
"""The name of a clock whose times are ns, by the TSC and two numbers."""
_CLOCK: Final = re.compile(rb"\[([\w-]{1,64})\]")
_NUMBER: Final = re.compile(rb"\s*([+-]?)(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})")
_STATS: Final = re.compile(rb"CPU: (\d{1,5})\n(.*)", re.DOTALL)
_LONG: Final = 1 << 63


class Buffer(NamedTuple):
    """A ring buffer of the recorded machine: the top one, or an instance."""

    name: str
    """Empty: the top one."""
    clock: str
    page_bytes: int
    """0: that of the file."""
    cpus: tuple[tuple[int, Extent], ...]
    """The place of each CPU's pages."""
    section_at: int = 0
    """The place of its section (version 7), or of its table (6)."""
    is_text: bool = False
    """Whether it is what a latency tracer printed."""


@dataclass
class Options:
    """All options of a file."""

    clock: str = ""
    uname: str = ""
    recorder: str = ""
    cpus: int | None = None
    add_ns: int = 0
    """What DATE and OFFSET add to times."""
    is_of_day: bool = False
    """Whether DATE makes times those of the day."""
    tsc: tuple[int, int] | None = None
    """Multiplier and shift from cycles to ns."""
    is_shifted: bool = False
    """Whether the file has the differences of a guest's clock to its host's."""
    buffers: list[Buffer] = field(default_factory=list)
    stats: dict[int, bytes] = field(default_factory=dict)
    """The kernel's counters of each CPU."""
    places: dict[int, int] = field(default_factory=dict)
    """Version 7: where the sections of texts are, by their ids."""

    @property
    def scale(self) -> TimeScale | None:
        """How times follow from stamps; None: they are the stamps."""
        multiplier, shift = self.tsc or (1, 0)
        scale = TimeScale(multiplier, shift, self.add_ns)
        return None if scale == TimeScale() else scale

    def clock_of(self, buffer: Buffer) -> str:
        """Return the name of the clock that a buffer's times are of."""
        if self.tsc is not None:
            return TSC_CLOCK
        return buffer.clock or self.clock or "local"


def clock_in(text: bytes) -> str:
    """Return the clock that a ``trace_clock`` says is in use; empty: none."""
    found = _CLOCK.search(text)
    return found[1].decode() if found else ""


def read_options(cursor: Cursor, version: int, options: Options) -> int:
    """Read one section of options; return the place of the next one, 0: there is none.

    Raises:
        TraceDamagedError: they are cut, or a buffer's is not valid.
    """
    while True:
        number = cursor.number("H", "an option")
        if number == DONE and version == 6:
            return 0
        size = cursor.number("I", "the size of an option")
        if size > OPTIONS.most:
            raise cursor.damaged(f"an option of {size:,} bytes; {OPTIONS}")
        at = cursor.at
        data = cursor.take(size, f"option {number}")
        inside = Cursor(InMemory(data), cursor.path, cursor.byteorder, base=at)
        if number == DONE:
            return inside.number("Q", "the place of further options") if size >= 8 else 0
        if number in (BUFFER, BUFFER_TEXT):
            options.buffers.append(_buffer(inside, version, is_text=number == BUFFER_TEXT))
        else:
            _take(number, data, cursor.byteorder, options)


def _take(number: int, data: bytes, byteorder: str, options: Options) -> None:
    text = data.partition(b"\0")[0]
    if number in BY_SECTION and len(data) >= 8:
        options.places[number] = struct.unpack_from(f"{byteorder}Q", data)[0]
    elif number in (DATE, OFFSET):
        added = _number(text) * (1000 if number == DATE else 1)
        options.add_ns = (options.add_ns + added + _LONG) % (2 * _LONG) - _LONG
        options.is_of_day |= number == DATE
    elif number == TRACECLOCK:
        options.clock = clock_in(text) or options.clock
    elif number == UNAME:
        options.uname = _shown(text)
    elif number == VERSION:
        options.recorder = _shown(text)
    elif number == CPUCOUNT and len(data) >= 4:
        options.cpus = struct.unpack_from(f"{byteorder}I", data)[0]
    elif number == TIME_SHIFT:
        options.is_shifted = True
    elif number == TSC2NSEC and len(data) >= 16:
        multiplier, shift = struct.unpack_from(f"{byteorder}II", data)
        options.tsc = (multiplier, shift) if multiplier and shift < 64 else None
    elif number == CPUSTAT and (found := _STATS.match(data)):
        options.stats[int(found[1])] = found[2].rstrip(b"\0")


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")[:1024]


def _number(text: bytes) -> int:
    """Return a number as strtoll() reads it, in the base that it shows."""
    found = _NUMBER.match(text)
    if found is None:
        return 0
    digits = found[2].lower()
    base = 16 if digits.startswith(b"0x") else 8 if digits.startswith(b"0") else 10
    try:
        value = int(digits, base)
    except ValueError:  # 089, say
        return 0
    return min(value, _LONG - 1) * (-1 if found[1] == b"-" else 1)


def _buffer(cursor: Cursor, version: int, *, is_text: bool) -> Buffer:
    """Read the option of a buffer.

    Raises:
        TraceDamagedError: it is cut, or names one CPU twice.
    """
    place = cursor.number("Q", "the place of a buffer")
    name = _shown(cursor.string("the name of a buffer"))
    if version == 6:
        return Buffer(name, "", 0, (), place)
    clock = _shown(cursor.string("the clock of a buffer"))
    if is_text:
        return Buffer(name, clock, 0, (), place, is_text=True)
    page_bytes = cursor.number("I", "the size of a buffer's pages")
    count = cursor.number("I", "the number of a buffer's CPUs")
    if count > cursor.left_bytes // 20:
        raise cursor.damaged(f"{count:,} CPUs, more than the option has room for")
    cpus = {}
    for _ in range(count):
        cpu, begin, length = (cursor.number(code, "the place of a CPU's pages") for code in "IQQ")
        if cpu >= CPUS.most or cpu in cpus:
            raise cursor.damaged(f"CPU {cpu} of a buffer: {_why_no_cpu(cpu)}")
        cpus[cpu] = Extent(begin, length)
    return Buffer(name, clock, page_bytes, tuple(cpus.items()), place)


def _why_no_cpu(cpu: int) -> str:
    return str(CPUS) if cpu >= CPUS.most else "twice"


def table_of(cursor: Cursor, count: int) -> tuple[tuple[int, Extent], ...]:
    """Read the places of the pages of so many CPUs (version 6).

    Raises:
        TraceDamagedError: the table is cut, or there are too many.
    """
    if count > CPUS.most:
        raise cursor.damaged(f"{count:,} CPUs; {CPUS}")
    words = struct.unpack(
        f"{cursor.byteorder}{2 * count}Q", cursor.take(16 * count, "the places of all CPUs' pages")
    )
    return tuple((cpu, Extent(words[2 * cpu], words[2 * cpu + 1])) for cpu in range(count))
