"""Source ``lttng[:SESSION]``: a session of lttng-modules that lttd makes, without lttng-sessiond.

Rule: lttd refuses names that no loaded probe has: the kernel accepts them, and records nothing.
"""

import mmap
import os
import select
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from lttd.sources.base import Attachments, Request, SourceInfo
from lttd.sources.lttng import abi
from lttd.sources.lttng.metadata import Layouts, Metadata
from lttd.sources.lttng.reload import LttngChange, changed
from lttd.sources.lttng.ring import Ring
from lttd.sources.lttng.session import PROBES, Channel, Session, Tracer, refused
from lttd.sources.lttng.stream import LttngStream, Shared, stream_info
from lttd.sources.lttng.wanted import Wanted, channels_of, matching, refuse_session_name
from lttd.subbuffer import BufferPool, StreamId

DEFAULT_SESSION: Final = "lttd"
CLOCK: Final = "mono"
_SYSCALLS_OFF: Final = "this kernel has no tracepoints for system calls (CONFIG_FTRACE_SYSCALLS)"


def open_source(request: Request) -> "LttngSource":
    """Open the source of a SPEC; see open_lttng()."""
    return open_lttng(request.target or DEFAULT_SESSION, request.options, request.pool)


def open_lttng(name: str, options: Mapping[str, Any], pool: BufferPool) -> "LttngSource":
    """Make a session *name* with the channels that *options* describe; it records from start() on.

    Raises:
        UsageError: the options contradict each other, or no kernel takes them.
        NothingToRecordError: lttng-modules is not loaded, or lacks an event.
        SourceError: the kernel refuses.
    """
    refuse_session_name(name)
    wanted = channels_of(options)
    with closing(Tracer()) as tracer:
        recorded = _all_recorded(tracer, wanted)
        session = Session(tracer, name)
    with ExitStack() as undo:
        undo.callback(session.close)
        for channel, asked in wanted.items():
            _set_up(session.add_channel(channel, asked))
        session.begin()
        source = LttngSource(name, session, recorded, pool)
        undo.callback(source.close)
        source.discover()
        undo.pop_all()
    return source


Recorded = Mapping[str, Mapping[str, Sequence[str]]]
"""Events, system calls, probes and contexts by channel, for people."""


def _all_recorded(tracer: Tracer, wanted: Mapping[str, Wanted]) -> Recorded:
    return {name: _recorded(tracer, channel) for name, channel in wanted.items()}


def _recorded(tracer: Tracer, wanted: Wanted) -> dict[str, list[str]]:
    """Return the names that a channel records, by kind.

    Raises:
        NothingToRecordError: there is no such event.
    """
    found: dict[str, list[str]] = {}
    if wanted.events:
        found["events"] = matching(wanted.events, tracer.tracepoints(), "tracepoint", PROBES)
    if wanted.syscalls:
        found["syscalls"] = matching(
            wanted.syscalls, tracer.syscalls(), "system call", _SYSCALLS_OFF
        )
    if wanted.kprobe:
        found["kprobe"] = list(wanted.kprobe)
    if wanted.context:
        found["context"] = list(wanted.context)
    return found


def _set_up(channel: Channel) -> None:
    wanted = channel.wanted
    for asked in sorted(wanted.asked):
        channel.declare(asked)
    channel.switch_events(wanted.asked, on=True)
    for probe in wanted.kprobes:
        channel.add_kprobe(probe)
    for context in wanted.context:
        channel.add_context(context)


