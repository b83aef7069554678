"""Write a CTF trace of any length as lttng-modules does.

Two CPUs have three channels, with the contexts of ``systemd/lttng-channels.toml``: the scheduler
and interrupts with compact event headers (27 bits of time), system calls with large ones (32 bits).
The events of one period are made one by one.  The others repeat its packets: a period has 2^32 ns,
so that the bits of time in event headers stay true, and only the times of packets change.
"""

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

PERIOD_NS: Final = 1 << 32
_CPUS: Final = 2
_PACKET_BYTES: Final = 1 << 18
_PAGE_BYTES: Final = 4096
_SEED: Final = 13
_UUID: Final = bytes(range(16))
_HEADER: Final = struct.Struct("<I16sIQ")
_CONTEXT: Final = struct.Struct("<QQQQQQI")
_COMMANDS: Final = (b"swapper/0", b"kworker/1:2", b"postgres", b"nginx", b"systemd-journal", b"sh")
_NAMES: Final = (b"/etc/ld.so.cache", b"/proc/self/stat", b"/var/lib/postgresql/13/base/1", b"/tmp")
_DEVICES: Final = (b"virtio0-req.0", b"ens3", b"timer")
_TYPES: Final = {
    "s32": ("i", "integer { size = 32; align = 8; signed = 1; encoding = none; base = 10; }"),
    "u32": ("I", "integer { size = 32; align = 8; signed = 0; encoding = none; base = 10; }"),
    "u16": ("H", "integer { size = 16; align = 8; signed = 0; encoding = none; base = 10; }"),
    "s64": ("q", "integer { size = 64; align = 8; signed = 1; encoding = none; base = 10; }"),
    "u64": ("Q", "integer { size = 64; align = 8; signed = 0; encoding = none; base = 10; }"),
    "x64": ("Q", "integer { size = 64; align = 8; signed = 0; encoding = none; base = 16; }"),
    "comm": ("16s", "integer { size = 8; align = 8; signed = 1; encoding = UTF8; base = 10; }"),
    "string": ("", "string"),
}


class Kind(NamedTuple):
    """A kind of events."""

    name: str
    share: int
    """The share of this kind among the events of its channel, in percent."""
    fields: str

    def declared(self) -> Iterator[tuple[str, str]]:
        """Yield type and name of each field."""
        for field in self.fields.split("; "):
            kind, _, name = field.partition(" ")
            yield kind, name


class Channel(NamedTuple):
    """A channel, which is a stream class."""

    name: str
    is_large: bool
    """True: headers have 16 bits of id and 32 of time; False: 5 and 27."""
    events: int
    """In a period, of each CPU."""
    kinds: tuple[Kind, ...]


_WAKING: Final = "comm comm; s32 tid; s32 prio; s32 target_cpu"
CHANNELS: Final = (
    Channel("cpu", False, 36_000, (
        Kind("sched_switch", 50, "comm prev_comm; s32 prev_tid; s32 prev_prio; s64 prev_state;"
             " comm next_comm; s32 next_tid; s32 next_prio"),
        Kind("sched_waking", 25, _WAKING),
        Kind("sched_wakeup", 20, _WAKING),
        Kind("sched_migrate_task", 5, "comm comm; s32 tid; s32 prio; s32 orig_cpu; s32 dest_cpu"),
    )),
    Channel("interrupts", False, 42_000, (
        Kind("irq_handler_entry", 8, "s32 irq; string name"),
        Kind("irq_handler_exit", 8, "s32 irq; s32 ret"),
        Kind("irq_softirq_raise", 12, "u32 vec"),
        Kind("irq_softirq_entry", 12, "u32 vec"),
        Kind("irq_softirq_exit", 12, "u32 vec"),
        Kind("timer_hrtimer_start", 16, "x64 hrtimer; x64 function; s64 expires; s64 softexpires"),
        Kind("timer_hrtimer_expire_entry", 12, "x64 hrtimer; s64 now; x64 function"),
        Kind("timer_hrtimer_expire_exit", 12, "x64 hrtimer"),
        Kind("timer_hrtimer_cancel", 8, "x64 hrtimer"),
    )),
    Channel("syscalls", True, 42_000, (
        Kind("syscall_entry_read", 14, "u32 fd; u64 count"),
        Kind("syscall_exit_read", 14, "s64 ret; u64 buf"),
        Kind("syscall_entry_write", 10, "u32 fd; u64 buf; u64 count"),
        Kind("syscall_exit_write", 10, "s64 ret"),
        Kind("syscall_entry_openat", 8, "s32 dfd; string filename; s32 flags; u16 mode"),
        Kind("syscall_exit_openat", 8, "s64 ret"),
        Kind("syscall_entry_close", 8, "u32 fd"),
        Kind("syscall_exit_close", 8, "s64 ret"),
        Kind("syscall_entry_futex", 10, "u64 uaddr; s32 op; u32 val; u64 utime; u64 uaddr2;"
             " u32 val3"),
        Kind("syscall_exit_futex", 10, "s64 ret; u64 uaddr; u64 uaddr2"),
    )),
)  # fmt: skip
EVENTS: Final = _CPUS * sum(channel.events for channel in CHANNELS)
"""In a period."""

