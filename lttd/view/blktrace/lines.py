"""Make lines of block trace batches, as ``blkparse`` prints them by default:

    <major>,<minor> <cpu> <sequence> <seconds>.<ns> <pid> <action> <rwbs> <details of the action>

Source of the form: blktrace's blkparse_fmt.c, process_default(), and blkparse.c, handle_notify().

Rule: each line equals blkparse's line.  Notes on processes and the time, and drivers' binary data,
have no line.  Records on which blkparse gives up ("Bad fs action": a cgroup, or an unknown action)
have a line here, without the cgroup, and with the action as a number.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi.blktrace import (
    ACT_CGROUP,
    ACT_MASK,
    CATEGORIES,
    CATEGORY_SHIFT,
    CGROUP_BYTES,
    NOTIFY,
    layout_of,
    record_dtype,
    records_at,
)
from lttd.abi.gather import gather
from lttd.terminal import printable_bytes
from lttd.view.columns import EventBatch
from lttd.view.family import Block
from lttd.view.glyphs import decimal, per_distinct
from lttd.view.lines import BlockTexter, Body, body_of
from lttd.view.strips import Column, Strip, right_aligned, words_of
from lttd.view.task_names import UNKNOWN, Names

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

_LETTERS: Final = {
    1: b"Q", 2: b"M", 3: b"F", 4: b"G", 5: b"S", 6: b"R", 7: b"D", 8: b"C", 9: b"P", 10: b"U",
    11: b"UT", 12: b"I", 13: b"X", 14: b"B", 15: b"A",
}  # fmt: skip
_ACTS: Final = np.array([b"%2b " % _LETTERS.get(act, b"%d" % act) for act in range(256)], np.bytes_)
_ENDING: Final = (6, 8)  # R C: the error instead of a name
_UNPLUGS: Final = (10, 11)
_COMMANDED: Final = (1, 6, 7, 8, 12, 14)  # Q R D C I B: other words for passthrough requests
_WITH_PDU: Final = (7, 8, 12)  # D C I
_PLUG, _SPLIT, _REMAP, _DRV_DATA = 9, 13, 15, 17
_MINOR_BITS: Final = 20
_SECTOR_SHIFT: Final = 9
# The text of printf() for a name that blkparse does not know.
_NO_NAME: Final = b"(null)"
_COMMON: Final = record_dtype(8, "=")
# Bits of the table, and bits of the category; bit 3 is "has bytes".
_RWBS_BITS: Final = ("flush", "discard", "write", None, "fua", "ahead", "sync", "meta")


def _rwbs(bits: int) -> bytes:
    """Return the letters of fill_rwbs()."""
    flush, discard, write, has_bytes, fua, ahead, sync, meta = (bits >> at & 1 for at in range(8))
    operation = "D" if discard else "W" if write else "R" if has_bytes else "N"
    return ("F" * flush + operation + "F" * fua + "A" * ahead + "S" * sync + "M" * meta).encode()


_RWBS: Final = np.array([b"%3b " % _rwbs(bits) for bits in range(256)], np.bytes_)


def dump(pdu: bytes) -> bytes:
    """Return bytes in the form of dump_pdu(): in hex, with ``..`` for zeros at the end."""
    if not pdu:
        return b""
    told = len(pdu.rstrip(b"\0"))
    if told == len(pdu):
        return pdu.hex(" ").encode()
    return pdu[: told + 1].hex(" ").encode() + b" .."


class _Events(NamedTuple):
    """The events of a batch as columns."""

    batch: EventBatch
    records: npt.NDArray[np.void]
    act: I64
    """The actions without the cgroup's bit; -1 for a note."""
    passthrough: Mask
    pdu_at: I64
    """The offsets of the pdus in the batch's data."""
    pdu_bytes: I64
    comm: Column
    """The task names as words of a strip."""

    def big(self, rows: I64, size: int, skip: int = 0) -> U64:
        """Return the big-endian numbers at offset *skip* of the pdus; 0 if a pdu is too short."""
        found = np.zeros(len(rows), np.uint64)
        there = self.pdu_bytes[rows] >= skip + size
        at = self.pdu_at[rows][there] + skip
        if len(at):
            found[there] = gather(self.batch.data, at, np.dtype(f">u{size}"))
        return found

    def pdu(self, row: int) -> bytes:
        """Return the pdu of one record."""
        at = int(self.pdu_at[row])
        return bytes(self.batch.data[at : at + int(self.pdu_bytes[row])])


