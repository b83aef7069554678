"""Compare the counts of lttds that are killed one after the other with a model of the kernel's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lttd.roll import MOST_UNCLOSED
from lttd.sources.base import Owner, Stored
from lttd.sources.ftrace.killed import Unstored, unstored
from lttd.sources.ftrace.loss import LossCounts, Mark
from lttd.sources.ftrace.marks import ProgressMarks
from lttd.sources.ftrace.record import Progress
from lttd.sources.ftrace.ring import Ring
from lttd.subbuffer import ROW_DTYPE, Gap, Reason, Rows, StreamId, StreamInfo

NAME = "ftrace_0"
EVENTS = 10  # in each sub-buffer


@dataclass
class Kernel:
    """The ring of one CPU: sub-buffers that wait, and the kernel's counters."""

    now: int = 1000
    overrun: int = 0
    dropped: int = 0
    read: int = 0
    untold: int = 0
    waiting: list[int] = field(default_factory=list)
    """The times at which they begin."""

    def clock(self) -> int:
        self.now += 1
        return self.now

    def fields(self) -> dict[str, int]:
        return {
            "entries": len(self.waiting) * EVENTS,
            "overrun": self.overrun,
            "dropped events": self.dropped,
            "read events": self.read,
            "oldest event ts": self.waiting[0] if self.waiting else self.now,
        }

    def write(self, subbuffers: int) -> None:
        self.waiting += (self.clock() for _ in range(subbuffers))

    def overwrite(self, events: int) -> None:
        self.overrun += events
        self.untold += events

    def take(self, most: int, *, room: bool) -> tuple[Rows, list[tuple[int, int | None]]]:
        taken, self.waiting = self.waiting[:most], self.waiting[most:]
        rows = np.zeros(len(taken), ROW_DTYPE)
        rows["begin"] = taken
        missed = [(0, self.untold if room else None)] if self.untold and taken else []
        self.untold = 0 if taken else self.untold
        self.read += len(taken) * EVENTS
        return rows, missed


class Counts:
    """See RingCounts."""

    foreign_read_events = 0

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def read(self) -> dict[str, int]:
        return self._kernel.fields()

    def took(self, events: int | None, *, partial: bool) -> None: ...

    def look_for_others(self) -> int:
        return 0


@dataclass
class Batch:
    """What a recorder was given at once."""

    segment: int
    first: int
    rows: int
    gaps: tuple[Gap, ...]

    def part(self, rows: int) -> "Batch":
        """Return what a kill leaves of it, which has its gaps and some of its rows."""
        gaps = tuple(replace(gap, row=min(gap.row, rows)) for gap in self.gaps)
        return replace(self, rows=min(rows, self.rows), gaps=gaps)


class Life:
    """One run of lttd, until it is killed."""

    info = StreamInfo(StreamId("ftrace", 0), "ftrace", 4096, 16)
    over = False

    def __init__(self, kernel: Kernel, *, previous_run: bool) -> None:
        self.kernel = kernel
        self.ring = Ring(0, Counts(kernel), kernel.clock, previous_run=previous_run)  # type: ignore[arg-type]
        self.first_mark = Mark(0, self.ring.read_events_before, self.ring.accounted())
        self.taken = 0
        self.batches: list[Batch] = []
        self.segment = self.oldest = 0
        self.marks = ProgressMarks()
        self.safe = 0
        """So many batches are in closed segments."""

    def mark(self, *, with_last_gaps: bool = False) -> Mark:
        lost = self.ring.accounted(with_last_gaps=with_last_gaps)
        return Mark(self.taken, self.kernel.read, lost)

    def inherit(self, lost: Unstored) -> None:
        self.ring.inherit(lost.taken, lost.lost, lost.begin)
        self.first_mark = Mark(
            0, self.ring.read_events_before - (lost.taken or 0), self.ring.accounted()
        )

    def take(self, most: int, *, room: bool) -> None:
        before = self.kernel.now
        self.ring.sample()
        rows, missed = self.kernel.take(most, room=room)
        if not len(rows):
            self.ring.page_turned()
            return self.ring.ran_dry()
        self.ring.took(len(rows), None, partial=False)
        self.ring.try_to_sample(before)
        self._give(len(rows), self.ring.place(rows, missed))
        return None

    def tick(self) -> None:
        self._give(0, self.ring.ticked())

    def _give(self, rows: int, gaps: tuple[Gap, ...]) -> None:
        if rows or gaps:
            self.batches.append(Batch(self.segment, self.taken, rows, gaps))
            self.taken += rows

    def note(self) -> None:
        self.marks.follow(str(self.oldest), [self])  # type: ignore[list-item]

    def roll(self) -> None:
        if self.segment - self.oldest < MOST_UNCLOSED:
            self.segment += 1
            self.marks.rolled(str(self.segment), self)  # type: ignore[arg-type]

    def close(self) -> None:
        if self.oldest < self.segment:
            self.oldest += 1
            self.safe = sum(batch.segment < self.oldest for batch in self.batches)
            self.note()

    def end(self) -> None:
        while self.kernel.waiting:
            self.take(2, room=True)
        self._give(0, self.ring.ended(producers_stopped=True, is_dry=True))

    def killed(self, stored: int, rows: int) -> None:
        """Keep what is stored."""
        stored = max(stored, self.safe)
        self.batches[stored:] = [batch.part(rows) for batch in self.batches[stored : stored + 1]]

    def stored(self, segment: str, _stream: str, first: int) -> Stored | None:
        some = [batch for batch in self.batches if batch.segment >= int(segment)]
        behind = max((batch.first + batch.rows for batch in some), default=0)
        if first and not any(batch.first < first <= batch.first + batch.rows for batch in some):
            rolled_at = min((batch.first for batch in some), default=first)
            if first != rolled_at:
                return None
        events = sum(
            EVENTS * max(0, batch.first + batch.rows - max(batch.first, first)) for batch in some
        )
        lost: dict[Reason, int] = {}
        for batch in some:
            for gap in batch.gaps:
                if min(batch.first + gap.row, behind) >= first:
                    lost[gap.reason] = lost.get(gap.reason, 0) + (gap.count or 0)
        return Stored(events + (0 if first else lost.get(Reason.KILLED, 0)), 0, lost)

    def next_life(self) -> "Life":
        progress = Progress(str(self.oldest), self.marks.by_stream, 0.0)
        life = Life(self.kernel, previous_run=True)
        now = Mark(0, self.kernel.read, LossCounts.of(self.kernel.fields()))
        missing = unstored(NAME, now, progress, Owner(1, 1, "t", stored=self.stored))
        assert missing is not None
        assert missing.taken is not None, "nobody cleared the counters"
        life.inherit(missing)
        life.note()
        return life


