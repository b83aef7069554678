"""Make packets as lttng-modules does on a 64-bit little-endian machine."""

import struct

from lttd.abi.ctf import PacketLayout

HEADER = struct.Struct("<I16sIQQQQQQQI")
LAYOUT = PacketLayout.parse(
    "magic 0 4 little; stream_id 20 4 little; stream_instance_id 24 8 little;"
    " timestamp_begin 32 8 little; timestamp_end 40 8 little; content_size 48 8 little;"
    " packet_size 56 8 little; packet_seq_num 64 8 little; events_discarded 72 8 little;"
    " cpu_id 80 4 little; header 84; clock 1000000000"
)
"""The same, as the metadata says it."""
UUID = bytes(range(16))


def packet(
    content: bytes, sequence: int, begin: int, end: int, *, discarded: int = 0, cpu: int = 1
) -> bytes:
    """Return a packet without its padding; its sizes are those that the kernel states."""
    used_bytes = HEADER.size + len(content)
    padded_bytes = -(-used_bytes // 4096) * 4096
    sizes = (used_bytes * 8, padded_bytes * 8)
    head = HEADER.pack(0xC1FC1FC1, UUID, 3, cpu, begin, end, *sizes, sequence, discarded, cpu)
    return head + content
