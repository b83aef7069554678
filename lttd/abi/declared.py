"""Declare every binary layout, on disk and from the kernel, for people: the specification.

Rule: construct describes, struct and numpy move data.  No code reads data with these declarations;
tests compare every dtype and Struct with them.
"""

from construct import (
    Bytes,
    Computed,
    Const,
    Construct,
    Enum,
    If,
    IfThenElse,
    Int8ub,
    Int16ub,
    Int16ul,
    Int32ub,
    Int32ul,
    Int64ub,
    Int64ul,
    PaddedString,
    Padding,
    Struct,
    this,
)

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


def _ltt_header(u32: Construct, u64: Construct) -> Struct:
    return Struct(
        "begin" / u64,
        "end" / u64,
        "magic" / Const(0x00D6B7ED, u32),
        "major" / Const(2, Int8ub),
        "minor" / Int8ub,
        "pointer_bytes" / Int8ub,
        "alignment" / Int8ub,
        "start_s" / u64,
        "start_us" / u64,
        "frequency" / u64,
        "scale" / u32,
        "used" / u32,
        "size" / u32,
        "events_lost" / If(this.minor >= 2, u32),
        "corrupted" / If(this.minor >= 2, u32),
        Padding(lambda context: 4 if context.minor == 0 and context.pointer_bytes == 8 else 0),
    )


LttSubbufferHeader = _ltt_header(Int32ul, Int64ul)
"""LTTng 0.x include/linux/ltt-tracer.h, struct ltt_subbuffer_header, trace formats 2.0 to 2.6.

``used`` is lost_size (the unused bytes) up to 2.4, data_size from 2.5 on.  ``size`` is buf_size up
to 2.4, sb_size from 2.5 on.
"""

LttSubbufferHeaderBig = _ltt_header(Int32ub, Int64ub)

LttEventHeader = Struct(
    "word" / Int32ul,
    "code" / Computed(this.word >> 27),
    "time_low" / Computed(this.word & 0x7FFFFFF),
    "id" / IfThenElse(this.code < 29, Computed(this.code), Int16ul),
    "size" / If((this.code == 29) | (this.code == 30), Int16ul),
    "large_size" / If(this.size == 0xFFFF, Int32ul),
    "time" / If(this.code == 29, Int64ul),
)
"""LTTng 0.x include/linux/ltt-tracer.h, ltt_write_event_header; little-endian, not aligned."""

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
"""lttd's own layout; count is 2**64 - 1 if it is unknown."""

BlkIoTrace = Struct(
    "magic" / Const(0x65617407, Int32ul),
    "sequence" / Int32ul,
    "time" / Int64ul,
    "sector" / Int64ul,
    "bytes" / Int32ul,
    "action" / Int32ul,
    "pid" / Int32ul,
    "device" / Int32ul,
    "cpu" / Int32ul,
    "error" / Int16ul,
    "pdu_len" / Int16ul,
)
"""Linux include/uapi/linux/blktrace_api.h, struct blk_io_trace, version 7, little-endian."""

BlkIoTraceBig = Struct(
    "magic" / Const(0x65617407, Int32ub),
    "sequence" / Int32ub,
    "time" / Int64ub,
    "sector" / Int64ub,
    "bytes" / Int32ub,
    "action" / Int32ub,
    "pid" / Int32ub,
    "device" / Int32ub,
    "cpu" / Int32ub,
    "error" / Int16ub,
    "pdu_len" / Int16ub,
)

BlkIoTrace2 = Struct(
    "magic" / Const(0x65617408, Int32ul),
    "sequence" / Int32ul,
    "time" / Int64ul,
    "sector" / Int64ul,
    "bytes" / Int32ul,
    "pid" / Int32ul,
    "action" / Int64ul,
    "device" / Int32ul,
    "cpu" / Int32ul,
    "error" / Int16ul,
    "pdu_len" / Int16ul,
    Padding(12),
)
"""The same file, struct blk_io_trace2: version 8, of BLKTRACESETUP2."""

