"""Replay the files of ``blktrace``: ``NAME.blktrace.CPU``, records from end to end.

Rule: the stream ends with the file; a torn end is a gap.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from lttd.abi.blktrace import MOST_RECORD_BYTES, NAME, NOTIFY, layout_of, pdu_of, records_at, walk
from lttd.beneath import OpenDirectory, Place
from lttd.clock import Snapshot
from lttd.copied_tracefs import StreamPath
from lttd.errors import NothingToRecordError
from lttd.plausible import is_name
from lttd.readfile import read_head
from lttd.sources.base import Attachments, Nothing, SourceInfo
from lttd.sources.blktrace.rows import ProcessNotes, RecordRows
from lttd.sources.replay.files import FileSource, FileStream, Replay, open_directory
from lttd.subbuffer import Batch, BufferPool, StreamId, StreamInfo, make_batch

# The note with the wall-clock time is among the first records of one of the files.
_START_BYTES: Final = 64 << 10
# The kernel reads the wall clock just before it stamps the note: some microseconds on a busy CPU.
_START_UNCERTAINTY_NS: Final = 100_000
_TIMESTAMP: Final = 1 | NOTIFY
_WALL: Final = struct.Struct("2I")
_NAME: Final = re.compile(r"(?P<name>.+)\.blktrace\.(?P<cpu>[0-9]{1,5})")


def open_blktrace_replay(directory: Path, pool: BufferPool) -> "BlktraceReplay":
    """Open every ``NAME.blktrace.CPU`` of *directory*.

    Raises:
        UsageError: there is no such directory.
        NothingToRecordError: it holds no such file.
    """
    base = open_directory(directory)
    files = find_blktraces(directory)
    if not files:
        raise NothingToRecordError(
            f"{directory} holds no block trace", "give it files NAME.blktrace.CPU"
        )
    return BlktraceReplay(base, files, pool)


def find(directory: Path) -> Path | None:
    """Return the first file of *directory* that is named so."""
    return next((file.path for file in find_blktraces(directory)), None)


def find_blktraces(directory: Path) -> list[StreamPath]:
    """Return the files of *directory* that have blktrace's form of name."""
    files = [
        StreamPath(path, StreamId(found["name"], int(found["cpu"])))
        for path in sorted(directory.iterdir())
        if path.is_file() and (found := _NAME.fullmatch(path.name)) and is_name(found["name"])
    ]
    return sorted(files, key=lambda file: file.stream)


class BlktraceReplayStream(FileStream):
    """One CPU's file."""

    def __init__(self, id_: StreamId, place: Place, pool: BufferPool, noted: ProcessNotes) -> None:
        info = StreamInfo(id_, NAME, subbuffer_bytes=0, header_bytes=0)
        super().__init__(info, place, pool)
        self._book = RecordRows()
        self._noted = noted
        self._records = 0
        self._at = 0

    @property
    def latest(self) -> int:
        """The time of the latest taken record."""
        return self._book.latest

    def take(self, flush: bool) -> Batch | Nothing:
        """Read the next full buffer; see Stream.take()."""
        if self.closed:
            return Nothing.EVER
        buffer = self.pool.take()
        used = self.read_into(buffer, self._at)
        if not used:
            self.pool.give(buffer)
            self.close()
            return Nothing.EVER
        # The rest to be read again is longer than any record, so it is garbage at the end.
        taken = self._book.take(buffer[:used], final=used < max(len(buffer), MOST_RECORD_BYTES))
        self._at += taken.whole_bytes
        batch = make_batch(
            self.info.id,
            taken.rows,
            pool=self.pool,
            buffer=buffer,
            gaps=taken.gaps,
        )
        self._records += self._noted.add(batch)
        return batch

    def counters(self) -> Mapping[str, int]:
        """Return the number of records."""
        return {"records": self._records}


class BlktraceReplay(FileSource[BlktraceReplayStream]):
    """The files of one block trace."""

    def __init__(self, directory: OpenDirectory, files: list[StreamPath], pool: BufferPool) -> None:
        self._noted = ProcessNotes()
        places = [directory.place(file.path) for file in files]
        super().__init__(
            BlktraceReplayStream(file.stream, place, pool, self._noted)
            for file, place in zip(files, places, strict=True)
        )
        settings = {
            "directory": str(directory.path),
            "abi": NAME,
            "files": [file.path.name for file in files],
        }
        self.info = SourceInfo(
            *("replay", f"replay:{directory.path},abi=blktrace", "mono", settings),
            live=False,
            snapshot=_start(places),
        )

    def attachments(self) -> Attachments:
        """Return the records on processes and the time that came since the last call."""
        return self._noted.attachments()


def _start(places: Iterable[Place]) -> Snapshot | None:
    """Return the clocks at the start, by the note with the time; None if there is no such note."""
    for place in places:
        data = read_head(place, _START_BYTES)
        layout = layout_of(data)
        if layout is None:
            continue
        walked = walk(data, 0, len(data), layout)
        records = records_at(data, walked.offset_bytes, layout)
        for row in np.flatnonzero(records["action"] == _TIMESTAMP).tolist():
            at, size = int(walked.offset_bytes[row]), int(walked.size_bytes[row])
            pdu = pdu_of(data, at, size, 0, layout)
            if len(pdu) == _WALL.size:
                seconds, ns = struct.unpack(f"{layout.byteorder}2I", pdu)
                mono = int(records["time"][row])
                wall_ns = seconds * 1_000_000_000 + ns
                # It is unknown how long the machine had slept before.
                return Snapshot(mono, mono, mono, wall_ns, _START_UNCERTAINTY_NS)
    return None


REPLAY: Final = Replay(
    find, lambda directory, pool, _: open_blktrace_replay(directory, pool), states_sizes=True
)