class BlkparseLines(BlockTexter):
    """Makes the lines of one clock group."""

    def __init__(self, names: Names, first_time: Callable[[], int]) -> None:
        """*first_time* returns the time from which times count; called with the first line."""
        self._names = names
        self._first_time = first_time
        self._since: int | None = None
        self._events: _Events | None = None

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[Block]:
        """Yield the lines of *batch*, a block at a time; *most* as for BlockTexter."""
        if not len(batch):
            yield from super().lines(batch, most)
            return
        events = self._columns(batch)
        printed = (events.act >= 0) & (events.act != _DRV_DATA)
        message = _action(events) == (2 | NOTIFY)
        printed |= message & (events.pdu_bytes > 0)
        if most is not None or not printed.all():
            batch = batch.select(np.flatnonzero(printed)[:most])
            if len(batch):
                events = self._columns(batch)
        self._events = events
        yield from super().lines(batch)

    def _columns(self, batch: EventBatch) -> _Events:
        records, head_bytes = _records(batch)
        action = records["action"].astype(np.uint64)
        note = action & np.uint64(NOTIFY) != 0
        cgroup = np.where(action & np.uint64(ACT_CGROUP), CGROUP_BYTES, 0)
        behind = head_bytes + cgroup
        table, pair = self._names.of(batch)
        comms = [
            _NO_NAME if comm == UNKNOWN else printable_bytes(comm)
            for comm in table["comm"].tolist()
        ]
        return _Events(
            batch,
            records,
            np.where(note, -1, (action & np.uint64(ACT_MASK)).astype(np.int64)),
            _has(action, "pc"),
            batch.at + behind,
            batch.payload_bytes.astype(np.int64) - behind,
            words_of(np.array(comms, np.bytes_))[pair],
        )

    def prefix(self, batch: EventBatch) -> Strip:
        """Return the prefixes, up to the letters of the request."""
        events = self._events
        assert events is not None
        records, count = events.records, len(batch)
        if self._since is None:
            self._since = self._first_time()
        since = (batch.time.astype(np.int64) - self._since).clip(0).astype(np.uint64)
        seconds = since // np.uint64(1_000_000_000)
        rest = (since - seconds * np.uint64(1_000_000_000)).astype(np.uint32)
        note = events.act < 0
        device = records["device"].astype(np.uint32)
        remapped = np.flatnonzero(events.act == _REMAP)
        device[remapped] = events.big(remapped, 4, 4)
        sequence = np.where(note, 0, records["sequence"].astype(np.uint32).view(np.int32))
        pid = np.where(note, 0, records["pid"].astype(np.uint32))
        acts = words_of(_ACTS)[np.maximum(events.act, 0)]
        acts[note] = np.void(b" m ".ljust(acts.dtype.itemsize, b"\0"))
        return [
            words_of(per_distinct(device, _device)),
            words_of(per_distinct(batch.cpu, lambda cpu: b" %2d " % cpu)),
            *right_aligned(decimal(sequence), count, 8),
            b" ",
            *right_aligned(decimal(seconds), count, 5),
            b".",
            *decimal(rest, 9),
            b" ",
            *right_aligned(decimal(pid), count, 5),
            b" ",
            acts,
            words_of(_RWBS)[_rwbs_of(records, note)],
        ]

    def bodies(self, batch: EventBatch) -> Iterator[Body]:
        """Yield the bodies: the details of the actions."""
        events = self._events
        assert events is not None
        act = events.act
        sectors = events.records["bytes"].astype(np.uint32) >> _SECTOR_SHIFT
        left = np.ones(len(batch), np.bool_)
        for which, strip in (
            (act < 0, self._message),
            (events.passthrough & np.isin(act, _COMMANDED), self._passthrough),
            (np.isin(act, _ENDING), self._ending),
            (act == _SPLIT, self._split),
            (act == _REMAP, self._remap),
            (np.isin(act, _UNPLUGS), self._unplug),
            ((act == _PLUG) | (sectors == 0), self._named),
            (left, self._sectors),
        ):
            rows = np.flatnonzero(which & left)
            left[rows] = False
            if len(rows):
                yield from strip(events, rows)

    def _sectors(self, events: _Events, rows: I64) -> Iterator[Body]:
        yield body_of(rows, [*_place(events, rows), b" [", events.comm[rows], b"]\n"])

    def _named(self, events: _Events, rows: I64) -> Iterator[Body]:
        yield body_of(rows, [b"[", events.comm[rows], b"]\n"])

    def _ending(self, events: _Events, rows: I64) -> Iterator[Body]:
        has_sectors = events.records["bytes"][rows] >> _SECTOR_SHIFT > 0
        error = events.records["error"].astype(np.uint16)
        with_size, without = rows[has_sectors], rows[~has_sectors]
        for some, place in (
            (with_size, _place(events, with_size)),
            (without, decimal(_sector(events, without))),
        ):
            if len(some):
                yield body_of(some, [*place, b" [", *decimal(error[some]), b"]\n"])

    def _split(self, events: _Events, rows: I64) -> Iterator[Body]:
        new = events.big(rows, 8).astype(np.uint32)
        strip = [*decimal(_sector(events, rows)), b" / ", *decimal(new)]
        yield body_of(rows, [*strip, b" [", events.comm[rows], b"]\n"])

    def _unplug(self, events: _Events, rows: I64) -> Iterator[Body]:
        requests = events.big(rows, 8).astype(np.uint32)
        yield body_of(rows, [b"[", events.comm[rows], b"] ", *decimal(requests), b"\n"])

    def _remap(self, events: _Events, rows: I64) -> Iterator[Body]:
        origin = events.big(rows, 4)
        told = per_distinct(
            origin, lambda dev: b" <- (%d,%d) " % (dev >> _MINOR_BITS, dev & (1 << _MINOR_BITS) - 1)
        )
        sector = events.big(rows, 8, 8)
        yield body_of(rows, [*_place(events, rows), words_of(told), *decimal(sector), b"\n"])

    def _passthrough(self, events: _Events, rows: I64) -> Iterator[Body]:
        """Yield the bodies of requests with a command, which are rare and of any size."""
        told = []
        for row in rows.tolist():
            pdu = dump(events.pdu(row)) if events.act[row] in _WITH_PDU else b""
            shown = b"(%b) " % pdu if pdu else b""
            if events.act[row] in _ENDING:
                told.append(b"%b[%d]\n" % (shown, events.records["error"][row]))
            else:
                comm = events.comm[row].tobytes().rstrip(b"\0")
                told.append(b"%d %b[%b]\n" % (events.records["bytes"][row], shown, comm))
        yield body_of(rows, [words_of(np.array(told, np.bytes_))])

    def _message(self, events: _Events, rows: I64) -> Iterator[Body]:
        said = (events.pdu(row).partition(b"\0")[0].rstrip(b"\n") for row in rows.tolist())
        told = [printable_bytes(text) + b"\n" for text in said]
        yield body_of(rows, [words_of(np.array(told, np.bytes_))])


