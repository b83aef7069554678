"""The things that ``lttv stats`` can be asked for, as its help names them: no numpy is loaded."""

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
PAIR_FORM: Final = (
    "any two events: BEGIN,END,KEY,... with the name of each, an expression after 'if' that selects"
    " some, and what both have in common: 'sched_waking,sched_switch,pid=next_pid'"
)
