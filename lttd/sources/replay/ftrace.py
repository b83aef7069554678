"""Replay regular files of whole sub-buffers with padding: fixtures, crash dumps, old traces.

Rule: a replay treats a file like a ring that was filled before; it ends at the end of the file.
Invariant: file size = kernel_bytes of the rows + bytes of the DAMAGED gaps + those of a TORN one.

It looks for a copied tracefs tree (``per_cpu/cpuN/trace_pipe_raw``), else for ``cpuN.*``, else for
``<channel>_<cpu>``.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from lttd.abi.ftrace import (
    NAME,
    PageLayout,
    last_event_time,
    parse_header_page,
    rows_of_pages,
)
from lttd.beneath import OpenDirectory, Place
from lttd.errors import NothingToRecordError, SourceError, TraceDamagedError, UsageError
from lttd.limits import CPUS, HEADER_PAGE
from lttd.plausible import is_name
from lttd.readfile import read_limited
from lttd.sources.base import Attachment, Attachments, Nothing, SourceInfo, When
from lttd.sources.ftrace.loss import LossLedger, Sample
from lttd.sources.replay.attachments import tracefs_files
from lttd.sources.replay.ctf_files import METADATA, is_ctf, is_packet
from lttd.sources.replay.files import FileSource, FileStream, Replay, StreamPath, open_directory
from lttd.sources.replay.ltt import find as find_ltt
from lttd.sources.rows import RowBook, damage_gaps
from lttd.subbuffer import Batch, BufferPool, Gap, Reason, StreamId, StreamInfo, Unit, make_batch

DEFAULT_SUBBUFFER_BYTES: Final = 4096
_HEADER_PAGES: Final = ("events/header_page", "header_page")


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
    layout, notes = _page_layout(base, subbuffer_bytes)
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


def find_streams(directory: Path) -> list[StreamPath]:
    """Return the streams of *directory*, by the first form of file names that matches any.

    Raises:
        UsageError: two files would be the same stream.
    """
    files = [path for path in sorted(directory.iterdir()) if path.is_file()]
    tree = sorted(directory.glob("per_cpu/cpu*/trace_pipe_raw"))
    for found in (
        [_named(path, path.parent.name, r"cpu(?P<cpu>[0-9]+)") for path in tree],
        [_named(path, path.name, r"cpu(?P<cpu>[0-9]+)(\..*)?") for path in files],
        [_named(path, path.name, r"(?P<channel>[^.].*)_(?P<cpu>[0-9]+)") for path in files],
    ):
        streams = sorted((one for one in found if one), key=lambda one: one.stream)
        for one, other in pairwise(streams):
            if one.stream == other.stream:
                raise UsageError(f"{one.path} and {other.path}: both are {one.stream.name}")
        if streams:
            return streams
    return []


def _named(path: Path, name: str, pattern: str) -> StreamPath | None:
    match = re.fullmatch(pattern, name)
    if match is None:
        return None
    words = match.groupdict()
    cpu, named = int(words["cpu"]), words.get("channel", NAME)
    if cpu >= CPUS.most or not is_name(named):
        return None
    return StreamPath(path, StreamId(named, cpu))


def _page_layout(
    directory: OpenDirectory, subbuffer_bytes: int | None
) -> tuple[PageLayout, tuple[str, ...]]:
    asked = subbuffer_bytes or DEFAULT_SUBBUFFER_BYTES
    for name in _HEADER_PAGES:
        path = directory.path / name
        try:
            layout = parse_header_page(read_limited(directory.place(path), HEADER_PAGE))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (ValueError, TraceDamagedError) as error:
            what = str(error) if isinstance(error, TraceDamagedError) else f"{path}: {error}"
            return PageLayout(asked), (f"{what}; assuming sub-buffers of {asked} bytes",)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from None
        if subbuffer_bytes in (None, layout.subbuffer_bytes):
            return layout, ()
        size = layout.subbuffer_bytes
        return layout, (f"{path} states sub-buffers of {size} bytes, not {subbuffer_bytes}",)
    return PageLayout(asked), ()


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
            self._clock(),
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

    def _clock(self) -> str:
        try:
            path = self._directory.path / "trace_clock"
            text = read_limited(self._directory.place(path), HEADER_PAGE)
        except (OSError, TraceDamagedError):
            return "unknown"
        chosen = re.search(rb"\[([\w-]{1,64}+)\]", text)
        return chosen[1].decode() if chosen else "unknown"


REPLAY: Final = Replay(find, open_replay, states_sizes=False)
