"""Sub-buffers of the kernel's ftrace ring buffer, as ``trace_pipe_raw`` delivers them.

A sub-buffer is a u64 time stamp, a commit word of the size of the kernel's ``long``, ``commit``
bytes of events, and padding.  If bit 30 of the commit word is set, the kernel stores the count of
missed events as a ``long`` directly after the content.

Source of the layout: ``events/header_page`` of the running kernel; Linux kernel/trace/ring_buffer.c
(``struct buffer_data_page``, ``RB_MISSED_EVENTS``, ``RB_MISSED_STORED``).  The flags are added as a
negative 32-bit constant, so the word arrives sign-extended: mask with 27 bits, as libtraceevent's
kbuffer does, never by clearing the two flags.
"""

import re
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.time_scale import TimeScale
from lttd.subbuffer import ROW_DTYPE, RowFlag, Rows, StreamInfo

COMMIT_MASK: Final = (1 << 27) - 1
NAME: Final = "ftrace"
"""The name of this ABI."""
OWN_SYSTEM: Final = "ftrace"
"""The system of the tracer's own events (print, function, ...), which has no enable file."""
MISSED_STORED: Final = 1 << 30
MISSED_EVENTS: Final = 1 << 31

NEAR: Final = 100_000_000
"""An entry ends at most this long after its last event, in ns; flushes may be as frequent."""
_DELTA_MASK: Final = (1 << 27) - 1
_STAMP_MASK: Final = (1 << 59) - 1
_ZERO: Final = bytes(4)

_FIELD: Final = re.compile(
    rb"[ \t]*+field:([^;]*+);[ \t]*+offset:(\d{1,9}+);[ \t]*+size:(\d{1,9}+);"
)


@dataclass(frozen=True, slots=True)
class PageLayout:
    """The properties in ``header_page`` that reading sub-buffers needs."""

    subbuffer_bytes: int = 4096
    long_bytes: int = 8
    byteorder: str = "<"
    scale: TimeScale | None = None
    """How times follow from time stamps; None: they are the times."""

    def __post_init__(self) -> None:
        """Refuse a layout that no kernel has.

        Raises:
            ValueError: the size of a long is neither 4 nor 8.
        """
        if self.long_bytes not in (4, 8):
            raise ValueError(f"a long of {self.long_bytes} bytes")

    @property
    def header_bytes(self) -> int:
        """Bytes before the content: the time stamp and the commit word."""
        return 8 + self.long_bytes

    @property
    def header_dtype(self) -> np.dtype[np.void]:
        """The dtype of a sub-buffer's header."""
        return _header_dtype(self.byteorder, self.long_bytes)


def layout_of(info: StreamInfo, byteorder: str) -> PageLayout:
    """Return the layout of a recorded stream; *byteorder* is ``little`` or ``big``.

    Raises:
        ValueError: the manifest states impossible values.
    """
    return PageLayout(
        info.subbuffer_bytes,
        info.header_bytes - 8,
        "<" if byteorder == "little" else ">",
        TimeScale.parse(info.time_scale),
    )


@lru_cache
def _header_dtype(byteorder: str, long_bytes: int) -> np.dtype[np.void]:
    return np.dtype([("begin", f"{byteorder}u8"), ("commit", f"{byteorder}u{long_bytes}")])


def parse_header_page(text: bytes, byteorder: str = "<") -> PageLayout:
    """Parse ``events/header_page``.

    Raises:
        ValueError: the text is not a header_page.
    """
    lines = (_FIELD.match(line) for line in text.split(b"\n"))
    fields = {m[1].split()[-1]: (int(m[2]), int(m[3])) for m in lines if m and m[1].strip()}
    if not {b"timestamp", b"commit", b"data"} <= fields.keys():
        raise ValueError("no timestamp, commit and data fields in header_page")
    (data_offset, data_bytes), (_, long_bytes) = fields[b"data"], fields[b"commit"]
    if long_bytes not in (4, 8) or data_offset != 8 + long_bytes:
        raise ValueError(
            f"header_page puts the data at {data_offset} after a {long_bytes}-byte commit"
        )
    return PageLayout(data_offset + data_bytes, long_bytes, byteorder)


class Pages(NamedTuple):
    """The headers of some sub-buffers, as rows of a batch."""

    rows: Rows
    """The valid sub-buffers; the stream sets sequence, discarded_total and end."""
    missed: list[tuple[int, int | None]]
    """(row, count): events lost before it; None if the kernel had no room for the count."""
    damaged: list[tuple[int, int]]
    """For each that does not parse: (number of the row after it, offset in the buffer)."""


