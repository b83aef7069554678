"""Source ``relay``: every relay channel below a directory, of any kernel module.

Rule: lttd does not control the producer: it starts, stops and flushes nothing.
Rule: channels come and go; one that returns under the same name continues its stream.
"""

import errno
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from lttd.abi.framing import UNKNOWN, more_of, parse_framing
from lttd.errors import LttdError, NothingToRecordError, UsageError
from lttd.sources import refused
from lttd.sources.base import Attachments, Request, SourceInfo
from lttd.sources.relay import find as relay_find
from lttd.sources.relay.file import OpenFile, RelayFile, explained
from lttd.sources.relay.find import Candidate
from lttd.sources.relay.mapped import MappedRing
from lttd.sources.relay.mapped_stream import MappedStream
from lttd.sources.relay.mapping import KernelRing, geometry_of, is_offered
from lttd.sources.relay.others import OthersWatch
from lttd.sources.relay.stream import RelayStream, Shared
from lttd.sources.rows import RowBook
from lttd.subbuffer import BufferPool, StreamId

_REMEDY: Final = "load the module that makes one, or name its directory (and mount debugfs)"
_HEADS: Final = (4, 8)  # unsigned int, size_t
_ORDER: Final = "<" if sys.byteorder == "little" else ">"


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """The settings of a ``relay`` SPEC."""

    directory: str
    framing: str | None = None
    pattern: str = "*"
    time: int | None = None
    """Offset of a record's time: u64, CLOCK_MONOTONIC in ns."""
    sequence: int | None = None
    """Offset of a record's number: u32, counted per CPU."""
    overwrite: bool = False
    unfinished: bool = False
    padding: int | None = None
    """Size of the head of each sub-buffer that states its padding; None: record by read()."""
    subbuffer_bytes: int | None = None
    """Of mapped rings; None: the module's control files say it, and the next one."""
    subbuffers: int | None = None

    def written(self) -> Mapping[str, object]:
        """Return the settings that differ from the defaults, by the SPEC's keys."""
        keys = ("framing", "pattern", "time", "sequence", "overwrite", "unfinished", "padding")
        values = {key: getattr(self, key) for key in keys}
        values |= {"subbuffer-size": self.subbuffer_bytes, "subbuffers": self.subbuffers}
        return {
            key: value for key, value in values.items() if value not in (None, False, "*")
        }  # fmt: skip


def open_source(request: Request) -> "RelaySource":
    """Open the source of a SPEC; see open_relay()."""
    return open_relay(RelaySettings(request.target, **request.options), request.pool)


def open_relay(settings: RelaySettings, pool: BufferPool) -> "RelaySource":
    """Open the channels that exist now.

    Raises:
        UsageError: an invalid framing, or an overwriting ring whose losses would not show.
        NothingToRecordError: there is no channel, or this process may not read it.
        LockedError: another recorder reads one.
    """
    shared = _shared(settings, pool)
    if not os.path.isdir(settings.directory):
        raise NothingToRecordError(f"{settings.directory} is not a directory", _REMEDY)
    source = RelaySource(settings, shared)
    try:
        source.open_all()
    except BaseException:
        source.close()
        raise
    return source


def _shared(settings: RelaySettings, pool: BufferPool) -> Shared:
    framing = None
    if settings.framing is not None:
        framing = parse_framing(
            settings.framing, time_at=settings.time, sequence_at=settings.sequence, order=_ORDER
        )
    elif (settings.time, settings.sequence) != (None, None):
        raise UsageError("relay: time= and sequence= are places in a record: name its framing=")
    _refuse_impossible(settings)
    if settings.overwrite and settings.sequence is None and settings.padding is None:
        raise UsageError(
            "relay: a ring that overwrites can lap its reader without a mark, in the middle of a"
            " read: only numbers in the records show it; name framing= and sequence=, or use"
            " a channel that refuses when it is full"
        )
    return Shared(
        pool,
        framing,
        abi=framing.abi if framing else UNKNOWN,
        overwrite=settings.overwrite,
        mapped=settings.padding is not None,
        count_missing=framing is None or framing.numbers_lost,
        unfinished=settings.unfinished,
        is_offline=relay_find.is_offline,
    )


def _refuse_impossible(settings: RelaySettings) -> None:
    if settings.padding is None:
        if (settings.subbuffer_bytes, settings.subbuffers) != (None, None):
            raise UsageError("relay: subbuffer-size= and subbuffers= need padding=")
        return
    if settings.padding not in _HEADS:
        raise UsageError(
            f"relay: padding={settings.padding}: write 4 or 8, the bytes in which the module states"
            " the padding of a sub-buffer, at its begin"
        )
    if settings.unfinished:
        raise UsageError(
            "relay: unfinished= does not go with padding=: the module does not say how far it wrote"
            " into an open sub-buffer"
        )


