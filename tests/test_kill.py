"""Kill lttd at random times under load; the next start or ``lttv check`` repairs the trace."""

import os
import random
import re
import resource
import shutil
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lttd.index import read_gaps
from lttd.manifest import Manifest, Position, read_synced
from lttd.subbuffer import TAKE_BYTES, Reason
from lttd.tracedir import SegmentPaths, segments_below
from tests.running import (
    QUIET,
    Launcher,
    Run,
    assert_whole,
    free_port,
    loaded,
    lttv,
    needs_kernel,
    scraped,
    until,
)
from tests.segment_builder import segment_at

pytestmark = needs_kernel()

LATEST_S = 1.5
# On a machine that others use, too, a few runs of fewer kills leave them room.
KILLS = int(os.environ.get("LTTD_KILLS", "200"))
# For any size of the trace: less than a second of recording follows the synced record.
# CPU time does not depend on other load.
RECOVERY_CPU_S = 10.0
BACKLOG_BYTES = 8 << 20
OPTIONS = ("--events", "raw_syscalls:*", "--buffer-size", "1M", "--flush-interval", "50ms")
OPTIONS += ("--backlog", str(BACKLOG_BYTES), "--summary", "none")


@dataclass
class Figures:
    """The figures of all rounds."""

    rounds: int = 0
    too_early: int = 0
    """Rounds without a segment at the kill: --append makes the first one."""
    whole: int = 0
    with_synced: int = 0
    torn: int = 0
    kept_bytes: int = 0
    synced_bytes: int = 0
    recoveries_s: list[float] = field(default_factory=list)
    missing_events: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        slowest = max(self.recoveries_s, default=0.0)
        usual = statistics.median(self.recoveries_s or [0.0])
        kept_mb, synced_mb = self.kept_bytes / 1e6, self.synced_bytes / 1e6
        missing = self.missing_events or [0]
        return (
            f"{self.rounds} kills: {self.whole} whole traces ({self.too_early} began only after the"
            f" kill); {self.with_synced} had a synced record, of {synced_mb:.1f} MB in all,"
            f" {kept_mb:.1f} MB were kept; {self.torn} streams were torn; recovery took"
            f" {usual:.2f} s (median), {slowest:.2f} s at most, the process's start included; of"
            f" what was taken {max(missing)} events of a CPU were lost at most, {sum(missing)} in"
            f" all, none in {missing.count(0)} of {len(missing)} streams"
        )


def synced_of(trace: Path) -> dict[tuple[str, str], Position]:
    return {
        (segment.directory.name, name): position
        for segment in segments_below(trace)
        for name, position in read_synced(segment.synced).items()
    }


def kept_of(trace: Path, segment: str, stream: str) -> int:
    return segment_at(trace / segment).stream(stream).data.stat().st_size


def own_segment(trace: Path) -> SegmentPaths | None:
    """Return the segment of the killed lttd; a segment of an earlier ring may precede it."""
    for segment in segments_below(trace):
        is_whole = segment.manifest.exists()
        if is_whole and not Manifest.read(segment.manifest).source["previous_run"]:
            return segment
    return None


def stored_events(trace: Path, segment: SegmentPaths) -> dict[str, int]:
    """Return the number of decodable events by stream; assert that *trace* is whole."""
    reports = assert_whole(trace, "--events")["segments"]
    (report,) = (each for each in reports if each["path"] == str(segment.directory))
    return {stream["name"]: stream["events"] for stream in report["streams"]}


def is_torn(segment: SegmentPaths, stream: str) -> bool:
    return any(gap.reason is Reason.TORN for gap in read_gaps(segment.stream(stream).gaps))


@dataclass(frozen=True)
class Instant:
    """The time of the kill, after the begin of recording or after the start of the process."""

    after_s: float
    recording: bool = True

    @classmethod
    def random(cls, chance: random.Random) -> "Instant":
        return cls(chance.uniform(0.0, LATEST_S), recording=chance.random() < 0.7)


def killed(lttd: Launcher, trace: Path, when: Instant) -> Run:
    run = lttd.start("-t", trace, *OPTIONS)
    if when.recording:
        run.recording()
    time.sleep(when.after_s)
    return run.signal(signal.SIGKILL)


def left_by(run: Run) -> dict[str, int]:
    """Return the number of events that the killed lttd had taken, by CPU."""
    try:
        return {f"ftrace_{cpu}": stats["read events"] for cpu, stats in run.stats().items()}
    except OSError:
        return {}


