"""The state of the daemon at one moment, besides the counters of streams.

Only the live half has it, so the offline half does not load it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lttd.health import Trouble
from lttd.stats import Fill, StreamKey


@dataclass(frozen=True, slots=True)
class DaemonGauges:
    """The state of the daemon at one moment, besides the counters of streams."""

    backlog_bytes: int
    backlog_limit_bytes: int
    backlog_high_water_bytes: int
    segments: int
    """Segments in the trace directory, open ones included."""
    turns_total: int
    last_turn_ns: int
    """CLOCK_MONOTONIC."""
    troubles: frozenset[Trouble] = frozenset()
    """The reasons why lttd is not healthy now."""
    write_errors: Mapping[str, int] = field(default_factory=dict)
    """Failed writes, by the errno's name."""
    fill: Mapping[StreamKey, Fill] = field(default_factory=dict)
    """Only for streams whose kernel reports it."""
    foreign_read_events: Mapping[StreamKey, int] = field(default_factory=dict)
    """Events that another process consumed, from 0 on; only for streams whose kernel reports it."""
    overwritten_idle_events: Mapping[StreamKey, int] = field(default_factory=dict)
    """Events that a ring overwrote while no trigger wanted them (lttd.flight): no loss."""
