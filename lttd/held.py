"""Hold one segment alone, for a process that changes it: a recovery, a compression."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lttd.errors import storage_error
from lttd.files import Disk
from lttd.lockfile import Lock
from lttd.tracedir import SegmentPaths


@contextmanager
def held_alone(segment: SegmentPaths, disk: Disk) -> Iterator[SegmentPaths]:
    """Lock *segment*, and allow *disk* to write below it; yield it with a descriptor of its own.

    Raises:
        LockedError: another process records, recovers or compresses it.
        StorageError: this user may not write to it.
    """
    try:
        disk.hold(segment.base)
        own = replace(segment, base=segment.base.enter(segment.directory))
        for directory in own.rewritten:
            if not own.base.is_missing(directory):
                own.base.enter(directory).refuse_foreign()
        disk.hold(own.base)
    except OSError as error:
        raise storage_error(Path(error.filename or segment.directory), error) from None
    try:
        lock = Lock(own.base, own.lock)
        try:
            yield own
        finally:
            lock.release()
    finally:
        disk.release(own.base)