def children_cpu_s() -> float:
    """Return the CPU time of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def recover(lttd: Launcher, trace: Path, *, append: bool) -> float:
    """Repair or append; return the seconds that it took."""
    begin, begin_cpu_s = time.monotonic(), children_cpu_s()
    if append:
        run = lttd.run("-t", trace, "--append", *OPTIONS, "--duration", "1ms")
        assert run.process.returncode == 0, run.stderr
        assert "Traceback" not in run.stderr
        assert lttd.left() == []
    else:
        done = lttv("check", "--repair", trace)
        assert done.returncode == 0, done.stdout + done.stderr
    assert children_cpu_s() - begin_cpu_s < RECOVERY_CPU_S
    assert not [each for each in segments_below(trace) if each.reserve.exists()]
    return time.monotonic() - begin


def one_round(lttd: Launcher, trace: Path, figures: Figures, when: Instant, append: bool) -> None:
    run = killed(lttd, trace, when)
    run.wait()
    taken, synced, own = left_by(run), synced_of(trace), own_segment(trace)
    too_early = not segments_below(trace)
    append = append or too_early
    figures.rounds += 1
    figures.too_early += too_early
    figures.recoveries_s.append(recover(lttd, trace, append=append))
    figures.with_synced += bool(synced)
    for (segment, stream), position in synced.items():
        kept = kept_of(trace, segment, stream)
        assert kept >= position.data_bytes, (segment, stream)
        figures.synced_bytes += position.data_bytes
        figures.kept_bytes += kept
    if own is None:
        assert_whole(trace, "--events")
    else:
        for stream, count in stored_events(trace, own).items():
            figures.torn += is_torn(own, stream)
            missing = taken.get(stream, count) - count
            # No event of raw_syscalls is smaller than 24 bytes.
            assert missing <= (BACKLOG_BYTES + TAKE_BYTES) // 24, (stream, missing)
            figures.missing_events.append(missing)
            if append:
                assert told_missing(trace, stream) == missing, stream
    figures.whole += 1


def told_missing(trace: Path, stream: str) -> int:
    """Return the number of lost events that the trace stores with the reason ``killed``."""
    gaps = [gap for one in segments_below(trace) for gap in read_gaps(one.stream(stream).gaps)]
    return sum(gap.count or 0 for gap in gaps if gap.reason is Reason.KILLED)


def rounds(lttd: Launcher, program: Path, directory: Path, instants: Sequence[Instant]) -> Figures:
    figures = Figures()
    with loaded(program, range(min(2, os.cpu_count() or 1))):
        for number, when in enumerate(instants):
            trace = directory / f"trace{number}"
            one_round(lttd, trace, figures, when, append=number % 2 == 0)
            if trace.is_dir():
                shutil.rmtree(trace)
    # Removing the traces makes the next start remove their rings from the kernel.
    last = lttd.run("-t", directory / "last", *OPTIONS, "--duration", "1ms")
    assert last.process.returncode == 0, last.stderr
    assert_whole(directory / "last", "--events")
    assert lttd.left() == []
    return figures


@pytest.mark.alone  # it kills after fixed times
def test_append_or_repair_makes_a_killed_recording_whole(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    figures = rounds(lttd, syscall_load, tmp_path, [Instant(each) for each in (0.5, 0.4, 0.0)])
    assert figures.with_synced


def test_the_metrics_of_the_recovering_run_count_torn_bytes(lttd: Launcher, tmp_path: Path) -> None:
    trace, port = tmp_path / "t", free_port()
    run = lttd.start("-t", trace, *QUIET).recording()

    def is_stored() -> bool:
        (run.instance / "trace_marker").write_text("a mark")
        return bool([path for path in trace.glob("*/streams/ftrace_*") if path.stat().st_size])

    until(is_stored, "something is stored")
    run.signal(signal.SIGKILL).wait()
    (segment,) = segments_below(trace)
    for data in segment.streams.glob("ftrace_*"):
        os.truncate(data, max(data.stat().st_size - 5, 0))  # a power loss may do this
    again = lttd.start("-t", trace, "--append", *QUIET, "--metrics", f"127.0.0.1:{port}")
    again.recording()
    until(lambda: "lttd_bytes_lost" in scraped(port), "the endpoint")
    torn = re.findall(r'bytes_lost_total.*source="ftrace",reason="torn"} (\d+)', scraped(port))
    told = re.findall(r"recovered, (\d+) torn bytes cut", again.stderr)
    assert told == [str(sum(map(int, torn)))]
    assert told != ["0"]
    assert again.end() == 0


@pytest.mark.nightly
def test_two_hundred_kills_at_random_times_leave_whole_traces(
    lttd: Launcher, tmp_path: Path, syscall_load: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("LTTD_SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    figures = rounds(lttd, syscall_load, tmp_path, [Instant.random(chance) for _ in range(KILLS)])
    with capsys.disabled():
        print(f"\nseed {seed}: {figures}")
    assert figures.rounds == figures.whole == KILLS