def rows_of_pages(
    buffer: bytearray | bytes | memoryview, used_bytes: int, layout: PageLayout
) -> Pages:
    """Read the headers of the sub-buffers that fill the first *used_bytes* of *buffer*.

    *used_bytes* is a multiple of ``layout.subbuffer_bytes``.
    """
    size, head = layout.subbuffer_bytes, layout.header_bytes
    count = used_bytes // size
    slots = np.ndarray((count,), layout.header_dtype, buffer, strides=(size,))
    word = slots["commit"].astype(np.uint64)
    content = word & np.uint64(COMMIT_MASK)
    flagged = word & np.uint64(MISSED_EVENTS | MISSED_STORED)
    stored = content + np.uint64(head)
    rows = np.zeros(count, ROW_DTYPE)
    rows["offset_bytes"] = np.arange(0, count * size, size, dtype=np.uint64)
    rows["kernel_bytes"] = size
    rows["begin"] = slots["begin"]
    rows["content_bits"] = stored << np.uint64(3)
    missed: list[tuple[int, int | None]] = []
    if flagged.any():
        has_count = (word & np.uint64(MISSED_STORED)) != 0
        stored[has_count] += np.uint64(layout.long_bytes)
        rows["flags"][flagged != 0] = RowFlag.MISSED
        missed = _missed_counts(buffer, rows, stored, has_count, layout)
    rows["payload_bytes"] = stored
    # Zeros are not a header: they may be the end of a torn file.
    sound = (stored <= size) & ((slots["begin"] != 0) | (word != 0))
    if sound.all():
        return Pages(rows, missed, [])
    return _without_damaged(rows, missed, sound)


def _missed_counts(
    buffer: bytearray | bytes | memoryview,
    rows: Rows,
    stored: npt.NDArray[np.uint64],
    has_count: npt.NDArray[np.bool_],
    layout: PageLayout,
) -> list[tuple[int, int | None]]:
    order = "little" if layout.byteorder == "<" else "big"
    view = memoryview(buffer)
    missed: list[tuple[int, int | None]] = []
    for row in np.flatnonzero(rows["flags"]).tolist():
        end = int(rows["offset_bytes"][row]) + int(stored[row])
        fits = int(stored[row]) <= layout.subbuffer_bytes
        if has_count[row] and fits:
            missed.append((row, int.from_bytes(view[end - layout.long_bytes : end], order)))  # type: ignore[arg-type]
        else:
            missed.append((row, None))
    return missed


def _without_damaged(
    rows: Rows, missed: list[tuple[int, int | None]], sound: npt.NDArray[np.bool_]
) -> Pages:
    # The number of valid rows before each row.
    new_row: npt.NDArray[np.int64] = np.cumsum(sound) - sound
    damaged = [
        (int(new_row[row]), int(rows["offset_bytes"][row]))
        for row in np.flatnonzero(~sound).tolist()
    ]
    kept = [(int(new_row[row]), count) for row, count in missed if sound[row]]
    return Pages(rows[sound], kept, damaged)


def last_event_time(page: memoryview | bytes, layout: PageLayout) -> int:
    """Return the time of the last event of the sub-buffer at the begin of *page*.

    Walk the heads of events, a word of type_len and time delta each, up to one that does not parse.
    (ftrace_events walks many sub-buffers at once.)
    """
    order, head = layout.byteorder, layout.header_bytes
    little = order == "<"
    now = int(struct.unpack_from(f"{order}Q", page)[0])
    (commit,) = struct.unpack_from(f"{order}I", page, 8 if little else head - 4)
    count = min(commit & COMMIT_MASK, len(page) - head) // 4
    words = struct.unpack_from(f"{order}{count + 1}I", bytes(page[head : head + 4 * count]) + _ZERO)
    at = 0
    while at < count:
        word = words[at]
        # A big-endian kernel has bit fields in the opposite order.
        type_len, delta = (word & 31, word >> 5) if little else (word >> 27, word & _DELTA_MASK)
        if 0 < type_len < 29:
            at += type_len + 1
        elif type_len >= 30:
            at += 2
        elif (type_len == 29 and not delta) or words[at + 1] < 4:
            break  # the rest is unused, or does not parse
        else:
            at += 1 + (words[at + 1] + 3) // 4
        if at > count:
            break
        if type_len == 30:
            delta += words[at - 1] << 27
        elif type_len == 31:  # an absolute time of 59 bits; the top 5 are those of the page
            delta = ((words[at - 1] << 27) + delta & _STAMP_MASK) - (now & _STAMP_MASK)
        now += delta
    return now
