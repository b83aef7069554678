"""Write CTF traces as tracers do: of both byte orders, both word sizes, and mixed."""

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

MAGIC: Final = 0xC1FC1FC1
UUID: Final = bytes(range(16))


class CtfTracer(NamedTuple):
    """What the traces of one tracer have in common."""

    order: str = "<"
    long_bytes: int = 8
    """Of the counter of lost events."""
    instance: bool = True
    """Whether packets state instance and sequence number (lttng-modules from 2.8 on)."""
    frequency: int = 1_000_000_000
    mixed: bool = False
    """Whether the sizes of packets are in the other byte order."""
    uuid: bytes = UUID
    page_bytes: int = 4096
    sequences: bool = False
    """Whether events have a sequence, too."""

    @property
    def sizes_order(self) -> str:
        return self.order if not self.mixed else "<>"[self.order == "<"]

    def metadata(self) -> str:
        """Return the TSDL."""
        orders = {"<": "le", ">": "be"}
        sizes = f"integer {{ size = 64; align = 8; byte_order = {orders[self.sizes_order]}; }}"
        u = {bits: f"integer {{ size = {bits}; align = 8; }}" for bits in (8, 16, 32, 64)}
        long = u[8 * self.long_bytes]
        hexed = self.uuid.hex()
        parts = hexed[:8], hexed[8:12], hexed[12:16], hexed[16:20], hexed[20:]
        numbered = self.instance
        list_ = f"{u[8]} length; {u[16]} list[length];" if self.sequences else ""
        return f"""/* CTF 1.8 */
typealias integer {{ size = 64; align = 8; map = clock.c.value; }} := time_t;
trace {{
    major = 1; minor = 8; byte_order = {orders[self.order]}; uuid = "{"-".join(parts)}";
    packet.header := struct {{ {u[32]} magic; {u[8]} uuid[16]; {u[32]} stream_id;
        {f"{u[64]} stream_instance_id;" if numbered else ""} }};
}};
env {{ hostname = "far"; kernel_release = "6.1.0"; tracer_major = 2; }};
clock {{ name = "c"; freq = {self.frequency}; offset_s = 1700000000; offset = 5; }};
stream {{
    id = 3;
    event.header := struct {{ {u[16]} id; time_t timestamp; }};
    packet.context := struct {{ time_t timestamp_begin; time_t timestamp_end;
        {sizes} content_size; {sizes} packet_size; {f"{u[64]} packet_seq_num;" if numbered else ""}
        {long} events_discarded; {u[32]} cpu_id; }};
}};
event {{ name = "tick"; id = 7; stream_id = 3; fields := struct {{ {u[32]} n; string s;
    {list_} }}; }};
"""

    def packed(self, form: str, *values: int) -> bytes:
        return struct.pack(self.order + form, *values)


@dataclass
class CtfChannel:
    """One stream."""

    tracer: CtfTracer
    cpu: int = 0
    packets: list[bytes] = field(default_factory=list)
    sequence: int = 0
    discarded: int = 0
    now: int = 1000

    def packet(
        self, events: int = 3, *, lost: int = 0, skip: int = 0, padding: int | None = None
    ) -> "CtfChannel":
        """Add a packet, before which so many events and packets were lost."""
        tracer, begin = self.tracer, self.now
        self.discarded += lost
        self.sequence += skip
        content = b""
        for number in range(events):
            self.now += 10
            content += tracer.packed("HQI", 7, self.now, number) + b"text %d\0" % number
            if tracer.sequences:
                length = number % 5
                content += tracer.packed(f"B{length}H", length, *range(number, number + length))
        self.now += 5
        head = tracer.packed("I", MAGIC) + tracer.uuid + tracer.packed("I", 3)
        numbered = tracer.packed("Q", self.sequence) if tracer.instance else b""
        if tracer.instance:
            head += tracer.packed("Q", self.cpu)
        head += tracer.packed("QQ", begin, self.now)
        lost_form = "Q" if tracer.long_bytes == 8 else "I"
        lost_so_far = self.discarded % (1 << 8 * tracer.long_bytes)
        tail = numbered + tracer.packed(lost_form + "I", lost_so_far, self.cpu)
        size = len(head) + 16 + len(tail) + len(content)
        whole = -(-size // tracer.page_bytes) * tracer.page_bytes
        if padding is not None:
            whole = size + padding
        sizes = struct.pack(f"{tracer.sizes_order}QQ", size * 8, whole * 8)
        self.packets.append((head + sizes + tail + content).ljust(whole, b"\xaa"))
        self.sequence += 1
        return self

    @property
    def data(self) -> bytes:
        return b"".join(self.packets)


def write_ctf(directory: Path, *channels: CtfChannel, metadata: bytes = b"") -> Path:
    """Write a trace: its metadata, and a file for each channel."""
    directory.mkdir(parents=True, exist_ok=True)
    text = metadata or channels[0].tracer.metadata().encode()
    (directory / "metadata").write_bytes(text)
    for channel in channels:
        (directory / f"chan_{channel.cpu}").write_bytes(channel.data)
    return directory


def metadata_packets(tracer: CtfTracer, most_bytes: int = 300) -> bytes:
    """Return the metadata as a tracer's padded packets."""
    return in_packets(tracer, tracer.metadata().encode(), most_bytes)


def in_packets(tracer: CtfTracer, text: bytes, most_bytes: int = 300) -> bytes:
    """Return a text as a tracer's padded packets."""
    found = []
    for at in range(0, len(text), most_bytes):
        part = text[at : at + most_bytes]
        size = 37 + len(part)
        whole = -(-size // tracer.page_bytes) * tracer.page_bytes
        head = tracer.packed("I", 0x75D11D57) + tracer.uuid
        head += tracer.packed("IIIBBBBB", 0, size * 8, whole * 8, 0, 0, 0, 1, 8)
        found.append((head + part).ljust(whole, b"\0"))
    return b"".join(found)
