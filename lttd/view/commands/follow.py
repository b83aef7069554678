"""``lttv follow``: print the new events of a trace while lttd writes it.

Rule: every stream is read on from its last position, so no event is missing or printed twice.
Rule: lines are in order among events that arrive together, also over a roll: what one stream has
beyond the others waits for the next flush.  The flush interval bounds the delay.
Rule: a loss is printed before the next event of its stream, or when its segment is closed.
Rule: a segment has ended when its manifest says "closed", or when its lock was free for 3 s.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from lttd.errors import LttdError, TraceDamagedError
from lttd.index import ENTRY_BYTES, FOREVER, INDEX_HEADER
from lttd.lockfile import is_locked
from lttd.manifest import Manifest
from lttd.readfile import size_bytes
from lttd.stored import StoredStream
from lttd.terminal import Level, put, say
from lttd.tracedir import LOCK, SegmentPaths, deletion_note, segments
from lttd.view.commands.text import Show, maker
from lttd.view.family import Block, made
from lttd.view.library import ClockGroup
from lttd.view.notes import WindowNotes
from lttd.view.times import ALWAYS_END, EVERYTHING
from lttd.view.trace import Segment, Trace
from lttd.view.verify import is_live
from lttd.view.window import Piece, StreamSlice, WindowStream, before_and_after

if TYPE_CHECKING:
    from lttd.view.family import Lines
    from lttd.view.losses import Loss

POLL_S: Final = 0.2
# The longest time from a flush's first new entry to the new entry of the last stream.
SETTLE_S: Final = 0.05
# So long, in polls, the last events of a stream wait for earlier ones of other streams.
HOLD_POLLS: Final = 6
# A killed recorder may be started again at once, and then recovers its segment.
DEAD_POLLS: Final = 15


class _Merged:
    """The followed segments of one ABI and one clock, and how much of each stream is printed.

    lttd takes from one stream after the other.  So events are complete up to the end of the stream
    that ends first; later ones are held until there are more, for HOLD_POLLS at most.
    """

    def __init__(self, group: ClockGroup, show: Show, notes: WindowNotes) -> None:
        self._group = group
        self._show = show
        self._notes = notes
        self._lines: Lines  # made with the first lines
        self._commands_bytes = -1
        self._shown: dict[Path, int] = {}
        """The number of entries that are printed, by the stream's data file."""
        self._held: dict[Path, int] = {}
        """Streams of which events are held, with the number of entries that were known then."""
        self._held_after = -1
        """The time after which these events are held."""
        self._rest: Sequence[Loss] = ()
        """Losses that no sub-buffer of their segments follows, in the order of time."""
        self._entries = 0
        self._quiet_polls = 0

    def add(self, segment: Segment, *, skip: bool) -> None:
        """Follow a segment, too; *skip*: without the entries that it has now."""
        self._group.join(segment)
        self._begin(skip=skip)

    def add_stream(self, stream: StoredStream) -> None:
        """Follow a new stream of one of the segments."""
        self._group.add(stream)
        self._begin(skip=False)

    def _begin(self, *, skip: bool) -> None:
        for source in self._group.sources:
            if _key(source) not in self._shown:
                self._shown[_key(source)] = _entries(source.stream) if skip else 0
                self._entries += self._shown[_key(source)]

    def close(self, paths: SegmentPaths) -> None:
        """Note that a segment gets nothing more: what was lost at its end is known."""
        rest = list(self._rest)
        for source in self._group.sources:
            if source.stream.segment == paths:
                whole = WindowStream(_again(source.stream), source.context, self._notes)
                rest += whole.losses_after_rows(0, ALWAYS_END)
        self._rest = sorted(rest, key=lambda loss: loss.time)

    def leave(self, paths: SegmentPaths) -> None:
        """Follow a segment no more; its names stay until another one has left."""
        group = self._group
        for source in group.sources:
            if source.stream.segment == paths:
                self._entries -= self._shown.pop(_key(source))
        group.sources = [one for one in group.sources if _key(one) in self._shown]
        sources = {one.stream.segment.directory for one in group.sources}
        kept = [one for one in group.segments if one.paths.directory in sources]
        group.segments = kept or group.segments[-1:]

    def grew(self) -> bool:
        """Tell by the sizes of the index files whether there are entries since the last call."""
        before = self._entries
        self._entries = sum(_entries(source.stream) for source in self._group.sources)
        self._quiet_polls = 0 if self._entries > before else self._quiet_polls + 1
        return self._entries > before

    def has_more(self, paths: SegmentPaths) -> bool:
        """Tell whether a segment has entries that are not printed."""
        return any(
            _entries(source.stream) > self._shown[_key(source)]
            for source in self._group.sources
            if source.stream.segment == paths
        )

    def lines(self, *, everything: bool) -> list[Block]:
        """Return the lines of the events that are complete, or of *everything*."""
        parts = self._parts()
        if not parts and not self._rest:
            return []
        self._refresh_names()
        held, after = self._held, self._held_after
        until = max(min((_end(part) for part in parts), default=-1), after)
        if everything or self._quiet_polls >= HOLD_POLLS:
            until = FOREVER
        # Of what was held, this much is printed already; of what came since then, nothing.
        late = [_from(part, held.get(_key(part.source), 0)) for part in parts]
        early, rest = before_and_after(self._rest, after + 1)
        now, self._rest = before_and_after(rest, until + 1)
        late = [part for part in late if len(part.entries)]
        pieces = [Piece(0, after + 1, late, early, continues=False)]
        pieces.append(Piece(after + 1, until + 1, parts, now, continues=False))
        self._held = {
            _key(part.source): part.first + len(part.entries)
            for part in parts
            if self._print(part, until)
        }
        self._held_after = until if self._held else -1
        return [line for piece in pieces for line in self._of(piece)]

    def _parts(self) -> list[StreamSlice]:
        """Return the entries of each stream that are not printed in full."""
        parts = []
        for number, source in enumerate(self._group.sources):
            first = self._shown[_key(source)]
            if _entries(source.stream) > first:
                with _while_there(source.stream.segment, self._notes):
                    # A mapping does not grow with its file, so open the stream again.
                    fresh = WindowStream(_again(source.stream), source.context, self._notes)
                    self._group.sources[number] = fresh
                    entries = fresh.index.entries(first)
                    if len(entries):
                        parts.append(StreamSlice(fresh, first, entries))
        return parts

    def _print(self, part: StreamSlice, until: int) -> bool:
        """Note that events up to *until* are printed; return whether others are held."""
        ends = part.entries["end"].astype(np.uint64)
        count = int((ends <= np.uint64(until)).sum())
        self._shown[_key(part.source)] = part.first + count
        return count < len(ends)

    def _of(self, piece: Piece) -> Iterator[Block]:
        if piece.begin >= piece.end or not (piece.parts or piece.rest):
            return
        batch = self._group.batch(piece)
        for note in batch.notes:
            say(note, Level.NOTICE, "lttv")
        yield from self._lines.lines(batch)

    def _refresh_names(self) -> None:
        segments = self._group.segments
        size = sum(size_bytes(one.paths.tracefs / "commands") for one in segments)
        if size != self._commands_bytes:
            self._commands_bytes = size
            self._lines = maker(self._group, segments, self._show, self._notes)


