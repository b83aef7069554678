"""After kill -9 each event that the ring lost is counted, also before takes that are not stored."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lttd.index import read_gaps
from lttd.manifest import Manifest
from lttd.subbuffer import Gap, Reason
from lttd.tracedir import segments_below
from tests.instances import mark, read_events, stats_of, unread_events
from tests.killed_runs import BRIEF, NOW, data_of, gaps_of, hanging, notes
from tests.running import QUIET, Launcher, Run, assert_whole, needs_kernel, until

pytestmark = needs_kernel()

# A ring of 16 sub-buffers, which hold some 60 marks each.
SMALL = (*QUIET, "--buffer-size", "64K")
TEXT = "one of many " + "x" * 40
MANY = 3000


def overfill(run: Run, instance: Path) -> None:
    """Write more marks than the ring holds, while lttd does not run."""
    run.signal(signal.SIGSTOP)
    mark(instance, TEXT, MANY)


def take_all(run: Run, instance: Path) -> None:
    """Let lttd take what the ring holds."""
    run.signal(signal.SIGCONT)
    until(lambda: not unread_events(instance), "everything is taken")


def hang(run: Run) -> None:
    """Let the writers of a run hang for ever."""
    (run.out_path.parent / "hang").touch()


def stored_in(trace: Path) -> int:
    return data_of(trace).count(TEXT.encode())


def lost_in(trace: Path) -> Counter[Reason]:
    """Return the number of events in gaps by reason; each of them is known."""
    lost: Counter[Reason] = Counter()
    for gap in gaps_of(trace):
        assert gap.count is not None, gap
        lost[gap.reason] += gap.count
    return lost


def overrun(instance: Path) -> int:
    return stats_of(instance)[0]["overrun"]


@contextmanager
def small_ring(lttd: Launcher, trace: Path, *options: str) -> Iterator[Run]:
    """Yield a run that has stored losses of a small ring; kill it afterwards."""
    with hanging(lttd, trace, *SMALL, *options) as run:
        run.recording()
        overfill(run, run.instance)
        take_all(run, run.instance)
        until(lambda: stored_in(trace) == read_events(run.instance), "they are stored")
        yield run


def take_some(run: Run, instance: Path) -> int:
    """Let lttd take events after others that were overwritten; it stores nothing of that."""
    hang(run)
    before = read_events(instance)
    overfill(run, instance)
    take_all(run, instance)
    return read_events(instance) - before


def assert_balance(trace: Path, overwritten: int, taken: int, written: int) -> None:
    assert not assert_whole(trace, "--events")["findings"]
    assert lost_in(trace) == {Reason.OVERWRITTEN: overwritten, Reason.KILLED: taken}
    assert stored_in(trace) + overwritten + taken == written


def gaps_of_previous_run(trace: Path) -> list[Gap]:
    segments = [
        one
        for one in segments_below(trace)
        if Manifest.read(one.manifest).source.get("previous_run")
    ]
    return [gap for one in segments for gap in read_gaps(one.stream("ftrace_0").gaps)]


def test_what_was_overwritten_before_takes_that_a_kill_lost_is_counted(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with small_ring(lttd, trace) as run:
        for number in range(2):
            run.signal(signal.SIGUSR1)
            until(lambda: len(segments_below(trace)) == number + 2, "it has rolled")  # noqa: B023
        taken = take_some(run, run.instance)
        before = overrun(run.instance)
        overfill(run, run.instance)
        overwritten = overrun(run.instance)
    assert lttd.run("-t", trace, "-a", *BRIEF).process.returncode == 0
    assert_balance(trace, overwritten, taken, 3 * MANY)
    told = {(gap.row, gap.reason): gap.count for gap in gaps_of_previous_run(trace)}
    # The first sub-buffer is the rest of the last one that the killed lttd took.
    assert told.keys() == {
        (0, Reason.KILLED), (0, Reason.OVERWRITTEN), (1, Reason.OVERWRITTEN)
    }  # fmt: skip
    assert told[1, Reason.OVERWRITTEN] == overwritten - before


def test_in_a_ring_that_is_nearly_empty_the_loss_lies_before_the_rest(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with small_ring(lttd, trace) as run:
        taken = take_some(run, run.instance)
        run.stop()
        mark(run.instance, TEXT)
        overwritten = overrun(run.instance)
    assert lttd.run("-t", trace, "-a", *BRIEF).process.returncode == 0
    assert_balance(trace, overwritten, taken, 2 * MANY + 1)
    gaps = gaps_of_previous_run(trace)
    assert [gap.row for gap in gaps] == [0, 0]
    assert len({(gap.begin, gap.end) for gap in gaps}) == 1


def test_an_empty_ring_and_a_disk_that_stored_all_make_no_gap(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with small_ring(lttd, trace) as run:
        run.stop()
        overwritten = overrun(run.instance)
    again = lttd.run("-t", trace, "-a", *BRIEF)
    assert "not stored" not in again.stderr
    assert lost_in(trace) == {Reason.OVERWRITTEN: overwritten}
    assert gaps_of_previous_run(trace) == []


def test_a_ring_that_refuses_events_has_the_number_of_those_that_no_gap_has(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with small_ring(lttd, trace, "--no-overwrite") as run:
        taken = take_some(run, run.instance)
        overfill(run, run.instance)
        refused = stats_of(run.instance)[0]["dropped events"]
    assert lttd.run("-t", trace, "-a", *BRIEF).process.returncode == 0
    assert not assert_whole(trace, "--events")["findings"]
    assert lost_in(trace) == {Reason.DROPPED: refused, Reason.KILLED: taken}
    assert stored_in(trace) + refused + taken == 3 * MANY


def test_a_foreign_ring_gets_the_losses_of_a_kill_once(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    trace, source = tmp_path / "t", ("--source", f"ftrace:{foreign.name}", "--no-trace-self")
    (foreign / "buffer_size_kb").write_text("64")
    mark(foreign, "before lttd came" + TEXT[12:], MANY)
    before, read = overrun(foreign), read_events(foreign)
    with hanging(lttd, trace, *source) as run:
        until((foreign / "set_event_notrace_pid").read_text, "it records")
        until(lambda: not unread_events(foreign), "it has taken what was there")
        first = read_events(foreign) - read
        overfill(run, foreign)
        take_all(run, foreign)
        until(lambda: stored_in(trace) + first == read_events(foreign) - read, "it is stored")
        taken = take_some(run, foreign)
        overfill(run, foreign)
    for _ in range(2):
        again = lttd.run("-t", trace, "-a", *source, *NOW, "--duration", "50ms")
        assert again.process.returncode == 0, again.stderr
        assert_balance(trace, overrun(foreign) - before, taken, 3 * MANY)


def test_a_second_kill_during_the_drain_counts_no_overwritten_event_twice(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with small_ring(lttd, trace) as run:
        taken = take_some(run, run.instance)
        overfill(run, run.instance)
        overwritten = overrun(run.instance)
        taken += unread_events(run.instance)
    for _ in range(2):
        with hanging(lttd, trace, "--append", *QUIET, at_once=True):
            until(lambda: not unread_events(run.instance), "the ring is drained, nothing stored")
    assert lttd.run("-t", trace, "-a", *BRIEF).process.returncode == 0
    assert_balance(trace, overwritten, taken, 3 * MANY)


def test_the_note_of_an_earlier_version_leaves_the_counting_to_the_pages(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace = tmp_path / "t"
    with small_ring(lttd, trace) as run:
        stored = overrun(run.instance)
        taken = take_some(run, run.instance)
        before = overrun(run.instance)
        overfill(run, run.instance)
        told = overrun(run.instance) - before
    (note,) = [path for path in notes(lttd) if path.name.startswith("progress-")]
    progress = json.loads(note.read_text())
    del progress["lost"]
    note.write_text(json.dumps(progress))
    assert lttd.run("-t", trace, "-a", *BRIEF).process.returncode == 0
    assert not assert_whole(trace, "--events")["findings"]
    assert lost_in(trace) == {Reason.OVERWRITTEN: stored + told, Reason.KILLED: taken}


def test_a_window_of_mode_flight_has_its_own_losses_only(lttd: Launcher, tmp_path: Path) -> None:
    trace = tmp_path / "t"
    with hanging(lttd, trace, *SMALL, "--mode", "flight") as run:
        run.recording()
        mark(run.instance, TEXT, MANY)
        unwanted = overrun(run.instance)
        assert unwanted
        run.signal(signal.SIGUSR2)
        until(lambda: not unread_events(run.instance), "the window has begun")
        until(lambda: stored_in(trace) == read_events(run.instance), "it is stored")
        taken = take_some(run, run.instance)
        overfill(run, run.instance)
        lost = overrun(run.instance) - unwanted
    assert lttd.run("-t", trace, "-a", *BRIEF).process.returncode == 0
    found = lost_in(trace)
    assert found == {
        Reason.UNWANTED: unwanted, Reason.OVERWRITTEN: lost, Reason.KILLED: taken
    }  # fmt: skip
    assert stored_in(trace) + found.total() == 3 * MANY


def test_a_loss_of_a_ring_that_nobody_records_again_is_reported_in_a_line(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    trace, source = tmp_path / "t", ("--source", f"ftrace:{foreign.name}", "--no-trace-self")
    (foreign / "buffer_size_kb").write_text("64")
    with hanging(lttd, trace, *source) as run:
        until((foreign / "set_event_notrace_pid").read_text, "it records")
        taken = take_some(run, foreign)
    again = lttd.run("-t", trace, "-a", *BRIEF)
    what = f"of {taken:,} events that a killed lttd took of it and did not store, and of"
    assert f"{what} {MANY - taken:,} that the kernel lost since" in again.stderr
