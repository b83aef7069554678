"""Kill lttd at random again and again in one trace, while it rolls, deletes and compresses.

After each kill the next start makes the trace whole.  Each mark of the killed run that it lacks is
counted, and nothing half-made is left.  Sometimes that start is killed, too.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lttd.manifest import Manifest
from lttd.tracedir import segments_below
from lttd.view.verify import check
from tests.numbered import (
    CPUS,
    RUN,
    assert_none_twice,
    first_of_run,
    lost,
    numbering,
    numbers,
)
from tests.running import QUIET, Launcher, Run, assert_whole, needs_kernel

pytestmark = needs_kernel()

NIGHTLY = bool(os.environ.get("LTTD_NIGHTLY"))
KILLS = int(os.environ.get("LTTD_KILLS", "1000")) if NIGHTLY else 3
LATEST_S = 1.0
COMPRESSOR_S = 3.0
LATEST_RESTART_S = 0.6
# lttv itself looks at the trace after so many kills; what it calls looks after each.
EACH = 10
MARKS_PER_S, SIZE = 10_000, 80
OPTIONS = ("--segment-size", "256K", "--max-size", "8M", "--summary", "none")
OPTIONS += ("--buffer-size", "2M", "--flush-interval", "20ms", *QUIET)


class Compressor:
    """The compressor of a run, which has a session of its own."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.pid = 0

    def hurry(self) -> None:
        """Find it, and let it compete with other programs, so that a kill meets it at work."""
        for path in Path(f"/proc/{self._run.process.pid}/task").glob("*/children"):
            for pid in [] if self.pid else _numbers_in(path):
                if _text_of(Path(f"/proc/{pid}/comm")) == "lttd-compress\n":
                    os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
                    os.setpriority(os.PRIO_PROCESS, pid, 0)
                    self.pid = pid

    def kill(self) -> bool:
        """Kill it; return whether it was there."""
        pid, self.pid = self.pid, 0
        with suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signal.SIGKILL)
        return pid != 0


def _text_of(path: Path) -> str:
    with suppress(OSError):  # the process ended
        return path.read_text()
    return ""


def _numbers_in(path: Path) -> list[int]:
    return [int(word) for word in _text_of(path).split()]


@dataclass
class Figures:
    """The figures of all kills."""

    kills: int = 0
    whole: int = 0
    early: int = 0
    """Kills before recording had begun, as far as the test saw."""
    restarts: int = 0
    """Starts that were killed, too."""
    together: int = 0
    """Compressors that were killed right after lttd."""
    compressors: int = 0
    """Compressors that were killed while lttd went on."""
    marks: int = 0
    missing: int = 0
    exact: int = 0
    """Runs of which no segment had been deleted, so that each mark is accounted for."""
    highest: int = 0
    """The highest number of a segment."""
    compressed: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.early} before recording began), {self.whole} whole traces;"
            f" {self.restarts} restarts killed, too; {self.together} compressors killed with lttd,"
            f" {self.compressors} alone; {self.highest} segments, {len(self.compressed)} of them"
            f" seen compressed; {self.marks} marks in {self.exact} runs, {self.missing} lost and"
            " counted"
        )


class Kills:
    """Kills in one trace."""

    def __init__(self, lttd: Launcher, trace: Path, chance: random.Random) -> None:
        self._lttd, self._trace, self._chance = lttd, trace, chance
        self.figures = Figures()

    def one(self) -> None:
        """Record, kill, restart, and check everything."""
        number = self.figures.kills
        run = self._start()
        if self._chance.random() < 0.2:
            time.sleep(self._chance.uniform(0.0, LATEST_RESTART_S))
            run.signal(signal.SIGKILL).wait()
            self.figures.early += 1
            first, written = 0, dict.fromkeys(CPUS, 0)
        else:
            run.recording()
            first = first_of_run(self._trace)
            with numbering(run, number, MARKS_PER_S, SIZE) as written:
                self._record_and_kill(run)
        self.figures.kills += 1
        self._restart()
        self._check(number, first, written)
        self.figures.whole += 1

    def _start(self, *more: str, compress: bool = True) -> Run:
        more = (*more, *(("--compress", "zstd") if compress else ()))
        return self._lttd.start("-t", self._trace, "--append", *OPTIONS, *more)

    def _record_and_kill(self, run: Run) -> None:
        compressor, chance = Compressor(run), self._chance.random()
        if chance < 0.6:
            self._wait(COMPRESSOR_S, compressor, lambda: compressor.pid)
        self._wait(self._chance.uniform(0.0, LATEST_S), compressor)
        if chance < 0.2:
            self.figures.compressors += compressor.kill()
            self._wait(self._chance.uniform(0.0, LATEST_S), compressor)
        run.signal(signal.SIGKILL)
        if chance < 0.4:
            self.figures.together += compressor.kill()
        run.wait()

    def _wait(
        self, seconds: float, compressor: Compressor, until: Callable[[], object] = lambda: False
    ) -> None:
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end and not until():
            compressor.hurry()
            time.sleep(min(end - now, 0.02))

    def _restart(self) -> None:
        """Make the trace whole; sometimes only the second or third start does."""
        while self._chance.random() < 0.2:
            again = self._start("--duration", "1ms")
            time.sleep(self._chance.uniform(0.0, LATEST_RESTART_S))
            again.signal(signal.SIGKILL).wait()
            self.figures.restarts += 1
        # Without a compressor, whose work the end of the run would interrupt in turn.
        again = self._start("--duration", "1ms", compress=False)
        assert again.wait() == 0, again.stderr
        assert "Traceback" not in again.stderr

    def _check(self, run: int, first: int, written: dict[int, int]) -> None:
        segments = segments_below(self._trace)
        if run % EACH == EACH - 1:
            assert_whole(self._trace, "--events")
        assert all(check(one, events=True).whole for one in segments)
        manifests = {one: Manifest.read(one.manifest) for one in segments}
        assert {manifest.state for manifest in manifests.values()} == {"closed"}
        half_made = [
            path for name in (".gone-*", ".new-*", ".reserve") for path in self._trace.rglob(name)
        ]
        assert half_made == []
        compressed = {one.directory.name for one in segments if manifests[one].compression}
        self.figures.compressed |= compressed
        self.figures.highest = segments[-1].number
        own = [one for one in segments if one.number >= first]
        is_all_there = own[0].number == first
        self.figures.exact += is_all_there
        for cpu in CPUS:
            found = [number for one in own for number in numbers(one, cpu)]
            assert_none_twice(found)
            missing = written[cpu] - sum(number // RUN == run for number in found)
            if is_all_there:
                assert missing == sum(lost(one, cpu) for one in own), (run, cpu)
                self.figures.marks += written[cpu]
                self.figures.missing += missing


def test_kills_while_segments_come_shrink_and_go_leave_a_whole_trace(
    lttd: Launcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("LTTD_SEED", random.randrange(1 << 32) if NIGHTLY else 10))
    kills = Kills(lttd, tmp_path / "t", random.Random(seed))
    for _ in range(KILLS):
        kills.one()
        if NIGHTLY and kills.figures.kills % 50 == 0:
            with capsys.disabled():
                print(f"\nseed {seed}: {kills.figures}", flush=True)
    assert kills.figures.kills == kills.figures.whole == KILLS
    assert kills.figures.exact
    assert lttd.left() == []
