"""MESSAGES: the kernel's events for which Perfetto has a message, with the numbers of its fields.

Source: Perfetto's protos/perfetto/trace/ftrace/ftrace_event.proto has the number of each event, and
the file beside it named in a comment the numbers of its fields.  They are kept for ever.

Rule: an event that Perfetto draws has a row; the message may lack fields that newer kernels have.
Others have one if they are frequent.  Events without a row are generic: Perfetto lists all fields.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

GENERIC: Final = 327
"""A message that holds the names of its fields: GenericFtraceEvent, generic.proto."""
FIRST_DESCRIBED: Final = 65536
"""From here on, a bundle describes the messages: kGenericEvtPbFieldId in Perfetto's
src/traced/probes/ftrace/ftrace_config_utils.h (v50)."""
MOST_DESCRIBED_FIELDS: Final = 31
"""kMaxAllowedFields in Perfetto's src/trace_processor/importers/ftrace/generic_ftrace_tracker.cc;
the count includes number 0, which no field may have."""


class Member(NamedTuple):
    """A field of a message."""

    number: int
    kind: str
    """``i``: one integer or several; ``s``: a string; ``f``: the address of a function."""


class Message(NamedTuple):
    """The message of an event."""

    number: int
    """In FtraceEvent."""
    members: Mapping[str, Member]
    """By the names of the kernel's fields.  Kernels have only some of them."""


def _message(number: int, words: str) -> Message:
    """Make a message of ``name:number``; the letter of another kind than ``i`` follows."""
    members = {}
    for word in words.split():
        name, _, told = word.partition(":")
        kind = told[-1] if told[-1].isalpha() else "i"
        members[name] = Member(int(told.rstrip("sf")), kind)
    return Message(number, MappingProxyType(members))


_WOKEN: Final = "comm:1s pid:2 prio:3 success:4 target_cpu:5"
_BIO: Final = "dev:1 sector:2 nr_sector:3 rwbs:4s comm:5s"
_RQ: Final = "dev:1 sector:2 nr_sector:3 bytes:4 rwbs:5s comm:6s cmd:7s"
_RQ_DONE: Final = "dev:1 sector:2 nr_sector:3 errors:4 rwbs:5s cmd:6s"
_IO: Final = "dev:1 sector:2 nr_sector:3 bytes:4 ioprio:5 rwbs:6s comm:7s cmd:8s"
_ALLOC: Final = "bytes_alloc:1 bytes_req:2 call_site:3 gfp_flags:4 ptr:5"
_CLOCK: Final = "name:1s state:2 cpu_id:3"

