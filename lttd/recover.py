"""Recover a segment after a crash: cut and count torn tails, and make the index whole.

Rule: lttd.recovery_plan decides from the files as they are; this module carries the plan out.
Invariant: the gap is durable before the cut that it describes, the data before the index, and the
index before the manifest says ``closed``.  A second recovery, also after a crash during the first,
has the same result.
Invariant: a compressed segment is made plain before any of its files is changed, and its occurrence
table is removed.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from lttd.baselines import total_of
from lttd.compress import decompress_held
from lttd.empty_segment import holds_nothing
from lttd.errors import TraceDamagedError
from lttd.files import Disk
from lttd.held import held_alone
from lttd.index import ENTRY_BYTES, GAPS_HEADER, INDEX_HEADER, encode_gaps
from lttd.manifest import (
    Manifest,
    Position,
    encode_synced,
    read_synced,
    this_machine,
)
from lttd.occurrence_maker import remove_occurrences
from lttd.readfile import size_bytes
from lttd.recovery_plan import Plan, Planner
from lttd.stats import StreamStats
from lttd.stored import StoredStream
from lttd.subbuffer import Reason, StreamId
from lttd.tracedir import SegmentPaths, segments_below

_NOTHING: Final = Position(entries=0, data_bytes=0, gaps=0)


@dataclass(frozen=True, slots=True)
class StreamRecovery:
    """The result of recover() for one stream."""

    name: str
    stream: StreamId
    source: str
    """As in StreamStats."""
    entries: int
    rebuilt_entries: int
    """The number of entries that were missing or wrong in the index."""
    torn_bytes: int
    """Bytes that were cut off the data, or that have entries but are missing."""
    changed: bool
    ring_freed: bool = False
    """Whether the kernel freed its ring, with an unknown number of events."""

    def stats(self) -> StreamStats:
        """Return the losses as counters, for the metrics of the run that recovers."""
        stats = StreamStats(self.stream, self.source)
        stats.bytes_lost[Reason.TORN] = self.torn_bytes
        if self.ring_freed:
            stats.gaps_unknown[Reason.ABANDONED] = 1
        return stats


def recover(segment: SegmentPaths, disk: Disk) -> list[StreamRecovery]:
    """Recover and close *segment*, in time bounded by the data beyond its synced record.

    Raises:
        LockedError: it is being recorded, or recovered.
        TraceDamagedError: its manifest cannot be read, but there is data.
        StorageError: a file could not be written; another recover() continues.
    """
    with held_alone(segment, disk) as own:
        return _recover(own, disk, segment)


def was_never_used(segment: SegmentPaths, manifest: Manifest) -> bool:
    """Tell whether *segment* was prepared for a roll that a kill prevented."""
    if manifest.state != "open" or not manifest.source.get("rolled_from"):
        return False
    prepared = all(record.subbuffers_before is None for record in manifest.streams)
    return prepared and not any(
        size_bytes(segment.data_places(record.name).plain)
        or size_bytes(segment.index_places(record.name).plain) > len(INDEX_HEADER)
        or size_bytes(segment.place(segment.stream(record.name).gaps))
        for record in manifest.streams
    )


def _rings_were_freed(segment: SegmentPaths, manifest: Manifest) -> bool:
    """Tell whether the kernel freed the rings of an open *segment* with its recorder.

    If the run had rolled on from it, they were those of a later segment.
    """
    # In mode flight nobody wants them but in a window, whose record then says that it has no end.
    if not manifest.source.get("frees_rings") or manifest.source.get("mode") == "flight":
        return False
    if segment.base.path == segment.directory:
        return True  # it was copied out of its trace
    for later in segments_below(segment.base):
        if later.number > segment.number and later.kind == segment.kind:
            with suppress(TraceDamagedError):
                after = Manifest.read(later.place(later.manifest))
                if after.source.get("rolled_from") == segment.directory.name:
                    return was_never_used(later, after)
    return True


def _count_on(segment: SegmentPaths, manifest: Manifest) -> None:
    """Take the baselines from the segment before, which ended after the manifest was written."""
    late = [record for record in manifest.streams if record.subbuffers_before is None]
    before = segment.sibling(str(manifest.source.get("rolled_from")))
    if not late or before is None:
        return
    with suppress(TraceDamagedError):
        earlier = Manifest.read(before.place(before.manifest))
        known = {record.name: record for record in earlier.streams if record.summary}
        for record in late:
            if record.name in known:
                record.baseline_discarded = total_of(known[record.name])


def _recover(segment: SegmentPaths, disk: Disk, named: SegmentPaths) -> list[StreamRecovery]:
    """Recover *segment*, which is *named* within its trace."""
    disk.remove(segment.reserve)
    if holds_nothing(segment):
        return []
    manifest = Manifest.read(segment.place(segment.manifest))
    if manifest.compression:
        if not _needs_repair(segment, manifest):
            return []
        remove_occurrences(segment, disk)
        decompress_held(segment, manifest, disk, salvage=True)
    is_open = manifest.state == "open"
    ring_freed = is_open and _rings_were_freed(named, manifest)
    if is_open:
        _count_on(named, manifest)
    synced = read_synced(segment.place(segment.synced))
    # Without a power loss, all written data is in the page cache, so zeros are not missing data.
    power_kept = manifest.machine.get("boot_id") == this_machine()["boot_id"]
    found, positions = [], {}
    for record in manifest.streams:
        stream = StoredStream(segment, manifest, record)
        vouched = synced.get(record.name, _NOTHING) if is_open else None
        planner = Planner(stream, vouched, power_kept=power_kept, ring_freed=ring_freed)
        plan = planner.plan()
        if plan.changed:
            remove_occurrences(segment, disk)
        found.append(replace(_apply(plan, disk, stream), ring_freed=ring_freed))
        positions[record.name] = plan.position
        if is_open or plan.changed:
            if record.subbuffers_before is None and plan.position.entries:
                record.baseline_discarded = plan.baseline
                record.subbuffers_before = plan.first_sequence
            whole = StoredStream(segment, manifest, record)
            record.summary = whole.derived_summary(whole.index, list(plan.gaps))
    if is_open or any(one.changed for one in found):
        disk.replace(segment.synced, encode_synced(positions))
        manifest.state = "closed"
        disk.replace(segment.manifest, manifest.encode())
    return found


def _needs_repair(segment: SegmentPaths, manifest: Manifest) -> bool:
    """Tell whether a compressed segment has to become plain, because a file is to be changed."""
    streams = [StoredStream(segment, manifest, record) for record in manifest.streams]
    return any(Planner(one, None, power_kept=True).plan().changed or one.damage for one in streams)


def _apply(plan: Plan, disk: Disk, stream: StoredStream) -> StreamRecovery:
    """Write the plan: the gap before the cut that it describes, data before index."""
    if plan.new_gaps:
        disk.replace(stream.paths.gaps, GAPS_HEADER + encode_gaps(plan.gaps, 0))
    data = disk.open(stream.paths.data)
    try:
        # Always: it also frees blocks after the end.
        data.truncate(plan.data_bytes)
        data.sync()
    finally:
        data.close()
    index = disk.open(stream.paths.index)
    try:
        if plan.new_index:
            at = len(INDEX_HEADER) + plan.keep * ENTRY_BYTES
            index.write_at([INDEX_HEADER], 0)
            index.truncate(index.write_at([plan.entries.tobytes()], at))
        index.sync()
    finally:
        index.close()
    return StreamRecovery(
        name=stream.name,
        stream=stream.info.id,
        source=stream.source_name,
        entries=plan.position.entries,
        rebuilt_entries=plan.rebuilt,
        torn_bytes=plan.torn_bytes,
        changed=plan.changed,
    )