_METADATA: Final = """/* CTF 1.8 */

typealias integer { size = 8; align = 8; signed = false; } := uint8_t;
typealias integer { size = 16; align = 8; signed = false; } := uint16_t;
typealias integer { size = 32; align = 8; signed = false; } := uint32_t;
typealias integer { size = 64; align = 8; signed = false; } := uint64_t;
typealias integer { size = 64; align = 8; signed = false; } := unsigned long;
typealias integer { size = 5; align = 1; signed = false; } := uint5_t;
typealias integer { size = 27; align = 1; signed = false; } := uint27_t;

trace {
	major = 1;
	minor = 8;
	uuid = "00010203-0405-0607-0809-0a0b0c0d0e0f";
	byte_order = le;
	packet.header := struct {
		uint32_t magic;
		uint8_t  uuid[16];
		uint32_t stream_id;
		uint64_t stream_instance_id;
	};
};

env {
	hostname = "bench";
	domain = "kernel";
	tracer_name = "lttng-modules";
	tracer_major = 2;
	tracer_minor = 13;
};

clock {
	name = "monotonic";
	description = "Monotonic Clock";
	freq = 1000000000; /* Frequency, in Hz */
	offset = 1795400390757317690;
};

typealias integer {
	size = 27; align = 1; signed = false;
	map = clock.monotonic.value;
} := uint27_clock_monotonic_t;

typealias integer {
	size = 32; align = 8; signed = false;
	map = clock.monotonic.value;
} := uint32_clock_monotonic_t;

typealias integer {
	size = 64; align = 8; signed = false;
	map = clock.monotonic.value;
} := uint64_clock_monotonic_t;

struct packet_context {
	uint64_clock_monotonic_t timestamp_begin;
	uint64_clock_monotonic_t timestamp_end;
	uint64_t content_size;
	uint64_t packet_size;
	uint64_t packet_seq_num;
	unsigned long events_discarded;
	uint32_t cpu_id;
};
"""
_EVENT_HEADER: Final = """
struct event_header_{name} {{
	enum : uint{id_bits}_t {{ compact = 0 ... {most}, extended = {extended} }} id;
	variant <id> {{
		struct {{
			uint{time_bits}_clock_monotonic_t timestamp;
		}} compact;
		struct {{
			uint32_t id;
			uint64_clock_monotonic_t timestamp;
		}} extended;
	}} v;
}} align(8);
"""
_STREAM: Final = """
stream {{
	id = {number};
	event.header := struct event_header_{name};
	packet.context := struct packet_context;
	event.context := struct {{
		integer {{ size = 8; align = 8; signed = 1; encoding = UTF8; base = 10; }} _procname[16];
		integer {{ size = 32; align = 8; signed = 1; encoding = none; base = 10; }} _tid;
	}};
}};
"""


def metadata() -> str:
    """Return the TSDL of the trace."""
    text = [_METADATA]
    for name, id_bits, time_bits in (("compact", 5, 27), ("large", 16, 32)):
        extended = (1 << id_bits) - 1
        text.append(
            _EVENT_HEADER.format(
                name=name, id_bits=id_bits, time_bits=time_bits, most=extended - 1,
                extended=extended,
            )
        )  # fmt: skip
    for number, channel in enumerate(CHANNELS):
        name = "large" if channel.is_large else "compact"
        text.append(_STREAM.format(number=number, name=name))
        text += [declaration(kind, at, number) for at, kind in enumerate(channel.kinds)]
    return "".join(text)


