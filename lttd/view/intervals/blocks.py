"""Requests of block devices: from issue to completion, and how long they waited before.

    Q bio queued -> G request got -> I inserted into a scheduler -> D issued -> C completed

A request has the first sector of its first bio until it is issued, so Q, G, I and D of one request
share device and sector.  From then on it is known by its end: a request that completes in parts
ends with the part that reaches it.

Rule: of Q, G and I the last one before D counts; D forgets them.  A merge (M, F) forgets Q: that
bio became part of another request.
Rule: two requests of one device with the same end at one time cannot be told apart; unknown.

Source: Linux include/trace/events/block.h; Documentation of btt, whose stages these are.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.view.blktrace.decode import SYSTEM
from lttd.view.blktrace.lines import letters_of
from lttd.view.columns import EventBatch, EventRows
from lttd.view.intervals.gathering import Part, gathered, numbers, strings
from lttd.view.intervals.holes import Holes
from lttd.view.intervals.kind import Counts, Table, duration_ns, some_of
from lttd.view.intervals.order import firsts_of, hashed, lasts_of, latest, stable_order
from lttd.view.intervals.pairing import MOST_OPEN, Events, Matcher
from lttd.view.intervals.setting import Setting

Column = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

QUEUED, GOT, INSERTED, ISSUED, COMPLETED, REQUEUED, MERGED = range(7)
_BEFORE: Final = {QUEUED: "queued_ns", GOT: "got_ns", INSERTED: "inserted_ns"}
"""The column with the time from such an event to the issue; -1: there was none."""
NEVER: Final = -1
_EVENTS: Final[Mapping[str, int]] = {
    "block_bio_queue": QUEUED, "block_getrq": GOT, "block_rq_insert": INSERTED,
    "block_rq_issue": ISSUED, "block_rq_complete": COMPLETED, "block_rq_requeue": REQUEUED,
    "block_bio_backmerge": MERGED, "block_bio_frontmerge": MERGED,
}  # fmt: skip
_OF_BLKTRACE: Final[Mapping[str, int]] = {
    "queue": QUEUED, "getrq": GOT, "insert": INSERTED, "issue": ISSUED, "complete": COMPLETED,
    "requeue": REQUEUED, "backmerge": MERGED, "frontmerge": MERGED,
}  # fmt: skip
_SECTOR_SHIFT: Final = 9
_MINOR_BITS: Final = 20
_NAMES: Final = ("act", "device", "sector", "sectors", "rwbs", "pid", "error", "comm")
# lttng-modules, include/lttng/blktrace: bits of its rwbs, in the order of the kernel's letters.
_OF_LTTNG: Final = ((10, "F"), (1, "D"), (0, "W"), (2, "R"), (9, "F"), (3, "A"), (5, "S"), (6, "M"))


class BlockRequests:
    """Finds the requests of block devices."""

    def __init__(self, setting: Setting) -> None:
        self.counts = Counts()
        self._setting = setting
        self._served = Matcher(self.counts, on_one_cpu=False, alone=True)
        self._waiting: Table = {}
        """What came before an issue that has not come."""

    def take(self, batch: EventBatch, holes: Holes) -> Table | None:
        """See ``Collector``."""
        events = gathered(batch, self._parts(batch), _NAMES)
        if events is None:
            return None
        act = events["act"]
        self.counts.events += int(np.count_nonzero((act == ISSUED) | (act == COMPLETED)))
        before = self._before(events)
        served = np.flatnonzero((act == ISSUED) | (act == COMPLETED) | (act == REQUEUED))
        some = {name: column[served] for name, column in (events | before).items()}
        # A requeued request keeps its end, and its part that is served now is all that is left.
        end_sector = some["sector"] + some["sectors"]
        more = {
            name: some[name]
            for name in (
                "act", "device", "sector", "sectors", "rwbs", "pid", "error", "row", "comm",
                *_BEFORE.values(),
            )
        }  # fmt: skip
        pairs = self._served.take(
            Events(
                some["time"], some["cpu"], hashed([some["device"], end_sector]),
                some["act"] == ISSUED, more,
            ),
            holes,
        )  # fmt: skip
        done = pairs.end["act"] == COMPLETED
        begin, end = some_of(pairs.begin, done), some_of(pairs.end, done)
        return _table(begin, end, pairs.complete[done], holes)

    def finish(self) -> None:
        """See ``Collector``."""
        self._served.finish()

    def _parts(self, batch: EventBatch) -> Iterator[Part]:
        for rows in batch.by_type():
            event = rows.event_type
            if event.system == SYSTEM:
                act = _OF_BLKTRACE.get(event.name.removesuffix("_cgroup"))
                found = None if act is None else _of_record(rows)
                if found is not None and act == ISSUED:
                    found["comm"] = self._setting.comms(batch, rows.rows)
            else:
                act = _EVENTS.get(event.name)
                found = None if act is None else _of_tracepoint(rows)
            if act is not None and found is not None:
                yield Part(rows.rows, {"act": np.full(len(rows), act, np.int8), **found})

    def _before(self, events: Table) -> Table:
        """Return for each event how long before it its request was queued, got and inserted."""
        names = ("time", "act", "key")
        act = events["act"]
        rows = np.flatnonzero((act != COMPLETED) & (act != REQUEUED))
        new = {"time": events["time"][rows], "act": act[rows],
               "key": hashed([events["device"][rows], events["sector"][rows]])}  # fmt: skip
        count = len(self._waiting.get("time", ()))
        if count:
            new = {name: np.concatenate((self._waiting[name], new[name])) for name in names}
        order = stable_order(new["key"])
        key, act, time = (new[name][order] for name in ("key", "act", "time"))
        first = firsts_of(key)
        # An issue, or a merge, ends what came before it.
        ends = (act == ISSUED) | (act == MERGED)
        ended = np.append(-1, latest(ends, first)[:-1])
        ended[first] = -1
        found = {}
        for stage, name in _BEFORE.items():
            at = latest(act == stage, first)
            there = (at > ended) & (at >= 0)
            waited = time.view(np.int64) - time[np.maximum(at, 0)].view(np.int64)
            column = np.full(len(events["time"]), NEVER, np.int64)
            mine = order >= count
            column[rows[order[mine] - count]] = np.where(there, waited, NEVER)[mine]
            found[name] = column
        left = np.sort(order[np.flatnonzero(_after_last_end(ends, key))])[-MOST_OPEN:]
        self._waiting = {name: new[name][left] for name in names}
        return found


def _table(begin: Table, end: Table, complete: Mask, holes: Holes) -> Table:
    waits = {name: begin[name] for name in _BEFORE.values()}
    longest = np.maximum.reduce([np.zeros(len(complete), np.int64), *waits.values()])
    lost = holes.of_any(begin["time"] - longest.view(np.uint64), begin["time"])
    return {
        "begin_ns": begin["time"],
        "end_ns": end["time"],
        "duration_ns": duration_ns(begin["time"], end["time"]),
        "cpu": end["cpu"],
        "device": _device_names(begin["device"]),
        "sector": begin["sector"].view(np.uint64),
        "bytes": begin["sectors"] << _SECTOR_SHIFT,
        "rwbs": begin["rwbs"],
        "pid": begin["pid"].astype(np.int32),
        "comm": begin["comm"],
        "error": end["error"].astype(np.int32),
        **{name: np.where(lost, NEVER, column) for name, column in waits.items()},
        "complete": complete,
    }


def _device_names(device: I64) -> Column:
    values, which = np.unique(device, return_inverse=True)
    texts = [b"%d,%d" % (v >> _MINOR_BITS, v & (1 << _MINOR_BITS) - 1) for v in values.tolist()]
    return np.array(texts or [b""], np.bytes_)[which.reshape(-1)]


def _after_last_end(ends: Mask, key: I64) -> Mask:
    """Return which rows of sorted keys come after the last marked one of their key."""
    last = lasts_of(key)
    reversed_ends = np.flatnonzero(ends)
    group = np.cumsum(np.append(0, last[:-1]))
    at = np.full(int(group[-1]) + 1 if len(group) else 0, -1, np.int64)
    at[group[reversed_ends]] = reversed_ends
    return np.arange(len(key)) > at[group] if len(key) else np.zeros(0, np.bool_)


def _of_tracepoint(rows: EventRows) -> dict[str, Column] | None:
    device, sector, count = (numbers(rows, name) for name in ("dev", "sector", "nr_sector"))
    if device is None or sector is None or count is None:
        return None
    flags = numbers(rows, "rwbs")
    error = numbers(rows, "error", "errors")
    return {
        "device": device, "sector": sector, "sectors": count,
        "rwbs": strings(rows, "rwbs") if flags is None else _letters(flags),
        "pid": rows.pid.astype(np.int64),
        "comm": strings(rows, "comm"),
        **({} if error is None else {"error": error}),
    }  # fmt: skip


def _of_record(rows: EventRows) -> dict[str, Column] | None:
    device, sector, size = (numbers(rows, name) for name in ("device", "sector", "bytes"))
    error = numbers(rows, "error")
    if device is None or sector is None or size is None or error is None:
        return None  # a record that ends early
    return {
        "device": device, "sector": sector, "sectors": size >> _SECTOR_SHIFT,
        "rwbs": letters_of(rows.records), "pid": rows.pid.astype(np.int64), "error": error,
    }  # fmt: skip


def _letters(flags: I64) -> Column:
    values, which = np.unique(flags, return_inverse=True)
    texts = [
        "".join(letter for bit, letter in _OF_LTTNG if value >> bit & 1) or "N"
        for value in values.tolist()
    ]
    return np.array(texts or [""], np.bytes_)[which.reshape(-1)]
