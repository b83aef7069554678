"""Source ``ltt:DIR``: the channels of an LTTng 0.x trace, as legacy lttd consumed them.

    mount -t debugfs none /sys/kernel/debug
    lttctl -c NAME
    lttd -t OUT -c /sys/kernel/debug/ltt/NAME

Rule: lttd refuses a channel before it records anything, if it can.  If a channel appears later and
cannot be opened, lttd prints a line once, and tries again at each search.
"""

import os
import resource
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from lttd.abi.ltt import CLOCK
from lttd.errors import LttdError, NothingToRecordError, SourceError, UsageError
from lttd.sources.base import Attachments, Request, SourceInfo
from lttd.sources.ltt.channel import NAME_IT, Channel
from lttd.sources.ltt.files import FLIGHT, RESCAN_S, ChannelFile, ChannelTree
from lttd.sources.ltt.rows import LttBook
from lttd.sources.ltt.stream import LttStream, Shared, Urgency
from lttd.sources.pipe import Pipe
from lttd.sources.tracefs import explained
from lttd.subbuffer import BufferPool, StreamId, StreamInfo

CHANNELS: Final = ("all", "flight", "normal")
# Per channel: the channel, its epoll, data, index, gaps.  And some that lttd has anyway.
_DESCRIPTORS_EACH: Final = 5
_DESCRIPTORS_BESIDES: Final = 128


def open_source(request: Request) -> "LttSource":
    """Open the source of a SPEC; see open_ltt()."""
    return open_ltt(Path(request.target), request.pool, **request.options)


def open_ltt(
    directory: Path, pool: BufferPool, *, channels: str = "all", rescan_s: float = RESCAN_S
) -> "LttSource":
    """Open every channel below *directory*, or those of one kind.

    Raises:
        UsageError: *channels* is not one of CHANNELS.
        NothingToRecordError: there is no channel, or this process may not read it.
        LockedError: another process reads a channel.
    """
    if channels not in CHANNELS:
        raise UsageError(f"channels {channels!r}: write {', '.join(CHANNELS)}")
    try:
        os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError) as error:
        remedy = f"mount debugfs, set a trace up (lttctl -c NAME), {NAME_IT}"
        raise NothingToRecordError(f"{directory}: {error.strerror}", remedy) from None
    except OSError as error:
        raise explained(str(directory), error) from error
    source = LttSource(directory, channels, pool, rescan_s)
    try:
        source.open_first()
    except BaseException:
        source.close()
        raise
    return source