def _key(source: WindowStream) -> Path:
    return source.stream.paths.data


def _from(part: StreamSlice, first: int) -> StreamSlice:
    """Return the entries of a part from number *first* on."""
    skipped = max(first - part.first, 0)
    return StreamSlice(part.source, part.first + skipped, part.entries[skipped:])


def _end(part: StreamSlice) -> int:
    return int(part.entries["end"][-1])


class _Merger:
    """All segments that are followed, merged as far as their times can be compared."""

    def __init__(self, show: Show, notes: WindowNotes) -> None:
        self._show = show
        self.hides_self = show.hide_self
        self.notes = notes
        self._merged: dict[tuple[str, str, str | None], _Merged] = {}

    def of(self, segment: Segment) -> _Merged:
        """Return where a segment belongs, which has streams."""
        abi, manifest = segment.streams[0].info.abi, segment.manifest
        key = abi, manifest.clock, manifest.machine.get("boot_id")
        if key not in self._merged:
            group = ClockGroup(abi, [], EVERYTHING, self._show.filter, self.notes, 1)
            self._merged[key] = _Merged(group, self._show, self.notes)
        return self._merged[key]

    def grew(self) -> bool:
        """Tell whether there are new entries."""
        grown = [one.grew() for one in self._merged.values()]  # ask each of them
        return any(grown)

    def write(self, *, everything: bool) -> None:
        """Write the lines of the events that are complete."""
        for one in self._merged.values():
            lines = one.lines(everything=everything)
            for note in self.notes.take():
                say(note, Level.NOTICE, "lttv")
            for block in lines:
                put(made(block))


