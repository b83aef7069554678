"""Compare a segment's files with each other, and report each defect with its place.

Rule: check only reports.  It reads the files of a segment that is being recorded in the opposite
order of writing (index, then data), so that growth is not a finding.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lttd.abi.ftrace import NEAR
from lttd.agreement import Agreement, agreements
from lttd.blocks import Block
from lttd.empty_segment import holds_nothing
from lttd.errors import TraceDamagedError
from lttd.index import ENTRY_BYTES, FOREVER, INDEX_HEADER, SeekIndex
from lttd.lockfile import is_locked
from lttd.manifest import Manifest, StreamRecord
from lttd.openat import close_fd
from lttd.stored import StoredStream
from lttd.subbuffer import TAKE_BYTES, Gap, Reason
from lttd.tracedir import SegmentPaths, is_unfinished
from lttd.view.families import family_of
from lttd.view.finding import MOST_FINDINGS, Finding
from lttd.view.notes import Notes
from lttd.view.verify_occurrences import wrong_occurrences

if TYPE_CHECKING:
    from lttd.view.family import Contexts

U64 = npt.NDArray[np.uint64]

# Two and a half times as long as a recorder leaves a manifest alone.
QUIET_NS: Final = 150_000_000_000

_WRONG: Final = {
    "adjoins": "does not begin where the one before it ends",
    "inside": "its bytes are not in the data",
    "in_order": "steps back in time or number",
    "ours": "names another stream",
    "counted": "events_discarded does not grow by the counts of the gaps",
    "size": "the sub-buffer's header says another size",
    "begin": "the sub-buffer's header says another begin",
}
# Reasons for events that the kernel counts as read, but that are not in the file.
_OWN_LOSSES: Final = {
    Reason.REFUSED,
    Reason.DAMAGED,
    Reason.BACKLOG,
    Reason.STORAGE,
    Reason.RATE,
    Reason.TORN,
}
# With one of these, stored and missing events do not add up to those that a killed lttd took.
_UNBALANCED: Final = (_OWN_LOSSES - {Reason.TORN}) | {
    Reason.EMPTIED,
    Reason.FOREIGN_READ,
    Reason.REMOVED,
}


@dataclass(slots=True)
class StreamReport:
    """The counts of one stream."""

    name: str
    subbuffers: int = 0
    data_bytes: int = 0
    events: int | None = None
    """The number of decoded events; None if not requested, or not possible."""
    read_events: int | None = None
    """The kernel's ``read events``."""
    read_events_before: int = 0
    """The kernel's ``read events`` when lttd took the stream over."""
    killed: int | None = 0
    """The events that a killed lttd took before and did not store; None: an unknown number."""
    other_losses: bool = False
    """Whether gaps list events that were read and not stored: by others, or in other units."""


