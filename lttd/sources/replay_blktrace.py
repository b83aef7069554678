"""Replays what ``blktrace`` wrote: ``NAME.blktrace.CPU``, records from end to end.

Rule: as for any replay, what the files hold is what there is; a torn end is a gap.
"""

import os
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from lttd.errors import NothingToRecordError, SourceError, UsageError
from lttd.sources.base import Attachment, Nothing, SourceInfo, When
from lttd.sources.blktrace_rows import MOST_RECORD_BYTES, RecordBook
from lttd.sources.replay import ReplaySource, StreamPath
from lttd.subbuffer import Batch, BufferPool, StreamId, StreamInfo, make_batch

_NAME: Final = re.compile(r"(?P<name>.+)\.blktrace\.(?P<cpu>\d+)")
NOTES_FILE: Final = "blktrace/notes"


def open_blktrace_replay(directory: Path, pool: BufferPool) -> "BlktraceReplay":
    """Open every ``NAME.blktrace.CPU`` of *directory*.

    Raises:
        UsageError: no such directory.
        NothingToRecordError: it holds none.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    files = [
        StreamPath(path, StreamId(found["name"], int(found["cpu"])))
        for path in sorted(directory.iterdir())
        if path.is_file() and (found := _NAME.fullmatch(path.name))
    ]
    if not files:
        raise NothingToRecordError(
            f"{directory} holds no block trace", "give it files NAME.blktrace.CPU"
        )
    return BlktraceReplay(directory, sorted(files, key=lambda file: file.stream), pool)


class BlktraceReplayStream:
    """See ``lttd.sources.base.Stream``."""

    def __init__(self, file: StreamPath, pool: BufferPool, noted: deque[bytes]) -> None:
        self.info = StreamInfo(file.stream, "blktrace", subbuffer_bytes=0, header_bytes=0)
        self.path = file.path
        try:
            self._fd = os.open(file.path, os.O_RDONLY)
        except OSError as error:
            raise SourceError(f"{file.path}: {error.strerror}") from error
        self._pool = pool
        self._book = RecordBook(noted)
        self._at = 0

    @property
    def latest(self) -> int:
        """Time of the latest record that was taken."""
        return self._book.latest

    def fileno(self) -> int:
        """Return -1: a regular file is always ready."""
        return -1

    def take(self, flush: bool) -> Batch | Nothing:
        """Read the next buffer full; see Stream.take()."""
        if self._fd < 0:
            return Nothing.EVER
        buffer = self._pool.take()
        used = 0
        try:
            while used < len(buffer):
                got = os.preadv(self._fd, [buffer[used:]], self._at + used)
                if not got:
                    break
                used += got
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}") from error
        if not used:
            self._pool.give(buffer)
            self.close()
            return Nothing.EVER
        # What is read anew next time is more than a record: it can only be garbage at the end.
        taken = self._book.take(buffer[:used], final=used < max(len(buffer), MOST_RECORD_BYTES))
        self._at += taken.whole_bytes
        return make_batch(
            *(self.info.id, taken.rows, time.monotonic_ns()),
            pool=self._pool,
            buffer=buffer,
            gaps=taken.gaps,
        )

    def urgent(self) -> bool:
        """Return False: a file waits."""
        return False

    def losses(self) -> Batch | None:
        """Return nothing: batches told what is in the files."""
        return None

    def counters(self) -> Mapping[str, int]:
        """Return how many records there were."""
        return {"records": self._book.records}

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class BlktraceReplay(ReplaySource):
    """See ``lttd.sources.base.Source``."""

    def __init__(self, directory: Path, files: list[StreamPath], pool: BufferPool) -> None:
        self._noted: deque[bytes] = deque()
        self._notes = []
        self.streams: list[BlktraceReplayStream] = []  # type: ignore[assignment]
        try:
            for file in files:
                self.streams.append(BlktraceReplayStream(file, pool, self._noted))
        except BaseException:
            self.close()
            raise
        settings = {
            "directory": str(directory),
            "abi": "blktrace",
            "files": [file.path.name for file in files],
        }
        self.info = SourceInfo(
            "replay", f"replay:{directory},abi=blktrace", "mono", settings, live=False
        )

    def attachments(self, when: When) -> Iterator[Attachment]:
        """Return the notes of processes and of the time that were met since the last call."""
        if noted := b"".join(self._noted.popleft() for _ in range(len(self._noted))):
            yield Attachment(NOTES_FILE, noted, append=True)
