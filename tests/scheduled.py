"""Traces of a made-up machine, whose tasks, calls and interrupts are known.

``Machine`` acts at random, writes down each event, and what lies between events.  ``recorded()``
makes a trace of its events, of which some are lost.
"""

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.ftraced import Traced, common, format_text
from tests.segment_builder import page

SWITCH, WAKING, WAKEUP, NEW, ENTER, EXIT, IRQ, IRQ_DONE = range(300, 308)
_WOKEN: Final = [
    "char comm[16];8;16;0",
    "pid_t pid;24;4;1",
    "int prio;28;4;1",
    "int target_cpu;32;4;1",
]
FORMATS: Final = {
    "sched/sched_switch": format_text(
        "sched_switch", SWITCH,
        ["char prev_comm[16];8;16;0", "pid_t prev_pid;24;4;1", "int prev_prio;28;4;1",
         "long prev_state;32;8;1", "char next_comm[16];40;16;0", "pid_t next_pid;56;4;1",
         "int next_prio;60;4;1"], '"%d", REC->prev_pid',
    ),
    "sched/sched_waking": format_text("sched_waking", WAKING, _WOKEN, '"%d", REC->pid'),
    "sched/sched_wakeup": format_text("sched_wakeup", WAKEUP, _WOKEN, '"%d", REC->pid'),
    "sched/sched_wakeup_new": format_text("sched_wakeup_new", NEW, _WOKEN, '"%d", REC->pid'),
    "raw_syscalls/sys_enter": format_text(
        "sys_enter", ENTER, ["long id;8;8;1", "unsigned long args[6];16;48;0"], '"%ld", REC->id'
    ),
    "raw_syscalls/sys_exit": format_text(
        "sys_exit", EXIT, ["long id;8;8;1", "long ret;16;8;1"], '"%ld", REC->id'
    ),
    "irq/irq_handler_entry": format_text(
        "irq_handler_entry", IRQ, ["int irq;8;4;1", "__data_loc char[] name;12;4;0"],
        '"%d", REC->irq',
    ),
    "irq/irq_handler_exit": format_text(
        "irq_handler_exit", IRQ_DONE, ["int irq;8;4;1", "int ret;12;4;1"], '"%d", REC->irq'
    ),
}  # fmt: skip
SLEEP, BLOCK, PREEMPT, DEAD = 1, 2, 0x100, 0x10
Event = tuple[int, int, bytes]
"""Time, CPU, and the event's own bytes."""


def switch(prev: int, state: int, following: int) -> bytes:
    told = struct.pack(
        "<16siiq16sii", b"t%d" % prev, prev, 120, state, b"t%d" % following, following, 120
    )
    return common(SWITCH, prev) + told


def woken(kind: int, pid: int, by: int) -> bytes:
    return common(kind, by) + struct.pack("<16siii", b"t%d" % pid, pid, 120, 0)


def enter(pid: int, number: int) -> bytes:
    return common(ENTER, pid) + struct.pack("<q6Q", number, *range(6))


def leave(pid: int, number: int, ret: int) -> bytes:
    return common(EXIT, pid) + struct.pack("<qq", number, ret)


def irq(number: int, pid: int) -> bytes:
    name = b"irq%d\0" % number
    told = struct.pack("<iI", number, len(name) << 16 | 16) + name
    return common(IRQ, pid) + told + bytes(-len(told) % 4)


def irq_done(number: int, pid: int) -> bytes:
    return common(IRQ_DONE, pid) + struct.pack("<ii", number, 1)


