"""The names of intervals for ``lttv stats`` and ``lttv sql``, without loading numpy."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "sched": "tasks on CPUs, waiting for one, and asleep",
        "syscalls": "system calls",
        "irqs": "handlers of interrupts, softirqs and timers",
        "block": "requests of block devices",
    }
)
KIND_NAMES: Final = ("sched_latency", "syscalls", "irqs", "block_requests")
"""The keys of ``lttd.view.intervals.table.KINDS``."""
PAIR_FORM: Final = (
    "any two events: BEGIN,END,KEY,... with the name of each, an expression after 'if' that selects"
    " some, and what both have in common: 'sched_waking,sched_switch,pid=next_pid'"
)
