"""Roll while an emulated LTTng 0.x kernel is recorded: nothing is lost, every segment decodes."""

import shutil
import signal
from itertools import chain
from pathlib import Path

import pytest

from lttd.manifest import says_closed
from lttd.stored import StoredStream
from lttd.subbuffer import Reason, Unit
from lttd.tracedir import segments, segments_below
from tests.ltt_kernel import Kernel, Load, stripped
from tests.ltt_runs import Runs, lost, recorded, subbuffers
from tests.running import PATIENCE_S, assert_whole, lttv, until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("minor", [pytest.param(4, marks=pytest.mark.nightly), 6])
def test_all_data_of_a_busy_tracer_are_stored_or_counted_once_over_many_rolls(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path, minor: int
) -> None:
    ltt_kernel.add("metadata_0", minor=minor)
    ltt_kernel.add("kernel_0", minor=minor, subbuffer_bytes=8192, urgent_from=3)
    ltt_kernel.add("flight-mm_0", minor=minor, overwrite=True)
    out = tmp_path / "t"
    words = ["-t", out, "-c", ltt_kernel.root, "--flush-interval", "20ms"]
    run = lttds.start(*words, "--segment-size", "128K")
    until(lambda: segments_below(out), "the recording")
    late = (1000, "kernel_2", {"minor": minor})
    ltt_kernel.start(Load(seed=minor, subbuffers=3000, late=(late,)))
    _, told = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, told
    found = [recorded(out, number) for number in range(len(segments(out)))]
    assert len(found) > 4
    reports = {path: ltt_kernel.report(path) for path in found[-1]}
    assert len(reports) == 4
    for path, report in reports.items():
        parts = [each[path] for each in found if path in each]
        stored = [one for part in parts for one in subbuffers(part)]
        assert stored == [stripped(one) for one in report.delivered]
        assert total(parts, Reason.REFUSED, Unit.SUBBUFFERS) == len(report.refused)
        assert total(parts, Reason.DISCARDED, Unit.EVENTS) == report.events_lost
        # What was overwritten before the first read of a channel is not a loss of this run.
        begin = 0 if path == "kernel_2" else report.first
        overwritten = [number for number in report.overwritten if number >= begin]
        assert total(parts, Reason.OVERWRITTEN, Unit.SUBBUFFERS) == len(overwritten)
    assert_whole(out)


def total(parts: list[StoredStream], reason: Reason, unit: Unit) -> int:
    return sum(lost(part, reason, unit) for part in parts)


def test_a_marker_that_was_declared_before_a_roll_decodes_the_events_of_all_later_segments(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path
) -> None:
    out = tmp_path / "t"
    for name in ("metadata_0", "kernel_0"):
        ltt_kernel.add(name)
    ltt_kernel.describe("metadata_0", "kernel", "tick", 3, "n %u")
    ltt_kernel.flush("metadata_0")
    run = lttds.start("-t", out, "-c", ltt_kernel.root, "--flush-interval", "20ms")
    until(lambda: segments_below(out), "the recording")
    logged = [["tick"], ["tick"], ["tick", "tock"], ["tick", "tock"]]
    for rolls, events in enumerate(logged):
        if rolls:
            run.send_signal(signal.SIGUSR1)
            until(lambda n=rolls: closed(out) == n, "a roll")
        if rolls == 2:
            ltt_kernel.describe("metadata_0", "kernel", "tock", 4, "n %u")
            ltt_kernel.flush("metadata_0")
        for event in events:
            ltt_kernel.log("kernel_0", {"tick": 3, "tock": 4}[event], ("u4", rolls))
        ltt_kernel.flush("kernel_0")
    ltt_kernel.finalize()
    _, told = run.communicate(timeout=PATIENCE_S)
    assert (run.returncode, closed(out)) == (0, 4), told
    assert events_in(out) == list(chain(*logged))
    assert_whole(out, "--events")
    for segment in segments(out):
        others = tmp_path / "others"  # what is left when retention has deleted all else
        shutil.copytree(segment.directory, others / segment.directory.name)
        assert events_in(others) == logged.pop(0)
        assert_whole(others, "--events")
        shutil.rmtree(others)


def closed(trace: Path) -> int:
    """Return the number of closed segments."""
    return sum(says_closed(one.place(one.manifest)) for one in segments_below(trace))


def events_in(path: Path) -> list[str]:
    """Return the events of channel ``kernel`` that ``lttv text`` prints, in order."""
    done = lttv("text", path, "--event", "kernel.*")
    assert done.returncode == 0, done.stderr
    assert "no marker is known" not in done.stderr
    return [line.partition("kernel.")[2].partition(":")[0] for line in done.stdout.splitlines()]
