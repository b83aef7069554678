"""Remove what a killed compressor or decompressor left in a closed segment.

Rule: only who holds the segment removes something, because its compressor may still be at work.
Rule: which form of a file is a leftover is what the manifest says; see ``lttd.compress``.
"""

from contextlib import suppress

from lttd.errors import LttdError
from lttd.files import Disk
from lttd.manifest import Manifest
from lttd.tracedir import SegmentPaths, is_unfinished


def remove_leftovers(segment: SegmentPaths, manifest: Manifest) -> None:
    """Remove the leftovers in *segment*, where no other process uses them; ignore errors."""
    if manifest.state == "closed" and _has_leftovers(segment, manifest):
        from lttd.compress import tidy  # noqa: PLC0415  (after a kill only)

        # A Disk of its own: other threads may use that of the recording.
        with suppress(LttdError, OSError):
            tidy(segment, Disk())


def _has_leftovers(segment: SegmentPaths, manifest: Manifest) -> bool:
    unwanted = [segment.lock, segment.unfinished]
    if not manifest.compression:
        unwanted.append(segment.compressed)
    base = segment.base
    if not all(map(base.is_missing, unwanted)):
        return True
    names = []
    for directory in (segment.streams, segment.index):
        with suppress(OSError):
            names += base.names(directory)
    plain = {record.name for record in manifest.streams}
    plain |= {f"{name}.idx" for name in plain}
    return any(map(is_unfinished, names)) or (
        bool(manifest.compression) and not plain.isdisjoint(names)
    )