def declaration(kind: Kind, number: int, stream: int) -> str:
    """Return the block of a kind of events."""
    fields = "".join(
        f"\t\t{_TYPES[type_][1]} _{name}{'[16]' if type_ == 'comm' else ''};\n"
        for type_, name in kind.declared()
    )
    return (
        f'\nevent {{\n\tname = "{kind.name}";\n\tid = {number};\n\tstream_id = {stream};\n'
        f"\tfields := struct {{\n{fields}\t}};\n}};\n"
    )


class _Packet(NamedTuple):
    """A packet of the first period; the begin of its time is the end of the one before it."""

    begin: int
    end: int
    content: bytes


class _Values:
    """Random values of a CPU's events."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.after = self._random.expovariate
        self.kinds = self._random.choices

    def of(self, type_: str) -> "int | bytes":
        """Return a value."""
        draw = self._random
        match type_:
            case "comm":
                return draw.choice(_COMMANDS)
            case "x64":
                return 0xFFFF_8000_0000_0000 | draw.getrandbits(24) << 6
            case "s64" | "u64":
                return draw.choice((0, 1, 512, draw.getrandbits(46)))
            case "u32":
                return draw.randrange(40)
            case _:
                return draw.choice((0, 120, draw.randrange(32_768)))

    def packed(self, kind: Kind) -> bytes:
        """Return the fields of an event."""
        found = b""
        for type_, name in kind.declared():
            if type_ == "string":
                found += self._random.choice(_NAMES if name == "filename" else _DEVICES) + b"\0"
            else:
                value = self.of(type_)
                found += struct.pack(f"<{_TYPES[type_][0]}", value)
        return found


def _packets(channel: Channel, seed: int) -> Iterator[_Packet]:
    """Yield the packets of a channel of one CPU in the first period."""
    make, begin, now = _Values(seed), 0, 0
    content = bytearray()
    shares = [kind.share for kind in channel.kinds]
    room = _PACKET_BYTES - _HEADER.size - _CONTEXT.size
    for number in make.kinds(range(len(shares)), shares, k=channel.events):
        later = now + 300 + int(make.after(channel.events / PERIOD_NS * 1.1))
        if later >= PERIOD_NS:
            break
        if channel.is_large:
            event = struct.pack("<HI", number, later & (1 << 32) - 1)
        else:
            event = struct.pack("<I", number | (later & (1 << 27) - 1) << 5)
        event += struct.pack("<16si", make.of("comm"), make.of("s32"))
        event += make.packed(channel.kinds[number])
        if len(content) + len(event) > room:
            yield _Packet(begin, now, bytes(content))
            begin, content = now, bytearray()
        now = later
        content += event
    yield _Packet(begin, now, bytes(content))


def write_trace(directory: Path, periods: int) -> int:
    """Write a trace; return the number of its bytes."""
    directory.mkdir()
    (directory / "metadata").write_text(metadata())
    written = 0
    for number, channel in enumerate(CHANNELS):
        for cpu in range(_CPUS):
            packets = list(_packets(channel, _SEED + number * _CPUS + cpu))
            with (directory / f"{channel.name}_{cpu}").open("wb") as file:
                for period in range(periods):
                    for at, packet in enumerate(packets):
                        sequence = period * len(packets) + at
                        written += file.write(_page(packet, number, cpu, period, sequence))
    return written


def _page(packet: _Packet, stream: int, cpu: int, period: int, sequence: int) -> bytes:
    """Return a packet with its headers and its padding, in a later period."""
    used = _HEADER.size + _CONTEXT.size + len(packet.content)
    padded = -(-used // _PAGE_BYTES) * _PAGE_BYTES
    later = (period + 1) * PERIOD_NS
    head = _HEADER.pack(0xC1FC1FC1, _UUID, stream, cpu)
    times = packet.begin + later, packet.end + later
    context = _CONTEXT.pack(*times, used * 8, padded * 8, sequence, 0, cpu)
    return (head + context + packet.content).ljust(padded, b"\0")
