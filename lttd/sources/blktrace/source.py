"""Source ``blktrace``: the block layer's trace of one device, from relay files in debugfs.

Rule: lttd tears down the trace that it set up, whatever goes wrong, and leaves others alone.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from lttd.abi.blktrace import NAME
from lttd.abi.framing import more_of, parse_framing
from lttd.errors import LttdError
from lttd.sources.base import Attachments, Request, SourceInfo
from lttd.sources.blktrace.device import BlktraceSettings, BlockTrace, missing_cpus
from lttd.sources.blktrace.rows import ProcessNotes
from lttd.sources.blktrace.stream import AbsentStream, BlktraceStream, Dropped
from lttd.sources.relay.file import RelayFile
from lttd.sources.relay.others import OthersWatch
from lttd.sources.relay.stream import Shared
from lttd.subbuffer import BufferPool, StreamId

__all__ = ["BlktraceSettings", "BlktraceSource", "open_blktrace"]

_TRACE_FILE: Final = re.compile(r"trace(\d+)")
_ORDER: Final = "<" if sys.byteorder == "little" else ">"


def open_source(request: Request) -> "BlktraceSource":
    """Open the source of a SPEC; see open_blktrace()."""
    return open_blktrace(BlktraceSettings(request.target, **request.options), request.pool)


def open_blktrace(settings: BlktraceSettings, pool: BufferPool) -> "BlktraceSource":
    """Set up the trace of a device.

    Raises:
        UsageError: it is not a block device, or the settings are impossible.
        NothingToRecordError: this machine does not have it, or this process may not trace it.
        LockedError: another process traces the device.
    """
    trace = BlockTrace(settings)
    try:
        return BlktraceSource(settings, trace, pool)
    except BaseException:
        trace.close()
        raise


class BlktraceSource:
    """See ``lttd.sources.base.Source``."""

    grows: Final = True
    """A CPU that comes online for the first time gets a file."""
    open_ended: Final = False
    """When all files have ended, another process has torn the trace down."""

    def __init__(self, settings: BlktraceSettings, trace: BlockTrace, pool: BufferPool) -> None:
        """Open the files of *trace*, which is set up; close() also closes the trace."""
        self._trace = trace
        self._ring_bytes = settings.subbuffers * settings.subbuffer_bytes
        self._noted = ProcessNotes()
        self._framing = parse_framing(NAME, order=_ORDER)
        self.watch = OthersWatch(trace.directory, self._read_streams)
        self._shared = Shared(
            pool,
            self._framing,
            abi=NAME,
            count_missing=False,
            look_for_others=self.watch.heard,
        )
        self._opened: set[int] = set()
        self._absent: set[int] = set()
        self._notes_told = 0
        self._closed = False
        self._gone_told = False
        self.streams: list[BlktraceStream | AbsentStream] = []
        self._dropped = Dropped(f"{trace.directory}/dropped")
        try:
            self.discover()
        except BaseException:
            self._close_streams()
            raise
        self.info = SourceInfo("blktrace", _spec(settings), "mono", _told(settings, trace.name))

    def discover(self) -> Sequence[BlktraceStream | AbsentStream]:
        """Open the files of CPUs that came online for the first time."""
        before = len(self.streams)
        found = {int(match[1]): name for name in _names(self._trace.directory)
                 if (match := _TRACE_FILE.fullmatch(name))}  # fmt: skip
        for cpu in sorted(found.keys() - self._opened):
            self._open(cpu, f"{self._trace.directory}/{found[cpu]}")
        for cpu in missing_cpus(sorted(self._opened | self._absent)):
            self._absent.add(cpu)
            self.streams.append(AbsentStream(StreamId(self._trace.name, cpu)))
        return self.streams[before:]

    def _open(self, cpu: int, path: str) -> None:
        tells = not self._opened  # the lowest CPU
        file = RelayFile(path, more=lambda begun: more_of(self._framing, begun))
        stream = StreamId(self._trace.name, cpu)
        dropped = self._dropped if tells else None
        opened = BlktraceStream(stream, file, self._shared, self._noted, dropped, self._ring_bytes)
        self._opened.add(cpu)
        self.streams.append(opened)

    def leave_out(self, thread_ids: Iterable[int]) -> None:
        """Do nothing: lttd's own writes to this device are part of its load."""

    def start(self) -> None:
        """Start tracing."""
        self._trace.start()

    def stop(self) -> None:
        """Stop tracing; the kernel closes the sub-buffers that it has begun."""
        if self._shared.stopped:
            return
        try:
            if self._trace.is_ours():
                self._trace.stop()
        except LttdError as error:
            self._trace.notes.append(str(error))
        self._shared.stopped = True

    def now(self) -> int:
        """Read CLOCK_MONOTONIC."""
        return self._shared.now()

    def attachments(self) -> Attachments:
        """Return the records on processes and the time that came since the last call."""
        return self._noted.attachments()

    def mark_progress(self, segment: str) -> None:
        """Do nothing: a kill leaves no data in the kernel that a later run could take."""

    def roll(self, segment: str) -> Mapping[StreamId, int]:
        """Let later notes go to the new segment; the kernel does not count what was read."""
        self._noted.roll()
        return {}

    def notes(self) -> Sequence[str]:
        """Return lines on traces that were torn down, each once."""
        if not (self._closed or self._gone_told or self._trace.is_ours()):
            self._gone_told = True
            self._trace.notes.append(
                f"{self._trace.directory}: another process has torn this trace down: recording"
                " ends, and its unread records are lost"
            )
        told, self._notes_told = self._notes_told, len(self._trace.notes)
        return self._trace.notes[told:]

    def close(self) -> None:
        """Close the files, and tear the trace down."""
        if self._closed:
            return
        self._closed = True
        self._close_streams()
        self._trace.close()

    def _read_streams(self) -> list[BlktraceStream]:
        return [stream for stream in self.streams if isinstance(stream, BlktraceStream)]

    def _close_streams(self) -> None:
        self.watch.disarm()
        for stream in self.streams:
            stream.close()
        self._dropped.close()


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []  # another process tore it down


def _spec(settings: BlktraceSettings) -> str:
    keys = {
        "actions": ",".join(settings.actions),
        "sectors": "-".join(map(str, settings.sectors)) if settings.sectors else "",
        "pid": settings.pid or "",
    }
    given = "".join(f",{key}={value}" for key, value in keys.items() if value)
    return f"blktrace:{settings.device}{given}"


def _told(settings: BlktraceSettings, name: str) -> dict[str, object]:
    return {
        "device": settings.device,
        "name": name,
        "actions": list(settings.actions),
        "buffer_bytes": settings.subbuffers * settings.subbuffer_bytes,
        "subbuffer_bytes": settings.subbuffer_bytes,
        "sectors": list(settings.sectors) if settings.sectors else None,
        "pid": settings.pid or None,
    }
