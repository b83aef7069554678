"""The declarations of what is on disk or comes from the kernel: the specification, for people.

Rule: construct describes, struct and numpy move: nothing imports this to read data; the tests hold
every dtype and Struct to it.
"""

from construct import Const, Enum, Int32ub, Int32ul, Int64ub, Int64ul, Struct

FtracePageHeader = Struct(
    "begin" / Int64ul,
    "commit" / Int64ul,
)
"""Linux kernel/trace/ring_buffer.c, struct buffer_data_page, 64-bit little-endian."""

FtracePageHeader32 = Struct(
    "begin" / Int64ul,
    "commit" / Int32ul,
)

FtracePageHeaderBig = Struct(
    "begin" / Int64ub,
    "commit" / Int64ub,
)

CtfIndexHeader = Struct(
    "magic" / Const(0xC1F1DCC1, Int32ub),
    "major" / Const(1, Int32ub),
    "minor" / Const(1, Int32ub),
    "entry_bytes" / Const(72, Int32ub),
)
"""lttng-tools src/common/index/ctf-index.h, struct ctf_packet_index_file_hdr."""

CtfIndexEntry = Struct(
    "offset_bytes" / Int64ub,
    "packet_bits" / Int64ub,
    "content_bits" / Int64ub,
    "begin" / Int64ub,
    "end" / Int64ub,
    "events_discarded" / Int64ub,
    "stream_id" / Int64ub,
    "instance_id" / Int64ub,
    "sequence" / Int64ub,
)
"""The same file, struct ctf_packet_index, with the two fields that 1.1 added."""

GapsHeader = Struct(
    "magic" / Const(0x6C676170, Int32ub),
    "major" / Const(1, Int32ub),
    "minor" / Const(0, Int32ub),
    "record_bytes" / Const(40, Int32ub),
)

GapRecord = Struct(
    "row" / Int64ub,
    "begin" / Int64ub,
    "end" / Int64ub,
    "count" / Int64ub,
    "reason"
    / Enum(
        Int32ub,
        overwritten=1,
        dropped=2,
        commit_overrun=3,
        discarded=4,
        refused=5,
        damaged=6,
        backlog=7,
        storage=8,
        torn=9,
    ),
    "unit" / Enum(Int32ub, events=1, subbuffers=2, bytes=3),
)
"""lttd's own; count is 2**64 - 1 where it is not known."""
