"""Make packets as lttng-modules does on a 64-bit little-endian machine."""

import struct
from collections.abc import Sequence

from lttd.abi.ctf import PacketLayout
from lttd.sources.lttng.packets import PacketBook
from lttd.sources.lttng.ring import Taken
from lttd.sources.lttng.stream import stream_info
from lttd.subbuffer import Batch, BufferPool, StreamId, make_batch

PAGE_BYTES = 4096
SUBBUFFER_BYTES = 8192

HEADER = struct.Struct("<I16sIQQQQQQQI")
LAYOUT = PacketLayout.parse(
    "magic 0 4 little; stream_id 20 4 little; stream_instance_id 24 8 little;"
    " timestamp_begin 32 8 little; timestamp_end 40 8 little; content_size 48 8 little;"
    " packet_size 56 8 little; packet_seq_num 64 8 little; events_discarded 72 8 little;"
    " cpu_id 80 4 little; header 84; clock 1000000000"
)
"""The same, as the metadata says it."""
UUID = bytes(range(16))


def padded_bytes(used_bytes: int) -> int:
    """Return the size of a packet with its padding."""
    return -(-used_bytes // PAGE_BYTES) * PAGE_BYTES


def packet(
    content: bytes, sequence: int, begin: int, end: int, *, discarded: int = 0, cpu: int = 1
) -> bytes:
    """Return a packet without its padding; its sizes are those that the kernel states."""
    used_bytes = HEADER.size + len(content)
    sizes = (used_bytes * 8, padded_bytes(used_bytes) * 8)
    head = HEADER.pack(0xC1FC1FC1, UUID, 3, cpu, begin, end, *sizes, sequence, discarded, cpu)
    return head + content


class LttngRing:
    """Make batches of the packets of a CPU."""

    def __init__(self) -> None:
        self.info = stream_info(StreamId("cpu", 1), 3, SUBBUFFER_BYTES, PAGE_BYTES, LAYOUT)
        self.book = PacketBook(LAYOUT, 3)

    def batch(self, blocks: Sequence[bytes], *, trailing_loss: int = 0) -> Batch:
        assert not trailing_loss, "its counters come in headers"
        data = memoryview(bytearray(b"".join(blocks)))
        takens = [Taken(len(one), padded_bytes(len(one))) for one in blocks]
        rows, gaps = self.book.enter(data, takens)
        heads = self.book.resized(data, rows, SUBBUFFER_BYTES)
        pool = BufferPool()
        return make_batch(self.info.id, rows, pool=pool, buffer=data, gaps=gaps, heads=heads)