@dataclass(slots=True)
class Report:
    """The findings of one segment."""

    segment: Path
    state: str
    """closed, open (its recorder is gone), live, empty, unreadable, or deleted meanwhile."""
    streams: list[StreamReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    continues: str = ""
    """The name of the segment that a killed lttd recorded from the same rings."""
    rolled_from: str = ""
    """The name of the segment before in the same run."""
    notes: list[str] = field(default_factory=list)
    """Lines on facts that are not damage."""

    @property
    def whole(self) -> bool:
        """Tell whether there is no finding."""
        return not self.findings


def check(segment: SegmentPaths, *, events: bool = False) -> Report:
    """Verify a segment; with *events*, decode every event and count.

    Raises:
        TraceDamagedError: the manifest cannot be read.
    """
    if holds_nothing(segment):
        note = f"{segment.directory}: recording ended before anything was recorded"
        return Report(segment.directory, "empty", notes=[note])
    manifest, state = _with_state(segment)
    continues, rolled_from = (
        str(manifest.source.get(key, "")) for key in ("continues", "rolled_from")
    )
    report = Report(segment.directory, state, continues=continues, rolled_from=rolled_from)
    if state == "open":
        report.findings.append(
            Finding(segment.manifest, 0, "its recorder is gone; lttv check --repair closes it")
        )
    contexts: dict[str, Contexts] = {}
    notes = Notes()
    for record in manifest.streams:
        stream, abi, context = StoredStream(segment, manifest, record), record.info.abi, None
        family = family_of(abi) if stream.abi is not None and stream.abi.needs_context else None
        if events and family is not None:
            if abi not in contexts:
                takes_notes = notes if family.defects is None else Notes()
                contexts[abi] = family.contexts(segment, manifest, takes_notes)
            context = contexts[abi].of(stream)
        _StreamCheck(report, stream, context, growing=state == "live").run(events=events)
    if state == "closed":
        report.findings += wrong_occurrences(segment, manifest, events=events)
    report.notes += notes.told()
    report.findings += _defects_met(contexts)
    known = {record.name for record in manifest.streams}
    for name in _names_of_streams(segment):
        if name not in known | {"metadata"}:
            path = segment.streams / name
            report.findings.append(Finding(path, 0, "the manifest knows no such stream"))
    return report


def _defects_met(contexts: Mapping[str, "Contexts"]) -> Iterator[Finding]:
    """Yield the defects of the files that events of each ABI are decoded with."""
    for abi, some in contexts.items():
        family = family_of(abi)
        if family is not None and family.defects is not None:
            yield from family.defects(some)


def _with_state(segment: SegmentPaths) -> tuple[Manifest, str]:
    """Read the manifest; also return the state: that of the manifest, or live."""
    manifest = Manifest.read(segment.place(segment.manifest))
    if manifest.state != "open":
        return manifest, manifest.state
    if is_live(segment):
        return manifest, "live"
    # Its recorder may have closed it meanwhile, and then let its lock go.
    manifest = Manifest.read(segment.place(segment.manifest))
    return manifest, manifest.state


def _names_of_streams(segment: SegmentPaths) -> list[str]:
    """Return the names in the streams' directory besides the indexes; they may be any."""
    try:
        names = segment.base.names(segment.streams)
    except OSError:
        return []  # reading the streams reports it
    return [name for name in names if name != segment.index.name and not is_unfinished(name)]


def is_live(segment: SegmentPaths) -> bool:
    """Tell whether somebody records an open segment, or recovers it.

    A viewer that may not open the lock file, and does not see its lock in /proc/locks either (that
    is of one pid namespace), goes by the manifest: a recorder renews it every minute.
    """
    lock = segment.place(segment.lock)
    if is_locked(lock):
        return True
    try:
        close_fd(lock.open())
    except FileNotFoundError:
        return False
    except OSError:
        age_ns = time.time_ns() - segment.place(segment.manifest).stat().st_mtime_ns
        return age_ns < QUIET_NS
    return False


class _StreamCheck:
    def __init__(
        self,
        report: Report,
        stream: StoredStream,
        context: Any,  # noqa: ANN401  (the family's own)
        *,
        growing: bool,
    ) -> None:
        self._report = report
        self._stream = stream
        self._context = context
        self._growing = growing
        self._told: dict[str, int] = {}

    def run(self, *, events: bool) -> None:
        line = StreamReport(self._stream.name)
        self._report.streams.append(line)
        gaps: list[Gap] = []
        try:
            entries = self._stream.index
            gaps = self._stream.gaps
        except TraceDamagedError as error:
            self._find(Finding(error.path, error.offset_bytes, error.reason))
            return
        line.subbuffers, line.data_bytes = len(entries), self._stream.data_bytes
        for at, found in agreements(self._stream, entries, gaps):
            self._tell(at, entries, found)
        self._tail(entries, gaps)
        self._books(entries, gaps)
        if events and self._stream.abi is not None:
            self._events(line, entries, gaps)
        for one in self._stream.damage:
            self._find(Finding(one.path, one.offset_bytes, one.reason))

    def _find(self, finding: Finding) -> None:
        """Add a finding; after MOST_FINDINGS with the same words, only add a note."""
        count = self._told[finding.reason] = self._told.get(finding.reason, 0) + 1
        if count <= MOST_FINDINGS:
            self._report.findings.append(finding)
        elif count == MOST_FINDINGS + 1:
            self._report.notes.append(f"{finding.path}: {finding.reason}: and more of these")

    def _tell(self, first: int, entries: SeekIndex, found: Agreement) -> None:
        good = found.right
        if good.all():
            return
        explained = good.copy()
        # One line per entry: the first defect explains the others.
        for rule, holds in zip(found._fields, found, strict=True):
            rows = np.flatnonzero(~holds & ~explained)
            explained |= ~holds
            for row in rows[: MOST_FINDINGS + 1].tolist():
                self._find(self._at_entry(first + row, entries, rule))

    def _at_entry(self, number: int, entries: SeekIndex, rule: str) -> Finding:
        if rule in ("size", "begin", "inside"):
            offset = int(entries[number]["offset_bytes"])
            return Finding(self._stream.data_path, offset, _WRONG[rule], number)
        offset = len(INDEX_HEADER) + number * ENTRY_BYTES
        return Finding(self._stream.index_path, offset, _WRONG[rule], number)

    def _tail(self, entries: SeekIndex, gaps: list[Gap]) -> None:
        """Check that no file has bytes after the last entry."""
        stream = self._stream
        end = 0
        if len(entries):
            last = entries[-1]
            end = int(last["offset_bytes"]) + (int(last["packet_bits"]) >> 3)
        more = stream.data_bytes - end
        if more > 0 and not self._growing:
            self._find(Finding(stream.data_path, end, f"{more} bytes after the last entry"))
        torn = stream.index.torn_bytes
        if torn and not self._growing:
            at = len(INDEX_HEADER) + len(entries) * ENTRY_BYTES
            self._find(Finding(stream.index_path, at, f"{torn} bytes after the last entry"))
        for gap in gaps:
            if gap.row > len(entries) and not self._growing:
                reason = f"a gap lies before entry {gap.row}, which does not exist"
                self._find(Finding(stream.paths.gaps, 0, reason))

    def _books(self, entries: SeekIndex, gaps: list[Gap]) -> None:
        """Check that the manifest's totals are those of index and gaps."""
        said = self._stream.record.summary
        if said is None:
            return
        found = self._stream.derived_summary(entries, gaps)
        for what in ("subbuffers", "payload_bytes", "events_lost"):
            one, other = getattr(said, what), getattr(found, what)
            if one != other:
                reason = f"{self._stream.name}: {what} {one} in the manifest, {other} in the files"
                self._find(Finding(self._report.segment / "trace.json", 0, reason))

    def _events(self, line: StreamReport, entries: SeekIndex, gaps: list[Gap]) -> None:
        """Decode and count all events; compare them with their entries and the kernel's count."""
        stream = self._stream
        line.events = 0
        last_events = entries.column("end")
        for block in stream.blocks(entries):
            for wrong in () if self._told else block.left_out:  # else they have been reported
                self._find(Finding(wrong.path, wrong.offset_bytes, wrong.reason, wrong.row))
            last_events[block.rows] = self._decoded(line, block, gaps)
        if stream.abi is not None and not stream.abi.states_ends and line.events is not None:
            self._bounds(line, entries, last_events)
        line.read_events = _read_events(stream.record)
        line.read_events_before = stream.info.read_events_before
        counts = [gap.count for gap in gaps if gap.reason is Reason.KILLED]
        line.killed = None if None in counts else sum(filter(None, counts))
        line.other_losses = any(gap.reason in _UNBALANCED for gap in gaps)
        if None not in (line.read_events, line.events) and line.read_events != line.events:
            self._compare(line, gaps)

    def _decoded(self, line: StreamReport, block: Block, gaps: list[Gap]) -> U64:
        """Decode and count the events of a block; return the last one's time of each sub-buffer."""
        stream, path, headers = self._stream, self._stream.data_path, block.headers
        assert stream.abi is not None
        decoded = stream.abi.decode(block.data, headers, self._context)
        if decoded.undeclared and line.events is not None:
            first = decoded.undeclared[0]
            what = f"{first.reason}: the stream's events are not counted"
            self._report.notes.append(f"{path}: byte {first.offset_bytes + block.base}: {what}")
        if decoded.events is None:
            line.events = None
        elif line.events is not None:
            line.events += int(decoded.events.sum())
        doubtful = _doubtful(block.entries["begin"].astype(np.uint64), gaps)
        late = (decoded.end > block.entries["end"].astype(np.uint64)) & ~doubtful
        wrong = [(d.row, d.offset_bytes, d.reason) for d in decoded.damage if not doubtful[d.row]]
        wrong += (
            (row, int(headers.offset_bytes[row]), "an event is later than the entry's end")
            for row in np.flatnonzero(late).tolist()
        )
        for row, at, reason in wrong:
            self._find(Finding(path, at + block.base, reason, int(block.rows[row])))
        return decoded.end

    def _bounds(self, line: StreamReport, entries: SeekIndex, last_events: U64) -> None:
        """Check that an entry ends with its events, or at most a take later.

        A later end makes windows larger.  Entries without a known end are left out.
        """
        if not len(entries):
            return
        take_rows = max(TAKE_BYTES // (self._stream.info.subbuffer_bytes or TAKE_BYTES), 1)
        end, begin = entries.column("end"), entries.column("begin")
        # The entry of the next take begins after this one; the last entry has no next one.
        bound = np.full(len(end), last_events.max())
        bound[:-take_rows] = begin[take_rows:]
        bound = np.maximum.accumulate(np.maximum(bound, last_events))
        over = np.where((end > bound) & (end < np.uint64(FOREVER)), end - bound, np.uint64(0))
        count = int((over > np.uint64(NEAR)).sum())
        if count:
            self._report.notes.append(
                f"{line.name}: {count:,} of {len(end):,} entries end up to"
                f" {int(over.max()) / 1e9:.3f} s after their last events: a window there reads more"
                " than it needs"
            )

    def _compare(self, line: StreamReport, gaps: list[Gap]) -> None:
        assert line.events is not None
        assert line.read_events is not None
        words = f"{line.events} events decoded, the kernel counted {line.read_events} as read"
        foreign = [gap.count for gap in gaps if gap.reason is Reason.FOREIGN_READ]
        missing = line.read_events - line.events - sum(count or 0 for count in foreign)
        reasons = {gap.reason for gap in gaps}
        if not missing:
            self._report.notes.append(f"{line.name}: {words}; another process read the others")
            return
        if missing > 0 and (reasons & _OWN_LOSSES or None in foreign):
            self._report.notes.append(f"{line.name}: {words}; the gaps list the missing ones")
            return
        if Reason.EMPTIED in reasons:
            # Emptying a ring sets its counters to 0, at an unknown moment.
            self._report.notes.append(f"{line.name}: {words}; another process emptied the ring")
            return
        if missing > 0 and self._told:
            self._report.notes.append(f"{line.name}: {words}; damaged events cannot be counted")
            return
        guess = ": another process reads this buffer, too" if missing > 0 else ""
        self._find(Finding(self._stream.data_path, 0, words + guess))


def _doubtful(begins: U64, gaps: list[Gap]) -> npt.NDArray[np.bool_]:
    """Return a mask of the entries that may have another process's clock or sub-buffer size.

    Such a change empties the ring, and lttd notices it a moment later.  The gap of unknown number
    spans that time, and at most one tick more.
    """
    found = np.zeros(len(begins), np.bool_)
    for gap in gaps:
        if gap.reason is Reason.EMPTIED:
            found |= (begins >= np.uint64(gap.begin)) & (begins <= np.uint64(gap.end))
    return found


def _read_events(record: StreamRecord) -> int | None:
    value = record.counters.get("read events")
    return int(value) if value is not None else None