MESSAGES: Final[Mapping[str, Message]] = {
    # ftrace.proto
    "print": _message(3, "ip:1 buf:2s"),
    "funcgraph_entry": _message(437, "depth:1 func:2f"),
    "funcgraph_exit": _message(438, "calltime:1 depth:2 func:3f overrun:4 rettime:5"),
    # sched.proto
    "sched_switch": _message(
        4,
        "prev_comm:1s prev_pid:2 prev_prio:3 prev_state:4 next_comm:5s next_pid:6 next_prio:7",
    ),
    "sched_wakeup": _message(17, _WOKEN),
    "sched_blocked_reason": _message(18, "pid:1 caller:2f io_wait:3"),
    "sched_cpu_hotplug": _message(19, "affected_cpu:1 error:2 status:3"),
    "sched_waking": _message(20, _WOKEN),
    "sched_wakeup_new": _message(114, _WOKEN),
    "sched_process_exec": _message(237, "filename:1s pid:2 old_pid:3"),
    "sched_process_exit": _message(238, "comm:1s pid:2 tgid:3 prio:4"),
    "sched_process_fork": _message(239, "parent_comm:1s parent_pid:2 child_comm:3s child_pid:4"),
    "sched_process_free": _message(240, "comm:1s pid:2 prio:3"),
    "sched_process_hang": _message(241, "comm:1s pid:2"),
    "sched_process_wait": _message(242, "comm:1s pid:2 prio:3"),
    "sched_pi_setprio": _message(353, "comm:1s newprio:2 oldprio:3 pid:4"),
    "sched_migrate_task": _message(
        491, "comm:1s pid:2 prio:3 orig_cpu:4 dest_cpu:5 running:6 load:7"
    ),
    # task.proto
    "task_newtask": _message(235, "pid:1 comm:2s clone_flags:3 oom_score_adj:4"),
    "task_rename": _message(236, "pid:1 oldcomm:2s newcomm:3s oom_score_adj:4"),
    # raw_syscalls.proto
    "sys_enter": _message(329, "id:1 args:2"),
    "sys_exit": _message(330, "id:1 ret:2"),
    # irq.proto
    "softirq_entry": _message(24, "vec:1"),
    "softirq_exit": _message(25, "vec:1"),
    "softirq_raise": _message(26, "vec:1"),
    "irq_handler_entry": _message(36, "irq:1 name:2s handler:3"),
    "irq_handler_exit": _message(37, "irq:1 ret:2"),
    # ipi.proto
    "ipi_entry": _message(21, "reason:1s"),
    "ipi_exit": _message(22, "reason:1s"),
    # timer.proto
    "hrtimer_start": _message(551, "hrtimer:1 function:2f expires:3 softexpires:4 mode:5"),
    "hrtimer_cancel": _message(552, "hrtimer:1"),
    "hrtimer_expire_entry": _message(553, "hrtimer:1 now:2 function:3f"),
    "hrtimer_expire_exit": _message(554, "hrtimer:1"),
    "local_timer_entry": _message(559, "vector:1"),
    "local_timer_exit": _message(560, "vector:1"),
    # power.proto
    "cpu_frequency": _message(11, "state:1 cpu_id:2"),
    "cpu_frequency_limits": _message(12, "min_freq:1 max_freq:2 cpu_id:3"),
    "cpu_idle": _message(13, "state:1 cpu_id:2"),
    "clock_enable": _message(14, _CLOCK),
    "clock_disable": _message(15, _CLOCK),
    "clock_set_rate": _message(16, _CLOCK),
    "suspend_resume": _message(113, "action:1s val:2 start:3"),
    "gpu_frequency": _message(332, "gpu_id:1 state:2"),
    "wakeup_source_activate": _message(404, "name:1s state:2"),
    "wakeup_source_deactivate": _message(405, "name:1s state:2"),
    "device_pm_callback_start": _message(504, "device:1s driver:2s parent:3s pm_ops:4s event:5"),
    "device_pm_callback_end": _message(505, "device:1s driver:2s error:3"),
    # cpuhp.proto
    "cpuhp_exit": _message(343, "cpu:1 idx:2 ret:3 state:4"),
    "cpuhp_multi_enter": _message(344, "cpu:1 fun:2f idx:3 target:4"),
    "cpuhp_enter": _message(345, "cpu:1 fun:2f idx:3 target:4"),
    # thermal.proto
    "thermal_temperature": _message(341, "id:1 temp:2 temp_prev:3 thermal_zone:4s"),
    "cdev_update": _message(342, "target:1 type:2s"),
    # workqueue.proto
    "workqueue_activate_work": _message(56, "work:1 function:2"),
    "workqueue_execute_end": _message(57, "work:1 function:2"),
    "workqueue_execute_start": _message(58, "work:1 function:2f"),
    "workqueue_queue_work": _message(59, "work:1 function:2f req_cpu:4 cpu:5 workqueue:6s"),
    # signal.proto, oom.proto
    "signal_deliver": _message(324, "code:1 sa_flags:2 sig:3"),
    "signal_generate": _message(325, "code:1 comm:2s group:3 pid:4 result:5 sig:6"),
    "oom_score_adj_update": _message(326, "comm:1s oom_score_adj:2 pid:3"),
    "mark_victim": _message(334, "pid:1"),
    # block.proto
    "block_rq_issue": _message(45, _RQ),
    "block_rq_insert": _message(126, _RQ),
    "block_rq_complete": _message(125, f"{_RQ_DONE} error:7"),
    "block_rq_requeue": _message(129, _RQ_DONE),
    "block_rq_remap": _message(
        128, "dev:1 sector:2 nr_sector:3 old_dev:4 old_sector:5 nr_bios:6 rwbs:7s"
    ),
    "block_bio_backmerge": _message(115, _BIO),
    "block_bio_bounce": _message(116, _BIO),
    "block_bio_complete": _message(117, "dev:1 sector:2 nr_sector:3 error:4 rwbs:5s"),
    "block_bio_frontmerge": _message(118, _BIO),
    "block_bio_queue": _message(119, _BIO),
    "block_bio_remap": _message(120, "dev:1 sector:2 nr_sector:3 old_dev:4 old_sector:5 rwbs:6s"),
    "block_getrq": _message(122, _BIO),
    "block_plug": _message(123, "comm:1s"),
    "block_split": _message(131, "dev:1 sector:2 new_sector:3 rwbs:4s comm:5s"),
    "block_unplug": _message(133, "nr_rq:1 comm:2s"),
    "block_io_start": _message(546, _IO),
    "block_io_done": _message(547, _IO),
    # kmem.proto, vmscan.proto
    "kfree": _message(298, "call_site:1 ptr:2"),
    "kmalloc": _message(299, _ALLOC),
    "kmem_cache_alloc": _message(301, _ALLOC),
    "kmem_cache_free": _message(303, "call_site:1 ptr:2"),
    "mm_page_alloc": _message(307, "gfp_flags:1 migratetype:2 order:3 page:4 pfn:5"),
    "mm_page_free": _message(310, "order:1 page:2 pfn:3"),
    "rss_stat": _message(313, "member:1 size:2 curr:3 mm_id:4"),
    "mm_vmscan_direct_reclaim_begin": _message(46, "order:1 may_writepage:2 gfp_flags:3"),
    "mm_vmscan_direct_reclaim_end": _message(47, "nr_reclaimed:1"),
    "mm_vmscan_kswapd_wake": _message(48, "nid:1 order:2 zid:3"),
    "mm_vmscan_kswapd_sleep": _message(49, "nid:1"),
    # net.proto, sock.proto, tcp.proto, skb.proto
    "netif_receive_skb": _message(360, "len:1 name:2s skbaddr:3"),
    "net_dev_xmit": _message(361, "len:1 name:2s rc:3 skbaddr:4"),
    "kfree_skb": _message(367, "location:1 protocol:2 skbaddr:3"),
}
"""By the names of the kernel's events."""

