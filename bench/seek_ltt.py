"""Find the event at a time in a channel of LTTng 0.x: a million sub-buffers beside ten thousand.

Each look-up starts from a cold cache, in one of three ways: packed data by lttd's index, sparse
data by lttd's index, and sparse data without an index, by bisecting slots as LTTV did when
sub-buffers had one size.  It opens the files anew, finds the sub-buffer, and walks its events to
the first one at or after the time, which must be the one that was written for it.  mincore counts
the bytes of index and data that the look-up touched.
"""

import mmap
import random
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bench.common import CannotMeasureError, Options, file_system, resident_bytes, scratch, settle
from bench.report import Cell, Figure, Plot, Report, median, ratio
from bench.seek import drop
from lttd.files import Disk
from lttd.index import SeekIndex
from lttd.manifest import StreamRecord
from lttd.subbuffer import ROW_DTYPE, Batch, StreamId, StreamInfo
from lttd.tracedir import StreamPaths
from lttd.writer import StreamFile

NAME: Final = "seek_ltt"
SIZES: Final = (10_000, 1_000_000)
SLOT_BYTES: Final = 16384
"""The size of the largest sub-buffer, and the distance of sub-buffers in sparse data."""
EVENTS: Final = 4
"""The number of events in each sub-buffer."""
PERIOD_NS: Final = 1000
"""Event number n happens at n * PERIOD_NS; the clock counts ns."""
_CHUNK_ROWS: Final = 2048
_PAGE_BYTES: Final = 4096
_USED_BYTES: Final = 68 + EVENTS * 8
# Format 2.6, packed: the fields of LttSubbufferHeader, then events of id 1 with a number each.
_SUBBUFFER: Final = np.dtype(
    [
        ("begin", "<u8"),
        ("end", "<u8"),
        ("magic", "<u4"),
        ("version", "u1", 4),
        ("start", "<u8", 2),
        ("frequency", "<u8"),
        ("sizes", "<u4", 3),
        ("lost", "<u4", 2),
        ("events", "<u4", (EVENTS, 2)),
        ("padding", f"V{_PAGE_BYTES - _USED_BYTES}"),
    ]
)
_TIMES: Final = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class LookUp:
    """One look-up."""

    seconds: float
    index_bytes: int
    data_bytes: int
    right: bool
    """Whether it found the event that was written."""


