"""Make channels of an LTTng 0.x kernel as its tracer wrote them: formats 2.0 to 2.6.

    tracer = Tracer(minor=6, order="<", pointer_bytes=8, alignment=0)
    metadata, kernel = LttBuffer(tracer), LttBuffer(tracer, subbuffer_bytes=8192)
    describe(metadata, Marker("kernel", "irq_entry", 0, "irq_id %u kernel_mode %u"), tsc=...)
    kernel.log(0, tracer.pack(("u4", 7), ("u4", 1)), tsc, largest=4)
    kernel.finalize(tsc)
    (directory / "kernel_0").write_bytes(kernel.drain())

Rule: this module follows the sources of the tracer (reserve, switch, push, flush) in the plainest
way, and uses nothing of lttd, so that it can test lttd.
Invariant: logged + lost = calls of log(); sub-buffers taken + pushed + readable = closed.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

MAGIC = 0x00D6B7ED
TSC_BITS = 27
FULL_TSC, SIZED, LONG_ID = 29, 30, 31
"""Ids in the compact header that announce more fields."""
OPEN = 0xFFFFFFFF
"""The value of the used size until the sub-buffer is closed."""


@dataclass(frozen=True)
class Tracer:
    """A kernel: the values in the headers of all its sub-buffers."""

    minor: int = 6
    order: str = "<"
    pointer_bytes: int = 8
    alignment: int = 0
    """0, or pointer_bytes."""
    frequency: int = 1_000_000_000
    scale: int = 1
    start_tsc: int = 1_000_000_000_000
    start_s: int = 1_262_715_366
    start_us: int = 408_819
    page_bytes: int = 4096
    sized: bool = False
    """CONFIG_LTT_DEBUG_EVENT_SIZE: every event contains its size."""

    @property
    def header_bytes(self) -> int:
        if self.minor >= 2:
            return 68
        return 64 if self.minor == 0 and self.pointer_bytes == 8 else 60

    def padding(self, at: int, size: int) -> int:
        """Return the bytes of padding before a value of *size* at *at*."""
        if not self.alignment:
            return 0
        # 2.4 and 2.5 aligned 64-bit values on 8 even where the compiler does not.
        unit = size if self.minor in (4, 5) else min(size, self.alignment)
        return -at % unit

    def pack(self, *fields: tuple[str, int | bytes]) -> bytes:
        """Return a payload of ("u4", 7), ("i8", -1), ("s", b"text")..., padded between them."""
        made = b""
        for form, value in fields:
            if isinstance(value, bytes):
                made += value + b"\0"
                continue
            size = int(form[1:])
            made += bytes(self.padding(len(made), size))
            made += value.to_bytes(size, self.endian, signed=form[0] == "i")
        return made

    @property
    def endian(self) -> str:
        return "little" if self.order == "<" else "big"

    def u(self, size: int, value: int) -> bytes:
        return value.to_bytes(size, self.endian)

    def ns(self, tsc: int) -> int:
        """Return the exact time of a TSC value in ns."""
        if self.minor >= 2:
            return tsc * 1_000_000_000 * self.scale // self.frequency
        return tsc * 1_000_000_000 // (self.frequency * self.scale)


class Logged(NamedTuple):
    """An event that was written."""

    id: int
    tsc: int
    payload: bytes


@dataclass
class LttBuffer:
    """One CPU of one channel: a ring of sub-buffers, its writer, and its reader (take)."""

    tracer: Tracer
    subbuffer_bytes: int = 4096
    """A power of two, a page or more."""
    count: int = 4
    """A power of two."""
    overwrite: bool = False
    offset: int = 0
    """Bytes written in all."""
    consumed: int = 0
    """Bytes read or overwritten in all: a multiple of subbuffer_bytes."""
    events_lost: int = 0
    events_told: int = 0
    """events_lost as the last closed sub-buffer states it; later losses are nowhere."""
    corrupted: int = 0
    pushed: int = 0
    """Sub-buffers that were overwritten before they were read."""
    closed: int = 0
    finalized: bool = False
    logged: list[Logged] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Not zeros: the tracer leaves old bytes where it writes nothing.
        self.memory = bytearray(b"\xa5" * self.buffer_bytes)
        self._last_tsc = 0
        self._begin(self.tracer.start_tsc)

    @property
    def buffer_bytes(self) -> int:
        return self.subbuffer_bytes * self.count

    # -- the writer

    def log(self, event_id: int, payload: bytes, tsc: int, largest: int = 1) -> bool:
        """Write an event whose largest field has *largest* bytes; return False if it was lost."""
        if not self._in_subbuffer(self.offset) and not self._switch(tsc):
            return self._lose()
        record = self._record(self.offset, event_id, payload, tsc, largest)
        if self._in_subbuffer(self.offset) + len(record) > self.subbuffer_bytes:
            start = self._next(self.offset) + self.tracer.header_bytes
            record = self._record(start, event_id, payload, tsc, largest)
            if self._in_subbuffer(start) + len(record) > self.subbuffer_bytes:
                return self._lose()
            if not self._has_room():
                return self._lose()
            self._end(tsc)
            self.offset = self._next(self.offset)
            self._switch(tsc)
        at = self.offset % self.buffer_bytes
        self.memory[at : at + len(record)] = record
        self.offset += len(record)
        self._last_tsc = tsc
        self.logged.append(Logged(event_id, tsc, payload))
        if not self._in_subbuffer(self.offset):
            self._end(tsc)
        return True

    def flush(self, tsc: int) -> bool:
        """Close the current sub-buffer and begin the next, as the periodic timer does."""
        if self._in_subbuffer(self.offset) <= self.tracer.header_bytes or not self._has_room():
            return False
        self._end(tsc)
        self.offset = self._next(self.offset)
        self._last_tsc = tsc
        return self._switch(tsc)

    def finalize(self, tsc: int) -> None:
        """Close the current sub-buffer, even an empty one; the trace is destroyed."""
        self.finalized = True
        if self._in_subbuffer(self.offset):
            self._end(tsc)
            self.offset = self._next(self.offset)

    def lose(self, events: int = 1, subbuffers: int = 0) -> None:
        """Count losses; their causes are races, which this model does not have."""
        self.events_lost = (self.events_lost + events) % (1 << 32)
        self.corrupted = (self.corrupted + subbuffers) % (1 << 32)

    # -- the reader

    @property
    def readable(self) -> int:
        """The number of closed sub-buffers that wait for the reader."""
        return self.offset // self.subbuffer_bytes - self.consumed // self.subbuffer_bytes

    @property
    def held_bytes(self) -> int:
        """The number of bytes of the oldest sub-buffer that splice delivers."""
        if self.tracer.minor < 5:
            return self.subbuffer_bytes
        at = self.consumed % self.buffer_bytes
        return int.from_bytes(self.memory[at + 56 : at + 60], self.tracer.endian)

    def peek(self) -> bytes:
        """Return the oldest closed sub-buffer as splice delivers it, without releasing it."""
        at = self.consumed % self.buffer_bytes
        return bytes(self.memory[at : at + self.held_bytes])

    def take(self) -> bytes | None:
        """Return the oldest closed sub-buffer, and release it."""
        if not self.readable:
            return None
        data = self.peek()
        self.consumed += self.subbuffer_bytes
        return data

    def drain(self) -> bytes:
        """Return all closed sub-buffers in a row, as legacy lttd stored them."""
        return b"".join(iter(self.take, None))

    # -- inside

    def _in_subbuffer(self, at: int) -> int:
        return at % self.subbuffer_bytes

    def _next(self, at: int) -> int:
        return (at // self.subbuffer_bytes + 1) * self.subbuffer_bytes

    def _has_room(self) -> bool:
        """Return whether the next sub-buffer is free or may be overwritten."""
        return self.overwrite or self._next(self.offset) - self.consumed < self.buffer_bytes

    def _lose(self) -> bool:
        self.lose()
        return False

    def _switch(self, tsc: int) -> bool:
        """Begin a sub-buffer at the current offset."""
        if self.offset - self.consumed >= self.buffer_bytes:
            if not self.overwrite:
                return False
            self.consumed += self.subbuffer_bytes
            self.pushed += 1
        self._begin(tsc)
        return True

    def _begin(self, tsc: int) -> None:
        t, at = self.tracer, self.offset % self.buffer_bytes
        self.memory[at : at + 8] = t.u(8, tsc)
        said = t.u(4, MAGIC) + bytes((2, t.minor, t.pointer_bytes, t.alignment))
        said += t.u(8, t.start_s) + t.u(8, t.start_us) + t.u(8, t.frequency) + t.u(4, t.scale)
        said += t.u(4, OPEN)
        self.memory[at + 16 : at + 16 + len(said)] = said
        self.offset += t.header_bytes

    def _end(self, tsc: int) -> None:
        """Close the sub-buffer of the last written byte."""
        t, used = self.tracer, (self.offset - 1) % self.subbuffer_bytes + 1
        at = (self.offset - used) % self.buffer_bytes
        self.memory[at + 8 : at + 16] = t.u(8, tsc)
        if t.minor >= 5:
            sizes = used, -(-used // t.page_bytes) * t.page_bytes
        else:
            sizes = self.subbuffer_bytes - used, self.subbuffer_bytes
        said = t.u(4, sizes[0]) + t.u(4, sizes[1])
        if t.minor >= 2:
            said += t.u(4, self.events_lost) + t.u(4, self.corrupted)
            self.events_told = self.events_lost
        self.memory[at + 52 : at + 52 + len(said)] = said
        self.closed += 1

    def _record(self, at: int, event_id: int, payload: bytes, tsc: int, largest: int) -> bytes:
        """Return the bytes of an event at *at*, with the padding before it."""
        t = self.tracer
        made = bytes(t.padding(at, 4))
        header_id, sized = self._header_id(event_id, tsc), len(payload)
        made += t.u(4, header_id << TSC_BITS | tsc & ((1 << TSC_BITS) - 1))
        if header_id >= FULL_TSC:
            made += t.u(2, event_id)
        if header_id in (FULL_TSC, SIZED):
            made += t.u(2, min(sized, 0xFFFF)) + (t.u(4, sized) if sized >= 0xFFFF else b"")
        if header_id == FULL_TSC:
            made += bytes(t.padding(at + len(made), 8)) + t.u(8, tsc)
        return made + bytes(t.padding(at + len(made), largest)) + payload

    def _header_id(self, event_id: int, tsc: int) -> int:
        if self.tracer.pointer_bytes == 8:
            wraps = tsc - self._last_tsc >= 1 << TSC_BITS
        else:
            wraps = tsc >> TSC_BITS != self._last_tsc >> TSC_BITS
        if wraps:
            return FULL_TSC
        if self.tracer.sized:
            return SIZED
        return event_id if event_id < FULL_TSC else LONG_ID


class Marker(NamedTuple):
    """The declaration of one event type in the metadata channel."""

    channel: str
    name: str
    id: int
    format: str
    """``irq_id %u kernel_mode %u``"""


def describe(metadata: LttBuffer, marker: Marker, tsc: int) -> None:
    """Log core_marker_id and core_marker_format; before 2.3 they do not name the channel."""
    t = metadata.tracer
    names = [("s", marker.name.encode())]
    if t.minor >= 3:
        names.insert(0, ("s", marker.channel.encode()))
    word = t.pointer_bytes
    sizes = [("u1", size) for size in (4, word, word, word, t.alignment)]
    metadata.log(0, t.pack(*names, ("u2", marker.id), *sizes), tsc, largest=2)
    metadata.log(1, t.pack(*names, ("s", marker.format.encode())), tsc)


def write_trace(directory: Path, buffers: dict[str, LttBuffer]) -> None:
    """Finalize the buffers and write each to *directory* under its name (``kernel_0``)."""
    for name, buffer in buffers.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not buffer.finalized:
            buffer.finalize(buffer.logged[-1].tsc if buffer.logged else buffer.tracer.start_tsc)
        path.write_bytes(buffer.drain())
