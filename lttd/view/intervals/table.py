"""KINDS: the kinds of intervals that a trace can be asked for; a row describes one.

``lttv stats`` and ``lttv sql`` derive from it what they offer, and say which events to record.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lttd.view.intervals.blocks import BlockRequests
from lttd.view.intervals.irqs import Irqs
from lttd.view.intervals.kind import TEXT, Kind
from lttd.view.intervals.syscalls import Syscalls
from lttd.view.intervals.tasks import STATES, SchedLatency, TaskStates

_SPAN: Final = (("begin_ns", "u8"), ("end_ns", "u8"), ("duration_ns", "i8"))
_TASK: Final = (("pid", "i4"), ("comm", TEXT))
_COMPLETE: Final = (("complete", "?"),)

_ROWS: Final = (
    Kind(
        "sched_latency",
        "how long a task that could run waited for a CPU",
        ("sched:sched_switch", "sched:sched_waking"),
        ("sched_switch", "sched_waking", "sched_wakeup", "sched_wakeup_new"),
        (
            *_SPAN, ("cpu", "u2"), *_TASK, ("prio", "i4"), ("migrated", "?"), ("preempted", "?"),
            *_COMPLETE,
        ),
        SchedLatency,
    ),
    Kind(
        "syscalls",
        "system calls, from entry to exit",
        ("raw_syscalls:sys_enter", "raw_syscalls:sys_exit"),
        ("raw_syscalls:*", "syscalls:*", "*syscall_entry_*", "*syscall_exit_*"),
        (
            *_SPAN, ("cpu", "u2"), *_TASK, ("number", "i4"), ("name", TEXT), ("ret", "i8"),
            ("failed", "?"), *_COMPLETE,
        ),
        Syscalls,
    ),
    Kind(
        "irqs",
        "handlers of interrupts, softirqs and timers; how long a raised softirq waited",
        ("irq:*", "timer:timer_expire_*", "timer:hrtimer_expire_*"),
        (
            "irq_handler_*", "softirq_*", "irq_softirq_*", "timer_expire_*", "hrtimer_expire_*",
            "timer_hrtimer_expire_*", "tasklet_*",
        ),
        (*_SPAN, ("cpu", "u2"), ("kind", TEXT), ("number", "i8"), ("name", TEXT), *_COMPLETE),
        Irqs,
    ),
    Kind(
        "block_requests",
        "requests of block devices, from issue to completion, and their times before that",
        ("block:block_rq_*", "block:block_bio_queue", "block:block_getrq"),
        ("block_*", "blktrace:*"),
        (
            *_SPAN, ("cpu", "u2"), ("device", TEXT), ("sector", "u8"), ("bytes", "i8"),
            ("rwbs", TEXT), *_TASK, ("error", "i4"), ("queued_ns", "i8"), ("got_ns", "i8"),
            ("inserted_ns", "i8"), *_COMPLETE,
        ),
        BlockRequests,
    ),
)  # fmt: skip
TASK_STATES: Final = Kind(
    "task_states",
    f"the states of tasks: {', '.join(STATES)}",
    ("sched:sched_switch", "sched:sched_waking"),
    _ROWS[0].reads,
    (
        *_SPAN, ("cpu", "u2"), *_TASK, ("prio", "i4"), ("state", "i1"), ("next", "i1"),
        ("migrated", "?"), *_COMPLETE,
    ),
    TaskStates,
)  # fmt: skip
"""``state`` and ``next``, the one after it, are indexes into STATES."""
KINDS: Final[Mapping[str, Kind]] = MappingProxyType({one.name: one for one in _ROWS})
