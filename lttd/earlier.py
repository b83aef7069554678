"""Find what a trace holds of a source that was recorded before the present boot.

A ring that survived a reboot lacks the boot's id, the kernel's release, formats, clock and names of
tasks; the last segment that was recorded from it has them.
"""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from lttd.beneath import OpenDirectory
from lttd.errors import TraceDamagedError
from lttd.limits import TRACEFS_FILE
from lttd.manifest import newest_manifests, recorded_source
from lttd.readfile import read_limited
from lttd.sources.base import Attachment, Earlier
from lttd.tracedir import SegmentPaths


def recorded_before(trace: OpenDirectory, source: str, boot_id: str) -> Earlier | None:
    """Return the newest segment of *source* that another boot than *boot_id* recorded."""
    for paths, manifest in newest_manifests(trace, source.partition(":")[0]):
        of_source = recorded_source(manifest.source) == source
        if of_source and manifest.machine.get("boot_id") != boot_id:
            snapshots = manifest.clock_snapshots
            return Earlier(
                dict(manifest.machine),
                manifest.clock,
                snapshots[-1] if snapshots else None,
                partial(_files, paths),
            )
    return None


def _files(paths: SegmentPaths) -> Iterator[Attachment]:
    """Yield the saved files of tracefs, without those that cannot be read."""
    try:
        for directory, _, names in paths.base.walk(paths.tracefs.path):
            for name in names:
                path = Path(directory, name)
                with suppress(OSError, TraceDamagedError):
                    data = read_limited(paths.place(path), TRACEFS_FILE)
                    yield Attachment(str(path.relative_to(paths.directory)), data)
    except OSError:
        return
