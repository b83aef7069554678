"""The victims of the fuzzer that are CTF: metadata of both versions, files to replay, segments.

Their damage knows the words of both languages of metadata, and the numbers of packets' headers.
Steps are indexes into these tables, so new entries go to the end of each table.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.ctf_writer import CtfChannel, CtfTracer, in_packets, metadata_packets, write_ctf
from tests.fuzz_damage import ANYWHERE, EDGES, VALUES, Change, Victim, places_in, replaced
from tests.fuzz_targets import Target, lttv, recorded, replayed

WORDS: Final = (
    b" ", b";", b"{", b"}", b"[", b"]", b"<", b">", b"(", b")", b":", b":=", b"=", b",", b".",
    b"...", b"-", b"+", b"*", b'"', b"'", b"\\", b"/*", b"*/", b"//", b"\n", b"\0", b"\xff",
    b"trace ", b"env ", b"clock ", b"stream ", b"event ", b"callsite ", b"struct ", b"variant ",
    b"enum ", b"integer ", b"floating_point ", b"string ", b"typealias ", b"typedef ", b"const ",
    b"int ", b"unsigned long ", b"u8 ", b"time_t ", b"align(65536) ", b"align(3) ",
    b"size = 0; ", b"size = 1; ", b"size = 63; ", b"size = 64; ", b"size = 65; ", b"align = -8; ",
    b"align = 1; ", b"align = 65536; ", b"signed = true; ", b"byte_order = be; ", b"base = 2; ",
    b"base = 8; ", b"base = 16; ", b"encoding = UTF8; ", b"map = clock.c.value; ",
    b"map = clock.other.value; ", b"freq = 0; ", b"freq = 18446744073709551615; ", b"freq = 3; ",
    b"offset_s = 9223372036854775807; ", b"offset_s = -9223372036854775808; ",
    b"offset = -9223372036854775808; ", b"precision = 18446744073709551615; ",
    b"id = 18446744073709551615; ", b"stream_id = 18446744073709551615; ",
    b"0x" + b"f" * 5000, b"9" * 5000, b"[4294967295]", b"[0]", b"[n]", b"[n][n]", b"<tag>",
    b"struct { } nothing2[4294967295]; ", b"struct { } lists[n][n]; ", b"string names2[n]; ",
    b"u8 bytes[n]; ", b"u8 large[4294967295][4294967295]; ", b"string procname; ",
    b"u8 procname[4]; ", b"u8 common_pid; ", b"u8 pid; ", b"integer { size = 64; } id; ",
    b"integer { size = 1; } bits[4096]; ", b"variant <tag> { string one; u8 two; } other; ",
    b"enum : u8 { a, b = 255, c = 18446744073709551615 } wide; ",
    b"floating_point { exp_dig = 5; mant_dig = 11; } half; ", b"typealias struct { a x; } := a; ",
    b'"\\x1b[2J\\n\\0"', b"'\\n'", b"hostname = \"\\x9b\\x07\"; ", b"name = \"a\\nb\"; ",
)  # fmt: skip
NAMES: Final = (
    "structure", "variant", "fixed-length-unsigned-integer", "fixed-length-signed-integer",
    "fixed-length-bit-array", "fixed-length-bit-map", "fixed-length-boolean",
    "fixed-length-floating-point-number", "null-terminated-string", "static-length-array",
    "dynamic-length-array", "static-length-string", "dynamic-length-string", "static-length-blob",
    "dynamic-length-blob", "optional", "variable-length-unsigned-integer", "preamble",
    "field-class-alias", "trace-class", "clock-class", "data-stream-class", "event-record-class",
    "little-endian", "big-endian", "packet-header", "packet-context", "event-record-header",
    "event-record-payload", "c", "context", "common_x", "procname", "\x1b[2J\n", "id", "n", "s",
)  # fmt: skip
JSON_VALUES: Final[Sequence[Any]] = (
    *VALUES, *NAMES, 8, 16, 32, 64, 65, 3, (1 << 16), [[0, 1 << 64]], [[-(1 << 70), 5]], ["n"],
    {"path": ["n"]}, {"path": [None]}, {"path": ["n"], "origin": "packet-context"},
    {"type": "structure"}, {"type": "null-terminated-string"},
    {"type": "static-length-array", "length": (1 << 32) - 1, "element-field-class":
        {"type": "structure"}},
    {"type": "dynamic-length-blob", "length-field-location": {"path": ["n"]}},
    {"a": [[0, 3]], "b": [[2, 1 << 63]]}, ["default-clock-timestamp"], ["event-record-class-id"],
    ["packet-total-length", "packet-content-length"], "x" * 70_000,
)  # fmt: skip
_SEPARATOR: Final = b"\x1e"
_MAGICS: Final = re.compile(b"\xc1\x1f\xfc\xc1|\xc1\xfc\x1f\xc1")
_HEADER_BYTES: Final = 104
_MOST_PACKED_BYTES: Final = 8 << 20


def _put_word(held: bytes, place: int, value: int) -> bytes:
    """Insert a word of TSDL; every second time, replace a word by it."""
    word = WORDS[value % len(WORDS)]
    before = re.compile(rb"\w+").search(held, place) if value // len(WORDS) % 2 else None
    at, size = (before.start(), len(before[0])) if before else (place, 0)
    return replaced(held, at, size, word)


def _put_after(held: bytes, place: int, value: int) -> bytes:
    """Insert a word of TSDL where a statement can begin."""
    at = max(held.rfind(b";", 0, place), held.rfind(b"{", 0, place)) + 1
    return replaced(held, at, 0, WORDS[value % len(WORDS)])


def _put_many(held: bytes, place: int, value: int) -> bytes:
    word = WORDS[value % len(WORDS)]
    most = min(20_000, (4 << 20) // len(word))
    return replaced(held, place, 0, word * (value // len(WORDS) % most))


def _move_statement(held: bytes, place: int, value: int) -> bytes:
    """Copy a statement to another place; every second time, remove it where it was."""
    statements = held.split(b";")
    first = held.count(b";", 0, place)
    taken = statements[first] if value & 1 else statements.pop(first)
    statements.insert((value >> 1) % (len(statements) + 1), taken)
    return b";".join(statements)


def _set_fragment(held: bytes, place: int, value: int) -> bytes:
    """Set a value of a fragment of JSON, or remove it."""
    fragments = held.split(_SEPARATOR)
    number = held.count(_SEPARATOR, 0, place)
    try:
        whole = json.loads(fragments[number])
    except (ValueError, RecursionError):
        return held
    places = places_in(whole)
    if not places:
        return held
    holder, key = places[place % len(places)]
    rest = value // len(JSON_VALUES)
    if rest % 8 == 0:
        del holder[key]
    else:
        holder[key] = JSON_VALUES[value % len(JSON_VALUES)]
    fragments[number] = json.dumps(whole).encode()
    return _SEPARATOR.join(fragments)


def _set_in_header(held: bytes, place: int, value: int) -> bytes:
    """Set a number in the header of the packet before *place* to an edge."""
    headers = [match.start() for match in _MAGICS.finditer(held, 0, place + 4)]
    size = (1, 2, 4, 8)[value >> 8 & 3]
    at = (headers[-1] if headers else 0) + (value >> 10) % (_HEADER_BYTES // size) * size
    edge = EDGES[value % len(EDGES)] & ((1 << 8 * size) - 1)
    return replaced(held, at, size, edge.to_bytes(size, "little" if value & 128 else "big"))


_IN_TEXT: Final = (_put_word, _put_after, _put_many, _move_statement, _set_fragment)


class CtfVictim(Victim):
    """Files of which one is named metadata; a change of its text leaves its packets whole."""

    changes: Sequence[Change] = (
        *ANYWHERE, _put_word, _put_word, _put_after, _put_after, _put_many, _move_statement,
        _set_in_header, _set_in_header, _set_fragment,
    )  # fmt: skip

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._metadata = [path for path in self.whole if path.name == "metadata"]

    def chosen(self, which: int, change: Change | None) -> Path:
        """See ``Victim``."""
        if change in _IN_TEXT:
            return self._metadata[which % len(self._metadata)]
        return super().chosen(which, change)

    def changed(self, path: Path, held: bytes, change: Change, at: int, value: int) -> bytes:
        """See ``Victim``."""
        from lttd.abi.ctf_metadata import HEADER_BYTES, MetadataError, is_packets, packets  # noqa: PLC0415

        text = held
        in_text = change in _IN_TEXT and is_packets(held)
        if in_text:
            with suppress(MetadataError):
                text = b"".join(
                    held[each.offset_bytes + HEADER_BYTES : each.offset_bytes + each.content_bytes]
                    for each in packets(held)
                )
        new = change(text, at * len(text) >> 16, value)
        return in_packets(CtfTracer(), new[:_MOST_PACKED_BYTES], 1 << 15) if in_text else new


class CtfSegments(CtfVictim):
    """A trace with a CTF segment."""

    targets: Mapping[str, Target] = {
        "text --style babeltrace": lttv("text", "--style", "babeltrace", "--jobs", "1"),
        "text": lttv("text", "--jobs", "1"),
        "text --json": lttv("text", "--json", "--jobs", "1"),
        "check": lttv("check", "--events"),
        "text of an event": lttv("text", "--event", "*k*", "--where", "n > 0", "--jobs", "1"),
        "info": lttv("info", "--json"),
        "plot": lttv("plot", "-o", "OUT.html"),
        "cut": lttv("cut", "--begin", "+1us", "--end", "-1us", "-o", "OUT"),
        "export parquet": lttv("export", "--to", "parquet", "-o", "OUT"),
        "export systrace": lttv("export", "--to", "systrace", "-o", "OUT"),
        "repair": lttv("check", "--repair"),
        "compress": lttv("compress"),
        "index": lttv("index"),
    }


def replayed_and_read(directory: Path, out: Path) -> None:
    """Replay files; a trace that this makes has to be whole, and all readers have to agree on it.

    Raises:
        AssertionError: they do not.
    """
    import lttd  # noqa: PLC0415
    from lttd.tracedir import segments  # noqa: PLC0415
    from lttd.view.verify import check  # noqa: PLC0415

    named = ",trace=kernel" if (directory / "archives").is_dir() else ""
    recorded(out, f"replay:{directory},abi=ctf{named}")
    found = segments(out) if out.is_dir() else []
    if not found:
        return
    for events in (False, True):
        reports = [check(segment, events=events) for segment in found]
        assert events or all(report.whole for report in reports), reports[0].findings
    counts = [stream.events for report in reports for stream in report.streams]
    shown = sum(len(batch) for batch in lttd.open(out).window())
    assert None in counts or sum(map(int, filter(None, counts))) == shown, (counts, shown)
    lttv("text", "--style", "babeltrace", "--jobs", "1")(out, out)


class CtfFiles(CtfVictim):
    """A directory to replay."""

    targets: Mapping[str, Target] = {
        "replay and read CTF": replayed_and_read,
        "replay CTF": replayed,
        "replay and read CTF again": replayed_and_read,
    }


def metadata_used(directory: Path, _: Path) -> None:
    """Read a metadata, and any packets by it."""
    from lttd.abi.ctf import PacketLayout  # noqa: PLC0415
    from lttd.abi.ctf_bits import Bits  # noqa: PLC0415
    from lttd.abi.ctf_classes import MetadataError  # noqa: PLC0415
    from lttd.abi.ctf_events import walk  # noqa: PLC0415
    from lttd.abi.ctf_heads import Packets  # noqa: PLC0415
    from lttd.abi.ctf_metadata import packed_metadata, read_metadata  # noqa: PLC0415
    from lttd.abi.ctf_plan import Plan  # noqa: PLC0415

    data = (directory / "metadata").read_bytes()
    with suppress(MetadataError):
        packed_metadata(data)
    with suppress(MetadataError):
        trace = read_metadata(data)
        for stream in trace.streams.values():
            with suppress(MetadataError):
                layout = PacketLayout.of(trace, stream.id)
                assert PacketLayout.parse(str(layout)) == layout
            plan = Plan(trace, stream)
            for raw in _ANY_PACKETS:
                count = len(raw) // 512
                begin = np.arange(count) * 512
                packets = Packets(begin, begin * 8, begin * 8 + 4096, np.zeros(count, np.uint64))
                for walked in walk(Bits(raw), packets, plan):
                    _print(plan, Bits(raw), walked.number, walked.at, begin[walked.row])


def _print(plan: Any, bits: Any, number: Any, at: Any, packet: Any) -> None:  # noqa: ANN401
    """Print events in babeltrace2's form."""
    from lttd.view.ctf.babeltrace import EventPrinter  # noqa: PLC0415

    for one in np.unique(number).tolist():
        rows = np.flatnonzero(number == one)
        EventPrinter(plan, plan.events[one]).strip(bits, at[rows], packet[rows], None)


