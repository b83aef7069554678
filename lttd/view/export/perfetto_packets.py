"""Make the packets of a Perfetto trace that describe the machine, its tasks and the losses.

Source: Perfetto's protos/perfetto/trace/system_info.proto, protos/perfetto/trace/ps/
process_tree.proto, protos/perfetto/trace/ftrace/ftrace_stats.proto.

Rule: a task has the name that it had when the window began; a later name is a packet of its time.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from lttd.manifest import Manifest
from lttd.subbuffer import Reason, Unit
from lttd.view.export.protobuf import content, number
from lttd.view.losses import Loss
from lttd.view.task_names import Names, Seen

START, END = 1, 2
"""The phases of FtraceStats."""
_OVERRUN, _COMMIT_OVERRUN, _DROPPED, _READ = 3, 4, 8, 9
_LOST_AS: Final = {Reason.DROPPED: _DROPPED, Reason.COMMIT_OVERRUN: _COMMIT_OVERRUN}
"""The counter of a loss; of any other reason it is the one of overwritten events."""


def system_info(manifest: Manifest) -> bytes:
    """Return the message SystemInfo; by it Perfetto names system calls and states of tasks."""
    machine = manifest.machine
    named = {1: "Linux", 3: machine.get("kernel", ""), 4: machine.get("architecture", "")}
    utsname = b"".join(content(at, value) for at, value in named.items() if value)
    return content(1, utsname) + (content(17, machine["host"]) if machine.get("host") else b"")


def tasks_at(names: Names, time: int) -> bytes:
    """Return the message ProcessTree of all known tasks, with their names at a time."""
    told = [(pid, _name_at(seen, time)) for pid, seen in names.noted.items() if pid]
    named = dict(told)
    groups = {pid: group for pid, _ in told if (group := names.tgid(pid)) is not None}
    processes = [_process(group, named.get(group)) for group in dict.fromkeys(groups.values())]
    threads = [_thread(pid, group, named[pid]) for pid, group in groups.items()]
    return b"".join([*processes, *threads])


def renamed(names: Names, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the times after *begin* and until *end* at which a task was seen under another name.

    Each comes with a message ProcessTree of this task.
    """
    found: list[tuple[int, bytes]] = []
    for pid, seen in names.noted.items():
        group = names.tgid(pid)
        if not pid or group is None or len(seen) == 1:
            continue
        last = _name_at(seen, begin)
        for time, name in seen:
            if begin < time <= end and name != last:
                process = _process(group, name) if pid == group else b""
                found.append((time, process + _thread(pid, group, name)))
                last = name
    yield from sorted(found)


def _name_at(seen: Seen, time: int) -> bytes:
    return seen[max(bisect_right(seen, time, key=lambda each: each[0]) - 1, 0)][1]


def _process(pid: int, name: bytes | None) -> bytes:
    told = number(1, pid)
    if name is not None:
        told += content(3, name) + number(9, 1)
    return content(1, told)


def _thread(tid: int, tgid: int, name: bytes) -> bytes:
    return content(2, number(1, tid) + content(2, name) + number(3, tgid))


@dataclass
class Tally:
    """The events that were written and lost, for each CPU."""

    written: dict[int, int] = field(default_factory=dict)
    lost: dict[int, dict[int, int]] = field(default_factory=dict)
    """By CPU and counter of FtraceCpuStats; of events whose number is known."""
    losses: int = 0
    holes: int = 0
    """Between the windows of mode flight: nobody wanted these events."""

    @property
    def events(self) -> int:
        """The number of events that were written."""
        return sum(self.written.values())

    def add(self, cpu: int, events: int) -> None:
        """Count events that were written."""
        self.written[cpu] = self.written.get(cpu, 0) + events

    def lose(self, loss: Loss) -> None:
        """Count a loss."""
        if not loss.was_wanted:
            self.holes += 1
            return
        self.losses += 1
        counters = self.lost.setdefault(loss.cpu, {})
        if loss.unit is Unit.EVENTS and loss.lost is not None:
            counter = _OVERRUN if loss.reason is None else _LOST_AS.get(loss.reason, _OVERRUN)
            counters[counter] = counters.get(counter, 0) + loss.lost

    def stats(self, phase: int) -> bytes:
        """Return the message FtraceStats: counters at the begin or at the end."""
        told = number(1, phase)
        for cpu in sorted(self.written.keys() | self.lost.keys()):
            counters: Mapping[int, int] = self.lost.get(cpu, {}) if phase == END else {}
            read = self.written.get(cpu, 0) if phase == END else 0
            values = {1: cpu, _OVERRUN: 0, _COMMIT_OVERRUN: 0, _DROPPED: 0, _READ: read, **counters}
            told += content(2, b"".join(number(at, value) for at, value in values.items()))
        return told
