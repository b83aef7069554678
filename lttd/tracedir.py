"""The names on disk: a trace is a directory of self-contained segments.

    TRACE/.lock                              while lttd records
    TRACE/.gone-20261123T013005Z-000001-ftrace    a segment that is being removed
    TRACE/.next-20261123T013005Z-000001-ftrace    one that is prepared, to follow that segment
    TRACE/20261123T013005Z-000001-ftrace/trace.json
                                         streams/<channel>_<cpu>
                                         streams/index/<channel>_<cpu>.idx, .gaps
                                         streams/<device>.blktrace.<cpu> for blktrace
                                         occurrences
                                         compressed/<channel>_<cpu>.zst instead of the data
                                         compressed/index/<channel>_<cpu>.zst instead of .idx
                                         .lock, .reserve while it is recorded

Rule: only this module has file names.
"""

import datetime as dt
import os
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

from lttd.abi.table import data_file_name
from lttd.beneath import OpenDirectory, Place
from lttd.errors import NotATraceError, StorageError, storage_error
from lttd.files import Disk
from lttd.foreign import why_no_trace
from lttd.subbuffer import StreamInfo

MANIFEST: Final = "trace.json"
SYNCED: Final = "synced.json"
KEPT: Final = "kept.json"
OCCURRENCES: Final = "occurrences"
RESERVE: Final = ".reserve"
LOCK: Final = ".lock"
TRIAL: Final = ".trial"
"""A file of ``lttd doctor``, which exists for a moment."""
_GONE: Final = ".gone-"
_NEXT: Final = ".next-"
UNFINISHED: Final = ".new-"
"""The begin of the names of files that are being compressed or decompressed."""
MOST_FILE_NAME: Final = 250
"""Linux allows 255, and a gaps file's name ends with .gaps."""
MOST_NUMBER: Final = 999_999_999
_SEGMENT: Final = re.compile(r"(\d{8}T\d{6}Z)-(\d{6,9})-([a-z]+)")
_STAMP: Final = "%Y%m%dT%H%M%S"
_IN_SEGMENT: Final = re.compile(rf"(.*?(?:\A|/){_SEGMENT.pattern})[/:]", re.DOTALL)
_HIDDEN: Final = re.compile(rf"\.(?:gone|next)-{_SEGMENT.pattern}")
# Names that a file system, or a killed lttd, leaves in a directory.
_NOT_FOREIGN: Final = re.compile(
    rf"lost\+found|\.nfs.*|\{LOCK}|\{TRIAL}|\.\{TRIAL}\.new|{_HIDDEN.pattern}"
)
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*(_[A-Za-z0-9.+-]+)*")


@lru_cache(1024)
def escape(channel: str) -> str:
    """Return a channel's name as a file name: other than plain characters become ``%XX``."""
    if _PLAIN.fullmatch(channel) and channel not in ("index", "metadata"):
        return channel
    encoded = (chr(b) if chr(b).isalnum() and b < 128 else f"%{b:02X}" for b in channel.encode())
    return "".join(encoded) or "%"


def file_name(info: StreamInfo) -> str:
    """Return the name of a stream's data file."""
    return data_file_name(info.abi, escape(info.id.channel), info.id.cpu)


@dataclass(frozen=True, slots=True)
class StreamPaths:
    """The three files of a stream."""

    data: Path
    index: Path
    gaps: Path


class Places(NamedTuple):
    """Where a file of a stream may be: in one of two forms."""

    plain: Place
    compressed: Place


