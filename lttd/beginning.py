"""Begin to record: open the sources, and the first segment of each."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from lttd.config import Config
from lttd.errors import StorageError
from lttd.files import Disk
from lttd.recorder import Recorder
from lttd.recording import Recording, close_source, tell_notes
from lttd.sources.base import Child, Owner, Source
from lttd.sources.registry import open_source
from lttd.subbuffer import BufferPool
from lttd.terminal import Level, say
from lttd.tracedir import SegmentPaths

OnOpened = Callable[[SegmentPaths], None]


class Beginning:
    """Opens what a run records, and removes it again if recording cannot start."""

    def __init__(
        self, config: Config, disk: Disk, recorder: Recorder, recordings: list[Recording]
    ) -> None:
        """*recordings* are those of the run, from begin_all() on."""
        self.on_opened: list[OnOpened] = []
        """Called with each segment, before anything is recorded into it."""
        self._config = config
        self._disk = disk
        self._recorder = recorder
        self._recordings = recordings

    def open_sources(
        self, pool: BufferPool, owner: Owner, stack: ExitStack, command: Child | None
    ) -> list[Source]:
        """Open the sources that the configuration names; *stack* closes them.

        Raises:
            LttdError: one cannot be recorded.
        """
        sources = []
        for spec in self._config.sources:
            sources.append(open_source(spec, pool, owner, command))
            stack.callback(close_source, sources[-1])
        return sources

    def begin(self, source: Source, number: int) -> Recording:
        """Open segment *number* for *source*.

        Raises:
            StorageError: it cannot be written; nothing of it is left behind.
        """
        recording = self._first_segment(source, number)
        for opened in self.on_opened:
            opened(recording.segment.paths)
        recording.mark_progress()
        tell_notes(recording.source)
        if self._config.verbose:
            say(f"{source.info.spec} -> {recording.segment.paths.directory}", Level.INFO)
        return recording

    def begin_all(self, sources: Sequence[Source], number: int) -> int:
        """Open a segment for each source, from *number* on; return the number after the last.

        Raises:
            StorageError: one cannot be written; call discard_all().
        """
        for source in sources:
            self._recordings.append(self.begin(source, number))
            number += 1
        return number

    def discard_all(self) -> None:
        """Remove the segments that were begun, because recording failed to start."""
        self._recorder.drain()
        for recording in self._recordings:
            recording.forsake()
            recording.segment.discard()

    def _first_segment(self, source: Source, number: int) -> Recording:
        """Open a segment; if the disk is full, drop old segments first where that is the policy."""
        config = self._config
        while True:
            try:
                return Recording.begin(
                    self._recorder, config.trace_dir, number, source, config.layout, self._disk
                )
            except StorageError as error:
                if not self._recorder.makes_room(error):
                    raise
