"""Choose the marks by which the next start counts the losses of a kill.

A mark has the position of a stream at one moment (lttd.sources.ftrace.loss.Mark).  The note of
the progress has the first mark of a stream and some late ones:

    first mark    the take-over of the ring, the end of the last pause, or the begin of the oldest
                  segment that is not closed: all that was taken since then is in these segments
    late marks    every few seconds; the latest of which everything before is stored spares the next
                  start the decoding of the data before it

Rule: of several marks after the same sub-buffer the earliest counts.  A loss after that sub-buffer
is in no mark, wherever its gap is.  Only the mark of a roll has it: its gap is in a closed segment.
"""

from collections.abc import Iterable
from typing import Final

from lttd.sources.ftrace.loss import Mark
from lttd.sources.ftrace.stream import FtraceStream

# The number of late marks: they reach back as far as a backlog that waits for a slow disk.
_LATE: Final = 4


class ProgressMarks:
    """The marks of the streams of one source, by the name of the stream."""

    def __init__(self) -> None:
        self.by_stream: dict[str, list[Mark]] = {}
        self._first: dict[str, Mark] = {}
        """The mark with which those of a stream began."""
        self._rolled_at: dict[str, dict[str, Mark]] = {}
        """The marks at the begin of each segment, until all segments before it are closed."""
        self._segment = ""
        """The segment that the first marks belong to."""

    def follow(self, segment: str, streams: Iterable[FtraceStream]) -> None:
        """Add marks of this moment; *segment* is the oldest one that is not closed.

        Raises:
            LttdError: the kernel's counters cannot be read.
        """
        for stream in streams:
            name = stream.info.id.name
            if self._first.get(name) is not stream.first_mark:
                self._first[name] = stream.first_mark
                for begin in self._rolled_at.values():
                    begin.pop(name, None)
                self.by_stream[name] = [stream.first_mark]
            marks = self.by_stream[name]
            last = marks[-1]
            now = last if stream.over else stream.mark()
            if now.subbuffers == last.subbuffers:
                now = now._replace(lost=last.lost)
            if now.subbuffers and now != last:
                marks.append(now)
            del marks[1:-_LATE]
        if segment != self._segment:
            self._segment = segment
            self._forget_before(segment)

    def rolled(self, segment: str, stream: FtraceStream) -> Mark:
        """Note that *segment* begins for a stream; return the mark of this moment.

        Raises:
            LttdError: the kernel's counters cannot be read.
        """
        mark = stream.mark(with_last_gaps=True)
        self._rolled_at.setdefault(segment, {})[stream.info.id.name] = mark
        return mark

    def _forget_before(self, segment: str) -> None:
        """Let the marks begin with *segment*: all data before it is in closed segments."""
        for name, first in self._rolled_at.get(segment, {}).items():
            marks = self.by_stream.get(name, ())
            later = (mark for mark in marks if mark.subbuffers > first.subbuffers)
            self.by_stream[name] = [first, *later]
        while segment in self._rolled_at:
            del self._rolled_at[next(iter(self._rolled_at))]
