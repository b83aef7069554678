"""A CTF trace as lttng-modules makes it: events of the scheduler, interrupts and system calls."""

from pathlib import Path
from typing import Any, Final

from lttd.abi.ctf_metadata import read_metadata
from tests.ctf_model import Bits, encode

_U32: Final = "integer { size = 32; align = ALIGN; }"
_S32: Final = "integer { size = 32; align = ALIGN; signed = true; }"
_U64: Final = "integer { size = 64; align = ALIGN; }"
_COMM: Final = "integer { size = 8; align = 8; encoding = UTF8; }"
_WOKEN: Final = f"{_COMM} _comm[16]; {_S32} _tid; {_S32} _prio; {_S32} _target_cpu;"
EVENTS: Final = {
    "sched_switch": f"{_COMM} _prev_comm[16]; {_S32} _prev_tid; {_S32} _prev_prio;"
    f" {_U64} _prev_state; {_COMM} _next_comm[16]; {_S32} _next_tid; {_S32} _next_prio;",
    "sched_waking": _WOKEN,
    "irq_handler_entry": f"{_S32} _irq; string _name;",
    "irq_handler_exit": f"{_S32} _irq; {_S32} _ret;",
    "irq_softirq_entry": f"{_U32} _vec;",
    "irq_softirq_exit": f"{_U32} _vec;",
    "syscall_entry_openat": f"{_S32} _dfd; string _filename;",
    "syscall_exit_openat": f"{_S32} _ret;",
    "syscall_entry_read": f"{_U32} _fd;",
    "syscall_exit_read": f"{_S32} _ret;",
    "lttng_statedump_process_state": f"{_S32} _tid; {_S32} _pid; string _name;",
    "power_cpu_idle": f"{_U32} _state; {_U32} _cpu_id;",
    "print": "string _text;",
}
_HEAD: Final = """/* CTF 1.8 */
trace { major = 1; minor = 8; byte_order = le; uuid = "UUID"; packet.header := struct {
    integer { size = 32; align = 8; } magic; integer { size = 8; align = 8; } uuid[16];
    integer { size = 32; align = 8; } stream_id; }; };
env { hostname = "guest"; domain = "kernel"; };
clock { name = monotonic; freq = 1000000000; offset_s = OFFSET; };
typealias integer { size = 64; align = 8; map = clock.monotonic.value; } := time_t;
typealias integer { size = 27; align = 1; map = clock.monotonic.value; } := low_t;
stream { id = 0;
    packet.context := struct { time_t timestamp_begin; time_t timestamp_end;
        integer { size = 64; align = 8; } content_size;
        integer { size = 64; align = 8; } packet_size;
        integer { size = 64; align = 8; } packet_seq_num;
        integer { size = 64; align = 8; } events_discarded;
        integer { size = 32; align = 8; } cpu_id; };
    event.header := struct { enum : integer { size = 5; align = 1; } { compact = 0 ... 30,
        extended = 31 } id; variant <id> { struct { low_t timestamp; } compact; struct {
        integer { size = 32; align = 8; } id; time_t timestamp; } extended; } v; } align(8);
    CONTEXT };
"""
CONTEXT: Final = f"event.context := struct {{ {_S32} _tid; {_S32} _pid; {_COMM} _procname[16]; }};"
UUID: Final = "00010203-0405-0607-0809-0a0b0c0d0e0f"

Told = tuple[int, str, dict[str, Any]]
"""An event: time, name and fields; context fields under ``context``."""


def lttng_trace(
    directory: Path,
    cpus: dict[int, list[list[Told]]],
    *,
    context: str = "",
    align_bits: int = 8,
    uuid: str = UUID,
    lost: tuple[int, ...] = (),
    sequence: int = 0,
    offset_s: int = 1_700_000_000,
) -> Path:
    """Write a trace with the packets of each CPU; *lost* counts what each packet states in all."""
    text = _HEAD.replace("CONTEXT", context).replace("UUID", uuid)
    text = text.replace("OFFSET", str(offset_s))
    for number, (name, fields) in enumerate(EVENTS.items()):
        text += (
            f'event {{ name = "{name}"; id = {number}; stream_id = 0;'
            f" fields := struct {{ {fields} }}; }};\n"
        )
    text = text.replace("ALIGN", str(align_bits))
    trace = read_metadata(text.encode())
    directory.mkdir(parents=True)
    (directory / "metadata").write_text(text)
    for cpu, packets in cpus.items():
        data = b""
        for number, events in enumerate(packets):
            so_far = lost[number] if number < len(lost) else 0
            data += _packet(trace, cpu, events, so_far, sequence + number)
        (directory / f"channel0_{cpu}").write_bytes(data)
    return directory


def _packet(trace: Any, cpu: int, events: list[Told], lost: int, sequence: int) -> bytes:  # noqa: ANN401
    stream = trace.streams[0]
    numbers = {event.name: event for event in stream.events.values()}
    bits, sizes = Bits(), (0, 0)
    for _ in range(2):  # the second time with the sizes of the first
        bits = Bits()
        uuid = list(bytes.fromhex(trace.uuid.hex()))
        encode(trace.packet_header, {"magic": 0xC1FC1FC1, "uuid": uuid, "stream_id": 0}, bits)
        head = {
            "timestamp_begin": events[0][0], "timestamp_end": events[-1][0],
            "content_size": sizes[0], "packet_size": sizes[1], "packet_seq_num": sequence,
            "events_discarded": lost, "cpu_id": cpu,
        }  # fmt: skip
        encode(stream.packet_context, head, bits)
        for time, name, values in events:
            event = numbers[name]
            low = {"timestamp": time & ((1 << 27) - 1)}
            encode(stream.event_header, {"id": event.id, "v": ("compact", low)}, bits)
            fields = {f"_{key}": _value(value) for key, value in values.items() if key != "context"}
            if stream.event_context is not None:
                of = values["context"]
                encode(stream.event_context, {f"_{key}": _value(of[key]) for key in of}, bits)
            encode(event.payload, fields, bits)
        content = bits.at
        bits.align(8)
        sizes = (content, -(-len(bits.raw) // 4096) * 4096 * 8)
    return bytes(bits.raw).ljust(sizes[1] // 8, b"\0")


def _value(value: Any) -> Any:  # noqa: ANN401
    """Return a name of a task as the elements of its array."""
    return list(value.encode().ljust(16, b"\0")) if isinstance(value, str) else value


def switch(time: int, before: tuple[str, int], after: tuple[str, int], state: int = 1) -> Told:
    fields = {
        "prev_comm": before[0], "prev_tid": before[1], "prev_prio": 20, "prev_state": state,
        "next_comm": after[0], "next_tid": after[1], "next_prio": 19,
    }  # fmt: skip
    return time, "sched_switch", fields
