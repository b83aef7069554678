"""Find the command of a pid at a time, from ``tracefs/commands`` and from the events.

Rule: a name in the events of a piece wins over one in the file.  Of several names, the latest one
at or before the time counts, else the first one after it.
Invariant: a line depends on the trace and the piece only, not on the process that formats it.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.beneath import Place
from lttd.index import FOREVER
from lttd.limits import COMMAND_LINES, COMMANDS, Limit
from lttd.readfile import read_head, size_bytes
from lttd.view.columns import EventBatch, EventRows
from lttd.view.glyphs import distinct
from lttd.view.notes import TakesNotes

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]

UNKNOWN: Final = b"<...>"
IDLE: Final = b"<idle>"
COMMAND: Final = re.compile(rb"^(\d{1,20}+)\t(\d{1,10}+)\t(\d{0,10}+)\t([^\n]*+)$", re.MULTILINE)
"""A line of ``tracefs/commands``: time, pid, tgid and command."""
_LEAST_LINE_BYTES: Final = len(b"1\t1\t\ta\n")
MOST_PID: Final = (1 << 31) - 1
_PID_BITS: Final = 32
_PID_BIAS: Final = 1 << 31
COMM_BYTES: Final = 15
"""TASK_COMM_LEN less its NUL; /proc has longer names for kernel threads."""

Telling = Mapping[str, tuple[tuple[str, str], ...]]
"""Event: pairs of (field of the pid, field of the command), which hold from the event on."""
_PATH: Final = "filename"
_TELLING: Final[Telling] = {
    "sched_switch": (("prev_pid", "prev_comm"), ("next_pid", "next_comm")),
    "sched_waking": (("pid", "comm"),),
    "sched_wakeup": (("pid", "comm"),),
    "sched_wakeup_new": (("pid", "comm"),),
    "sched_process_fork": (("child_pid", "child_comm"), ("parent_pid", "parent_comm")),
    "sched_process_exit": (("pid", "comm"),),
    "sched_process_free": (("pid", "comm"),),
    "sched_process_exec": (("pid", _PATH),),
    "task_newtask": (("pid", "comm"),),
    "task_rename": (("pid", "newcomm"),),
}
Seen = list[tuple[int, bytes]]
"""Observations of a task: time and command."""
NameHistory = dict[int, Seen]


def parse_commands(text: bytes, into: NameHistory, tgids: dict[int, int] | None = None) -> None:
    """Parse lines of time, pid, tgid and command; leave out lines that do not parse."""
    for found in islice(COMMAND.finditer(text), COMMAND_LINES.most):
        time, pid, tgid = int(found[1]), int(found[2]), found[3]
        if time > FOREVER or pid > MOST_PID:
            continue
        told = found[4][: 2 * COMM_BYTES]  # an escaped byte takes two
        if b"\\" in told:
            told = told.replace(b"\\n", b"\n").replace(b"\\\\", b"\\")
        into.setdefault(pid, []).append((time, told[:COMM_BYTES]))
        if tgids is not None and tgid.isdigit():
            tgids[pid] = int(tgid)


class Names:
    """The commands in the files of some segments of one boot."""

    idle: bytes | None = IDLE
    """The name of pid 0, whatever the files say; None: as in the files."""
    telling: Telling = _TELLING
    """The events that name tasks."""

    def __init__(self, files: Iterable[Place | Path], notes: TakesNotes | None = None) -> None:
        """*notes* gets a line for each file that is too large to be read whole."""
        self._files = list(files)
        if notes is not None:
            notes.add(*(note for path in self._files if (note := _too_large(path))))
        self._noted: NameHistory | None = None
        self._tgids: dict[int, int] = {}

    def tgid(self, pid: int) -> int | None:
        """Return the process of a task by its last observation; None if there is none."""
        return self._tgids.get(pid) if self.noted else None

    @property
    def noted(self) -> NameHistory:
        """For each pid, its observations: time and command."""
        if self._noted is None:
            self._noted = {}
            for path in self._files:
                try:
                    self.parse(read_head(path, COMMANDS.most), self._noted)
                except OSError:
                    continue  # there is no file: the events are the only source
            for seen in self._noted.values():
                seen.sort()
        return self._noted

    def parse(self, text: bytes, into: NameHistory) -> None:
        """Parse one of the files."""
        parse_commands(text, into, self._tgids)

    def of(self, batch: EventBatch) -> tuple[Column, Column]:
        """Return the distinct (pid, command) pairs, and for each event the number of its pair.

        The pairs are one structured column: ``pid`` and ``comm``.
        """
        if batch.named is not None:
            return batch.named
        begins, piece = _pieces_of(batch)
        tasks, which = distinct(_tasks_of(batch.pid, piece))
        told = self.told_by(batch, piece)
        pairs: list[tuple[int, bytes]] = []
        first = np.zeros(len(tasks), np.int64)
        changing: list[tuple[int, list[tuple[int, bytes]]]] = []
        for number, task in enumerate(tasks.tolist()):
            at = task + _PID_BIAS >> _PID_BITS
            pid = task - (at << _PID_BITS)
            seen = self._seen(pid, told.get((at, pid), []), begins[at])
            first[number] = len(pairs)
            names = {name for _, name in seen}
            if len(names) > 1:
                changing.append((number, seen))
                pairs += [(pid, name) for _, name in seen]
            else:
                pairs.append((pid, seen[0][1] if seen else UNKNOWN))
        pair = first[which]
        for number, seen in changing:
            rows = np.flatnonzero(which == number)
            times = np.array([time for time, _ in seen], np.uint64)
            last = np.searchsorted(times, batch.time[rows], "right").astype(np.int64) - 1
            pair[rows] = first[number] + np.maximum(last, 0)
        table = np.array(pairs, [("pid", np.int64), ("comm", f"S{COMM_BYTES}")])
        return table, pair

    def told_by(self, batch: EventBatch, piece: I64 | None) -> dict[tuple[int, int], Seen]:
        """Return the observations in a batch's own events, by piece and pid."""
        return _told_by(batch, piece, self.telling)

    def _seen(self, pid: int, told: list[tuple[int, bytes]], begin: int) -> list[tuple[int, bytes]]:
        if pid == 0 and self.idle is not None:
            return [(0, self.idle)]
        noted = self.noted.get(pid, [])
        if not told:
            return noted
        within = noted[bisect_right(noted, (begin, b"\xff")) :]
        return sorted(told + within)


