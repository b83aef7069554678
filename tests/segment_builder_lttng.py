"""Make packets as lttng-modules does on a 64-bit little-endian machine."""

import struct

HEADER = struct.Struct("<I16sIQQQQQQQI")
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