class _Followed:
    """One segment that is followed."""

    def __init__(self, segment: Segment, merger: _Merger, *, skip: bool) -> None:
        self.paths = segment.paths
        self.closed = False
        self._merger = merger
        self._merged: _Merged | None = None
        self._seen: set[str] = set()
        self._take(segment, skip=skip)
        if skip:
            self.closed = _is_closed(segment)
        else:
            self._close(segment)

    def look(self) -> None:
        """Read the manifest again: for CPUs that came later, and for the end."""
        with _while_there(self.paths, self._merger.notes):
            segment = Segment(self.paths)
            self._take(segment, skip=False)
            self._close(segment)
            return
        self.closed = True

    def _take(self, segment: Segment, *, skip: bool) -> None:
        if self._merger.hides_self:
            segment = segment.without_own_threads()
        if self._merged is not None:
            for stream in segment.streams:
                if stream.name not in self._seen:
                    self._merged.add_stream(stream)
        elif segment.streams:
            self._merged = self._merger.of(segment)  # the ABI is known only now
            self._merged.add(segment, skip=skip)
        self._seen |= {stream.name for stream in segment.streams}

    def _close(self, segment: Segment) -> None:
        if not self.closed and _is_closed(segment):
            self.closed = True
            if self._merged is not None:
                self._merged.close(self.paths)

    def is_over(self) -> bool:
        """Tell whether the segment is closed and printed; then it is followed no more."""
        if not self.closed or (self._merged is not None and self._merged.has_more(self.paths)):
            return False
        if self._merged is not None:
            self._merged.leave(self.paths)
        return True


@contextmanager
def _while_there(paths: SegmentPaths, notes: WindowNotes) -> Iterator[None]:
    """End the block with a note where the segment was deleted.

    Raises:
        TraceDamagedError: it is there, and damaged.
    """
    try:
        yield
    except TraceDamagedError:
        if not paths.is_gone():
            raise
        notes.add(deletion_note(paths.directory))


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
    again = StoredStream(stream.segment, manifest, stream.record)
    again.hides_self = stream.hides_self
    return again


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
    merger = _Merger(show, notes)
    followed = [_Followed(segment, merger, skip=not from_begin) for segment in opened]
    seen = {segment.paths.directory for segment in found.segments}
    seen |= {error.path.parent for error in found.unreadable}
    if not (from_begin or until_closed) and all(_is_closed(segment) for segment in opened):
        notes.add(
            f"{trace}: recording has ended; waiting for more "
            "(--from-begin prints the recorded events)"
        )
    while True:
        # The manifest says "closed" after the last entry, so it is read before the sizes.
        for one in followed:
            one.look()
        came = merger.grew()
        if came:
            sleep(SETTLE_S)
        for paths in segments(trace):
            if paths.directory not in seen and paths.base.is_file(paths.manifest):
                seen.add(paths.directory)
                with _while_there(paths, notes):
                    followed.append(_Followed(Segment(paths), merger, skip=False))
        ended = all(one.closed for one in followed)
        merger.write(everything=ended)
        if until_closed and ended and not came:
            return 0
        followed = [one for one in followed if not one.is_over()] or followed[-1:]
        recorders.poll([one.paths for one in followed if not one.closed], came=came)
        sleep(POLL_S)
