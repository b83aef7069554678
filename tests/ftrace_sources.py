"""Sources on the running kernel's rings, and the batches taken from them."""

from pathlib import Path

from lttd.sources.base import Nothing
from lttd.sources.ftrace.source import FtraceSettings, FtraceSource
from lttd.sources.ftrace.stream import FtraceStream
from lttd.sources.mounts import find_tracefs
from lttd.subbuffer import Batch, Reason, RowFlag, Unit

# Only markers of this process, so that the test controls every event.
QUIET = FtraceSettings(events=("sched:sched_process_hang",), buffer_bytes=64 << 10)


def instance_of(source: FtraceSource) -> Path:
    settings = source.info.settings
    return find_tracefs() / "instances" / str(settings["instance"])


def turn(stream: FtraceStream, *, flush: bool = True) -> tuple[list[Batch], Nothing]:
    batches = []
    while isinstance(taken := stream.take(flush), Batch):
        batches.append(taken)
        assert len(batches) < 1000, "an endless turn"
    return batches, taken


def drain(source: FtraceSource) -> list[Batch]:
    """Drain as the reader does: stop, take everything, ask for the last losses."""
    source.stop()
    batches = []
    for stream in source.streams:
        taken, why = turn(stream)
        assert why is Nothing.EVER
        rest = stream.losses()
        batches += [*taken, *([rest] if rest else [])]
    return batches


def content(batches: list[Batch]) -> bytes:
    return b"".join(bytes(piece) for batch in batches for piece in batch.pieces())


def flagged(batches: list[Batch], flag: RowFlag) -> bool:
    return any(int(flags) & flag for batch in batches for flags in batch.rows["flags"])


def lost(batches: list[Batch]) -> dict[Reason, int]:
    counts: dict[Reason, int] = {}
    for batch in batches:
        for gap in batch.gaps:
            assert gap.unit is Unit.EVENTS
            assert gap.begin <= gap.end
            counts[gap.reason] = counts.get(gap.reason, 0) + (gap.count or 0)
    return counts
