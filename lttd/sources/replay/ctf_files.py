"""Find the files of a CTF trace: those of a directory, or of its rotated archives and snapshots.

    DIR/metadata, DIR/NAME                     one trace
    DIR/archives/DATE/kernel/metadata, ...     chunks of one: the UUID is the same
    DIR/kernel, DIR/ust/uid/0/64-bit           several traces, of which the user names one:
    DIR/archives/DATE/ust/uid/0/64-bit, ...    trace=kernel, or trace=ust/uid/0/64-bit

A file is one data stream, or a part of one: lttng divides streams by size (``NAME_CPU_N``) and by
rotation.  Files are of one stream if their packets state the same class and instance; without an
instance they are if their names and packets say that they are of one channel and CPU.

Rule: lttd does not guess: where there are several traces, it lists their names.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from lttd.abi import ctf
from lttd.abi.ctf_classes import MetadataError, Trace
from lttd.abi.ctf_metadata import is_metadata, packed_metadata, read_metadata
from lttd.abi.ctf_survey import Survey, survey_of
from lttd.beneath import OpenDirectory, Place
from lttd.errors import NothingToRecordError, SourceError, TraceDamagedError, UsageError
from lttd.limits import CTF_FILES, CTF_METADATA, CTF_PACKETS, STREAMS
from lttd.plausible import is_name
from lttd.readfile import read_head, read_limited
from lttd.sources.replay.files import FileBytes, bytes_of
from lttd.subbuffer import StreamId

METADATA: Final = "metadata"
_NAME: Final = re.compile(r"(.+)_(0|[1-9][0-9]{0,4})")
_PART: Final = re.compile(r"(.+)_(0|[1-9][0-9]{0,4})_(?:0|[1-9][0-9]{0,8})")
_MOST_LEVELS: Final = 32
_MOST_STREAM_ID: Final = (1 << 63) - 1
_MOST_NAMES: Final = 8


class Part(NamedTuple):
    """One file of a stream."""

    place: Place
    survey: Survey
    size_bytes: int

    @property
    def path(self) -> Path:
        """The file's path, as messages print it."""
        return Path(self.place.path)


@dataclass(frozen=True)
class Channel:
    """The files of one stream, in the order of their packets."""

    stream: StreamId
    class_id: int
    layout: ctf.PacketLayout
    parts: list[Part]


class Found(NamedTuple):
    """A whole trace."""

    trace: Trace
    metadata: bytes
    """As it is to be stored: whole packets without padding, or a text."""
    channels: list[Channel]
    notes: list[str]
    directories: list[Path]


def find(directory: Path) -> Path | None:
    """Return the metadata of a trace below *directory*."""
    return next((path for path in _traces(directory) if is_ctf(path)), None)


def is_ctf(path: Path) -> bool:
    """Tell whether a file begins as the metadata of a CTF trace."""
    try:
        return is_metadata(read_head(path, 8))
    except OSError:
        return False


def is_packet(path: Path) -> bool:
    """Tell whether a file begins as a packet of a CTF stream."""
    try:
        head = read_head(path, 4)
    except OSError:
        return False
    return ctf.MAGIC in (int.from_bytes(head, "little"), int.from_bytes(head, "big"))


def _traces(directory: Path) -> Iterator[Path]:
    """Yield the files ``metadata``, in order.

    Archives lie a few levels below; os.walk() would recurse into any depth.
    """
    for parent, below, names in os.walk(directory):
        if len(Path(parent).relative_to(directory).parts) == _MOST_LEVELS:
            below.clear()
        below[:] = sorted(name for name in below if name != "index" and not name.startswith("."))
        if METADATA in names and (Path(parent) / METADATA).is_file():
            yield Path(parent) / METADATA


def find_trace(directory: Path, base: OpenDirectory, name: str | None = None) -> Found:
    """Find the files of the trace in a directory, and walk their packets.

    *name*: the last directories of one of several traces, ``ust/uid/0/64-bit``.

    Raises:
        UsageError: there are several traces, or none of that name.
        NothingToRecordError: there is no packet.
        SourceError: the metadata cannot be used, or a file cannot be read.
    """
    notes: list[str] = []
    group = _chosen(_groups(directory, base, notes), directory, name)
    parts: dict[tuple[int, str, int], list[Part]] = {}
    layouts = _Layouts(group.trace)
    files = [path for parent in group.directories for path in _files(parent)]
    if len(files) > CTF_FILES.most:
        raise UsageError(f"{directory}: {len(files):,} files; {CTF_FILES}")
    left = CTF_PACKETS.most
    for path in files:
        part = _walk(base.place(path), layouts, left)
        if isinstance(part, str):
            notes.append(f"{path}: {part}; left out")
            continue
        left -= len(part.survey.offsets_bytes)
        if left < 0:
            raise UsageError(f"{directory}: {CTF_PACKETS}: replay its archives one by one")
        parts.setdefault(_key(part, layouts), []).append(part)
    if len(parts) > STREAMS.most:
        raise UsageError(f"{directory}: {len(parts):,} streams; {STREAMS}")
    channels = _channels(parts, layouts, notes)
    if not channels:
        why = f" ({notes[0]})" if notes else ""
        raise NothingToRecordError(
            f"{directory} holds no packet of its trace{why}", "name another directory"
        )
    return Found(group.trace, group.metadata, channels, notes, group.directories)


