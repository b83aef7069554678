"""Open a trace to record into: make it, lock it, recover the segments that a kill left open."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from lttd.beneath import OpenDirectory
from lttd.errors import LttdError, RefusedError, UsageError, storage_error
from lttd.files import Disk
from lttd.handles import handle_of
from lttd.lockfile import Lock
from lttd.manifest import Manifest, says_closed, this_machine
from lttd.sources.base import (
    Earlier,
    Owner,
    Stored,
)
from lttd.stats import StreamStats
from lttd.tracedir import (
    LOCK,
    MOST_NUMBER,
    SegmentPaths,
    foreign_names,
    number_of,
    segment_directories,
    segments_below,
)

# The most lines on old files that are left alone; more would hide other lines.
MOST_LINES: Final = 8


@contextmanager
def locked_trace(disk: Disk, trace: Path, *, append: bool) -> Iterator[int]:
    """Lock the trace directory; yield the number of the next segment.

    At the end, directories that were made for the trace and are still empty are removed.

    Raises:
        UsageError: it holds a trace and *append* is not set, or holds other files, or another user
            may write to it.
        LockedError: another lttd records into it.
    """
    with made_directory(trace) as directory:
        disk.hold(directory)
        prepare_trace(disk, trace, append=append)
        disk.trace_lock = lock = Lock(directory, trace / LOCK)
        try:
            # Look again, with the lock: another lttd may have ended meanwhile.
            yield prepare_trace(disk, trace, append=append)
        finally:
            disk.trace_lock = None
            lock.release()


@contextmanager
def made_directory(trace: Path) -> Iterator[OpenDirectory]:
    """Open the directory *trace*; create it and its parents if absent.

    At the end, created directories that are still empty are removed.

    Raises:
        UsageError: a part of its path is a file, or another user may change what is in it.
        StorageError: it can be neither opened nor created.
    """
    base, missing = _nearest(trace)
    try:
        try:
            if missing:
                base.make_directory(trace)
            directory = base.enter(trace) if missing else base
            directory.refuse_foreign()
        except RefusedError as error:
            raise UsageError(f"{trace}: {error.strerror}") from None
        except OSError as error:
            raise storage_error(trace, error) from None
        yield directory
    finally:
        with suppress(OSError):  # it is not empty, or was never made
            for path in missing:
                base.remove_directory(path)


def _nearest(trace: Path) -> tuple[OpenDirectory, list[Path]]:
    """Open the innermost existing directory on the way to *trace*; also return the missing ones."""
    missing: list[Path] = []
    for path in (trace, *trace.parents):
        try:
            return OpenDirectory.open(path), missing
        except (FileNotFoundError, NotADirectoryError) as error:
            if path.is_symlink():
                words = f"{path} is a symbolic link, and what it leads to is not a directory"
                raise UsageError(f"{trace}: {words}; make that, or name another path") from None
            if isinstance(error, NotADirectoryError) and os.path.lexists(path):
                what = "is a file" if path == trace else f"{path} is a file"
                raise UsageError(f"{trace}: {what}; name a directory, or a new path") from None
            if path.name == "..":
                words = f"{path.parent} does not exist, so .. leads nowhere; name a path without it"
                raise UsageError(f"{trace}: {words}") from None
            missing.append(path)
        except OSError as error:
            raise storage_error(path, error) from None
    raise AssertionError("every path begins at a directory")


def prepare_trace(disk: Disk, trace: Path, *, append: bool) -> int:
    """Hold *trace* for writing; return the number of the next segment.

    Raises:
        UsageError: it is not empty and *append* is not set, or it holds only other files.
    """
    directory = disk.hold(trace)
    foreign = foreign_names(directory)
    used = {segment.number for segment in segments_below(directory)}
    used |= set(map(number_of, segment_directories(directory)[1]))
    if foreign and not used:
        raise UsageError(
            f"{trace}: holds {foreign[0]!r}, which is not a segment; name an empty directory"
        )
    if used and not append:
        raise UsageError(f"{trace}: holds a trace already; --append adds to it")
    number = max(used, default=0) + 1
    if number > MOST_NUMBER:
        number = next(number for number in count(1) if number not in used)
    return number


def owner_of(disk: Disk, trace: Path) -> Owner:
    """Return the identity of a trace directory, for the sources that are recorded into it."""
    directory = disk.hold(trace)

    def stored(segment: str, stream: str, first: int) -> Stored | None:
        from lttd.unstored import stored_from  # noqa: PLC0415  (needed after a kill only)

        try:
            return stored_from(directory, segment, stream, first)
        except Exception:  # noqa: BLE001  (whatever an old segment holds, recording starts)
            return None

    def earlier(source: str) -> Earlier | None:
        from lttd.earlier import recorded_before  # noqa: PLC0415  (needed after a reboot only)

        try:
            return recorded_before(directory, source, this_machine()["boot_id"])
        except Exception:  # noqa: BLE001  (whatever an old segment holds, recording starts)
            return None

    status = os.fstat(directory.fd)
    handle = handle_of(directory.fd)
    path = os.path.realpath(trace)
    return Owner(status.st_dev, status.st_ino, path, handle, stored, earlier)


class Recovered(NamedTuple):
    """The result for a segment that a killed lttd left open: recovered, or left as it is."""

    line: str
    """The line for the user."""
    streams: tuple[StreamStats, ...]
    """The counters of each stream with its torn bytes, for the metrics of this run."""


def recover_open_segments(disk: Disk, trace: Path) -> list[Recovered]:
    """Recover the segments that a killed lttd left open.

    Segments that cannot be recovered, and files that are not segments, are reported and left as
    they are: old files never stop a recording.
    """
    directory = disk.hold(trace)
    recovered: list[Recovered] = []
    left = [f"{trace / name}: is not a segment" for name in foreign_names(directory)]
    for segment in segments_below(directory):
        try:
            recovered += _recovered(disk, segment)
        except LttdError as error:
            left.append(str(error))
        except OSError as error:
            left.append(str(storage_error(Path(error.filename or segment.directory), error)))
        except Exception as error:  # noqa: BLE001  (whatever an old segment holds)
            left.append(f"{segment.directory}: cannot be recovered: {error!r}")
    recovered += [Recovered(f"{line}; left as it is", ()) for line in left[:MOST_LINES]]
    if len(left) > MOST_LINES:
        more = f"{trace}: {len(left) - MOST_LINES} more are left as they are"
        recovered.append(Recovered(more, ()))
    return recovered


def _recovered(disk: Disk, segment: SegmentPaths) -> list[Recovered]:
    """Recover a segment if it was left open.

    Raises:
        LttdError: it cannot be recovered, or its manifest cannot be read.
        OSError: it belongs to another user.
    """
    if says_closed(segment.place(segment.manifest)):
        return []  # a start must not parse the manifests of a thousand segments
    manifest = None
    if not segment.base.is_missing(segment.manifest):
        manifest = Manifest.read(segment.place(segment.manifest))
    if manifest is not None and manifest.state != "open":
        return []
    from lttd.empty_segment import holds_nothing  # noqa: PLC0415  (seldom)
    from lttd.recover import recover, was_never_used  # noqa: PLC0415
    from lttd.removal import remove_whole  # noqa: PLC0415

    if holds_nothing(segment) or (manifest is not None and was_never_used(segment, manifest)):
        remove_whole(segment.base, segment.directory.name)
        return []
    found = recover(segment, disk)
    torn_bytes = sum(stream.torn_bytes for stream in found)
    line = f"{segment.directory}: was left open; recovered, {torn_bytes} torn bytes cut"
    if any(stream.ring_freed for stream in found):
        line += "; the kernel freed its rings with the events that were not stored"
    return [Recovered(line, tuple(stream.stats() for stream in found))]