@dataclass(frozen=True, slots=True)
class SegmentPaths:
    """The paths of one segment."""

    directory: Path
    base: OpenDirectory = field(compare=False)
    """The open directory through which all paths are reached: the segment, or its trace."""

    def place(self, path: Path) -> Place:
        """Return a path of this segment as a place that can be read."""
        return self.base.place(path)

    @property
    def tracefs(self) -> Place:
        """The directory of saved files of tracefs."""
        return self.place(self.directory / "tracefs")

    @property
    def lock(self) -> Path:
        """The lock file of the process that writes the segment."""
        return self.directory / LOCK

    @property
    def manifest(self) -> Path:
        """The segment's ``trace.json``."""
        return self.directory / MANIFEST

    @property
    def synced(self) -> Path:
        """The synced record."""
        return self.directory / SYNCED

    @property
    def kept(self) -> Path:
        """The reasons why retention must not delete the segment."""
        return self.directory / KEPT

    @property
    def occurrences(self) -> Path:
        """The occurrence table: which events are in which sub-buffers."""
        return self.directory / OCCURRENCES

    @property
    def reserve(self) -> Path:
        """The reserved disk space for closing an open segment."""
        return self.directory / RESERVE

    @property
    def streams(self) -> Path:
        """The directory of the data files; it has no other visible files."""
        return self.directory / "streams"

    @property
    def index(self) -> Path:
        """The directory of indexes and gaps."""
        return self.streams / "index"

    def is_gone(self) -> bool:
        """Tell whether the segment was deleted after it was found."""
        if self.base.path == self.directory:
            return not os.fstat(self.base.fd).st_nlink
        return self.base.is_missing(self.directory)

    @property
    def number(self) -> int:
        """The running number in the segment's name."""
        return number_of(self.directory.name)

    @property
    def compressed(self) -> Path:
        """The directory of compressed data files, and of compressed indexes below it."""
        return self.directory / "compressed"

    @property
    def unfinished(self) -> Path:
        """The same while it is being made."""
        return self.directory / f"{UNFINISHED}compressed"

    @property
    def rewritten(self) -> tuple[Path, ...]:
        """The directories in which a recovery or a compression changes or removes files."""
        forms = self.streams, self.compressed, self.unfinished
        return tuple(path for form in forms for path in (form, form / self.index.name))

    def data_places(self, name: str) -> Places:
        """Return where the data of a stream may be; made of text, in a sixth of the time."""
        return self._places(f"streams/{name}", f"compressed/{name}.zst")

    def index_places(self, name: str) -> Places:
        """Return where the index of a stream may be."""
        return self._places(f"streams/index/{name}.idx", f"compressed/index/{name}.zst")

    def _places(self, plain: str, compressed: str) -> Places:
        place = self.base.place
        return Places(place(f"{self.directory}/{plain}"), place(f"{self.directory}/{compressed}"))

    def sibling(self, name: str) -> "SegmentPaths | None":
        """Return the segment *name* of the same trace; None: it has no such name, or is opened
        without its trace."""
        if self.base.path != self.directory.parent or not _SEGMENT.fullmatch(name):
            return None
        return SegmentPaths(self.directory.parent / name, self.base)

    @property
    def kind(self) -> str:
        """The kind of its source, the end of the segment's name."""
        return kind_of(self.directory.name)

    def stream(self, name: str) -> StreamPaths:
        """Return the files of the stream called *name*."""
        return StreamPaths(
            self.streams / name, self.index / f"{name}.idx", self.index / f"{name}.gaps"
        )


def segments(trace: Path) -> list[SegmentPaths]:
    """Return a trace's segments in the order of their numbers; *trace* may be a segment itself.

    Raises:
        NotATraceError: there is no segment.
    """
    try:
        base = OpenDirectory.open(trace)
    except OSError:
        raise NotATraceError(f"{trace}: {why_no_trace(trace)}") from None
    if base.is_file(trace / MANIFEST):
        return [SegmentPaths(trace, base)]
    try:
        found = segments_below(base)
    except StorageError as error:
        raise NotATraceError(str(error)) from None
    if not found:
        raise NotATraceError(f"{trace}: {why_no_trace(trace)}")
    return found


