"""The store: its catalogue is what is on disk, and its limits hold."""

import cProfile
import os
import pstats
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lttd.beneath import OpenDirectory
from lttd.catalogue import StoreState
from lttd.clock import Snapshot
from lttd.errors import LttdError
from lttd.files import Disk
from lttd.kept import BY_PERSON, read_kept
from lttd.lockfile import Lock
from lttd.manifest import says_closed, this_machine
from lttd.retention import Limits
from lttd.store import NO_LIMITS, Store
from lttd.terminal import Level
from lttd.tracedir import SegmentPaths, segments_below
from lttd.trigger import Trigger
from tests.segment_builder import Made, segment_at, subbuffer

SECOND = 1_000_000_000
WALL_NS = 1_700_000_000 * SECOND
PADDING_BYTES = 1 << 20


class Clock:
    """CLOCK_BOOTTIME, in seconds."""

    def __init__(self) -> None:
        self.boot_s = 1000.0

    def __call__(self) -> int:
        return int(self.boot_s * SECOND)


class Bench:
    """A trace with segments of about 1 MiB, ten seconds each, and a store of it."""

    def __init__(self, trace: Path) -> None:
        self.trace, self.clock, self.lines = trace, Clock(), list[str]()
        trace.mkdir(mode=0o750)
        self.disk = Disk()

    def store(self, limits: Limits = NO_LIMITS, *, read: bool = True) -> Store:
        found = Store(self.disk, self.trace, limits, self.say, self.clock)
        if read:
            found.read()
        return found

    def say(self, line: str, _: Level) -> None:
        self.lines.append(line)

    def segment(self, number: int, *, source: str = "fake", is_open: bool = False) -> Made:
        made = Made(self.trace, number=number, disk=self.disk)
        made.manifest.source |= {"spec": source, "live": True}
        made.manifest.machine = this_machine()
        made.manifest.clock_snapshots = [_snapshot(10 * number), _snapshot(10 * number + 10)]
        made.append([subbuffer(0)])
        (made.paths.directory / "attached").write_bytes(b"x" * PADDING_BYTES)
        if not is_open:
            made.finish()
        else:
            made.write_manifest()
        return made

    def numbers(self) -> list[int]:
        return [segment.number for segment in segments_below(self.trace)]


def _snapshot(boot_s: int) -> Snapshot:
    return Snapshot(0, 0, boot_s * SECOND, WALL_NS + boot_s * SECOND, 0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "t")


def du(path: Path) -> int:
    return sum(each.lstat().st_blocks for each in (path, *path.rglob("*"))) * 512


def test_the_catalogue_is_what_is_on_disk(bench: Bench) -> None:
    for number in (3, 4, 5):
        bench.segment(number)
    (bench.trace / "notes").write_bytes(b"x" * 10_000)
    (bench.trace / "dir").mkdir()
    state = bench.store().state()
    segments = [segment.directory for segment in segments_below(bench.trace)]
    assert state == StoreState(
        segments=3,
        allocated_bytes=sum(map(du, segments)),
        kept_segments=0,
        kept_bytes=0,
        deletions=dict.fromkeys(("age", "size", "kept_size", "free", "full"), 0),
        reach_seconds=970.0,
        compression_backlog=0,
    )


def test_the_oldest_go_until_the_rest_is_within_the_size_and_a_start_says_so(bench: Bench) -> None:
    for number in range(1, 7):
        bench.segment(number)
    store = bench.store(Limits(size_bytes=4 << 20))
    store.enforce()
    assert bench.numbers() == [4, 5, 6]
    assert store.state().allocated_bytes <= 4 << 20
    assert store.state().deletions["size"] == 3
    (line,) = bench.lines
    assert line == f"{bench.trace}: deleting 3 segments of 3.1 MiB, by the limits on size"


def test_a_deletion_costs_as_much_however_many_segments_there_are(tmp_path: Path) -> None:
    calls = []
    for count in (20, 150):
        bench = Bench(tmp_path / f"{count}")
        for number in range(1, count + 1):
            made = Made(bench.trace, number=number, disk=bench.disk)
            made.append([subbuffer(0)])
            made.finish()
        bench.disk = Disk()  # the first one holds every segment
        store = bench.store(Limits(size_bytes=20_000))
        profile = cProfile.Profile()
        profile.runcall(store.step, within_s=1000.0)  # by one plan
        left = len(bench.numbers())
        assert left < 10
        calls.append(pstats.Stats(profile).total_calls / (count - left))  # type: ignore[attr-defined]
    assert calls[1] < 1.1 * calls[0]


