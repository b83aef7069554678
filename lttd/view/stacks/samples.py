"""Count the stacks of a window: the functions that were active when events happened.

The kernel writes a stack as an event of its own, after the event that it belongs to, in the same
ring: ``kernel_stack`` for its own functions, ``user_stack`` for those of the program.

Rule: a stack belongs to the last event before it on its CPU that has the same task and happened in
the same context.  An interrupt between both has a context of its own (hard or soft interrupt, NMI).
Rule: a sample is a kernel stack, with the user stack of the same event if there is one; or a user
stack alone.  Memory holds each distinct stack once.
Rule: off-CPU time of a stack is the time from a task's switch out, blocked, to its next switch in,
on any CPU.  Where events were lost in between, it is unknown and only counted as such.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace import OWN_SYSTEM
from lttd.abi.ftrace_format import Encoding
from lttd.errors import LttdError
from lttd.view.columns import EventBatch, EventRows
from lttd.view.filters import Filter
from lttd.view.ftrace.frames import KERNEL, USER, frames_of
from lttd.view.glyphs import distinct_rows
from lttd.view.lines import HARDIRQ, NMI, SOFTIRQ
from lttd.view.task_names import Names

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

SWITCH: Final = "sched_switch"
BY: Final = ("comm", "pid", "cpu", "event")
"""The words that the first frames can have."""
MOST_STACKS: Final = 1_000_000
NO_EVENT: Final = "[unknown event]"
_CONTEXT: Final = HARDIRQ | SOFTIRQ | NMI
_NO_WEIGHT: Final = np.iinfo(np.int64).min
# Linux include/linux/sched.h: TASK_REPORT.  A task that was preempted has none of these bits.
_BLOCKED: Final = 0xFF


class Stack(NamedTuple):
    """One distinct stack; addresses from the innermost function on."""

    by: tuple[str, ...]
    process: int
    """The process whose memory the user addresses are in."""
    user: tuple[int, ...]
    kernel: tuple[int, ...]


class Wanted(NamedTuple):
    """The stacks that count, and how much each counts."""

    chosen: Filter
    """Of the events that they belong to."""
    by: tuple[str, ...] = ("comm",)
    weight: str = ""
    """A field of these events; empty: each counts 1."""
    off_cpu: bool = False


class _Event(NamedTuple):
    """The last event of a ring and context, from piece to piece."""

    name: str
    pid: int
    is_wanted: bool
    weight: int
    time: int


@dataclass(frozen=True, slots=True)
class _Events:
    """The last events before a batch, then those of the batch, as columns."""

    where: I64
    """Ring and context."""
    name: npt.NDArray[np.object_]
    pid: I64
    is_wanted: Mask
    weight: I64
    time: U64

    def at(self, row: int) -> _Event:
        columns = (self.name, self.pid, self.is_wanted, self.weight, self.time)
        return _Event(*(column[row : row + 1].tolist()[0] for column in columns))


class _Found(NamedTuple):
    """The samples of a batch: numbers of rows, -1 for none."""

    kernel: I64
    user: I64
    event: I64
    """In the columns of _Events."""

    def some(self, rows: Mask) -> "_Found":
        return _Found(self.kernel[rows], self.user[rows], self.event[rows])


@dataclass(eq=False)
class Samples:
    """The stacks of a window so far."""

    wanted: Wanted
    counts: dict[Stack, int] = field(default_factory=dict)
    """The weight of each."""
    samples: int = 0
    stacks: int = 0
    """All that there are, wanted or not."""
    without_weight: int = 0
    """Samples whose event lacks the field."""
    unknown: int = 0
    """Samples whose off-CPU time is not known."""
    losses: int = 0
    """Places at which something was lost."""
    names: set[str] = field(default_factory=set)
    """Of the events that the samples belong to."""
    _last: dict[int, _Event] = field(default_factory=dict)
    _asleep: dict[int, tuple[Stack, int]] = field(default_factory=dict)
    """By pid: the stack of a task that was switched out, and when."""

    def add(self, batch: EventBatch, names: Names) -> None:
        """Count the stacks of a batch."""
        losses = sorted(loss.time for loss in batch.losses if loss.was_wanted)
        self.losses += len(losses)
        kernel, user = _stacks_of(batch, KERNEL), _stacks_of(batch, USER)
        events = self._events(batch, names)
        is_stack = np.zeros(len(events.pid), np.bool_)
        for each in (kernel, user):
            if each is not None:
                is_stack[len(self._last) + each.rows] = True
                self.stacks += len(each)
        event_of = _events_of_stacks(events, is_stack)[len(self._last) :]
        found = self._chosen(events, _found(kernel, user, event_of, len(is_stack)))
        self._note_last(events, is_stack)
        self.samples += len(found.event)
        self.names.update(events.name[found.event[found.event >= 0]].tolist())
        stacks, number = self._distinct(batch, names, kernel, user, events, found)
        if self.wanted.off_cpu:
            slept = [stacks[at] for at in number.tolist()]
            switched = list(zip(slept, found.event.tolist(), strict=True))
            self._sleep(batch, losses, [
                (int(events.pid[at]), int(events.time[at]), stack) for stack, at in switched
            ])  # fmt: skip
            return
        weight = (
            events.weight[found.event] if self.wanted.weight else np.ones(len(number), np.int64)
        )
        order = np.argsort(number, kind="stable")
        first = np.flatnonzero(np.diff(number[order], prepend=-1))
        totals = np.add.reduceat(weight[order], first).tolist() if len(first) else []
        for stack, total in zip(stacks, totals, strict=True):
            self._count(stack, total)

    def _count(self, stack: Stack, weight: int) -> None:
        if stack not in self.counts and len(self.counts) >= MOST_STACKS:
            raise LttdError(f"more than {MOST_STACKS:,} different stacks: choose a shorter window")
        self.counts[stack] = self.counts.get(stack, 0) + weight

    def _events(self, batch: EventBatch, names: Names) -> _Events:
        """Return the last events before a batch, and its own."""
        before = list(self._last.values())
        table = np.array([one.name for one in batch.types] or [""], np.object_)
        chosen = self.wanted.chosen
        is_wanted = np.ones(len(batch), np.bool_)
        if chosen:
            is_wanted = np.isin(batch.at, chosen.of(batch, names).at)
        if self.wanted.off_cpu:
            is_wanted &= _blocked(batch)
        stream = batch.cpu if batch.stream is None else batch.stream

        where = stream.astype(np.int64) << 8 | (batch.flags & _CONTEXT)
        return _Events(
            np.append(np.array(list(self._last), np.int64), where),
            np.append(np.array([one.name for one in before], np.object_), table[batch.type]),
            np.append(np.array([one.pid for one in before], np.int64), batch.pid),
            np.append(np.array([one.is_wanted for one in before], np.bool_), is_wanted),
            np.append(np.array([one.weight for one in before], np.int64), self._weights(batch)),
            np.append(np.array([one.time for one in before], np.uint64), batch.time),
        )

    def _weights(self, batch: EventBatch) -> I64:
        weight = np.full(len(batch), _NO_WEIGHT if self.wanted.weight else 1, np.int64)
        for rows in batch.by_type() if self.wanted.weight else ():
            format_ = rows.event_type.format
            known = format_.by_name.get(self.wanted.weight) if format_ else None
            if known is not None and known.encoding is Encoding.INT:
                weight[rows.rows] = rows.records[known.name].astype(np.int64)
        return weight

    def _chosen(self, events: _Events, found: _Found) -> _Found:
        """Return the samples that count."""
        wanted = np.append(events.is_wanted, not self.wanted.chosen and not self.wanted.off_cpu)
        found = found.some(wanted[found.event])
        if self.wanted.weight:
            has_weight = np.append(events.weight, _NO_WEIGHT)[found.event] != _NO_WEIGHT
            self.without_weight += int(np.count_nonzero(~has_weight))
            found = found.some(has_weight)
        return found

    def _note_last(self, events: _Events, is_stack: Mask) -> None:
        """Keep the last event of each ring and context for the next piece."""
        rows = np.flatnonzero(~is_stack)[::-1]
        keys, at = np.unique(events.where[rows], return_index=True)
        self._last = {
            key: events.at(row) for key, row in zip(keys.tolist(), rows[at].tolist(), strict=True)
        }

    def _distinct(
        self,
        batch: EventBatch,
        names: Names,
        kernel: EventRows | None,
        user: EventRows | None,
        events: _Events,
        found: _Found,
    ) -> tuple[list[Stack], I64]:
        """Return the distinct stacks of samples, and for each sample the number of its stack."""
        if not len(found.event):
            return [], np.empty(0, np.int64)
        process, inside = _addresses(user, found.user)
        _, below = _addresses(kernel, found.kernel)
        row = np.where(found.kernel >= 0, found.kernel, found.user)
        by = [self._words(word, batch, names, events, found, row) for word in self.wanted.by]
        columns = [number.astype(np.uint64)[:, np.newaxis] for _, number in by]
        table = np.ascontiguousarray(
            np.hstack([*columns, process[:, np.newaxis], inside, below]), np.uint64
        )
        first, number = distinct_rows(table.view(np.uint8).reshape(len(table), -1))
        kept, depth = table[first], inside.shape[1]
        heads = len(by)
        stacks = [
            Stack(
                tuple(words[at] for (words, _), at in zip(by, one[:heads], strict=True)),
                one[heads],
                _without_zeros(one[heads + 1 : heads + 1 + depth]),
                _without_zeros(one[heads + 1 + depth :]),
            )
            for one in kept.tolist()
        ]
        return stacks, np.asarray(number, np.int64)

    def _words(
        self, word: str, batch: EventBatch, names: Names, events: _Events, found: _Found, row: I64
    ) -> tuple[Sequence[str], I64]:
        """Return words for the first frame, and for each sample the number of its word."""
        if word == "comm":
            table, pair = names.of(batch)
            return [comm.decode(errors="replace") for _, comm in table.tolist()], pair[row]
        if word == "event":
            told = np.append(events.name, NO_EVENT)[found.event].astype(np.str_)
        else:
            told = (batch.pid if word == "pid" else batch.cpu)[row].astype(np.str_)
        distinct, number = np.unique(told, return_inverse=True)
        prefix = "CPU " if word == "cpu" else ""
        return [f"{prefix}{one}" for one in distinct.tolist()], number.reshape(-1)

    def _sleep(
        self, batch: EventBatch, losses: list[int], slept: Sequence[tuple[int, int, Stack]]
    ) -> None:
        """Count the times until the tasks that were switched out run again."""
        runs = _switches_in(batch)
        for pid, (stack, since) in list(self._asleep.items()):
            if pid in runs:
                del self._asleep[pid]
                self._slept(stack, since, runs[pid][0], losses)
        for pid, since, stack in slept:
            times = runs.get(pid, [])
            at = bisect_right(times, since)
            if at < len(times):
                self._slept(stack, since, times[at], losses)
            else:
                self._asleep[pid] = (stack, since)
        if losses:
            still = {pid: one for pid, one in self._asleep.items() if one[1] >= losses[-1]}
            self.unknown += len(self._asleep) - len(still)
            self._asleep = still

    def _slept(self, stack: Stack, since: int, until: int, losses: list[int]) -> None:
        if bisect_right(losses, since) != bisect_right(losses, until):
            self.unknown += 1
        else:
            self._count(stack, until - since)


def _stacks_of(batch: EventBatch, name: str) -> EventRows | None:
    for rows in batch.by_type():
        event_type = rows.event_type
        if (event_type.system, event_type.name) == (OWN_SYSTEM, name) and event_type.format:
            known = event_type.format.by_name.get("caller")
            if known is not None and known.encoding in (Encoding.ARRAY, Encoding.TAIL):
                return rows
    return None


def _blocked(batch: EventBatch) -> Mask:
    """Tell which events are switches of a task that cannot run on."""
    blocked = np.zeros(len(batch), np.bool_)
    for rows in batch.by_type():
        if _has(rows, "prev_state"):
            blocked[rows.rows] = rows.records["prev_state"].astype(np.int64) & _BLOCKED != 0
    return blocked


def _switches_in(batch: EventBatch) -> dict[int, list[int]]:
    """Return the times at which each task began to run."""
    runs: dict[int, list[int]] = {}
    for rows in batch.by_type():
        if _has(rows, "next_pid"):
            pids = rows.records["next_pid"].tolist()
            for pid, time in zip(pids, rows.time.tolist(), strict=True):
                runs.setdefault(pid, []).append(time)
    return runs


def _has(rows: EventRows, name: str) -> bool:
    """Tell whether events are switches with a number of this name."""
    format_ = rows.event_type.format
    known = format_.by_name.get(name) if format_ and format_.name == SWITCH else None
    return known is not None and known.encoding is Encoding.INT


def _events_of_stacks(events: _Events, is_stack: Mask) -> I64:
    """Return for each row the number of the event that it belongs to, if it is a stack; else -1."""
    count = len(is_stack)
    order = np.argsort(events.where, kind="stable")
    place = np.maximum.accumulate(np.where(is_stack[order], -1, np.arange(count)))
    found = np.where(place >= 0, order[place], -1) if count else place
    event = np.empty(count, np.int64)
    event[order] = found
    belongs = is_stack & (event >= 0)
    belongs &= (events.where[event] == events.where) & (events.pid[event] == events.pid)
    return np.where(belongs, event, -1)


def _found(kernel: EventRows | None, user: EventRows | None, event_of: I64, count: int) -> _Found:
    none = np.empty(0, np.int64)
    below, inside = (none if each is None else each.rows for each in (kernel, user))
    user_of, has_kernel = np.full(count + 1, -1, np.int64), np.zeros(count + 1, np.bool_)
    user_of[event_of[inside]] = inside
    has_kernel[event_of[below]] = True
    user_of[-1], has_kernel[-1] = -1, False  # of those without an event
    alone = inside[~has_kernel[event_of[inside]]]
    return _Found(
        np.concatenate([below, np.full(len(alone), -1, np.int64)]),
        np.concatenate([user_of[event_of[below]], alone]),
        event_of[np.concatenate([below, alone])],
    )


def _addresses(rows: EventRows | None, wanted: I64) -> tuple[U64, U64]:
    """Return the process and the addresses of stacks, a row for each of *wanted*; -1: zeros."""
    process = np.zeros(len(wanted), np.uint64)
    which = np.flatnonzero(wanted >= 0)
    if rows is None or not len(which):
        return process, np.zeros((len(wanted), 0), np.uint64)
    some = rows.some(np.searchsorted(rows.rows, wanted[which]))
    if "tgid" in some.names:
        process[which] = some.records["tgid"].astype(np.uint64)
    columns = []
    for addresses, going in frames_of(some):
        column = np.zeros(len(wanted), np.uint64)
        column[which] = np.where(going, addresses, np.uint64(0))
        columns.append(column)
    return process, np.stack(columns, axis=1) if columns else np.zeros((len(wanted), 0), np.uint64)


def _without_zeros(addresses: list[int]) -> tuple[int, ...]:
    return tuple(addresses[: addresses.index(0)] if 0 in addresses else addresses)