BlkUserTraceSetup = Struct(
    "name" / Bytes(32),
    "act_mask" / Int16ul,
    Padding(2),
    "buf_size" / Int32ul,
    "buf_nr" / Int32ul,
    Padding(4),
    "start_lba" / Int64ul,
    "end_lba" / Int64ul,
    "pid" / Int32ul,
    Padding(4),
)
"""The same file, struct blk_user_trace_setup, on a 64-bit kernel."""

SeekTableRow = Struct(
    "compressed_bytes" / Int32ul,
    "content_bytes" / Int32ul,
)
SeekTableHead = Struct(
    "magic" / Const(0x184D2A5E, Int32ul),
    "bytes" / Int32ul,
)
SeekTableFooter = Struct(
    "rows" / Int32ul,
    "flags" / Const(0, Int8ub),
    "magic" / Const(0x8F92EAB1, Int32ul),
)
"""The seek table of a compressed file: zstd contrib/seekable_format, version 0.1.0."""

OccurrenceHeader = Struct(
    "magic" / Const(0x6C6F6363, Int32ub),
    "major" / Const(1, Int32ub),
    "minor" / Const(0, Int32ub),
    "records" / Int32ub,
)
OccurrenceRecord = Struct(
    "name" / Int32ub,
    "frame_bytes" / Int32ub,
    "entries" / Int64ub,
    "data_bytes" / Int64ub,
)
OccurrenceContent = Struct(
    "group" / Int32ub,
    "ids" / Int32ub,
    "id" / Int32ub[this.ids],
    "checksum" / Int32ub[(this._.entries + 909) // 910],
    "row" / Bytes((-(-this._.entries // this.group) + 7) // 8)[this.ids],
)
"""lttd's own: see docs/FORMAT.md.  The content needs the number of entries."""

LttngChannel = Struct(
    "subbuffer_bytes" / Int64ul,
    "subbuffers" / Int64ul,
    "switch_timer_us" / Int32ul,
    "read_timer_us" / Int32ul,
    "output" / Enum(Int32ul, splice=0, mmap=1),
    "overwrite" / Int32ul,
    Padding(288),
)
"""lttng-modules include/lttng/abi.h, struct lttng_kernel_abi_channel, little-endian."""

LttngKprobe = Struct(
    "address" / Int64ul,
    "offset" / Int64ul,
    "symbol" / PaddedString(256, "ascii"),
)

LttngSyscall = Struct(
    "entry_or_exit" / Enum(Int8ub, both=0, entry=1, exit=2),
    "abi" / Int8ub,
    "match" / Int8ub,
    Padding(1),
    "number" / Int32ul,
)

LttngEvent = Struct(
    "name" / PaddedString(256, "ascii"),
    "instrumentation" / Enum(Int32ul, tracepoint=0, kprobe=1, syscall=5),
    "token" / Int64ul,
    Padding(8),
    "detail" / Bytes(288),
)
"""lttng-modules include/lttng/abi.h, struct lttng_kernel_abi_event.

``detail`` begins with one of the two above."""

LttngContext = Struct("context" / Int32ul, Padding(16), Padding(288))
"""lttng-modules include/lttng/abi.h, struct lttng_kernel_abi_context."""

LttngPacketHeader = Struct(
    "magic" / Const(0xC1FC1FC1, Int32ul),
    "uuid" / Bytes(16),
    "stream_id" / Int32ul,
    "instance" / Int64ul,
    "begin" / Int64ul,
    "end" / Int64ul,
    "content_bits" / Int64ul,
    "packet_bits" / Int64ul,
    "sequence" / Int64ul,
    "discarded" / Int64ul,
    "cpu" / Int32ul,
)
"""lttng-modules src/lttng-ring-buffer-client.h, struct packet_header: 2.8, 64-bit kernels."""
