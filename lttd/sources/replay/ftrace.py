"""Replay regular files of whole sub-buffers with padding: fixtures, crash dumps, old traces.

Rule: a replay treats a file like a ring that was filled before; it ends at the end of the file.
Invariant: file size = kernel_bytes of the rows + bytes of the DAMAGED gaps + those of a TORN one.

See ``lttd.copied_tracefs`` for the names of files.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from lttd.abi.ftrace import NAME, PageLayout, last_event_time, rows_of_pages
from lttd.beneath import OpenDirectory, Place
from lttd.copied_tracefs import StreamPath, clock_of, find_streams, page_layout
from lttd.errors import NothingToRecordError, UsageError
from lttd.sources.base import Attachment, Attachments, Nothing, SourceInfo, When
from lttd.sources.ftrace.loss import LossLedger, Sample
from lttd.sources.replay.attachments import tracefs_files
from lttd.sources.replay.ctf_files import METADATA, is_ctf, is_packet
from lttd.sources.replay.files import FileSource, FileStream, Replay, open_directory
from lttd.sources.replay.ltt import find as find_ltt
from lttd.sources.rows import RowBook, damage_gaps
from lttd.subbuffer import Batch, BufferPool, Gap, Reason, StreamId, StreamInfo, Unit, make_batch


def open_replay(
    directory: Path, pool: BufferPool, subbuffer_bytes: int | None = None
) -> "ReplaySource":
    """Open every stream in *directory*.

    *subbuffer_bytes* is the size of a sub-buffer for files without a header_page beside them.

    Raises:
        UsageError: there is no such directory or size.
        NothingToRecordError: the directory holds no stream.
    """
    base = open_directory(directory)
    layout, notes = page_layout(base, subbuffer_bytes)
    if not layout.header_bytes < layout.subbuffer_bytes <= pool.least_bytes:
        raise UsageError(
            f"sub-buffers of {layout.subbuffer_bytes} bytes are not possible:"
            f" write more than {layout.header_bytes}, and at most {pool.least_bytes}"
        )
    files = find_streams(directory)
    if not files:
        raise NothingToRecordError(
            f"{directory} holds no stream",
            "give it a CTF trace, or files per_cpu/cpuN/trace_pipe_raw, cpuN.* or <channel>_<cpu>",
        )
    return ReplaySource(base, layout, files, pool, notes)


def find(directory: Path) -> Path | None:
    """Return the first stream of *directory*; channels of LTTng, named alike, are none.

    Raises:
        NothingToRecordError: they are of LTTng, and nothing declares their packets.
    """
    if find_ltt(directory) is not None or is_ctf(directory / METADATA):
        return None
    first = next((one.path for one in find_streams(directory)), None)
    if first is not None and is_packet(first):
        raise NothingToRecordError(
            f"{first} has packets of CTF, but {directory / METADATA} is missing or not of CTF",
            "name a directory with the metadata of the trace",
        )
    return first


class ReplayStream(FileStream):
    """A file of sub-buffers of one size."""

    def __init__(self, id_: StreamId, place: Place, layout: PageLayout, pool: BufferPool) -> None:
        info = StreamInfo(id_, NAME, layout.subbuffer_bytes, layout.header_bytes)
        super().__init__(info, place, pool)
        self._layout = layout
        self._at = 0
        self._book = RowBook()
        self._ledger: LossLedger | None = None
        self._latest = 0

    @property
    def latest(self) -> int:
        """The time of the last taken event."""
        return self._latest

    def take(self, flush: bool) -> Batch | Nothing:
        """Read the next full buffer; see Stream.take()."""
        if self.closed:
            return Nothing.EVER
        size = self._layout.subbuffer_bytes
        buffer = self.pool.take()
        used = self.read_into(buffer[: len(buffer) // size * size], self._at)
        if not used:
            self.pool.give(buffer)
            self.close()
            return Nothing.EVER
        self._at += used
        return self._batch(buffer, used)

    def _batch(self, buffer: memoryview, used: int) -> Batch:
        size = self._layout.subbuffer_bytes
        whole = used // size * size
        rows, missed, damaged = rows_of_pages(buffer, whole, self._layout)
        earlier = self._book.begin
        if len(rows):
            last = int(rows["offset_bytes"][-1])
            page = buffer[last : last + size]
            self._latest = max(self._latest, min(last_event_time(page, self._layout), _MAX_TIME))
        self._book.number(rows, self._latest)
        gaps = damage_gaps(rows, damaged, size, earlier, self._latest)
        if len(rows):
            if self._ledger is None:
                first = int(rows["begin"][0])
                self._ledger = LossLedger(Sample(first, 0, 0, 0), pages_only=True)
            gaps = (*self._ledger.place(rows, missed), *gaps)
        if used > whole:
            torn = used - whole
            end = max(self._latest, self._book.begin)
            gaps = (*gaps, Gap(len(rows), Reason.TORN, Unit.BYTES, torn, end, end))
        self._book.count(rows, gaps)
        return make_batch(self.info.id, rows, pool=self.pool, buffer=buffer, gaps=gaps)


_MAX_TIME: Final = (1 << 64) - 1


class ReplaySource(FileSource[ReplayStream]):
    """A directory of such files."""

    def __init__(
        self,
        directory: OpenDirectory,
        layout: PageLayout,
        files: Sequence[StreamPath],
        pool: BufferPool,
        notes: Sequence[str],
    ) -> None:
        places = ((file.stream, directory.place(file.path)) for file in files)
        super().__init__((ReplayStream(*each, layout, pool) for each in places), notes)
        self._directory = directory
        for stream in self.streams:
            torn = stream.size_bytes % layout.subbuffer_bytes
            if torn:
                self._notes.append(
                    f"{stream.path}: {torn} bytes after the last whole sub-buffer of"
                    f" {layout.subbuffer_bytes} are left out"
                )
        self.info = SourceInfo(
            "replay",
            f"replay:{directory.path}",
            clock_of(directory),
            {
                "directory": str(directory.path),
                "abi": NAME,
                "subbuffer_bytes": layout.subbuffer_bytes,
                "files": [str(file.path.relative_to(directory.path)) for file in files],
            },
            live=False,
        )

    def attachments(self) -> Attachments:
        """Return the format files beside the streams, when a segment is opened."""

        def due(when: When) -> Iterable[Attachment]:
            return tracefs_files(self._directory, self._notes) if when is When.OPEN else ()

        return due


REPLAY: Final = Replay(find, open_replay, states_sizes=False)