_DRAWN: Final = (
    "print funcgraph_entry funcgraph_exit sched_switch sched_blocked_reason sched_waking"
    " sched_process_free task_newtask task_rename sys_enter sys_exit softirq_entry softirq_exit"
    " irq_handler_entry irq_handler_exit hrtimer_expire_entry hrtimer_expire_exit"
    " local_timer_entry local_timer_exit cpu_frequency cpu_frequency_limits cpu_idle clock_enable"
    " clock_disable clock_set_rate suspend_resume gpu_frequency wakeup_source_activate"
    " wakeup_source_deactivate device_pm_callback_start device_pm_callback_end cpuhp_exit"
    " cpuhp_multi_enter cpuhp_enter thermal_temperature cdev_update workqueue_execute_start"
    " workqueue_execute_end signal_deliver signal_generate oom_score_adj_update mark_victim"
    " block_io_start block_io_done rss_stat mm_vmscan_direct_reclaim_begin"
    " mm_vmscan_direct_reclaim_end netif_receive_skb net_dev_xmit kfree_skb"
)
DRAWN: Final = frozenset(_DRAWN.split())
"""The events of which Perfetto draws something: ParseFtraceEvent in its
src/trace_processor/importers/ftrace/ftrace_parser.cc.  It only lists the others."""

OF_CALLS: Final = {"sys_enter_": MESSAGES["sys_enter"], "sys_exit_": MESSAGES["sys_exit"]}
"""The events of single system calls, by the begin of their names."""
