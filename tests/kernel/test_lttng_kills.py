"""Kill lttd while it records lttng-modules, 50 times; every trace stays readable, every loss known.

A killed lttd takes its session with it: what it had not stored is a gap of unknown size.
"""

import shutil
from pathlib import Path

import pytest

from lttd.files import Disk
from lttd.index import read_gaps
from lttd.manifest import Manifest, this_machine
from lttd.recover import recover
from lttd.stats import lost_key
from lttd.subbuffer import Gap, Reason, Unit
from lttd.tracedir import SegmentPaths, segments
from tests.kernel.guest import Guest
from tests.kernel.lttng_recording import babeltrace, data_files, expect_whole, packets_of, record

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.skipif(not shutil.which("babeltrace2"), reason="babeltrace2 is not installed"),
]

KILLS = 10
# Every other one has rings that overwrite themselves before lttd comes.
SCRIPT = rf"""
WHAT='lttng,events=sched_*,syscalls=*'
SMALL=,overwrite=yes,subbuffer-size=4K,subbuffers=4,read-timer=200ms
last() {{ ls -d /tmp/trace/*-lttng | tail -1; }}
has_metadata() {{ [ $(begun) -gt $segments ]; }}
stores() {{ [ -s $(last)/streams/channel0_0 ]; }}
before=$(sessions)
mkdir $OUT/killed
# Eleven starts read it from memory in less time.
mkdir -p /tmp/code && cp -a $CHECKOUT/lttd /tmp/code && export PYTHONPATH=/tmp/code
for round in $(seq {KILLS}); do
    what=$WHAT
    [ $((round % 2)) = 0 ] && what+=$SMALL
    segments=$(begun)
    start_lttd --append --source "$what"
    until_lttd has_metadata || exit 9
    busy  # not before: a start takes long beside it
    until_lttd stores || exit 9
    [ "$(sessions)" != "$before" ] || exit 3
    sleep 0.$((RANDOM % 10))
    kill -9 $pid
    wait $pid 2> /dev/null
    idle
    cp -r $(last) $OUT/killed
    for _ in $(seq 100); do [ "$(sessions)" = "$before" ] && break; sleep 0.1; done
    [ "$(sessions)" = "$before" ] || exit 4
done
begin_recording --append --source 'lttng,events=sched_*'
end_recording
"""


@pytest.mark.parametrize("turn", range(5))
def test_each_of_ten_kills_leaves_a_readable_trace_and_no_session(
    lttng_guest: Guest, turn: int
) -> None:
    recorded = record(lttng_guest, SCRIPT, 900)
    *repaired, last = recorded.segments
    expect_whole(last)
    copies = segments(recorded.out_dir / "killed")
    assert len(repaired) == len(copies) == KILLS
    assert recorded.output.count("the kernel freed its rings") == 1, "the last start says so"
    torn = 0
    for number, (segment, copy) in enumerate(zip(repaired, copies, strict=True)):
        # The next start has made of it the same as a repair of the copy makes.
        pretend_this_boot(copy)
        torn += sum(each.torn_bytes for each in recover(copy, Disk()))
        assert files_of(segment) == files_of(copy)
        expect_whole(segment)
        expect_counted(segment, overwriting=bool(number % 2))
        assert babeltrace(segment).events
        expect_rebuilt(copy)
    counted = sum(lost(segment, lost_key(Reason.TORN, Unit.BYTES)) for segment in repaired)
    assert counted == torn
    print(f"turn {turn}: {KILLS} kills, {torn} bytes of packets that were written half")


def pretend_this_boot(segment: SegmentPaths) -> None:
    """Make it one of this machine's boot: after another one a repair expects a power loss."""
    manifest = Manifest.read(segment.manifest)
    manifest.machine |= this_machine()
    segment.manifest.write_bytes(manifest.encode())


def files_of(segment: SegmentPaths) -> dict[Path, bytes]:
    streams = segment.directory / "streams"
    paths = [path for path in streams.rglob("*") if path.is_file()]
    return {path.relative_to(streams): path.read_bytes() for path in paths}


def lost(segment: SegmentPaths, loss: str) -> int:
    streams = Manifest.read(segment.manifest).streams
    return sum(each.summary.lost.get(loss, 0) for each in streams if each.summary)


def gaps_of(segment: SegmentPaths, path: Path) -> list[Gap]:
    return read_gaps(segment.index / f"{path.name}.gaps")


def expect_counted(segment: SegmentPaths, *, overwriting: bool) -> None:
    """Assert that the gaps count every loss that packets show, and end with an unknown one."""
    missing = 0
    for path in data_files(segment):
        packets, gaps = packets_of(path), gaps_of(segment, path)
        end = gaps[-1]
        assert (end.row, end.reason, end.count) == (len(packets), Reason.ABANDONED, None)
        counted = [gap for gap in gaps if gap.reason is Reason.OVERWRITTEN]
        missing += sum(gap.count or 0 for gap in counted)
        if packets:
            numbers = [packet.sequence for packet in packets]
            assert sum(gap.count or 0 for gap in counted) == numbers[-1] + 1 - len(numbers)
            discarded = [gap.count or 0 for gap in gaps if gap.reason is Reason.DISCARDED]
            assert sum(discarded) == packets[-1].discarded
    assert (missing > 0) is overwriting


def expect_rebuilt(segment: SegmentPaths) -> None:
    """Assert that the packets alone give the same index."""
    indexes = {path: path.read_bytes() for path in segment.index.glob("*.idx")}
    for path in indexes:
        path.unlink()
    recover(segment, Disk())
    assert {path: path.read_bytes() for path in indexes} == indexes
