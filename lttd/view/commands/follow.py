"""``lttv follow``: print the new events of a trace while lttd writes it.

Rule: every stream is read on from its last position, so no event is missing or printed twice.
Lines are in order among events that arrive together.  The flush interval bounds the delay.
Rule: a segment has ended when its manifest says "closed", or when its lock was free for 3 s.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lttd.errors import LttdError
from lttd.index import ENTRY_BYTES, FOREVER, INDEX_HEADER
from lttd.lockfile import is_locked
from lttd.manifest import Manifest
from lttd.readfile import size_bytes
from lttd.stored import StoredStream
from lttd.terminal import Level, put, say
from lttd.tracedir import LOCK, SegmentPaths, segments
from lttd.view.commands.text import Show, maker
from lttd.view.library import ClockGroup
from lttd.view.notes import WindowNotes
from lttd.view.times import EVERYTHING
from lttd.view.trace import Segment, Trace
from lttd.view.verify import is_live
from lttd.view.window import Piece, StreamSlice, WindowStream

if TYPE_CHECKING:
    from lttd.view.family import Lines

POLL_S: Final = 0.2
# The longest time from a flush's first new entry to the new entry of the last stream.
SETTLE_S: Final = 0.05
# A killed recorder may be started again at once, and then recovers its segment.
DEAD_POLLS: Final = 15


class _Followed:
    """One segment, with the position of the output in each of its streams."""

    def __init__(self, segment: Segment, show: Show, notes: WindowNotes, *, skip: bool) -> None:
        self.paths = segment.paths
        self.closed = False
        self._show = show
        self._notes = notes
        self._group = self._opened(segment)
        self._lines: Lines  # made with the first lines
        self._commands_bytes = -1
        self._seen = {stream.name for stream in segment.streams}
        self._shown = {
            source.stream.name: _entries(source.stream) if skip else 0
            for source in self._group.sources
        }

    def _opened(self, segment: Segment) -> ClockGroup:
        abi = next((stream.info.abi for stream in segment.streams), "")
        return ClockGroup(abi, [segment], EVERYTHING, self._show.filter, self._notes, 1)

    def has_more(self) -> bool:
        """Tell by the sizes of the index files whether there are new entries."""
        self._add_streams()
        return any(
            _entries(source.stream) > self._shown[source.stream.name]
            for source in self._group.sources
        )

    def _add_streams(self) -> None:
        """Read the manifest again: for CPUs that came later, and for the end."""
        segment = Segment(self.paths)
        self.closed = _is_closed(segment)
        if not self._seen and segment.streams:
            self._group = self._opened(segment)  # the ABI is known only now
            self._seen = {stream.name for stream in segment.streams}
            self._shown = {source.stream.name: 0 for source in self._group.sources}
        for stream in segment.streams:
            if stream.name in self._seen:
                continue
            self._seen.add(stream.name)
            if self._group.add(stream):
                self._shown[stream.name] = 0

    def lines(self) -> list[bytes]:
        """Return the lines of the entries since the last call."""
        parts = []
        for number, source in enumerate(self._group.sources):
            first = self._shown[source.stream.name]
            if _entries(source.stream) <= first:
                continue
            # A mapping does not grow with its file, so open the stream again.
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
            say(note, Level.NOTICE, "lttv")
        return list(self._lines.lines(batch))

    def _refresh_names(self) -> None:
        commands = self.paths.tracefs / "commands"
        size = size_bytes(commands)
        if size != self._commands_bytes:
            self._commands_bytes = size
            self._lines = maker(self._group, self._group.segments, self._show, self._notes)


def _is_closed(segment: Segment) -> bool:
    return segment.manifest.state == "closed"


def _has_recorder(paths: SegmentPaths) -> bool:
    """Tell whether somebody records a segment that is open, or is about to recover it."""
    # Whoever starts holds the lock of the trace; it is the same where a segment is looked at alone.
    return is_live(paths) or is_locked(paths.place(paths.base.path / LOCK))


class _Recorders:
    """Notices that no process is left to extend a trace or to close it."""

    def __init__(self, trace: Path, *, until_closed: bool) -> None:
        self._trace = trace
        self._until_closed = until_closed
        self._silent_polls = 0

    def poll(self, left_open: list[SegmentPaths], *, came: bool) -> None:
        """Check the recorders of open segments; *came*: there were new entries just now.

        Raises:
            LttdError: no recorder was there for DEAD_POLLS, and until_closed is set.
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
        say(f"{ended}; waiting for more", Level.WARNING, "lttv")


def _again(stream: StoredStream) -> StoredStream:
    manifest = Manifest.read(stream.segment.place(stream.segment.manifest))
    return StoredStream(stream.segment, manifest, stream.record)


def _entries(stream: StoredStream) -> int:
    return max(stream.index_bytes() - len(INDEX_HEADER), 0) // ENTRY_BYTES


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
        TraceDamagedError: no manifest can be read, or not that of a followed segment.
        LttdError: with *until_closed*, no process is left to close the trace.
    """
    notes = WindowNotes()
    recorders = _Recorders(trace, until_closed=until_closed)
    found = Trace(trace)
    notes.add(*(f"{error}; its segment is left out" for error in found.unreadable))
    opened = found.segments
    if not from_begin:  # each source has a segment of its own
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
        # The manifest says "closed" after the last entry, so has_more() reads it before the sizes.
        if until_closed and all(one.closed for one in followed) and not any(more):
            return 0
        followed = [one for one in followed if not one.closed or one.has_more()] or followed[-1:]
        recorders.poll([one.paths for one in followed if not one.closed], came=any(more))
        sleep(POLL_S)


def _write(blocks: list[bytes], notes: WindowNotes) -> None:
    for note in notes.take():
        say(note, Level.NOTICE, "lttv")
    for block in blocks:
        put(block)
