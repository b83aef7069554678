"""Replay traces of LTTng 0.x by the legacy lttd: ``<channel>_<cpu>`` files of whole sub-buffers.

Up to format 2.2 some of them are in ``control/``; that directory is then part of the channel's
name.

Rule: lttd finds all sub-buffers of a file when it opens the file, in one walk over the headers,
because the largest size must be known before the first sub-buffer is written.
Invariant: file size = kernel_bytes of the rows + bytes of the DAMAGED gaps + those of a TORN one.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from lttd.abi import ltt, ltt_walk
from lttd.abi.base import Readable
from lttd.beneath import Place
from lttd.clock import Snapshot
from lttd.errors import NothingToRecordError, SourceError, UsageError
from lttd.plausible import is_name
from lttd.readfile import read_head
from lttd.sources.base import Attachments, Nothing, SourceInfo
from lttd.sources.ltt.metadata import Metadata
from lttd.sources.ltt.rows import NAME, LttBook, start_snapshot
from lttd.sources.replay.files import (
    FileSource,
    FileStream,
    Replay,
    bytes_of,
    open_directory,
)
from lttd.subbuffer import Batch, BufferPool, Gap, StreamId, StreamInfo, make_batch

_CHUNK_ROWS: Final = 65536


def find_channels(directory: Path) -> list[tuple[StreamId, Path]]:
    """Return the files below *directory* that have a channel's form of name, in order."""
    found = []
    for parent, below, names in os.walk(directory):
        inside = Path(parent).relative_to(directory)
        if not is_name(inside.as_posix()):  # then no channel below has a valid name either
            below.clear()
            continue
        for name in names:
            match, path = NAME.fullmatch(name), Path(parent) / name
            if match is not None and path.is_file():
                channel = (inside / match["channel"]).as_posix()
                if is_name(channel):
                    found.append((StreamId(channel, int(match["cpu"])), path))
    return sorted(found)


def find(directory: Path) -> Path | None:
    """Return the first file below *directory* that is named as a channel, and begins as one."""
    return next((path for _, path in find_channels(directory) if has_ltt_magic(path)), None)


def has_ltt_magic(path: Path) -> bool:
    """Tell whether a file begins like a channel of LTTng 0.x."""
    try:
        head = read_head(path, ltt.LEAST_HEADER_BYTES)
    except OSError:
        return False
    return ltt.has_magic(head)


@dataclass(frozen=True)
class Channel:
    """One file and the sub-buffers in it."""

    stream: StreamId
    place: Place
    survey: ltt_walk.Survey
    layout: ltt.Layout
    """The layout, by the header of the first sub-buffer."""
    start: int
    """The begin of the first sub-buffer, on the trace clock, in ns."""
    runs: int
    """The number of traces in it: the legacy lttd could append to its files."""

    @property
    def path(self) -> Path:
        """The file's path, as messages print it."""
        return Path(self.place.path)

    @property
    def info(self) -> StreamInfo:
        """The stream for the manifest."""
        most, layout = int(self.survey.sizes_bytes.max()), self.layout
        page_bytes = self.survey.page_bytes if layout.varying else 0
        return StreamInfo(self.stream, ltt.NAME, most, layout.header_bytes, page_bytes=page_bytes)


def walk(stream: StreamId, place: Place) -> Channel | str:
    """Walk a file's headers; if it holds no sub-buffer, return the reason.

    Raises:
        SourceError: it cannot be read.
    """
    with bytes_of(place) as data:
        return _walk(stream, place, data)


def _walk(stream: StreamId, place: Place, data: Readable) -> Channel | str:
    if not len(data):
        return "it is empty"
    survey = ltt_walk.survey(data)
    if not len(survey.offsets_bytes):
        return survey.damage[0].reason
    offsets = survey.offsets_bytes.tolist()
    try:
        layout = ltt.layout_of(data[offsets[0] : offsets[0] + ltt.LEAST_HEADER_BYTES])
    except ValueError as error:  # it was cut or written to meanwhile
        return str(error)
    begin = int(_headers(data, offsets[:1]).begin[0])
    return Channel(stream, place, survey, layout, begin, _runs(data, offsets))


def _headers(data: Readable, offsets_bytes: Sequence[int]) -> ltt.Headers:
    """Read headers alone; those of a file that was cut meanwhile are not sound."""
    size = ltt.MOST_HEADER_BYTES
    heads = b"".join(bytes(data[at : at + size]).ljust(size, b"\0") for at in offsets_bytes)
    places = np.arange(0, len(heads), size)
    return ltt.headers_at(heads, places, len(heads) + len(data))


def _runs(data: Readable, offsets_bytes: Sequence[int]) -> int:
    runs: set[int] = set()
    for at in range(0, len(offsets_bytes), _CHUNK_ROWS):
        found = _headers(data, offsets_bytes[at : at + _CHUNK_ROWS])
        runs |= set(np.unique(found.run).tolist())
    return len(runs)


def open_ltt_replay(directory: Path, pool: BufferPool) -> "LttReplaySource":
    """Open every channel below *directory*.

    Raises:
        UsageError: there is no such directory, or it holds several traces.
        NothingToRecordError: it holds no channel.
        SourceError: a file cannot be read.
    """
    base = open_directory(directory)
    channels, notes = [], []
    for stream, path in find_channels(directory):
        found = walk(stream, base.place(path))
        if isinstance(found, str):
            notes.append(f"{path}: {found}; left out")
        else:
            channels.append(found)
    if not channels:
        why = f" ({notes[0]})" if notes else ""
        raise NothingToRecordError(
            f"{directory} holds no channel of LTTng 0.x{why}",
            "give it files <channel>_<cpu> of trace format 2.0 to 2.6",
        )
    for one, other in pairwise(channels):
        if one.layout.start_ns != other.layout.start_ns:
            raise UsageError(
                f"{one.path} and {other.path} are of traces that began at different times:"
                " name the directory of one"
            )
    return LttReplaySource(directory, channels, notes, pool)