def totals(lives: list[Life]) -> Mapping[Reason | str, int]:
    found: dict[Reason | str, int] = {"stored": 0}
    for batch in (batch for life in lives for batch in life.batches):
        found["stored"] += batch.rows * EVENTS
        for gap in batch.gaps:
            assert gap.begin <= gap.end
            found[gap.reason] = found.get(gap.reason, 0) + (gap.count or 0)
    return found


Action = tuple[object, ...]
ACTION = st.one_of(
    st.tuples(st.just("write"), st.integers(1, 5)),
    st.tuples(st.just("overwrite"), st.integers(1, 1000)),
    st.tuples(st.just("refuse"), st.integers(1, 1000)),
    st.tuples(st.just("take"), st.integers(1, 4), st.booleans()),
    *(st.tuples(st.just(name)) for name in ("tick", "note", "roll", "close")),
)
LIFE = st.tuples(st.lists(ACTION, max_size=20), st.integers(0, 20), st.integers(0, 4))


TAKE: Action = ("take", 1, True)
GAP_AFTER_ROWS: list[Action] = [("write", 1), TAKE, ("overwrite", 5), TAKE, ("tick",)]


@example(lives=[([*GAP_AFTER_ROWS, ("note",)], 20, 4)], overwritten=3)
@example(lives=[([*GAP_AFTER_ROWS, ("write", 1), TAKE, ("note",)], 20, 4)], overwritten=3)
@example(lives=[([*GAP_AFTER_ROWS, ("roll",), ("close",), ("note",)], 20, 4)], overwritten=3)
@settings(max_examples=300, deadline=None)
@given(lives=st.lists(LIFE, min_size=1, max_size=3), overwritten=st.integers(0, 2000))
def test_any_kills_lose_exactly_what_the_kernel_counted(
    lives: list[tuple[list[Action], int, int]], overwritten: int
) -> None:
    kernel = Kernel()
    life = Life(kernel, previous_run=False)
    life.note()
    all_lives = [life]
    for actions, stored, rows in lives:
        do: Mapping[str, Callable[..., None]] = {
            "write": kernel.write,
            "overwrite": kernel.overwrite,
            "refuse": lambda count: setattr(kernel, "dropped", kernel.dropped + count),
            "take": lambda most, room, life=life: life.take(most, room=room),
            **{name: getattr(life, name) for name in ("tick", "note", "roll", "close")},
        }
        for name, *arguments in actions:
            do[str(name)](*arguments)
        life.killed(stored, rows)
        kernel.overwrite(overwritten)
        life = life.next_life()
        all_lives.append(life)
    life.end()
    found = totals(all_lives)
    assert found.get(Reason.OVERWRITTEN, 0) == kernel.overrun
    assert found.get(Reason.DROPPED, 0) == kernel.dropped
    assert found["stored"] + found.get(Reason.KILLED, 0) == kernel.read
