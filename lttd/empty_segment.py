"""A segment whose recording ended before anything was recorded."""

from lttd.index import INDEX_HEADER
from lttd.tracedir import SegmentPaths


def holds_nothing(segment: SegmentPaths) -> bool:
    """Tell whether recording ended before the segment had a manifest, and thus before any data."""
    streams, index = segment.streams, segment.index
    # An lttd that was killed so early made no other files.
    made = {segment.lock.name, segment.reserve.name, streams.name, f".{segment.manifest.name}.new"}
    base = segment.base
    try:
        if not made.issuperset(base.names(segment.directory)):
            return False
        if base.is_missing(streams):
            return True
        files = [(streams / name, 0) for name in base.names(streams) if name != index.name]
        if not base.is_missing(index):
            files += [(index / name, len(INDEX_HEADER)) for name in base.names(index)]
        return all(base.is_file(path) and base.stat(path).st_size <= most for path, most in files)
    except OSError:
        return False