def run(options: Options) -> Report:
    """Write the channels, then look up begin, middle, end and random events in turn."""
    sizes = (SIZES[0], 100_000) if options.quick else SIZES
    rounds = options.rounds_or(proper=30, quick=5)
    found: dict[tuple[str, int], list[LookUp]] = {}
    bytes_of: dict[tuple[str, int], tuple[int, int]] = {}
    with scratch(options.disk_dir) as directory:
        for size in sizes:
            for layout in ("packed", "sparse"):
                paths = write_channel(directory / f"{layout}-{size}", layout, size)
                stat = paths.data.stat()
                bytes_of[layout, size] = stat.st_size, stat.st_blocks * 512
        settle()
        chosen = random.Random(1)
        for number in range(rounds):
            for size in sizes:
                events = [0, size * EVENTS // 2, size * EVENTS - 1, chosen.randrange(size * EVENTS)]
                event = events[number % len(events)]
                for way, (layout, find) in WAYS.items():
                    paths = paths_in(directory / f"{layout}-{size}")
                    found.setdefault((way, size), []).append(look_up(paths, find, event))
    return _report(options, sizes, found, bytes_of)


def paths_in(directory: Path) -> StreamPaths:
    """Return the paths of a channel's files."""
    return StreamPaths(directory / "data", directory / "index", directory / "gaps")


def write_channel(directory: Path, layout: str, size: int) -> StreamPaths:
    """Write *size* sub-buffers as lttd does."""
    directory.mkdir()
    paths = paths_in(directory)
    info = StreamInfo(StreamId("kernel", 0), "ltt", SLOT_BYTES, 68, page_bytes=_PAGE_BYTES)
    file = StreamFile(Disk(directory), paths, StreamRecord(info), layout)
    for first in range(0, size, _CHUNK_ROWS):
        file.append(_batch(info, np.arange(first, min(first + _CHUNK_ROWS, size))))
    file.sync()
    file.close()
    return paths


def _batch(info: StreamInfo, numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Batch:
    made = np.zeros(len(numbers), _SUBBUFFER)
    events = numbers[:, None] * EVENTS + np.arange(EVENTS)
    made["begin"], made["end"] = events[:, 0] * PERIOD_NS, events[:, -1] * PERIOD_NS
    made["magic"], made["version"] = 0x00D6B7ED, (2, 6, 8, 0)
    made["frequency"] = 1_000_000_000
    made["sizes"] = (1, _USED_BYTES, _PAGE_BYTES)
    made["events"][:, :, 0] = 1 << 27 | (events * PERIOD_NS) & ((1 << 27) - 1)
    made["events"][:, :, 1] = events
    rows = np.zeros(len(numbers), ROW_DTYPE)
    rows["offset_bytes"] = np.arange(len(numbers)) * _PAGE_BYTES
    rows["kernel_bytes"], rows["payload_bytes"] = _PAGE_BYTES, _USED_BYTES
    rows["content_bits"] = _USED_BYTES * 8
    rows["begin"], rows["end"], rows["sequence"] = made["begin"], made["end"], numbers
    buffer = memoryview(made.tobytes())
    made["sizes"][:, 2] = _USED_BYTES
    heads = np.ascontiguousarray(made[list(made.dtype.names or ())[:7]].view(np.uint8))
    heads = np.ascontiguousarray(heads.reshape(len(made), _PAGE_BYTES)[:, :60])
    return Batch(info.id, buffer, rows, heads=heads)


def by_index(paths: StreamPaths, wanted: int) -> int:
    """Return the offset of the sub-buffer that holds the event at *wanted*, by the index."""
    index = SeekIndex(paths.index)
    return int(index.entries()[index.first_at_or_after(wanted)]["offset_bytes"])


def by_slots(paths: StreamPaths, wanted: int) -> int:
    """Return the same without an index: sub-buffer k lies at k times the largest size."""
    with (
        paths.data.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        data.madvise(mmap.MADV_RANDOM)
        low, high = 0, len(data) // SLOT_BYTES
        while low < high:
            middle = (low + high) // 2
            if _TIMES.unpack_from(data, middle * SLOT_BYTES)[1] < wanted:
                low = middle + 1
            else:
                high = middle
    return low * SLOT_BYTES


Find = Callable[[StreamPaths, int], int]
WAYS: Final[dict[str, tuple[str, Find]]] = {
    "packed, index": ("packed", by_index),
    "sparse, index": ("sparse", by_index),
    "sparse, no index": ("sparse", by_slots),
}


def look_up(paths: StreamPaths, find: Find, event: int) -> LookUp:
    """Find an event by its time, from a cold cache.

    Raises:
        CannotMeasureError: the cache cannot be emptied.
    """
    for path in (paths.index, paths.data):
        drop(path)
        if resident_bytes(path):
            raise CannotMeasureError(f"{path}: pages of it stay in memory; is it on a real disk?")
    wanted = event * PERIOD_NS - PERIOD_NS // 2 if event else 0
    began = time.perf_counter()
    at = find(paths, wanted)
    with paths.data.open("rb", buffering=0) as file:
        file.seek(at)
        seen = first_event(file.read(_USED_BYTES), wanted)
    seconds = time.perf_counter() - began
    touched = resident_bytes(paths.index), resident_bytes(paths.data)
    return LookUp(seconds, *touched, right=seen == event)


def first_event(subbuffer: bytes, wanted: int) -> int | None:
    """Return the number of the first event at or after *wanted*; unwraps its 27 bits of time."""
    now, mask = struct.unpack_from("<Q", subbuffer)[0], (1 << 27) - 1
    for at in range(68, _USED_BYTES, 8):
        word, number = struct.unpack_from("<II", subbuffer, at)
        now += ((word & mask) - now) & mask
        if now >= wanted:
            return int(number)
    return None


def _report(
    options: Options,
    sizes: tuple[int, ...],
    found: dict[tuple[str, int], list[LookUp]],
    bytes_of: dict[tuple[str, int], tuple[int, int]],
) -> Report:
    few, many = sizes
    rows: list[list[Cell]] = []
    most: dict[tuple[str, int], int] = {}
    for (way, size), look_ups in found.items():
        layout, _ = WAYS[way]
        most[way, size] = max(one.index_bytes + one.data_bytes for one in look_ups)
        rows.append(
            [
                way,
                size,
                *bytes_of[layout, size],
                1e6 * (median([one.seconds for one in look_ups]) or 0),
                max(one.index_bytes for one in look_ups),
                max(one.data_bytes for one in look_ups),
            ]
        )
    wrong = sum(not one.right for look_ups in found.values() for one in look_ups)
    figures = [Figure("look-ups that found another event", wrong, "=", 0)]
    figures += [
        Figure(
            f"{way}: most bytes touched, {many:,} / {few:,} sub-buffers",
            ratio(most[way, many], most[way, few]),
            "<=",
            3.0,
        )
        for way in WAYS
    ]
    return Report(
        NAME,
        f"one look-up of an event in an LTT channel on {file_system(options.disk_dir)}",
        ["way", "sub-buffers", "file bytes", "on disk", "cold us", "index bytes", "data bytes"],
        rows,
        figures,
        [
            f"begin, middle, end, any event: {len(next(iter(found.values())))} look-ups each",
            "index and data bytes: the most that one look-up read, read-ahead included",
        ],
        {f"{way}, {size}": [asdict(one) for one in ups] for (way, size), ups in found.items()},
        plot=Plot(
            "microseconds",
            {
                way: {
                    f"{size:,} sub-buffers": [1e6 * one.seconds for one in found[way, size]]
                    for size in sizes
                }
                for way in WAYS
            },
        ),
    )