class RelaySource:
    """See ``lttd.sources.base.Source``."""

    grows: Final = True
    """Channels may appear while the source is read."""
    open_ended: Final = True
    """Channels may appear even after all others have ended."""

    def __init__(self, settings: RelaySettings, shared: Shared) -> None:
        self.streams: list[RelayStream] = []
        self.watch = OthersWatch(settings.directory, lambda: self.streams)
        self._settings = settings
        self._shared = replace(shared, look_for_others=self.watch.heard)
        self._books: dict[StreamId, RowBook] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._notes: list[str] = []
        self._ended: list[RelayStream] = []
        self._hinted = False
        self.info = SourceInfo(
            "relay",
            f"relay:{settings.directory}"
            + "".join(f",{key}={_text(value)}" for key, value in settings.written().items()),
            "mono",
            {"directory": settings.directory, **settings.written()},
        )

    def open_all(self) -> None:
        """Open the relay files that exist now.

        Raises:
            NothingToRecordError: there is no relay file.
            LttdError: a relay file cannot be opened.
        """
        reasons: list[str] = []
        errors: list[LttdError] = []
        for candidate in self._new():
            try:
                opened = self._open(candidate)
            except LttdError as error:
                errors.append(error)
                continue
            if isinstance(opened, RelayStream):
                self.streams.append(opened)
            else:
                reasons.append(f"{candidate.path} is {opened}")
        if self.streams:
            self._notes += [f"not recorded: {error}" for error in errors]
            return
        if errors:
            raise errors[0]
        if not os.access(self._settings.directory, os.R_OK | os.X_OK):
            what = f"{self._settings.directory}: {os.strerror(errno.EACCES)}"
            raise NothingToRecordError(what, refused.remedy(errno.EACCES))
        what = f"{reasons[0]}, not a relay file" if reasons else "no file <channel><cpu> in it"
        remedy = "use replay:DIR for files of whole sub-buffers" if reasons else _REMEDY
        raise NothingToRecordError(
            f"{self._settings.directory} has no relay channel: {what}", remedy
        )

    def discover(self) -> Sequence[RelayStream]:
        """Open channels that have appeared, and CPUs that came online for the first time."""
        found = []
        for candidate in self._new():
            try:
                opened = self._open(candidate)
            except LttdError as error:
                self._notes.append(f"not recorded: {error}")
            else:
                found += [opened] if isinstance(opened, RelayStream) else []
        if found:
            self._tell_ended()
            # Replaced as a whole, because other threads iterate over it.
            ids = {stream.info.id for stream in found}
            kept = [one for one in self.streams if not (one.over and one.info.id in ids)]
            self.streams = kept + found
        return found

    def leave_out(self, thread_ids: Iterable[int]) -> None:
        """Do nothing: lttd cannot tell the module what to leave out."""

    def start(self) -> None:
        """Do nothing: lttd does not control the producer."""

    def stop(self) -> None:
        """Bound the last drain, although the producer may go on."""
        self._shared.stopped = True

    def now(self) -> int:
        """Read CLOCK_MONOTONIC."""
        return self._shared.now()

    def attachments(self) -> Attachments:
        """Return nothing for any segment."""
        return lambda _: ()

    def mark_progress(self, segment: str) -> None:
        """Do nothing: a kill leaves no data in the kernel that a later run could take."""

    def roll(self, segment: str) -> Mapping[StreamId, int]:
        """Return nothing: the kernel does not count what was read."""
        return {}

    def notes(self) -> Sequence[str]:
        """Return lines on channels that went away or could not be opened, each once."""
        self._tell_ended()
        notes, self._notes = self._notes, []
        return notes

    def close(self) -> None:
        """Close the files."""
        self.watch.disarm()
        for stream in self.streams:
            stream.close()

    def _new(self) -> list[Candidate]:
        """Return the files that are new, or replaced, since the last call."""
        settings = self._settings
        found = list(
            relay_find.candidates(
                settings.directory, settings.pattern, relay_find.count_of_cpus()
            )
        )  # fmt: skip
        new = [each for each in found if self._seen.get(each.path) != (each.device, each.inode)]
        self._seen = {each.path: (each.device, each.inode) for each in found}
        return new

    def _open(self, candidate: Candidate) -> RelayStream | str:
        """Open a relay file as a stream; return why not if it is not a relay file."""
        file_system = relay_find.file_system_of(candidate.device)
        if file_system not in relay_find.FILE_SYSTEMS:
            return f"a regular file on {file_system}"
        opened = OpenFile(candidate.path)
        reason = relay_find.why_no_relay_file(opened.fileno())
        if reason:
            opened.close()
            return reason
        book = self._books.setdefault(candidate.stream, RowBook())
        born = relay_find.monotonic_of(candidate.born_ns)
        if self._settings.padding is not None:
            return self._map(candidate, opened, book, born)
        if is_offered(candidate.path) and not self._hinted:
            self._hinted = True
            self._notes.append(
                f"{candidate.path}: its module lets readers map it; padding=4 or padding=8 does so,"
                " and leaves the heads of sub-buffers out of the data (docs/RELAY.md)"
            )
        framing = self._shared.framing
        more = (lambda begun: more_of(framing, begun)) if framing else None
        file = RelayFile(candidate.path, opened, more)
        return RelayStream(candidate.stream, file, self._shared, book, born)

    def _map(
        self, candidate: Candidate, opened: OpenFile, book: RowBook, born: int
    ) -> MappedStream:
        settings = self._settings
        assert settings.padding is not None
        try:
            geometry = geometry_of(
                candidate.path, settings.padding, settings.subbuffer_bytes, settings.subbuffers
            )
        except BaseException:
            opened.close()
            raise
        ring = KernelRing(candidate.path, opened, geometry)
        try:
            mapped = MappedRing(ring, geometry, overwrite=settings.overwrite)
        except OSError as error:  # the module is going away
            ring.close()
            raise explained(candidate.path, error) from error
        return MappedStream(candidate.stream, candidate.path, mapped, self._shared, book, born)

    def _tell_ended(self) -> None:
        if self._shared.stopped:
            return  # they end with the recording
        ended = [stream for stream in self.streams if stream.over]
        for stream in ended:
            if stream not in self._ended:
                lost = stream.file.lost_bytes
                self._notes.append(
                    f"{stream.file.path}: went away; {lost} bytes of closed sub-buffers were lost"
                    " with it; the content of the open one is unknown"
                )
        self._ended = ended


def _text(value: object) -> str:
    return "yes" if value is True else str(value)
