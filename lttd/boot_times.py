"""Place the boot-time clocks of earlier boots on the scale of the present boot.

    boot                 known of it                       its times on the scale
    the present one      it has run for 500 s now          500 s -> 500 s
    the one before       it ran for 9,000 s, or longer     9,000 s -> 0 s, 8,400 s -> -600 s
    the one before that  it ran for 70 s, or longer        70 s -> -9,000 s

So the age of a segment is a difference of CLOCK_BOOTTIME, which counts in suspend and never steps.
It is a lower bound: the time for which the machine was off, or ran without lttd, is unknown.

Rule: no wall clock.  One that steps to next year would make everything old, and delete it.
"""

from typing import NamedTuple

from lttd.manifest import Manifest


class Span(NamedTuple):
    """When a segment was begun and when it ended, in ns on the present boot's scale."""

    begin_ns: int
    end_ns: int


class BootTimes:
    """The scale; it is asked for the segments of a trace from the newest to the oldest."""

    def __init__(self, boot_id: str, now_ns: int) -> None:
        """*now_ns* is the present CLOCK_BOOTTIME of the boot *boot_id*."""
        self._offset_ns = {boot_id: 0}
        self._last_offset_ns = 0
        self._oldest_ns = now_ns

    def place(self, manifest: Manifest | None) -> Span:
        """Return the span of a segment.

        One without clock snapshots of its time was complete when the next newer segment began.
        """
        snapshots = manifest.clock_snapshots if manifest and manifest.source.get("live") else ()
        if manifest is None or not snapshots:
            return Span(self._oldest_ns, self._oldest_ns)
        times = [snapshot.boottime_ns for snapshot in snapshots]
        offset_ns = self._offset_of(manifest.machine.get("boot_id", ""), max(times))
        self._oldest_ns = min(self._oldest_ns, min(times) + offset_ns)
        return Span(min(times) + offset_ns, max(times) + offset_ns)

    def _offset_of(self, boot_id: str, end_ns: int) -> int:
        """Return what to add to times of a boot; *end_ns*: how long it lasted at least."""
        if boot_id not in self._offset_ns:
            self._last_offset_ns -= end_ns
            self._offset_ns[boot_id] = self._last_offset_ns
        return self._offset_ns[boot_id]