class LttReplayStream(FileStream):
    """A channel's file."""

    def __init__(self, channel: Channel, pool: BufferPool, metadata: Metadata) -> None:
        super().__init__(channel.info, channel.place, pool)
        self._metadata = metadata
        self._survey = channel.survey
        self._book = LttBook()
        self._row = 0
        """The number of sub-buffers taken so far."""
        self._damage = 0
        """The number of damaged places reported so far."""

    @property
    def latest(self) -> int:
        """The trace-clock time at the end of the taken data."""
        return self._book.end

    def take(self, flush: bool) -> Batch | Nothing:
        """Read the next adjoining sub-buffers; see Stream.take()."""
        survey = self._survey
        over = self._row == len(survey.offsets_bytes) and self._damage == len(survey.damage)
        if self.closed or over:
            self.close()
            return Nothing.EVER
        return self._read(self.pool.take_at_least(self.info.subbuffer_bytes))

    def _read(self, buffer: memoryview) -> Batch:
        """Read up to the next damage, or until *buffer* is full; report damage on the way."""
        gaps = self._unread(0)
        first, behind = self._row, self._next_behind(len(buffer))
        offsets = self._survey.offsets_bytes[first:behind]
        sizes = self._survey.sizes_bytes[first:behind]
        if len(offsets):
            start, length = int(offsets[0]), int(sizes.sum())
            if self.read_into(buffer[:length], start) < length:
                raise SourceError(f"{self.path}: became shorter while it was read")
            offsets = offsets - start
        taken = ltt.rows_of(buffer, offsets, sizes)
        gaps += self._book.enter(taken)
        # Only if another process wrote to the file after the walk.
        gaps += [self._book.unread(row, int(sizes[number])) for row, number in taken.damaged]
        self._row = behind
        gaps += self._unread(len(taken.rows))
        gaps.sort(key=lambda gap: gap.row)
        batch = make_batch(
            self.info.id,
            taken.rows,
            pool=self.pool,
            buffer=buffer,
            gaps=tuple(gaps),
            heads=taken.heads,
        )
        return self._metadata.add(batch)

    def _next_behind(self, room_bytes: int) -> int:
        """Return the number after the last sub-buffer that adjoins and fits into one read."""
        survey, first = self._survey, self._row
        limit = len(survey.offsets_bytes)
        if self._damage < len(survey.damage):
            limit = survey.damage[self._damage].number
        ends = np.cumsum(survey.sizes_bytes[first : min(limit, first + room_bytes // 4096)])
        return first + int(np.searchsorted(ends, room_bytes, "right"))

    def _unread(self, row: int) -> list[Gap]:
        """Return gaps for damage at the present place of the stream."""
        gaps = []
        while self._damage < len(self._survey.damage):
            damage = self._survey.damage[self._damage]
            if damage.number > self._row:
                break
            gaps.append(self._book.unread(row, damage.length_bytes, torn=damage.torn))
            self._damage += 1
        return gaps


class LttReplaySource(FileSource[LttReplayStream]):
    """The channels of one trace."""

    def __init__(
        self, directory: Path, channels: Sequence[Channel], notes: list[str], pool: BufferPool
    ) -> None:
        self._metadata = Metadata()
        streams = (LttReplayStream(channel, pool, self._metadata) for channel in channels)
        super().__init__(streams, notes)
        for channel in channels:
            self._notes += _notes_on(channel)
        layout = channels[0].layout
        self.info = SourceInfo(
            "replay",
            f"replay:{directory}",
            ltt.CLOCK,
            {
                "directory": str(directory),
                "abi": ltt.NAME,
                "format": f"{ltt.MAJOR}.{layout.minor}",
                "byteorder": "little" if layout.order == "<" else "big",
                "pointer_bytes": layout.pointer_bytes,
                "alignment": layout.alignment,
                "frequency": layout.frequency,
                "files": [str(channel.path.relative_to(directory)) for channel in channels],
            },
            live=False,
            snapshot=_start(channels),
        )

    def attachments(self) -> Attachments:
        """Return the metadata from before the segment; later metadata is in its streams."""
        return self._metadata.attachments()

    def roll(self, segment: str) -> Mapping[StreamId, int]:
        """Note how much metadata is before the new segment; there is no kernel that counts."""
        self._metadata.roll()
        return {}


def _start(channels: Sequence[Channel]) -> Snapshot | None:
    """Return the clocks at the moment when the trace was made, by its metadata channel."""
    for channel in channels:
        if ltt.is_metadata(channel.stream.channel) and not channel.survey.offsets_bytes[0]:
            return start_snapshot(channel.start, channel.layout.start_ns)
    return None


def _notes_on(channel: Channel) -> Iterator[str]:
    if channel.runs > 1:
        yield (
            f"{channel.path}: {channel.runs} traces were appended to each other;"
            " wall-clock times are right for the first alone"
        )
    reasons = Counter((damage.reason, damage.torn) for damage in channel.survey.damage)
    for damage in channel.survey.damage:
        count = reasons.pop((damage.reason, damage.torn), 0)
        if count:
            more = f", and {count - 1} more like it" if count > 1 else ""
            yield (
                f"{channel.path}: byte {damage.offset_bytes}: {damage.reason};"
                f" {damage.length_bytes} bytes are left out{more}"
            )


REPLAY: Final = Replay(
    find, lambda directory, pool, _: open_ltt_replay(directory, pool), states_sizes=True
)
