"""Open a trace to record into: lock it, and recover the segments that a kill left open."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lttd.errors import LttdError, storage_error
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
    SegmentPaths,
    foreign_names,
    made_directory,
    prepare_trace,
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


@dataclass(frozen=True, slots=True)
class Recovered:
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
            left.append(str(storage_error(segment.directory, error)))
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

    if holds_nothing(segment) or (manifest is not None and was_never_used(segment, manifest)):
        segment.base.enter(segment.directory).refuse_foreign()
        disk.remove_tree(segment.directory)
        return []
    found = recover(segment, disk)
    torn_bytes = sum(stream.torn_bytes for stream in found)
    line = f"{segment.directory}: was left open; recovered, {torn_bytes} torn bytes cut"
    return [Recovered(line, tuple(stream.stats() for stream in found))]