_ANY_PACKETS: Final = (
    bytes(2048),
    bytes(range(256)) * 8,
    b"\xff" * 1024,
    b"\x01\x00\x00\x00\x05\x00abc\x00" * 200,
)


class CtfMetadata(CtfVictim):
    """A metadata alone."""

    replacing = 0
    targets: Mapping[str, Target] = {"metadata": metadata_used}


def _kinds(directory: Path) -> str:
    from tests.test_ctf_view import kinds  # noqa: PLC0415

    return (kinds("le", directory.with_name(f"{directory.name}-kinds")) / "metadata").read_text()


def _metadata(directory: Path, data: bytes) -> Path:
    directory.mkdir()
    (directory / "metadata").write_bytes(data)
    return directory


def ctf_1_text(directory: Path) -> Path:
    """Make a metadata of CTF 1.8 as a text."""
    return _metadata(directory, _kinds(directory).encode())


def ctf_1_packets(directory: Path) -> Path:
    """Make a metadata of CTF 1.8 in packets."""
    return _metadata(directory, in_packets(CtfTracer(), _kinds(directory).encode()))


def ctf_2_text(directory: Path) -> Path:
    """Make a metadata of CTF 2."""
    from tests.test_ctf_json import as_ctf_2  # noqa: PLC0415

    return _metadata(directory, as_ctf_2(CtfTracer()))