@dataclass
class Machine:
    """A machine that acts at random; times are all different."""

    chance: random.Random
    cpus: int = 2
    now: int = 1_000_000
    events: list[Event] = field(default_factory=list)
    waits: set[tuple[int, int, int, int]] = field(default_factory=set)
    """Pid, begin, end and the CPU where the task ran then."""
    states: set[tuple[str, int, int, int]] = field(default_factory=set)
    """State, pid, begin and end."""
    calls: set[tuple[int, int, int, int]] = field(default_factory=set)
    """Pid, number, begin and end."""
    interrupts: set[tuple[int, int, int, int]] = field(default_factory=set)
    """CPU, number, begin and end."""

    def __post_init__(self) -> None:
        self.current = [0] * self.cpus
        self.state: dict[int, tuple[str, int | None]] = dict.fromkeys(
            range(1, 6), ("sleeping", None)
        )
        self.inside: dict[int, tuple[int, int]] = {}
        self.handling: list[list[tuple[int, int]]] = [[] for _ in range(self.cpus)]

    def run(self, steps: int) -> None:
        for _ in range(steps):
            cpu = self.chance.randrange(self.cpus)
            acts: list[Callable[[int], None]] = [
                self.switch,
                self.wake,
                self.race,
                self.call,
                self.interrupt,
            ]
            self.chance.choice(acts)(cpu)

    def tell(self, cpu: int, made: bytes) -> int:
        self.now += self.chance.randrange(1, 30)
        self.events.append((self.now, cpu, made))
        return self.now

    def become(self, pid: int, state: str, at: int, cpu: int = -1) -> None:
        before, since = self.state[pid]
        self.state[pid] = (state, at)
        if since is None:
            return
        self.states.add((before, pid, since, at))
        if before in ("preempted", "woken"):
            self.waits.add((pid, since, at, cpu))

    def switch(self, cpu: int, state: int | None = None) -> None:
        prev = self.current[cpu]
        ready = [pid for pid, (state, _) in self.state.items() if state in ("woken", "preempted")]
        following = self.chance.choice([*ready, 0])
        if following == prev:
            return
        state = self.chance.choice((0, PREEMPT, SLEEP, BLOCK)) if state is None else state
        at = self.tell(cpu, switch(prev, state if prev else 0, following))
        if prev:
            names = {SLEEP: "sleeping", BLOCK: "blocked", -1: "woken"}
            self.become(prev, names.get(state, "preempted"), at)
        if following:
            self.become(following, "running", at, cpu)
        self.current[cpu] = following

    def wake(self, cpu: int) -> None:
        asleep = [pid for pid, (state, _) in self.state.items() if state in ("sleeping", "blocked")]
        if not asleep:
            return
        pid = self.chance.choice(asleep)
        self.become(pid, "woken", self.tell(cpu, woken(WAKING, pid, self.current[cpu])))
        if self.chance.random() < 0.7:
            self.tell(self.chance.randrange(self.cpus), woken(WAKEUP, pid, self.current[cpu]))

    def race(self, cpu: int) -> None:
        """Wake a task that is on its way to sleep; or one that had only said so."""
        pid = self.current[cpu]
        if not pid:
            return
        other = (cpu + 1) % self.cpus
        self.tell(other, woken(WAKING, pid, self.current[other]))
        if self.chance.random() < 0.5:
            at = self.tell(cpu, switch(pid, SLEEP, 0))
            self.become(pid, "woken", at)
            self.current[cpu] = 0
        self.tell(other, woken(WAKEUP, pid, self.current[other]))

    def call(self, cpu: int) -> None:
        pid = self.current[cpu]
        if not pid:
            return
        if pid in self.inside:
            number, since = self.inside.pop(pid)
            at = self.tell(cpu, leave(pid, number, -2 if number else 0))
            self.calls.add((pid, number, since, at))
        else:
            number = self.chance.randrange(3)
            self.inside[pid] = number, self.tell(cpu, enter(pid, number))

    def interrupt(self, cpu: int) -> None:
        if self.handling[cpu] and self.chance.random() < 0.6:
            number, since = self.handling[cpu].pop()
            at = self.tell(cpu, irq_done(number, self.current[cpu]))
            self.interrupts.add((cpu, number, since, at))
        elif len(self.handling[cpu]) < 2:
            number = len(self.handling[cpu]) * 10 + self.chance.randrange(2)
            self.handling[cpu].append((number, self.tell(cpu, irq(number, self.current[cpu]))))


class Scheduled(Traced):
    """A segment with the formats of the machine's events."""

    def add_formats(self) -> None:
        for name, text in FORMATS.items():
            self.add_format(name, text)


def subbuffer(events: Sequence[Event], lost: int) -> bytes:
    """Return a sub-buffer that says how many events were lost before it."""
    before, records = events[0][0], b""
    for time, _, made in events:
        records += struct.pack("<I", time - before << 5 | len(made) // 4) + made
        before = time
    whole = bytearray(page(events[0][0], records))
    if lost:
        struct.pack_into("<Q", whole, 8, len(records) | 1 << 31 | 1 << 30)
        struct.pack_into("<Q", whole, 16 + len(records), lost)
    return bytes(whole)


Holes = list[tuple[int, int, int]]
"""CPU, the begin of the sub-buffer before, and the begin of the one after."""


def recorded(trace: Path, machine: Machine, chance: random.Random, loss: float) -> Holes:
    """Record what a machine did, in short sub-buffers; lose some of them."""
    made = Scheduled(trace, cpus=machine.cpus)
    holes = []
    for cpu in range(machine.cpus):
        rest = [event for event in machine.events if event[1] == cpu]
        lost, before, pages = 0, 0, []
        while rest:
            count = chance.randrange(1, 9)
            some, rest = rest[:count], rest[count:]
            if chance.random() < loss:
                lost += len(some)
                continue
            pages.append(subbuffer(some, lost))
            if lost:
                holes.append((cpu, before, some[0][0]))
            lost, before = 0, some[0][0]
        made.append(pages, cpu=cpu, trailing_loss=lost)
        if lost:
            holes.append((cpu, before, machine.now + 1))
    made.finish()
    return holes