class LttngSource:
    """See ``lttd.sources.base.Source``."""

    grows: Final = True
    """CPUs come online."""
    open_ended: Final = False
    """When all streams have ended, the session is gone."""
    watch: Final = None
    """Nobody else can change a session."""

    def __init__(
        self,
        name: str,
        session: Session,
        recorded: Recorded,
        pool: BufferPool,
    ) -> None:
        """Take *session* over, which has begun."""
        self.streams: list[LttngStream] = []
        self._session = session
        self._shared = Shared(pool)
        self._metadata = Metadata(session.metadata)
        self._rings: list[Ring] = []
        self._poll = select.poll()
        for channel in session.channels:
            self._poll.register(channel.fd, select.POLLIN)
        spec = "lttng" if name == DEFAULT_SESSION else f"lttng:{name}"
        self._channels = {each.name: _settings_of(each.wanted) for each in session.channels}
        overwrite = all(channel.wanted.overwrite for channel in session.channels)
        settings = {"session": name, "overwrite": overwrite, "channels": self._with(recorded)}
        self.info = SourceInfo("lttng", spec, CLOCK, settings, frees_rings=True)

    def _with(self, recorded: Recorded) -> dict[str, Any]:
        return {name: {**settings, **recorded[name]} for name, settings in self._channels.items()}

    def changed(self, options: Mapping[str, Any]) -> LttngChange:
        """Decide how to record other events; see ``lttd.sources.base.Reloadable``."""
        wanted = channels_of(options)
        with closing(Tracer()) as tracer:
            recorded = _all_recorded(tracer, wanted)

        def follow() -> None:
            settings = {**self.info.settings, "channels": self._with(recorded)}
            self.info = replace(self.info, settings=settings)

        return changed(self._session.channels, wanted, follow)

    def discover(self) -> Sequence[LttngStream]:
        """Open the streams of CPUs that have none: a channel is readable while there are any."""
        ready = {fd for fd, _ in self._poll.poll(0)} if self._rings else None
        found: list[LttngStream] = []
        for channel in self._session.channels:
            if ready is None or channel.fd in ready:
                found += self._new_streams(channel)
        if found:
            # Replaced as a whole, because other threads iterate over it.
            self.streams = self.streams + found
        return found

    def _new_streams(self, channel: Channel) -> list[LttngStream]:
        found = []
        while (fd := channel.new_stream()) is not None:
            found.append(self._open(channel, fd))
        return found

    def _open(self, channel: Channel, fd: int) -> LttngStream:
        try:
            cpu = abi.ask_u64(fd, abi.CPU)
            number = abi.ask_u64(fd, abi.CHANNEL_NUMBER)
            most_bytes = abi.ask_word(fd, abi.MOST_BYTES)
        except OSError as error:
            os.close(fd)
            raise refused(f"lttng: channel {channel.name}", error) from error
        stream = StreamId(channel.name, cpu)
        ring = Ring(fd, f"lttng: stream {stream.name}")
        self._rings.append(ring)
        layout = self._layouts.of(number)
        info = stream_info(stream, number, most_bytes, mmap.PAGESIZE, layout)
        return LttngStream(info, ring, self._shared)

    @cached_property
    def _layouts(self) -> Layouts:
        return Layouts(self._metadata.read())

    def leave_out(self, thread_ids: Iterable[int]) -> None:
        """Do nothing: lttng-modules records all threads or some, and not all but some."""

    def start(self) -> None:
        """Let the channels record."""
        self._session.start()

    def stop(self) -> None:
        """Stop recording; the rings keep their data."""
        self._session.stop()
        self._shared.stopped = True

    def now(self) -> int:
        """Read the trace clock."""
        return self._rings[0].now()

    def attachments(self) -> Attachments:
        """Return the function that yields the metadata of one segment."""
        return self._metadata.attachments()

    def mark_progress(self, segment: str) -> None:
        """Do nothing: the kernel removes the session of a killed lttd, with its data."""

    def roll(self, segment: str) -> Mapping[StreamId, int]:
        """Return nothing: the kernel counts no reads."""
        return {}

    def notes(self) -> Sequence[str]:
        """Return nothing: a refusal by the kernel is an error at the start."""
        return ()

    def close(self) -> None:
        """Close all descriptors; with them the kernel removes the session."""
        for stream in self.streams:
            stream.close()
        for ring in self._rings:  # the last one may have no stream, if that could not be made
            ring.close()
        self._metadata.close()
        self._session.close()


def _settings_of(wanted: Wanted) -> dict[str, Any]:
    """Return the settings of a channel for the manifest."""
    subbuffer_bytes, subbuffers = wanted.geometry
    return {
        "subbuffer_bytes": subbuffer_bytes,
        "subbuffers": subbuffers,
        "overwrite": wanted.overwrite,
        "switch_timer_us": round(wanted.switch_timer * 1e6),
        "read_timer_us": round(wanted.read_timer * 1e6),
    }
