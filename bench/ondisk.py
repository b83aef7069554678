"""Read a trace directory without lttd's code, to check lttd's result by other means.

Source: ftrace page header (Linux include/linux/ring_buffer.h, tracefs events/header_page) and the
CTF packet index 1.1 (lttng-tools src/common/index/ctf-index.hpp).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

INDEX_MAGIC: Final = 0xC1F1DCC1
INDEX_HEADER: Final = struct.Struct(">4I")
INDEX_ENTRY: Final = np.dtype(
    [
        (name, ">u8")
        for name in (
            "offset_bytes",
            "packet_bits",
            "content_bits",
            "begin",
            "end",
            "events_discarded",
            "stream_id",
            "instance_id",
            "sequence",
        )
    ]
)
_PAGE_HEADER: Final = struct.Struct("<QQ")
_LENGTH_MASK: Final = (1 << 27) - 1
_COUNT_STORED: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class StreamOnDisk:
    """A stream's data file and its index."""

    data: Path
    index: Path

    def entries(self) -> npt.NDArray[Any]:
        """Return every entry of the index."""
        raw = self.index.read_bytes()
        magic, _major, _minor, entry_bytes = INDEX_HEADER.unpack_from(raw)
        if (magic, entry_bytes) != (INDEX_MAGIC, INDEX_ENTRY.itemsize):
            raise ValueError(f"{self.index}: not a CTF packet index 1.1")
        return np.frombuffer(raw, INDEX_ENTRY, offset=INDEX_HEADER.size)

    def subbuffers_bytes(self) -> list[int]:
        """Return header + content bytes of every packed ftrace sub-buffer, by walking the data.

        Raises:
            ValueError: the last one does not end where the file does.
        """
        raw, offset, sizes = self.data.read_bytes(), 0, []
        while offset + _PAGE_HEADER.size <= len(raw):
            _, commit = _PAGE_HEADER.unpack_from(raw, offset)
            count_bytes = 8 if commit & _COUNT_STORED else 0
            sizes.append(_PAGE_HEADER.size + (commit & _LENGTH_MASK) + count_bytes)
            offset += sizes[-1]
        if offset != len(raw):
            raise ValueError(f"{self.data}: sub-buffers end at {offset}, the file at {len(raw)}")
        return sizes


def streams(trace: Path) -> Iterator[StreamOnDisk]:
    """Find every stream of every segment."""
    for data in sorted(trace.glob("*/streams/*")):
        if data.is_file() and data.name != "metadata":
            yield StreamOnDisk(data, data.parent / "index" / f"{data.name}.idx")


def stream_bytes(trace: Path) -> int:
    """Return the bytes of data and index of all streams together."""
    return sum(path.stat().st_size for s in streams(trace) for path in (s.data, s.index))
