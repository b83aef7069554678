"""What all replays have in common: regular files that were filled before, and their source.

Rule: a file is always ready, never urgent and never asked for losses: its bytes tell all there is.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from lttd.beneath import place_of
from lttd.errors import SourceError, TraceDamagedError
from lttd.files import refuse_hole
from lttd.limits import HOLE
from lttd.sources.base import Attachment, Nothing, SourceInfo, When
from lttd.subbuffer import Batch, BufferPool, Reason, StreamInfo


class FileStream:
    """A file as a ``lttd.sources.base.Stream``; a kind adds what it takes."""

    def __init__(self, info: StreamInfo, path: Path, pool: BufferPool) -> None:
        """Open the file.

        Raises:
            SourceError: that cannot be done.
        """
        self.info = info
        self.path = path
        self.pool = pool
        try:
            self._fd = place_of(path).open()
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error
        try:
            refuse_hole(path, self._fd, HOLE)
        except (OSError, TraceDamagedError) as error:
            self.close()
            raise SourceError(str(error)) from None

    @property
    def closed(self) -> bool:
        """Whether it was read to its end, or given up."""
        return self._fd < 0

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return 0 if self.closed else os.fstat(self._fd).st_size

    @property
    def latest(self) -> int:
        """Trace clock at the end of what was taken."""
        raise NotImplementedError

    def take(self, flush: bool) -> Batch | Nothing:
        """Read what comes next; see Stream.take()."""
        raise NotImplementedError

    def read_into(self, buffer: memoryview, offset_bytes: int) -> int:
        """Fill *buffer* with what stands at *offset_bytes*; return how much there was.

        Raises:
            SourceError: it cannot be read.
        """
        used = 0
        try:
            while used < len(buffer):
                got = os.preadv(self._fd, [buffer[used:]], offset_bytes + used)
                if not got:
                    break
                used += got
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}") from error
        return used

    def fileno(self) -> int:
        """Return -1: poll knows no regular files."""
        return -1

    def urgent(self) -> bool:
        """Return False: a file waits."""
        return False

    def losses(self) -> Batch | None:
        """Return nothing: batches told what is in the file."""
        return None

    def unplaced(self) -> Mapping[Reason, int]:
        """Return nothing: what is known to be lost is in a batch at once."""
        return {}

    def counters(self) -> Mapping[str, int]:
        """Return nothing: no kernel counts here."""
        return {}

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


StreamT = TypeVar("StreamT", bound=FileStream)


class FileSource(Generic[StreamT]):
    """Files as a ``lttd.sources.base.Source``; a kind adds its info, and attachments."""

    info: SourceInfo
    watch = None
    grows = False
    open_ended = False

    def __init__(self, streams: Iterable[StreamT], notes: Iterable[str] = ()) -> None:
        """Take over *streams*, which are opened as they are asked for."""
        self.streams: list[StreamT] = []
        self._notes = list(notes)
        try:
            self.streams += streams
        except BaseException:
            self.close()
            raise

    def discover(self) -> Sequence[StreamT]:
        """Return nothing: the files are those that there were."""
        return ()

    def leave_out(self, thread_ids: Iterable[int]) -> None:
        """Do nothing: it was recorded already."""

    def start(self) -> None:
        """Do nothing: the files are filled."""

    def stop(self) -> None:
        """Do nothing: what the files hold is still to be drained."""

    def now(self) -> int:
        """Return the time of the latest that was taken: the clock stands where the data does."""
        return max(stream.latest for stream in self.streams)

    def attachments(self, when: When) -> Iterator[Attachment]:
        """Return nothing: what the streams hold is enough."""
        return iter(())

    def note(self, line: str) -> None:
        """Add a line to what notes() tells."""
        self._notes.append(line)

    def mark_progress(self, segment: str) -> None:
        """Do nothing: a kill leaves no data in the kernel that a later run could take."""

    def notes(self) -> Sequence[str]:
        """Return what was odd about the files, each line once."""
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Close the files."""
        for stream in self.streams:
            stream.close()
