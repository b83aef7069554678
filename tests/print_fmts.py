"""Events of made-up types as rows, and their lines by a print fmt."""

import struct

import numpy as np

from lttd.abi.ftrace_format import parse_format
from lttd.view.addresses import Symbols
from lttd.view.columns import EventBatch, EventRows
from lttd.view.formats import EventName, EventType
from lttd.view.ftrace.render import Renderer
from lttd.view.strips import Strip, packed
from tests.ftraced import format_text


def event_rows(
    text: bytes, events: list[bytes], system: str = "s", long_bytes: int = 8, byteorder: str = "<"
) -> EventRows:
    """Return *events* as the rows of a batch; *text* is the format of all of them."""
    format_ = parse_format(text, system, byteorder=byteorder, long_bytes=long_bytes)
    event_type = EventType(0, EventName(system, format_.name), format_.id, "")
    event_type.format = format_
    sizes = np.array([len(one) for one in events], np.uint32)
    none = np.zeros(len(events), np.int64)
    batch = EventBatch(
        memoryview(b"".join(events) + bytes(64)),
        [event_type],
        *(none.astype(dtype) for dtype in ("u8", "u2", "i4", "i4", "u1", "u1")),
        (np.cumsum(sizes) - sizes).astype(np.int64),
        sizes,
    )
    return EventRows(batch, event_type, np.arange(len(events)))


def lines_of(strip: Strip, count: int) -> list[str]:
    """Return *count* rows of glyphs as text."""
    words, length = packed(strip, count)
    lengths = np.broadcast_to(length, (count,)).tolist()
    rows = [word.tobytes()[:size] for word, size in zip(words, lengths, strict=True)]
    assert not any(b"\0" in row for row in rows)
    return [row.decode() for row in rows]


FIELDS = [
    "int i;8;4;1",
    "unsigned int u;12;4;0",
    "long long q;16;8;1",
    "char comm[8];24;8;0",
    "u8 raw[16];32;16;0",
    "__data_loc char[] s;48;4;0",
    "__data_loc u8[] list;52;4;0",
    "__data_loc cpumask_t cpus;56;4;0",
    "__rel_loc char[] rel;60;4;0",
]
FIXED = 64


def event(
    i: int = 0, u: int = 0, q: int = 0, comm: bytes = b"", raw: bytes = b"", text: bytes = b"dyn"
) -> bytes:
    """Return an event with a field of every type."""
    tail = text + b"\0"
    cpus = struct.pack("<Q", 0b1011)
    at = FIXED
    s = len(tail) << 16 | at
    listed = 3 << 16 | at
    mask = 8 << 16 | at + len(tail)
    rel = len(tail) << 16 | 0
    fixed = struct.pack("<8xiIq8s16sIIII", i, u, q, comm, raw, s, listed, mask, rel)
    return fixed + tail + cpus


def rows_of(printed: str, events: list[bytes]) -> EventRows:
    """Return *events* as rows of a type with this print fmt."""
    return event_rows(format_text("made", 9, FIELDS, printed), events)


def lines(printed: str, *events: bytes) -> list[str]:
    """Return the lines of *events* by a print fmt that is supported as a whole."""
    rows = rows_of(printed, list(events))
    renderer = Renderer(rows.event_type.format, Symbols())
    strip = renderer.strip(rows)
    assert renderer.reason is None, renderer.reason
    return lines_of(strip, len(events))