def _records(batch: EventBatch) -> tuple[npt.NDArray[np.void], I64]:
    """Return the records, and the size of each without its pdu."""
    magics = gather(batch.data, batch.at, np.dtype("V4"))
    records = np.empty(len(batch), _COMMON)
    head_bytes = np.zeros(len(batch), np.int64)
    # There is one layout, unless streams of several machines are printed together.
    for magic in {one.tobytes() for one in np.unique(magics.view("u4")).view("V4")}:
        layout = layout_of(magic)
        assert layout is not None  # each offset is that of a record
        rows = np.flatnonzero(magics == np.void(magic))
        found = records_at(batch.data, batch.at[rows], layout)
        if len(rows) == len(batch) and found.dtype.isnative:
            return found, np.full(len(batch), layout.record_bytes)
        for name in found.dtype.names or ():
            records[name][rows] = found[name]
        head_bytes[rows] = layout.record_bytes
    return records, head_bytes


def _action(events: _Events) -> U64:
    """Return the actions without the cgroup's bit."""
    action: U64 = events.records["action"].astype(np.uint64) & ~np.uint64(ACT_CGROUP)
    return action


def letters_of(records: npt.NDArray[np.void]) -> Column:
    """Return what records of requests do, as letters: ``WS`` for a synchronous write."""
    letters: Column = np.strings.strip(_RWBS)[_rwbs_of(records, np.zeros(len(records), np.bool_))]
    return letters


def _has(action: U64, category: str) -> Mask:
    bit = np.uint64(1 << CATEGORY_SHIFT + CATEGORIES.index(category))
    has: Mask = action & bit != 0
    return has


def _rwbs_of(records: npt.NDArray[np.void], note: Mask) -> I64:
    action = records["action"].astype(np.uint64)
    index = np.zeros(len(records), np.int64)
    for at, category in enumerate(_RWBS_BITS):
        has = records["bytes"] > 0 if category is None else _has(action, category)
        index |= has.astype(np.int64) << at
    return np.where(note, 0, index)


def _device(device: int) -> bytes:
    return b"%3d,%-3d" % (device >> _MINOR_BITS, device & (1 << _MINOR_BITS) - 1)


def _sector(events: _Events, rows: I64) -> U64:
    sector: U64 = events.records["sector"][rows].astype(np.uint64)
    return sector


def _place(events: _Events, rows: I64) -> Strip:
    """Return ``sector + n``."""
    sectors = events.records["bytes"][rows].astype(np.uint32) >> _SECTOR_SHIFT
    return [*decimal(_sector(events, rows)), b" + ", *decimal(sectors)]
