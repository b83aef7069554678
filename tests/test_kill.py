"""kill -9 at random instants under load, and what the next start or ``lttv check`` makes of it."""

import os
import random
import shutil
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lttd.tracedir import Position, SegmentPaths, read_synced, segments, segments_below
from tests.running import Launcher, Run, assert_whole, loaded, lttv, needs_kernel

pytestmark = needs_kernel()

# From before there is a trace directory to well into recording, synced several times.
LATEST_S = 1.5
# Whatever the trace's size: what is beyond the synced record is less than a second's recording.
RECOVERY_S = 10.0
BACKLOG_BYTES = 8 << 20
TAKE_BYTES = 1 << 20
OPTIONS = ("--events", "raw_syscalls:*", "--buffer-size", "1M", "--flush-interval", "50ms")
OPTIONS += ("--backlog", str(BACKLOG_BYTES), "--summary", "none")


@dataclass
class Figures:
    """What is reported of all rounds."""

    rounds: int = 0
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
        return (
            f"{self.rounds} kills: {self.whole} whole traces; {self.with_synced} had a synced"
            f" record, of {self.synced_bytes / 1e6:.1f} MB in all, {self.kept_bytes / 1e6:.1f} MB"
            f" were kept; {self.torn} were torn; recovery took {usual:.2f} s (median),"
            f" {slowest:.2f} s at most, the process's start included; of what was taken at most"
            f" {max(self.missing_events, default=0)} events of a CPU were lost"
            f" (median {statistics.median(self.missing_events or [0]):.0f})"
        )


def synced_of(trace: Path) -> dict[tuple[str, str], Position]:
    return {
        (segment.directory.name, name): position
        for segment in segments_below(trace)
        for name, position in read_synced(segment.synced).items()
    }


def kept_of(trace: Path, segment: str, stream: str) -> int:
    return SegmentPaths(trace / segment).stream(stream).data.stat().st_size


def stored_events(trace: Path) -> dict[str, int]:
    """Return the events of the first segment that is no previous run's, decoded, by stream."""
    report = assert_whole(trace, "--events")
    streams = report["segments"][0]["streams"] if report["segments"] else []
    return {stream["name"]: stream["events"] for stream in streams}


def killed(lttd: Launcher, trace: Path, after_s: float) -> Run:
    run = lttd.start("-t", trace, *OPTIONS)
    time.sleep(after_s)
    return run.signal(signal.SIGKILL)


def left_by(run: Run) -> dict[str, int]:
    """Return how many events the killed lttd had taken of each CPU's ring."""
    try:
        return {f"ftrace_{cpu}": stats["read events"] for cpu, stats in run.stats().items()}
    except OSError:
        return {}


def recover(lttd: Launcher, trace: Path, *, append: bool) -> float:
    """Return how long it took."""
    begin = time.monotonic()
    if append:
        run = lttd.run("-t", trace, "--append", *OPTIONS, "--duration", "1ms")
        assert run.process.returncode == 0, run.stderr
        assert "Traceback" not in run.stderr
        assert lttd.left() == []
    elif trace.is_dir() and segments_below(trace):
        done = lttv("check", "--repair", trace)
        assert done.returncode == 0, done.stdout + done.stderr
    return time.monotonic() - begin


def one_round(lttd: Launcher, trace: Path, figures: Figures, after_s: float, append: bool) -> None:
    run = killed(lttd, trace, after_s)
    run.wait()
    taken, synced = left_by(run), synced_of(trace)
    figures.rounds += 1
    figures.recoveries_s.append(recover(lttd, trace, append=append))
    assert figures.recoveries_s[-1] < RECOVERY_S
    if not trace.is_dir() or not segments_below(trace):
        assert not synced
        return
    first = segments(trace)[0].directory.name
    events = stored_events(trace)
    figures.whole += 1
    figures.with_synced += bool(synced)
    for (segment, stream), position in synced.items():
        kept = kept_of(trace, segment, stream)
        assert kept >= position.data_bytes, (segment, stream)
        figures.synced_bytes += position.data_bytes
        figures.kept_bytes += kept
    if first in {segment for segment, _ in synced}:
        for stream, count in events.items():
            missing = taken.get(stream, count) - count
            # No event of raw_syscalls is smaller than 24 bytes.
            assert missing <= (BACKLOG_BYTES + TAKE_BYTES) // 24, (stream, missing)
            figures.missing_events.append(missing)


def rounds(lttd: Launcher, program: Path, directory: Path, instants: Sequence[float]) -> Figures:
    figures = Figures()
    with loaded(program, range(min(2, os.cpu_count() or 1))):
        for number, after_s in enumerate(instants):
            trace = directory / f"trace{number}"
            one_round(lttd, trace, figures, after_s, append=number % 2 == 0)
            if trace.is_dir():
                shutil.rmtree(trace)
    # What repairs left in the kernel is the next recording's.
    last = lttd.run("-t", directory / "last", *OPTIONS, "--duration", "1ms")
    assert last.process.returncode == 0, last.stderr
    assert_whole(directory / "last", "--events")
    assert lttd.left() == []
    return figures


def test_a_killed_recording_is_whole_again_after_append_or_repair(
    lttd: Launcher, tmp_path: Path, syscall_load: Path
) -> None:
    figures = rounds(lttd, syscall_load, tmp_path, [0.9, 1.1, 0.45, 1.3])
    assert figures.with_synced


@pytest.mark.nightly
def test_200_kills_at_random_instants_leave_200_whole_traces(
    lttd: Launcher, tmp_path: Path, syscall_load: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("LTTD_SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    figures = rounds(
        lttd, syscall_load, tmp_path, [chance.uniform(0.0, LATEST_S) for _ in range(200)]
    )
    with capsys.disabled():
        print(f"\nseed {seed}: {figures}")
    assert figures.rounds == 200