def ctf_kinds_files(directory: Path) -> Path:
    """Make a trace with fields of all kinds."""
    from tests.test_ctf_view import kinds  # noqa: PLC0415

    return kinds("be", directory)


def ctf_2_files(directory: Path) -> Path:
    """Make a trace of CTF 2."""
    from tests.test_ctf_json import as_ctf_2  # noqa: PLC0415

    tracer = CtfTracer(page_bytes=512)
    channels = [CtfChannel(tracer, cpu=cpu).packet().packet(0, lost=2) for cpu in (0, 1)]
    return write_ctf(directory, *channels, metadata=as_ctf_2(tracer))


def ctf_archives(directory: Path) -> Path:
    """Make rotated archives of a kernel's trace, beside a trace of user space."""
    tracer, other = CtfTracer(page_bytes=512), CtfTracer(page_bytes=512, uuid=bytes(16))
    channel, user = CtfChannel(tracer).packet().packet(lost=3), CtfChannel(other, cpu=1).packet()
    write_ctf(directory / "archives/1/kernel", channel, metadata=metadata_packets(tracer))
    channel.packets.clear()
    write_ctf(directory / "archives/2/kernel", channel.packet(), metadata=metadata_packets(tracer))
    write_ctf(directory / "archives/2/ust/uid/0/64-bit", user)
    return directory


def ctf_kinds_trace(trace: Path) -> Path:
    """Make a packed trace with fields of all kinds."""
    recorded(trace, f"replay:{ctf_kinds_files(trace.with_name('kinds-of-trace'))}")
    return trace


def ctf_2_trace(trace: Path) -> Path:
    """Make a packed trace of CTF 2."""
    recorded(trace, f"replay:{ctf_2_files(trace.with_name('ctf-2-of-trace'))}")
    return trace


CTF: Final[Sequence[tuple[Callable[[Path], Path], type[CtfVictim]]]] = (
    (ctf_1_text, CtfMetadata),
    (ctf_1_packets, CtfMetadata),
    (ctf_2_text, CtfMetadata),
    (ctf_kinds_files, CtfFiles),
    (ctf_2_files, CtfFiles),
    (ctf_archives, CtfFiles),
    (ctf_kinds_trace, CtfSegments),
    (ctf_2_trace, CtfSegments),
)