def segments_below(trace: Path | OpenDirectory) -> list[SegmentPaths]:
    """Return the segments in *trace*, in the order of their numbers; there may be none.

    They include a symbolic link with the name of a segment, so that reading it reports it.

    Raises:
        StorageError: the directory cannot be listed.
    """
    path = trace if isinstance(trace, Path) else trace.path
    try:
        trace = OpenDirectory.open(trace) if isinstance(trace, Path) else trace
        names = filter(_SEGMENT.fullmatch, trace.names(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise storage_error(path, error) from None
    found = [SegmentPaths(trace.path / name, trace) for name in names]
    return sorted(found, key=lambda segment: segment.number)


def number_of(name: str) -> int:
    """Return the running number in a segment's name, also in a hidden one."""
    found = _SEGMENT.fullmatch(name) or _HIDDEN.fullmatch(name)
    return int(found[2]) if found else 0


def made_ns(name: str) -> int | None:
    """Return the wall-clock time in a segment's name; None if it has none."""
    found = _SEGMENT.fullmatch(name)
    try:
        made = dt.datetime.strptime(found[1] if found else "", f"{_STAMP}%z")
    except ValueError:  # of a month 13, say
        return None
    return int(made.timestamp()) * 1_000_000_000


def kind_of(name: str) -> str:
    """Return the kind of a segment's source, the end of its name."""
    found = _SEGMENT.fullmatch(name) or _HIDDEN.fullmatch(name)
    return found[3] if found else ""


def segment_name(number: int, kind: str, at_s: int | None = None) -> str:
    """Return the name of a segment that begins at *at_s* of the wall clock; None: now."""
    stamp = time.strftime(f"{_STAMP}Z", time.gmtime(at_s))
    return f"{stamp}-{number:06d}-{kind}"


def next_name(name: str) -> str:
    """Return the hidden name of the segment that is prepared to follow the segment *name*."""
    return _NEXT + name


def gone_name(name: str) -> str:
    """Return the hidden name of a segment that is being removed."""
    return _GONE + name


def segment_directories(trace: OpenDirectory) -> tuple[list[str], list[str]]:
    """Return the names of a trace's segments, and the hidden names: of those that are prepared, or
    being removed.

    Both are in the order of numbers.  Only directories are among them, no symbolic links.

    Raises:
        StorageError: the directory cannot be listed.
    """
    try:
        names = trace.directories(trace.path)
    except OSError as error:
        raise storage_error(trace.path, error) from None
    names.sort(key=number_of)
    return list(filter(_SEGMENT.fullmatch, names)), list(filter(_HIDDEN.fullmatch, names))


def is_unfinished(name: str) -> bool:
    """Tell whether a file is being compressed or decompressed, or was when lttd was killed."""
    return name.startswith(UNFINISHED)


def deletion_note(directory: Path | str) -> str:
    """Return the line for a segment that is gone."""
    return f"{directory}: was deleted while it was read; left out"


def or_deletion_note(note: str) -> str:
    """Return a note on a file of a segment, or the line for its segment if that is gone."""
    found = _IN_SEGMENT.match(note)
    return note if found is None or os.path.lexists(found[1]) else deletion_note(found[1])


def foreign_names(trace: OpenDirectory) -> list[str]:
    """Return the names in a trace directory that are neither segments nor expected files.

    Raises:
        StorageError: the directory cannot be listed.
    """
    try:
        names = trace.names(trace.path)
    except OSError as error:
        raise storage_error(trace.path, error) from None
    return [n for n in names if not _SEGMENT.fullmatch(n) and not _NOT_FOREIGN.fullmatch(n)]


def create_segment(disk: Disk, trace: Path, name: str) -> SegmentPaths:
    """Create the directories of a new segment, and hold it for writing.

    The caller makes their names durable.

    Raises:
        StorageError: they cannot be created; none of them stays.
    """
    directory = disk.hold(trace)
    path = trace / name
    try:
        directory.create_directory(path)
    except OSError as error:
        raise storage_error(path, error) from None
    with disk.whole_or_absent(path):
        paths = SegmentPaths(path, directory.enter(path))
        disk.hold(paths.base)
        try:
            disk.make_directory(paths.index)
        except BaseException:
            disk.release(paths.base)
            raise
    return paths


def reveal_segment(disk: Disk, paths: SegmentPaths, number: int) -> SegmentPaths:
    """Give a segment that was created under a hidden name the name of segment *number*.

    The caller makes the name durable.

    Raises:
        StorageError: it cannot be renamed.
    """
    directory = paths.directory.with_name(segment_name(number, paths.kind))
    disk.rename(paths.directory, directory.name, durably=False)
    paths.base.renamed(directory)
    return SegmentPaths(directory, paths.base)