def test_without_limits_an_end_does_not_wait_for_the_catalogue(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.segment(number)
    store = bench.store(read=False)
    store.enforce()
    assert (bench.numbers(), store.catalogue.unread) == ([1, 2, 3], 3)


def test_nothing_is_deleted_before_the_whole_catalogue_is_known(bench: Bench) -> None:
    for number in range(1, 7):
        bench.segment(number)
    store = bench.store(Limits(size_bytes=4 << 20), read=False)
    steps = 0
    while bench.numbers() == [1, 2, 3, 4, 5, 6]:
        assert store.step(within_s=0)
        steps += 1
    assert steps == 7
    assert not bench.store().step()


def test_a_segment_that_is_recorded_counts_and_never_goes(bench: Bench) -> None:
    for number in range(1, 4):
        bench.segment(number)
    store = bench.store(Limits(size_bytes=3 << 20))
    made = bench.segment(4, is_open=True)
    store.opened(made.paths)
    (made.paths.directory / "attached").write_bytes(b"x" * (4 << 20))
    store.enforce()
    assert bench.numbers() == [4]
    store.enforce()
    (line,) = bench.lines[1:]
    assert line.startswith(f"{bench.trace}: max-size is out of reach: 4.")
    assert line.endswith(" cannot be deleted: open segments, or parts left")
    (made.paths.directory / "attached").unlink()
    store.closed(made.finish().paths)
    store.enforce()
    assert bench.lines[-1] == f"{bench.trace}: max-size is reached again"
    assert bench.numbers() == [4]


def test_age_is_measured_by_the_time_since_boot_alone(bench: Bench) -> None:
    for number in range(1, 5):
        bench.segment(number)
    bench.clock.boot_s = 60
    store = bench.store(Limits(age_ns=35 * SECOND))
    store.enforce()
    assert bench.numbers() == [2, 3, 4]
    bench.clock.boot_s = 71
    store.enforce()
    assert bench.numbers() == [3, 4]
    assert store.state().deletions["age"] == 2


def test_damaged_and_empty_segments_count_and_go_in_their_turn(bench: Bench) -> None:
    for number in range(1, 5):
        bench.segment(number)
    one, two, *_ = segments_below(bench.trace)
    one.manifest.unlink()
    two.manifest.write_text("{")
    store = bench.store(Limits(size_bytes=5 << 20))
    assert store.state().segments == 4
    store.enforce()
    assert bench.numbers() == [1, 2, 3, 4]
    store.limits = Limits(size_bytes=5 << 19)
    store.enforce()
    assert bench.numbers() == [3, 4]


@pytest.mark.parametrize("prefix", [".gone-", ".next-"])
def test_what_a_kill_left_hidden_is_counted_and_removed_at_the_start(
    bench: Bench, prefix: str
) -> None:
    bench.segment(1)
    left = bench.segment(2).paths.directory
    hidden = left.rename(left.with_name(f"{prefix}{left.name}"))
    (hidden / "trace.json").unlink()
    store = bench.store(read=False)
    assert store.step(within_s=0)
    assert not hidden.exists()
    store.read()
    assert store.state().segments == 1
    assert store.state().deletions["size"] == 0


def test_segments_count_before_the_catalogue_is_read(bench: Bench) -> None:
    for number in range(1, 4):
        bench.segment(number)
    store = bench.store(read=False)
    assert store.state().segments == 3
    store.read()
    assert store.state().segments == 3


def test_a_segment_that_is_made_ahead_counts_and_is_no_segment(bench: Bench) -> None:
    made = bench.segment(1).paths.directory
    store = bench.store()
    before = store.state()
    hidden = made.with_name(f".next-{made.name}")
    shutil.copytree(made, hidden)
    store.prepared(SegmentPaths(hidden, OpenDirectory.open(bench.trace)))
    state = store.state()
    assert (state.segments, state.allocated_bytes) == (1, 2 * before.allocated_bytes)
    hidden.rename(made.with_name(made.name.replace("000001", "000002")))
    store.opened(segments_below(bench.trace)[1])
    state = store.state()
    assert (state.segments, state.allocated_bytes) == (2, 2 * before.allocated_bytes)


def test_kept_segments_stay_and_count_for_a_limit_of_their_own(bench: Bench) -> None:
    for number in range(1, 7):
        bench.segment(number)
    store = bench.store()
    assert store.keep([2, 3]) == [2, 3]
    store.limits = Limits(size_bytes=5 << 19, kept_bytes=5 << 19)
    store.enforce()
    assert bench.numbers() == [2, 3, 5, 6]
    state = store.state()
    assert (state.kept_segments, state.reach_seconds) == (2, 950.0)
    assert state.kept_bytes <= 5 << 19
    assert read_kept(segments_below(bench.trace)[0]) == BY_PERSON
    # Also for the next run.
    again = bench.store(store.limits)
    again.enforce()
    assert bench.numbers() == [2, 3, 5, 6]
    again.release([2, 3])
    again.enforce()
    assert bench.numbers() == [5, 6]


def test_above_their_limit_those_that_only_http_keeps_go_first_and_that_is_reported(
    bench: Bench,
) -> None:
    for number in range(1, 6):
        bench.segment(number)
    store = bench.store(Limits(kept_bytes=5 << 19))
    store.keep([1])
    http = Trigger("slow", {}, by="http", at_ns=1, before_ns=1, after_ns=1, number=1)
    store.keep([2, 3], http)
    store.keep([3], replace(http, by="command", number=2))
    store.enforce()
    assert bench.numbers() == [1, 3, 4, 5]
    (line,) = bench.lines
    assert "-000002-fake: kept, and deleted because all kept segments exceed max-kept-size" in line
    assert store.state().deletions["kept_size"] == 1


def test_a_file_of_reasons_that_cannot_be_read_keeps_its_segment(bench: Bench) -> None:
    bench.segment(1).paths.kept.write_text("{")
    bench.segment(2)
    bench.segment(3)
    store = bench.store(Limits(size_bytes=0))
    store.enforce()
    assert bench.numbers() == [1, 3]
    assert "kept.json" in bench.lines[0]


def test_no_segment_in_the_window_of_an_accepted_trigger_goes(bench: Bench) -> None:
    for number in range(1, 7):
        bench.segment(number)
    store = bench.store()
    # Segment 3 ends at 40 s, and 4 begins there.
    token = store.catalogue.protect(45 * SECOND)
    store.limits = Limits(size_bytes=0, age_ns=0)
    store.enforce()
    assert bench.numbers() == [4, 5, 6]
    assert [one.number for one in store.catalogue.in_window(45 * SECOND, 55 * SECOND)] == [4, 5]
    store.keep([4], Trigger("", {}, by="signal", at_ns=1, before_ns=1, after_ns=1, number=1))
    store.catalogue.unprotect(token)
    store.enforce()
    assert bench.numbers() == [4]


def test_keeping_what_is_not_there_is_refused_to_a_person_and_skipped_for_a_trigger(
    bench: Bench,
) -> None:
    bench.segment(1)
    store = bench.store()
    for ask in (store.keep, store.release):
        with pytest.raises(LttdError, match="segment 7: there is none in "):
            ask([1, 7])
    assert not store.catalogue.all_kept()
    trigger = Trigger("", {}, by="signal", at_ns=1, before_ns=1, after_ns=1, number=1)
    assert store.keep([1, 7], trigger) == [1]
    assert [kept.triggers for kept in store.catalogue.all_kept()] == [(trigger,)]


def test_a_full_disk_takes_the_oldest_and_never_the_newest_two_of_a_source(bench: Bench) -> None:
    for number in range(1, 4):
        bench.segment(number)
    bench.segment(4, source="other")
    store = bench.store()
    assert store.make_room() >= PADDING_BYTES
    assert store.make_room() == 0
    assert bench.numbers() == [2, 3, 4]
    assert store.state().deletions["full"] == 1


def test_too_little_free_space_never_takes_the_newest_two_and_is_reported_once(
    bench: Bench,
) -> None:
    for number in range(1, 5):
        bench.segment(number)
    store = bench.store(Limits(free_bytes=1 << 60))
    store.enforce()
    store.enforce()
    assert bench.numbers() == [3, 4]
    line = bench.lines[-1]
    assert line.startswith(f"{bench.trace}: min-free is out of reach: ")
    assert line.endswith(" are free, and only segments that must stay are left")
    assert bench.lines.count(line) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_cannot_be_removed_is_reported_once_counted_and_left_alone(bench: Bench) -> None:
    for number in range(1, 5):
        bench.segment(number)
    theirs = segments_below(bench.trace)[0].directory / "streams"
    os.chown(theirs, 12345, 12345)
    store = bench.store(Limits(size_bytes=5 << 19))
    for _ in range(3):
        store.enforce()
    assert bench.numbers() == [1, 4]
    assert len([line for line in bench.lines if "left as it is" in line]) == 1
    assert theirs.is_dir()
    assert store.state().deletions["size"] == 2


def test_a_segment_that_somebody_removed_is_forgotten_and_not_counted_as_deleted(
    bench: Bench,
) -> None:
    for number in range(1, 4):
        bench.segment(number)
    store = bench.store(Limits(size_bytes=5 << 19))
    os.rename(segments_below(bench.trace)[0].directory, bench.trace.parent / "moved")
    store.enforce()
    assert bench.numbers() == [2, 3]
    assert sum(store.state().deletions.values()) == 0


def test_a_disk_that_refuses_to_rename_is_asked_again_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        bench.segment(number)
    store = bench.store(Limits(size_bytes=5 << 19))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        store.enforce()
    assert bench.numbers() == [1, 2, 3]
    assert "Input/output error" in bench.lines[-1]
    store.enforce()
    assert bench.numbers() == [2, 3]


def test_a_compressed_segment_is_measured_again(bench: Bench) -> None:
    made = bench.segment(1)
    store = bench.store()
    before = store.state().allocated_bytes
    (made.paths.directory / "attached").unlink()
    store.changed(made.paths)
    assert store.state().allocated_bytes <= before - PADDING_BYTES
    assert store.state().allocated_bytes == du(segment_at(made.paths.directory).directory)


def test_what_a_killed_compressor_left_is_removed_unless_one_is_at_work(bench: Bench) -> None:
    first, second = bench.segment(1).paths, bench.segment(2).paths
    lock = Lock(first.base, first.lock)
    for paths in (first, second):
        paths.unfinished.mkdir()
        (paths.unfinished / "fake_0.zst").write_bytes(b"x" * PADDING_BYTES)
    store = bench.store()
    assert (first.unfinished.exists(), second.unfinished.exists()) == (True, False)
    assert store.state().allocated_bytes == du(bench.trace) - os.stat(bench.trace).st_blocks * 512
    lock.release()
    store.changed(first)
    assert not first.unfinished.exists()
    assert not first.lock.exists()
    assert store.state().allocated_bytes == du(bench.trace) - os.stat(bench.trace).st_blocks * 512


def test_two_segments_of_one_number_are_both_known(bench: Bench) -> None:
    made = bench.segment(1)
    name = made.paths.directory.name.replace("-fake", "-other")
    copied = made.paths.directory.with_name(name)
    copied.mkdir(mode=0o750)
    (copied / "data").write_bytes(b"x" * PADDING_BYTES)
    store = bench.store()
    assert store.state().segments == 2
    assert store.keep([1]) == [1, 1]
    assert (copied / "kept.json").exists()


def test_the_begin_of_a_manifest_tells_that_a_segment_is_closed(bench: Bench) -> None:
    closed, opened = bench.segment(1), bench.segment(2, is_open=True)
    assert says_closed(closed.paths.place(closed.paths.manifest))
    assert not says_closed(opened.paths.place(opened.paths.manifest))
    opened.manifest.source["spec"] = '\n "state": "closed",\n'
    opened.write_manifest()
    assert not says_closed(opened.paths.place(opened.paths.manifest))
    opened.paths.manifest.unlink()
    assert not says_closed(opened.paths.place(opened.paths.manifest))