@dataclass
class _Group:
    """The directories of one trace, and the longest metadata of them."""

    trace: Trace
    metadata: bytes
    directories: list[Path]

    def takes(self, trace: Trace) -> bool:
        """Tell whether another metadata is of this trace."""
        return trace.uuid is not None and trace.uuid == self.trace.uuid


def _groups(directory: Path, base: OpenDirectory, notes: list[str]) -> list[_Group]:
    """Read all metadata below a directory; the chunks of one trace have the same UUID."""
    groups: list[_Group] = []
    for path in _traces(directory):
        data, lines = _packed(base.place(path))
        notes += lines
        # Most chunks of a trace have the same metadata; to parse one may take seconds.
        same = next((one for one in groups if one.trace.uuid and one.metadata == data), None)
        trace = same.trace if same else _parsed(path, data)
        group = same or next((one for one in groups if one.takes(trace)), None)
        if group is None:
            groups.append(_Group(trace, data, [path.parent]))
            continue
        group.directories.append(path.parent)
        if len(data) > len(group.metadata):
            group.trace, group.metadata = trace, data
    return groups


def _chosen(groups: list[_Group], directory: Path, name: str | None) -> _Group:
    """Return the only trace, or the one that the user names.

    Raises:
        UsageError: there are several, or none of that name.
        NothingToRecordError: there is none.
    """
    if not groups:
        raise NothingToRecordError(
            f"{directory} holds no file named metadata", "name the directory of a CTF trace"
        )
    if name is None:
        if len(groups) == 1:
            return groups[0]
        told = " or ".join(f"trace={one}" for one in _names(groups, directory))
        raise UsageError(
            f"{directory} holds {len(groups)} traces: name one with {told};"
            " --source may be repeated"
        )
    found = [one for one in groups if _is_named(one, directory, Path(name).parts)]
    if len(found) != 1:
        several = f"{len(found)} traces" if found else "no trace"
        told = ", ".join(_names(groups, directory))
        raise UsageError(f"{directory} holds {several} of the name {name}; its traces are {told}")
    return found[0]


def _is_named(group: _Group, directory: Path, name: tuple[str, ...]) -> bool:
    """Tell whether the path of one of the directories ends so."""
    paths = [one.relative_to(directory).parts for one in group.directories]
    return any(path[len(path) - len(name) :] == name for path in paths)


def _names(groups: list[_Group], directory: Path) -> list[str]:
    """Return a name for each trace: the shortest end of its path that no other one has."""
    found = []
    for group in groups[:_MOST_NAMES]:
        path = group.directories[-1].relative_to(directory).parts
        ends = (path[-count:] for count in range(1, len(path) + 1))
        others = [one for one in groups if one is not group]
        free = (end for end in ends if not any(_is_named(one, directory, end) for one in others))
        found.append("/".join(next(free, path)) or ".")
    more = len(groups) - len(found)
    return [*found, f"({more} more)"] if more else found


def _packed(place: Place) -> tuple[bytes, list[str]]:
    """Return a metadata as it is stored, and a line if its end is left out."""
    try:
        data = read_limited(place, CTF_METADATA)
    except (OSError, TraceDamagedError) as error:
        raise SourceError(str(error)) from None
    try:
        stored, dropped_bytes = packed_metadata(data)
    except MetadataError as error:
        raise SourceError(f"{place.path}: {error}") from None
    if not dropped_bytes:
        return stored, []
    return stored, [f"{place.path}: the last {dropped_bytes} bytes are not a whole packet"]


def _parsed(path: Path, data: bytes) -> Trace:
    try:
        return read_metadata(data)
    except MetadataError as error:
        raise SourceError(f"{path}: {error}") from None


def _files(directory: Path) -> list[Path]:
    with os.scandir(directory) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name != METADATA
            and not entry.name.startswith(".")
            and entry.is_file(follow_symlinks=False)
        ]
    return [directory / name for name in sorted(names)]


class _Layouts:
    """The layout of each stream class; one that cannot be read is refused where it is needed."""

    def __init__(self, trace: Trace) -> None:
        self.trace: Final = trace
        self._by_id: dict[int, ctf.PacketLayout] = {}

    def of(self, class_id: int) -> ctf.PacketLayout:
        """Return the layout of a class's packets.

        Raises:
            MetadataError: there is no such class, or its packets cannot be read.
        """
        if class_id not in self._by_id:
            self._by_id[class_id] = ctf.PacketLayout.of(self.trace, class_id)
        return self._by_id[class_id]

    def class_in(self, data: FileBytes) -> int:
        """Return the stream class of a file, by its first packet."""
        first = min(self.trace.streams, default=0)
        if len(self.trace.streams) < 2:
            return first
        field = self._readable().fields.get("stream_id")  # all classes have it at the same place
        if field is None or len(data) < field.behind_bytes:
            return first
        return int.from_bytes(data[field.at_bytes : field.behind_bytes], field.byteorder)

    def _readable(self) -> ctf.PacketLayout:
        """Return the layout of the first class whose packets can be read."""
        for class_id in sorted(self.trace.streams):
            with suppress(MetadataError):
                return self.of(class_id)
        return self.of(min(self.trace.streams))


