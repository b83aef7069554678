"""Numbered events: a test knows which of them are missing from a trace."""

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lttd.index import SeekIndex
from lttd.tracedir import SegmentPaths
from tests.instances import on_cpu_0
from tests.running import Run

MARK = struct.Struct("<I8sQ")
MAGIC = b"numbered"


@dataclass
class Marks:
    """Write numbered events into a ring; a full ring may refuse some."""

    fd: int
    number: int = 0
    refused: list[int] = field(default_factory=list)

    def write(self, count: int = 1) -> None:
        for _ in range(count):
            try:
                os.write(self.fd, MARK.pack(7, MAGIC, self.number))
            except OSError:  # EBADF: the ring is full
                self.refused.append(self.number)
            self.number += 1


@contextmanager
def marks(run: Run) -> Iterator[Marks]:
    """Write marks on CPU 0."""
    with on_cpu_0(), (run.instance / "trace_marker_raw").open("wb", buffering=0) as marker:
        yield Marks(marker.fileno())


def numbers_by_row(segment: SegmentPaths, stream: str) -> list[list[int]]:
    """Return the numbers of the marks in each sub-buffer; find them by their bytes."""
    paths = segment.stream(stream)
    data = paths.data.read_bytes()
    rows = []
    for entry in SeekIndex(paths.index).entries():
        begin = int(entry["offset_bytes"])
        part = data[begin : begin + int(entry["packet_bits"]) // 8]
        found = re.finditer(MAGIC, part)
        rows.append([struct.unpack_from("<Q", part, match.end())[0] for match in found])
    return rows
