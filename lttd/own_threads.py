"""Which threads in a trace are lttd's own, so that viewers can leave them out.

Rule: an id counts within its segment only; the kernel gives it to others after the run.
"""

from collections.abc import Mapping

from lttd.beneath import OpenDirectory
from lttd.manifest import newest_manifests
from lttd.namespaces import kernel_knows_our_pids
from lttd.sources.base import SourceInfo


def threads_in(info: SourceInfo, trace: OpenDirectory, now: Mapping[int, str]) -> dict[str, str]:
    """Return the threads that may be in the data of a source: names by their ids in the trace.

    *now* are those of this run.  The ring of a killed lttd, or of an earlier boot, has those of the
    segment that was recorded from it before.
    """
    if info.previous_run or info.previous_boot:
        boot = info.machine.get("boot_id") or None
        for paths, manifest in newest_manifests(trace, info.kind):
            is_of_boot = manifest.machine.get("boot_id") == boot
            if is_of_boot or paths.directory.name == info.continues:
                return manifest.own_threads
        return {}
    if not info.live or not kernel_knows_our_pids():
        return {}
    return {str(number): name for number, name in now.items()}