def _walk(place: Place, layouts: _Layouts, most_packets: int) -> Part | str:
    """Walk a file's packets; if it holds none, return the reason.

    Raises:
        SourceError: it cannot be read.
    """
    with bytes_of(place) as data:
        if not len(data):
            return "it is empty"
        try:
            class_id = layouts.class_in(data)
            if not 0 <= class_id <= _MOST_STREAM_ID:
                return f"it has the impossible stream id {class_id}"
            survey = survey_of(data, layouts.of(class_id), class_id, most_packets)
        except MetadataError as error:
            return str(error)
    if not len(survey.offsets_bytes):
        return survey.damage[0].reason
    return Part(place, survey, len(data))


def _key(part: Part, layouts: _Layouts) -> tuple[int, str, int]:
    """Return what is the same for all files of a stream: class, channel and CPU or instance."""
    survey = part.survey
    fields = layouts.of(survey.stream_id).fields
    name = part.path.name
    if "stream_instance_id" in fields:
        return survey.stream_id, "", int(survey.headers.instance[0])
    if "cpu_id" in fields:
        cpu = int(survey.headers.cpu[0])
        match = _PART.fullmatch(name)
        if match is not None and int(match[2]) == cpu:
            return survey.stream_id, match[1], cpu
    match = _NAME.fullmatch(name)
    if match is not None:
        return survey.stream_id, match[1], int(match[2])
    return survey.stream_id, name, 0


def _channels(
    parts: Mapping[tuple[int, str, int], list[Part]], layouts: _Layouts, notes: list[str]
) -> list[Channel]:
    """Order the files of each stream by time, and name the streams."""
    found: dict[StreamId, Channel] = {}
    for (class_id, channel, number), some in sorted(parts.items()):
        some.sort(key=_first)
        stream = _free(_named(some, channel, number), found)
        found[stream] = Channel(stream, class_id, layouts.of(class_id), _unrepeated(some, notes))
    return [found[stream] for stream in sorted(found)]


def _first(part: Part) -> tuple[int, int, str]:
    headers = part.survey.headers
    return int(headers.begin[0]), int(headers.sequence[0]), part.place.path


def _named(parts: list[Part], channel: str, number: int) -> StreamId:
    """Return the channel and CPU of a stream: of its files' names, if they agree with packets."""
    cpu = number if number < 65_536 else 0
    if channel:
        return StreamId(channel, cpu)
    names = {part.path.name for part in parts}
    forms = (_NAME, _PART) if len(names) == 1 else (_PART, _NAME)
    for form in forms:
        matches = [form.fullmatch(name) for name in names]
        channels = {match[1] for match in matches if match is not None and int(match[2]) == cpu}
        if len(channels) == 1 and all(matches):
            return StreamId(channels.pop(), cpu)
    return StreamId(min(names), cpu)


def _free(stream: StreamId, taken: Mapping[StreamId, Channel]) -> StreamId:
    """Return a name that no other stream has, and that can be one of a file."""
    channel = stream.channel if is_name(stream.channel) else "stream"
    number, free = 1, StreamId(channel, stream.cpu)
    while free in taken:
        number, free = number + 1, StreamId(f"{channel}.{number + 1}", stream.cpu)
    return free


def _unrepeated(parts: list[Part], notes: list[str]) -> list[Part]:
    """Leave out packets that an earlier file has: snapshots of one ring may overlap."""
    if len(parts) == 1:
        return parts
    seen: set[tuple[int, int, int]] = set()
    kept = []
    for part in parts:
        headers = part.survey.headers
        keys = list(
            zip(
                headers.begin.tolist(),
                headers.end.tolist(),
                headers.sequence.tolist(),
                strict=True,
            )
        )
        new = np.array([key not in seen for key in keys], np.bool_)
        seen.update(keys)
        if new.all():
            kept.append(part)
        elif new.any():
            offsets = part.survey.offsets_bytes[new]
            damage = [
                one._replace(number=int(np.count_nonzero(new[: one.number])))
                for one in part.survey.damage
            ]
            survey = part.survey._replace(
                offsets_bytes=offsets, headers=headers.some(new), damage=damage
            )
            kept.append(part._replace(survey=survey))
        elif part.survey.damage:
            length_bytes = sum(one.length_bytes for one in part.survey.damage)
            words = "earlier files have its packets; no packet is in"
            notes.append(
                f"{part.path}: {words} {length_bytes} other bytes of it, which are left out"
            )
    return kept
