"""Count the events in a segment of a killed lttd; the events that it took beyond these are lost.

Rule: only sub-buffers from a given number on are decoded, because a segment can be of any size.
"""

from pathlib import Path

import numpy as np

from lttd.beneath import OpenDirectory
from lttd.errors import TraceDamagedError
from lttd.manifest import Manifest
from lttd.sources.base import Stored
from lttd.stored import StoredStream
from lttd.subbuffer import Reason
from lttd.tracedir import segments_below


def stored_from(
    trace: Path | OpenDirectory, segment: str, stream: str, first: int
) -> Stored | None:
    """Count the events of a stream from sub-buffer number *first* on.

    With *first* 0, also count the events in gaps for earlier kills.

    Return None if the events cannot be counted, or a sub-buffer before *first* is missing.
    """
    try:
        for paths in segments_below(trace):
            if paths.directory.name == segment:
                manifest = Manifest.read(paths.place(paths.manifest))
                for record in manifest.streams:
                    if record.info.id.name == stream:
                        return _stored_from(StoredStream(paths, manifest, record), manifest, first)
    except TraceDamagedError:
        pass
    return None


def _stored_from(stream: StoredStream, manifest: Manifest, first: int) -> Stored | None:
    entries = stream.index.entries()
    sequences = entries["sequence"].astype(np.uint64)
    if stream.abi is None or (first and not (sequences >= np.uint64(first - 1)).any()):
        return None
    events = 0
    for block in stream.blocks(entries[sequences >= np.uint64(first)]):
        counted = stream.abi.decode(block.data, block.headers).events
        if counted is None:
            return None
        events += int(counted.sum())
    if not first:  # the losses of an earlier kill, for which this segment has gaps
        events += sum(gap.count or 0 for gap in stream.gaps if gap.reason is Reason.KILLED)
    if len(entries):
        return Stored(events, int(entries["end"][-1]))
    snapshots = manifest.clock_snapshots
    return Stored(events, snapshots[0].trace if snapshots else 0)