class LttSource:
    """See ``lttd.sources.base.Source``."""

    def __init__(self, directory: Path, channels: str, pool: BufferPool, rescan_s: float) -> None:
        self.streams: list[LttStream] = []
        self._info = SourceInfo(
            "ltt",
            f"ltt:{directory}" + (f",channels={channels}" if channels != "all" else ""),
            CLOCK,
            {"directory": str(directory), "channels": channels},
            live=False,  # lttd cannot read the tracer's clock; only the data has its times
        )
        self._directory = directory
        self._channels = channels
        self._books: dict[StreamId, LttBook] = {}
        self._identities: dict[StreamId, tuple[int, int]] = {}
        self._infos: dict[StreamId, StreamInfo] = {}
        """The streams as the segment's manifest describes them."""
        self._refused: set[ChannelFile] = set()
        with ExitStack() as stack:
            self._tree = ChannelTree(str(directory), channels, rescan_s)
            stack.callback(self._tree.close)
            pipe = Pipe(pool.take_bytes)
            stack.callback(pipe.close)
            self._shared = Shared(pool, pipe, Urgency())
            stack.pop_all()

    def open_first(self) -> None:
        """Open the channels that exist now."""
        files = self._tree.look()
        if not files:
            raise self._no_channel()
        for file in files:
            try:
                self.streams.append(self._open(file))
            except SourceError as error:
                if os.path.exists(file.path):
                    raise
                self._shared.notes.append(str(error))  # it was just removed
        if not self.streams:
            raise self._no_channel()

    @property
    def info(self) -> SourceInfo:
        """The source for the manifest; the snapshot comes with metadata's first sub-buffer."""
        return replace(self._info, snapshot=self._shared.start)

    @property
    def watch(self) -> None:
        """Nothing watches the acts of other tools."""

    @property
    def grows(self) -> bool:
        """Return True: tracers make channels, and CPUs come online."""
        return True

    @property
    def open_ended(self) -> bool:
        """Return False: after all streams have ended, the trace has been destroyed."""
        return False

    def discover(self) -> Sequence[LttStream]:
        """Open channels that have appeared."""
        found = []
        # After stop() this is the last call: search, so that no channel is missed.
        for file in self._tree.look() if self._shared.stopped else self._tree.look_if_due():
            if self._has(file):
                continue
            try:
                # A channel that could not be opened before may have had another reader.
                found.append(self._open(file, fresh=file not in self._refused))
            except LttdError as error:
                if file not in self._refused:
                    self._refused.add(file)
                    self._shared.notes.append(str(error))
        if found:
            # Replaced as a whole, because other threads iterate over it.
            ids = {stream.info.id for stream in found}
            self.streams = [one for one in self.streams if one.info.id not in ids] + found
        return found

    def leave_out(self, thread_ids: Iterable[int]) -> None:
        """Do nothing: the tracer has no such filter."""

    def start(self) -> None:
        """Do nothing: lttctl starts the trace."""

    def stop(self) -> None:
        """Bound the drain to the present content of the rings; lttctl stops the trace."""
        self._shared.stopped = True

    def now(self) -> int:
        """Return the latest time of the taken data: lttd cannot read the clock itself."""
        return max(stream.latest for stream in self.streams)

    def attachments(self) -> Attachments:
        """Return the metadata from before the segment; later metadata is in its streams."""
        return self._shared.metadata.attachments()

    def mark_progress(self, segment: str) -> None:
        """Do nothing: a kill leaves no data in the kernel that a later run could take."""

    def roll(self, segment: str) -> Mapping[StreamId, int]:
        """Note how much metadata is before the new segment; the kernel counts no reads."""
        self._shared.metadata.roll()
        return {}

    def notes(self) -> Sequence[str]:
        """Return lines on files that were skipped or refused, each once."""
        told = []
        for notes in (self._tree.odd, self._shared.notes):
            while notes:  # another thread may be adding to it
                told.append(notes.pop(0))
        return told

    def close(self) -> None:
        """Close the channels: the kernel waits for that before it destroys the trace."""
        for stream in self.streams:
            stream.close()
        self._tree.close()
        self._shared.pipe.close()
        self._shared.urgency.close()

    def _has(self, file: ChannelFile) -> bool:
        """Tell whether this file was opened before, or another one of its name is being read."""
        if self._identities.get(file.stream) == file.identity:
            return True
        return any(one.info.id == file.stream and not one.over for one in self.streams)

    def _open(self, file: ChannelFile, *, fresh: bool = False) -> LttStream:
        _allow_descriptors(len(self._identities) + 1)
        channel = Channel(file.path)
        book = self._books.setdefault(file.stream, LttBook())
        try:
            stream = LttStream(file.stream, channel, book, self._shared, fresh=fresh)
            _refuse_other_sizes(file.path, self._infos.setdefault(file.stream, stream.info), stream)
        except OSError as error:
            channel.close()
            raise explained(file.path, error) from error
        except BaseException:
            channel.close()
            raise
        self._identities[file.stream] = file.identity
        return stream

    def _no_channel(self) -> NothingToRecordError:
        where = f"{self._directory}: no channel available for reading"
        if not self._tree.passed_over:
            return NothingToRecordError(where, NAME_IT)
        # Some kernels before LTTng 0.203 gave flight-recorder channels no prefix.
        asked = f"{self._tree.passed_over} are there that are not asked for"
        return NothingToRecordError(f"{where}; {asked}", f"-f takes {FLIGHT}*, -n the others")


def _refuse_other_sizes(path: str, before: StreamInfo, stream: LttStream) -> None:
    """Check that a recreated channel has sub-buffers of the stream's size: a segment has one size.

    Raises:
        SourceError: it has another size.
    """
    if stream.info != before:
        stream.close()
        sizes = f"sub-buffers of {stream.info.subbuffer_bytes} bytes, not {before.subbuffer_bytes}"
        raise SourceError(f"{path}: was recreated with {sizes}; restart lttd to record it")


def _allow_descriptors(channels: int) -> None:
    """Raise this process's limit of descriptors for *channels* channels, as far as it may."""
    wanted = channels * _DESCRIPTORS_EACH + _DESCRIPTORS_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