def _too_large(path: Place | Path) -> str | None:
    size = size_bytes(path)
    limit: Limit | None = COMMANDS if size > COMMANDS.most else None
    try:
        if size > _LEAST_LINE_BYTES * COMMAND_LINES.most and limit is None:
            data = read_head(path, COMMANDS.most)
            limit = COMMAND_LINES if data.count(b"\n") > COMMAND_LINES.most else None
    except OSError:
        return None  # the output shows that names are missing
    return limit and f"{path}: {limit}; later names come from the events alone"


def _pieces_of(batch: EventBatch) -> tuple[list[int], I64 | None]:
    """Return the begins of a batch's pieces, and for each event the number of its own."""
    if batch.piece_begin is None:
        return [batch.begin], None
    begins, piece = np.unique(batch.piece_begin, return_inverse=True)
    return begins.tolist(), piece.reshape(-1).astype(np.int64)


def _tasks_of(pids: Column, piece: I64 | None) -> Column:
    """Return a number for each pid and piece."""
    return pids if piece is None else (piece << _PID_BITS) + pids


def _told_by(batch: EventBatch, piece: I64 | None, telling: Telling) -> dict[tuple[int, int], Seen]:
    """Return the observations in a batch's own events, by piece and pid, where a name changes."""
    found: list[tuple[Column, Column, Column, Column]] = []
    for rows in batch.by_type():
        of = np.zeros(len(rows), np.int64) if piece is None else piece[rows.rows]
        for pid_field, comm_field in telling.get(rows.event_type.name, ()):
            found += ((of, *each) for each in _observed(rows, pid_field, comm_field))
    if not found:
        return {}
    pieces, times, pids, comms = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((times, pids, pieces))
    pieces, times, pids, comms = pieces[order], times[order], pids[order], comms[order]
    new = np.ones(len(pids), np.bool_)
    new[1:] = (pieces[1:] != pieces[:-1]) | (pids[1:] != pids[:-1]) | (comms[1:] != comms[:-1])
    told: dict[tuple[int, int], Seen] = {}
    for at, pid, time, comm in zip(
        *(column[new].tolist() for column in (pieces, pids, times, comms)), strict=True
    ):
        told.setdefault((at, pid), []).append((time, comm))
    return told


def _observed(rows: EventRows, pid: str, comm: str) -> Iterator[tuple[Column, Column, Column]]:
    try:
        pids, comms = rows.column(pid), rows.column(comm)
    except KeyError:
        return  # an event of another kernel, whose fields have other names
    if comms.dtype.kind == "O":
        named = comms.tolist()
        if comm == _PATH:
            named = [name.rpartition(b"/")[2] for name in named]
        named = [name[:COMM_BYTES] for name in named]
        comms = np.array(named or [b""], f"S{COMM_BYTES}")[: len(named)]
    if pids.ndim == comms.ndim == 1 and pids.dtype.kind in "iu" and comms.dtype.kind == "S":
        yield rows.time, pids.astype(np.int64), comms.astype(f"S{COMM_BYTES}")
