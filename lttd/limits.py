"""Limits on what lttd reads from a file that another user may have written, each with its reason.

Rule: every limit on size, number or depth of stored data is a row of this table.  A limit is far
above everything that a kernel or lttd writes, and low enough that a reader stays below 1 GB of
memory and answers within seconds.
"""

from typing import Final, NamedTuple

KIB: Final = 1 << 10
MIB: Final = 1 << 20


class Limit(NamedTuple):
    """One row of the table."""

    most: int
    unit: str
    what: str
    why: str

    def __str__(self) -> str:
        """Return the words of an error message: ``at most 24 MiB of a manifest are read``."""
        return f"at most {self.told} of {self.what} are read"

    @property
    def told(self) -> str:
        """The number and its unit, for people."""
        if self.unit != "bytes":
            return f"{self.most:,} {self.unit}"
        return f"{self.most // MIB} MiB" if self.most >= MIB else f"{self.most // KIB} KiB"


MANIFEST: Final = Limit(
    24 * MIB,
    "bytes",
    "a manifest (trace.json)",
    "8,192 CPUs, the most that Linux knows, with two channels take 12 MiB;"
    " JSON becomes up to 32 times larger in memory",
)
SYNCED: Final = Limit(
    8 * MIB, "bytes", "a synced record (synced.json)", "a stream takes 85 bytes of it"
)
KEPT: Final = Limit(
    16 * MIB,
    "bytes",
    "the reasons that keep a segment (kept.json)",
    "a trigger has 300 bytes, and 0.3 MiB where its labels are as many and as long as they may be",
)
KEPT_TRIGGERS: Final = Limit(
    4096, "triggers", "the reasons that keep a segment", "triggers are limited in rate"
)
STREAMS: Final = Limit(
    32_000,
    "streams",
    "a segment",
    "a process maps at most 65,530 files (vm.max_map_count), and a stream has two",
)
GAPS: Final = Limit(
    2_000_000,
    "gaps",
    "a stream",
    "one takes 300 bytes of memory where all are read (check, repair, info of an open segment)",
)
AT_ONE_TIME: Final = Limit(
    1 << 18,
    "entries that begin at one time",
    "an index",
    "a sub-buffer takes the kernel longer than a tick of any clock; zeros do not",
)
FORMAT: Final = Limit(
    256 * KIB, "bytes", "an event's format", "the longest of 2,323 on a Linux 6.18 has 5,523 bytes"
)
FORMATS: Final = Limit(
    16 * MIB, "bytes", "all formats of a segment", "the 2,323 of a Linux 6.18 have 2.0 MB"
)
FORMAT_MEMBERS: Final = Limit(
    256,
    "gzip members",
    "formats.gz",
    "a recording adds one at its begin, at its end, and for each change of probes or events",
)
DEPTH: Final = Limit(
    16, "levels of directories", "a segment", "tracefs/events/SYSTEM/EVENT is the deepest there is"
)
EVENT_TYPES: Final = Limit(65_536, "event types", "a segment", "an event names its type by 16 bits")
PRINT_FMT_DEPTH: Final = Limit(
    64, "levels", "a print fmt's expression", "the deepest of Linux 6.18 has 14"
)
NUMBER_DIGITS: Final = Limit(
    24, "digits", "a number in a format", "2^64 has 20; Python's int() takes quadratic time"
)
HEADER_PAGE: Final = Limit(
    16 * KIB,
    "bytes",
    "a small file of tracefs (header_page, trace_clock)",
    "the longest has 300 bytes",
)
KALLSYMS: Final = Limit(
    64 * MIB, "bytes", "kallsyms", "122,133 symbols of a Linux 6.18 take 5.4 MB"
)
SYMBOLS: Final = Limit(2_000_000, "symbols", "kallsyms", "16 times as many as that kernel has")
PRINTK_FORMATS: Final = Limit(
    4 * MIB, "bytes", "printk_formats", "the 128 strings of a Linux 6.18 take 5 KB"
)
MAPS: Final = Limit(
    64 * MIB, "bytes", "the code of processes (tracefs/maps)", "lttd writes at most 16 MiB"
)
ENUMS: Final = Limit(
    4 * MIB, "bytes", "enums.json", "the values that 2,323 formats of a Linux 6.18 name take 12 KB"
)
COMMANDS: Final = Limit(
    64 * MIB, "bytes", "the noted commands (tracefs/commands)", "a task takes 25 to 50 bytes"
)
CARRIED_METADATA: Final = Limit(
    32 * MIB, "bytes", "metadata from before a segment (ltt/)", "lttd keeps at most 16 MiB"
)
COMMAND_LINES: Final = Limit(
    1_000_000,
    "lines",
    "the noted commands (tracefs/commands)",
    "one takes 350 bytes of memory, and a task is one",
)
TRACEFS_FILE: Final = Limit(
    64 * MIB,
    "bytes",
    "another file of tracefs",
    "saved_tgids has up to 4,194,304 lines (the largest pid) of some 14 bytes",
)
MARKER_FORMAT: Final = Limit(
    16 * KIB,
    "bytes",
    "a marker's format (LTTng 0.x)",
    "those of LTTng's own probes are a line of source each",
)
MARKERS: Final = Limit(
    16 * MIB,
    "bytes",
    "all declarations of markers (LTTng 0.x)",
    "an id has 16 bits: as many as one channel can have, of 256 bytes each",
)
MARKER_SIZES: Final = Limit(
    4, "kinds of machines", "the markers of a trace", "a trace is of one machine"
)
RELAY_RECORD: Final = Limit(
    MIB, "bytes", "a record of a relay channel", "no record is larger than a sub-buffer"
)
HOLE: Final = Limit(
    2 * MIB,
    "bytes",
    "a hole in a replayed file",
    "a sub-buffer has at most 1 MiB, so that its padding is less",
)
BLKTRACE_PACKET: Final = Limit(
    128 * KIB,
    "bytes",
    "a sub-buffer of block trace records",
    "lttd cuts them after 64 KiB, and a record has at most 65,599 bytes",
)
NOTE: Final = Limit(
    4 * MIB,
    "bytes",
    "a note of the runtime directory",
    "one that takes over each of 2,323 events that a killed lttd enabled has 200 KB",
)
NOTES: Final = Limit(
    4096, "notes", "the runtime directory", "each running or killed lttd has two for each instance"
)
NOTE_LINES: Final = Limit(
    100_000, "lines", "a note of the runtime directory", "one is added for each setting changed"
)
ADDED: Final = Limit(
    50_000,
    "items",
    "the items that lttd added to one file of tracefs",
    "they are pids, triggers, functions and probes; 50,000 pids take 0.5 MB of a note",
)
CPUS: Final = Limit(65_536, "CPUs", "a machine", "Linux knows 8,192 at most (CONFIG_NR_CPUS)")
FRAME: Final = Limit(
    8 * MIB, "bytes", "the content of a compressed frame", "lttd makes frames of at most 1 MiB"
)
CHUNK: Final = Limit(
    64 * MIB,
    "bytes",
    "a compressed part of a trace.dat",
    "trace-cmd makes parts of 10 sub-buffers, of at most 4 MiB each",
)
SUBBUFFER: Final = Limit(
    16 * MIB, "bytes", "a sub-buffer of ftrace", "the largest of Linux 6.18 has 4 MiB on x86"
)
OPTIONS: Final = Limit(
    16 * MIB,
    "bytes",
    "the options of a trace.dat",
    "a CPU takes 20 bytes of a buffer's option, and 300 of its counters' option",
)
OPTION_SECTIONS: Final = Limit(
    4096, "sections of options", "a trace.dat", "trace-cmd writes one for each file that it extends"
)
FRAMES: Final = Limit(
    1 << 22, "frames", "a compressed file", "as many as 1 TiB of a stream has; one takes 24 bytes"
)
OCCURRENCES: Final = Limit(
    64 * MIB,
    "bytes",
    "a stream's occurrence table",
    "lttd makes tables of at most 16 MiB of bits, with 1 KiB for each GB of data",
)
CTF_METADATA: Final = Limit(
    6 * MIB,
    "bytes",
    "the metadata of a CTF trace",
    "lttng-modules 2.13 with all events and system calls of a Linux 6.1 writes some 2 MB;"
    " text becomes up to 140 times larger in memory",
)
CTF_FIELDS: Final = Limit(
    200_000,
    "fields",
    "the metadata of a CTF trace",
    "lttng-modules 2.13 with all events and system calls of a Linux 6.1 declares some 10,000",
)
CTF_WORDS: Final = Limit(
    1_000_000,
    "words and signs",
    "the metadata of a CTF trace",
    "so many take 16 s; perf writes 68 for a tracepoint; events as lttng's kernel tracer declares"
    " them do not count, so that 400 are left of its metadata",
)
CTF_LABELS: Final = Limit(
    65_536,
    "labels",
    "an enumeration of a CTF trace",
    "each is compared with the values that are printed; 16 bits cannot have more",
)
CTF_DEPTH: Final = Limit(
    32, "levels", "a structure of a CTF trace", "the deepest of lttng-modules 2.14 has 5"
)
CTF_PACKET: Final = Limit(
    256 * MIB,
    "bytes",
    "the content of a CTF packet",
    "a packet is in memory as a whole; lttng's default sub-buffers have 1 MiB",
)
CTF_PACKETS: Final = Limit(
    4_000_000,
    "packets",
    "a replayed CTF trace",
    "one takes some 220 bytes of memory; a timer of 1 s makes so many for 64 CPUs in 17 hours",
)
CTF_FILES: Final = Limit(
    100_000,
    "files",
    "a replayed CTF trace",
    "1,000 rotations of a machine with 64 CPUs make 64,000",
)
