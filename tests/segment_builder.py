"""Build segments with the real writer, for tests of the code that reads them."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import numpy as np

from lttd.abi.ftrace import rows_of_pages
from lttd.abi.ltt import rows_of
from lttd.beneath import OpenDirectory
from lttd.clock import Snapshot
from lttd.files import Disk
from lttd.manifest import Manifest, Position, StreamRecord, encode_synced
from lttd.sources.ltt.rows import LttBook
from lttd.sources.rows import RowBook
from lttd.stored import StoredStream
from lttd.subbuffer import Batch, BufferPool, Gap, Reason, StreamInfo, Unit, make_batch
from lttd.tracedir import SegmentPaths, create_segment, segment_name
from lttd.writer import StreamFile
from tests.fakes import LAYOUT, event, info, page

SNAPSHOT = Snapshot(
    trace=1_000,
    monotonic_ns=1_000,
    boottime_ns=1_000,
    realtime_ns=1_700_000_000_000_000_000,
    uncertainty_ns=10,
)


def record_at(delta: int, payload: bytes) -> bytes:
    """Return a short data record, *delta* after the previous one."""
    return struct.pack("<I", delta << 5 | len(payload) // 4) + payload


def subbuffer(number: int, *, events: int = 3, words: int = 2, missed: int | None = None) -> bytes:
    """Return a padded sub-buffer that begins at 1000 * (number + 1); no event has a zero byte."""
    payload = bytes((number * 7 + at) % 255 + 1 for at in range(4 * words))
    content = b"".join(record_at(10, payload) for _ in range(events))
    whole = bytearray(page(1000 * (number + 1), content))
    if missed is not None:
        word = len(content) | 1 << 31 | 1 << 30
        struct.pack_into("<Q", whole, 8, word)
        struct.pack_into("<Q", whole, 16 + len(content), missed)
    return bytes(whole)


class MakesBatches(Protocol):
    """A ring of one stream."""

    info: StreamInfo

    def batch(self, pages: Sequence[bytes], *, trailing_loss: int = 0) -> Batch:
        """Return sub-buffers as a source does."""
        ...


class Ring:
    """Make batches as a source does: with numbers, running maxima, losses and their totals."""

    def __init__(self, stream: StreamInfo | None = None) -> None:
        self.info = stream or info()
        self.book = RowBook()

    def batch(self, pages: Sequence[bytes], *, trailing_loss: int = 0) -> Batch:
        data = b"".join(pages)
        found = rows_of_pages(data, len(data), LAYOUT)
        rows = found.rows
        self.book.number(rows, int(rows["begin"][-1]) + 500 if len(rows) else 0)
        gaps = []
        for row, count in found.missed:
            begin = int(rows["begin"][row])
            gaps.append(Gap(row, Reason.OVERWRITTEN, Unit.EVENTS, count, begin, begin))
        if trailing_loss:
            at = self.book.begin
            gaps.append(Gap(len(rows), Reason.DROPPED, Unit.EVENTS, trailing_loss, at, at))
        self.book.count(rows, gaps)
        buffer = memoryview(bytearray(data))
        return make_batch(self.info.id, rows, pool=BufferPool(), buffer=buffer, gaps=tuple(gaps))


class LttRing:
    """Make batches of the sub-buffers of an LTT tracer."""

    def __init__(self, stream: StreamInfo) -> None:
        self.info = stream
        self.book = LttBook()

    def batch(self, blocks: Sequence[bytes], *, trailing_loss: int = 0) -> Batch:
        assert not trailing_loss, "its counters come in headers"
        data = memoryview(bytearray(b"".join(blocks)))
        sizes = np.array([len(block) for block in blocks], np.int64)
        taken = rows_of(data, np.cumsum(sizes) - sizes, sizes)
        gaps = self.book.enter(taken)
        return make_batch(
            self.info.id,
            taken.rows,
            pool=BufferPool(),
            buffer=data,
            gaps=gaps,
            heads=taken.heads,
        )


def segment_at(directory: Path) -> SegmentPaths:
    """Return the paths of the segment in *directory*."""
    return SegmentPaths(directory, OpenDirectory.open(directory))


def _ftrace_ring(cpu: int) -> MakesBatches:
    return Ring(info("fake", cpu))


@dataclass
class Made:
    """A segment in the making; ``finish`` closes it as the recorder does."""

    trace: Path
    layout: str = "packed"
    disk: Disk = field(default_factory=Disk)
    cpus: int = 1
    boot_id: str = "another boot"
    number: int = 1
    make_ring: Callable[[int], MakesBatches] = _ftrace_ring

    def __post_init__(self) -> None:
        self.trace.mkdir(mode=0o750, parents=True, exist_ok=True)
        self.paths: SegmentPaths = create_segment(
            self.disk, self.trace, segment_name(self.number, "fake")
        )
        self.rings = [self.make_ring(cpu) for cpu in range(self.cpus)]
        self.records = [StreamRecord(ring.info) for ring in self.rings]
        self.files = [
            StreamFile(self.disk, self.paths.stream(record.name), record, self.layout)
            for record in self.records
        ]
        self.synced: dict[str, Position] = {}
        self.manifest = Manifest(
            source={"kind": "fake", "spec": "fake", "clock": "mono"},
            layout=self.layout,
            machine={
                "host": "h",
                "boot_id": self.boot_id,
                "kernel": "6.18.0",
                "architecture": "x86_64",
                "byteorder": "little",
            },
            streams=self.records,
            clock_snapshots=[SNAPSHOT],
        )
        self.write_manifest()

    def write_manifest(self) -> None:
        self.disk.replace(self.paths.manifest, self.manifest.encode())

    def append(self, pages: Sequence[bytes], *, cpu: int = 0, trailing_loss: int = 0) -> None:
        self.files[cpu].append(self.rings[cpu].batch(pages, trailing_loss=trailing_loss))

    def sync(self) -> None:
        for record, file in zip(self.records, self.files, strict=True):
            self.synced[record.name] = file.sync()
        self.disk.replace(self.paths.synced, encode_synced(self.synced))

    def stream(self, cpu: int = 0) -> StoredStream:
        return StoredStream(self.paths, self.manifest, self.records[cpu])

    def leave(self) -> Self:
        """Close the files as they are, as the kernel does for a killed daemon."""
        for file in self.files:
            file.close()
        return self

    def finish(self) -> Self:
        self.sync()
        self.leave()
        for cpu, record in enumerate(self.records):
            stream = self.stream(cpu)
            record.summary = stream.derived_summary(stream.index.entries(), stream.gaps)
        self.manifest.state = "closed"
        self.write_manifest()
        return self


__all__ = [
    "LAYOUT",
    "LttRing",
    "Made",
    "Ring",
    "event",
    "page",
    "record_at",
    "segment_at",
    "subbuffer",
]
