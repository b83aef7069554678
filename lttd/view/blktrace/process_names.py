"""Read the notes of a block trace: the names of processes, and the time of the first event.

The kernel writes a note with a task's name once, before its first record.  ``blktrace/notes`` of a
segment has all of these notes, so that a window need not read the records before it.

Rule: names are those of the notes; of several for a pid, the latest at or before the time counts.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from lttd.abi.blktrace import (
    COMM_BYTES,
    NOTIFY,
    layout_of,
    pdu_of,
    records_at,
    walk,
)
from lttd.abi.blktrace import notes as notes_of
from lttd.beneath import Place
from lttd.errors import TraceDamagedError
from lttd.limits import COMMANDS
from lttd.readfile import read_limited
from lttd.stored import StoredStream
from lttd.view.columns import EventBatch
from lttd.view.task_names import Column, NameHistory, Names
from lttd.view.trace import Segment

NOTES_FILE: Final = "blktrace/notes"
_BYTES_AT_ONCE: Final = 256 << 10


class BlktraceNames(Names):
    """The names of processes in some segments of one boot."""

    idle: bytes | None = None

    def __init__(self, segments: Sequence[Segment]) -> None:
        super().__init__(
            segment.paths.place(segment.paths.directory / NOTES_FILE) for segment in segments
        )

    def parse(self, text: bytes, into: NameHistory) -> None:
        """Read records; leave out those that do not parse."""
        layout = layout_of(text)
        if layout is None:
            return
        walked = walk(text, 0, len(text), layout)
        records = records_at(text, walked.offset_bytes, layout)
        for row in np.flatnonzero(records["action"] == NOTIFY).tolist():
            at, size = int(walked.offset_bytes[row]), int(walked.size_bytes[row])
            comm = pdu_of(text, at, size, 0, layout)[:COMM_BYTES].partition(b"\0")[0]
            told = int(records["time"][row]), comm
            into.setdefault(int(records["pid"][row]), []).append(told)

    def of(self, batch: EventBatch) -> tuple[Column, Column]:
        """Return the pairs of Names.of(); remember the names in the batch.

        The notes of a killed or running recorder may not be in its notes file yet.
        """
        for rows in batch.by_type():
            if rows.event_type.name == "note_process" and rows.event_type.format is not None:
                times, pids = rows.time.tolist(), rows.pid.tolist()
                for time, pid, comm in zip(times, pids, rows["comm"].tolist(), strict=True):
                    seen = self.noted.setdefault(pid, [])
                    at = bisect_left(seen, (time, comm))
                    if seen[at : at + 1] != [(time, comm)]:
                        seen.insert(at, (time, comm))
        return super().of(batch)


def first_time(streams: Sequence[StoredStream]) -> int:
    """Return the time of the first event, from which blkparse counts times; 0 if there is none.

    Notes on processes and the time are not events.
    """
    found = [time for stream in streams for time in _first_of(stream)]
    return min(found, default=0)


def _first_of(stream: StoredStream) -> Iterator[int]:
    """Yield the time of a stream's first event, if it has one."""
    try:
        for block in stream.blocks(stream.index, most_bytes=_BYTES_AT_ONCE):
            for at, size in zip(
                block.headers.offset_bytes.tolist(),
                block.headers.payload_bytes.tolist(),
                strict=True,
            ):
                layout = layout_of(block.data, at)
                assert layout is not None  # else it would not be in the block
                walked = walk(block.data, at, at + size, layout)
                records = records_at(block.data, walked.offset_bytes, layout)
                events = np.delete(records, notes_of(block.data, walked, layout))
                if len(events):
                    yield int(events["time"][0])
                    return
    except (TraceDamagedError, OSError):
        return


def noted_records(place: Place) -> Iterator[tuple[int, int, bytes]]:
    """Yield time, CPU and bytes of each record of a notes file; nothing if it is absent.

    Raises:
        TraceDamagedError: it is too large, or cannot be read.
    """
    try:
        raw = read_limited(place, COMMANDS)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TraceDamagedError(Path(place.path), 0, error.strerror or str(error)) from None
    layout = layout_of(raw)
    if layout is None:
        return
    walked = walk(raw, 0, len(raw), layout)
    records = records_at(raw, walked.offset_bytes, layout)
    for row, (at, size) in enumerate(
        zip(walked.offset_bytes.tolist(), walked.size_bytes.tolist(), strict=True)
    ):
        yield int(records["time"][row]), int(records["cpu"][row]), raw[at : at + size]
