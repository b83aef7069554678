"""``lttv follow``: what is added to a trace, while lttd writes it.

Rule: every stream is read from where it was left, so that nothing is left out or shown twice; lines
are ordered within what arrives together.  The flush interval bounds how late that is.
Rule: a segment is over when its manifest says "closed", or when its lock has been free for 3 s.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lttd.errors import LttdError
from lttd.files import is_locked, size_bytes
from lttd.index import ENTRY_BYTES, INDEX_HEADER
from lttd.stored import StoredStream
from lttd.terminal import put, say
from lttd.tracedir import LOCK, Manifest, SegmentPaths, segments
from lttd.view.commands.text import Show, maker
from lttd.view.library import ClockGroup
from lttd.view.notes import WindowNotes
from lttd.view.times import EVERYTHING
from lttd.view.trace import Segment, Trace
from lttd.view.verify import is_live
from lttd.view.window import FOREVER, Piece, StreamSlice, WindowStream

if TYPE_CHECKING:
    from lttd.view.family import Lines

POLL_S: Final = 0.2
# From the first new entry of a flush to that of the last stream.
SETTLE_S: Final = 0.05
# A recorder that was killed may be started again at once, and recovers what it left.
DEAD_POLLS: Final = 15


class _Followed:
    """One segment, and how far each of its streams has been shown."""

    def __init__(self, segment: Segment, show: Show, notes: WindowNotes, *, skip: bool) -> None:
        self.paths = segment.paths
        self.closed = False
        self._show = show
        self._notes = notes
        self._group = self._opened(segment)
        self._lines: Lines  # made with the first of them
        self._commands_bytes = -1
        self._seen = {stream.name for stream in segment.streams}
        self._shown = {
            source.stream.name: _entries(source.stream) if skip else 0
            for source in self._group.sources
        }

    def _opened(self, segment: Segment) -> ClockGroup:
        kind = next((stream.info.abi for stream in segment.streams), "")
        return ClockGroup(kind, [segment], EVERYTHING, self._show.filter, self._notes, 1)

    def has_more(self) -> bool:
        """Look at the sizes of the index files."""
        self._add_streams()
        return any(
            _entries(source.stream) > self._shown[source.stream.name]
            for source in self._group.sources
        )

    def _add_streams(self) -> None:
        """Take in what the manifest says by now: CPUs that came later, and the end."""
        segment = Segment(self.paths)
        self.closed = _is_closed(segment)
        if not self._seen and segment.streams:
            self._group = self._opened(segment)  # only now it is known of what kind it is
            self._seen = {stream.name for stream in segment.streams}
            self._shown = {source.stream.name: 0 for source in self._group.sources}
        for stream in segment.streams:
            if stream.name in self._seen:
                continue
            self._seen.add(stream.name)
            if self._group.add(stream):
                self._shown[stream.name] = 0

    def lines(self) -> list[bytes]:
        """Return the lines of what was added since the last time."""
        parts = []
        for number, source in enumerate(self._group.sources):
            first = self._shown[source.stream.name]
            if _entries(source.stream) <= first:
                continue
            # Mappings do not grow with their files.
            stream = _again(source.stream)
            fresh = WindowStream(stream, source.context, self._notes)
            self._group.sources[number] = fresh
            parts.append(StreamSlice(fresh, first, fresh.index.entries(first)))
            self._shown[stream.name] = first + len(parts[-1].entries)
        if not parts:
            return []
        self._refresh_names()
        batch = self._group.batch(Piece(0, FOREVER + 1, parts, last=False))
        for note in batch.notes:
            say(note, "lttv")
        return list(self._lines.lines(batch))

    def _refresh_names(self) -> None:
        commands = self.paths.tracefs / "commands"
        size = size_bytes(commands)
        if size != self._commands_bytes:
            self._commands_bytes = size
            self._lines = maker(self._group, self._show, self._notes)


def _is_closed(segment: Segment) -> bool:
    return segment.manifest.state == "closed"


def _has_recorder(paths: SegmentPaths) -> bool:
    """Tell whether somebody records a segment that is open, or is about to recover it."""
    # Whoever starts holds the lock of the trace; it is the same where a segment is looked at alone.
    return is_live(paths) or is_locked(paths.place(paths.base.path / LOCK))


class _Recorders:
    """Notices that nobody is left who would add to a trace or close it."""

    def __init__(self, trace: Path, *, until_closed: bool) -> None:
        self._trace = trace
        self._until_closed = until_closed
        self._silent_polls = 0

    def poll(self, left_open: list[SegmentPaths], *, came: bool) -> None:
        """Look after the segments that are open; *came*: there was something new just now.

        Raises:
            LttdError: all their recorders have been gone for DEAD_POLLS, and until_closed is set.
        """
        if not left_open or came or any(map(_has_recorder, left_open)):
            self._silent_polls = 0
            return
        self._silent_polls += 1
        if self._silent_polls != DEAD_POLLS:
            return
        ended = (
            f"{self._trace}: the recorder of {left_open[0].directory.name} ended without closing"
            " it; lttd --append or lttv check --repair makes it whole"
        )
        if self._until_closed:
            raise LttdError(ended)
        say(f"{ended}; waiting for more", "lttv")


def _again(stream: StoredStream) -> StoredStream:
    manifest = Manifest.read(stream.segment.place(stream.segment.manifest))
    return StoredStream(stream.segment, manifest, stream.record)


def _entries(stream: StoredStream) -> int:
    try:
        size = stream.segment.place(stream.paths.index).stat().st_size
    except OSError:
        return 0  # not written to yet
    return max(size - len(INDEX_HEADER), 0) // ENTRY_BYTES


def follow(
    trace: Path,
    show: Show,
    *,
    from_begin: bool = False,
    until_closed: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Write events to stdout as they come; return an exit status.

    Raises:
        NotATraceError: there is no trace yet.
        TraceDamagedError: no manifest can be read, or not that of a segment that is followed.
        LttdError: *until_closed*, and nobody is there any more who would close it.
    """
    notes = WindowNotes()
    recorders = _Recorders(trace, until_closed=until_closed)
    found = Trace(trace)
    notes.add(*(f"{error}; its segment is left out" for error in found.unreadable))
    opened = found.segments
    if not from_begin:  # each of several sources has a segment of its own
        opened = [one for one in opened if not _is_closed(one)] or opened[-1:]
    followed = [_Followed(segment, show, notes, skip=not from_begin) for segment in opened]
    seen = {segment.paths.directory for segment in found.segments}
    seen |= {error.path.parent for error in found.unreadable}
    if not (from_begin or until_closed) and all(_is_closed(segment) for segment in opened):
        notes.add(
            f"{trace}: recording has ended; waiting for more "
            "(--from-begin prints the recorded events)"
        )
    while True:
        more = [one.has_more() for one in followed]
        if any(more):
            sleep(SETTLE_S)
            for one in followed:
                _write(one.lines(), notes)
        _write([], notes)
        for paths in segments(trace):
            if paths.directory not in seen and paths.base.is_file(paths.manifest):
                seen.add(paths.directory)
                followed.append(_Followed(Segment(paths), show, notes, skip=False))
        # A manifest says "closed" only after the last entry: has_more() reads it before the sizes.
        if until_closed and all(one.closed for one in followed) and not any(more):
            return 0
        followed = [one for one in followed if not one.closed or one.has_more()] or followed[-1:]
        recorders.poll([one.paths for one in followed if not one.closed], came=any(more))
        sleep(POLL_S)


def _write(blocks: list[bytes], notes: WindowNotes) -> None:
    for note in notes.take():
        say(note, "lttv")
    for block in blocks:
        put(block)
