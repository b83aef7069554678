"""Record block traces on a real kernel, in parallel with blktrace and through CPU hotplug.

A null_blk device serves two fio jobs with fixed requests, so that the test knows the number of
records without asking a recorder.
"""

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lttd.abi.blktrace import ACT_MASK, NOTIFY, layout_of, notes, records_at, walk
from lttd.manifest import Manifest
from lttd.subbuffer import Reason
from lttd.tracedir import SegmentPaths
from lttd.view.trace import Trace
from lttd.view.verify import check
from tests.kernel.guest import Guest
from tests.kernel.recording import SHELL, Recording
from tests.running import lttv

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("fio") and shutil.which("blktrace")), reason="no fio, or no blktrace"
    ),
]

# irqmode=0: a request completes in the submitting task, so that no other task is noted.
PRELUDE = (
    SHELL
    + r"""
modprobe null_blk nr_devices=1 irqmode=0 || exit
job() {  # IOS [OPTION...]: of each of two jobs, one a CPU
    local ios=$1
    shift
    fio --output="$OUT/fio" --ioengine=psync --direct=1 --bssplit=4k/60:16k/30:64k/10 \
        --rw=randrw --number_ios=$ios --randrepeat=1 --randseed=7 --allow_mounted_write=1 \
        --filename=/dev/nullb0 --size=512m "$@" \
        --name=a --cpus_allowed=0 --name=b --cpus_allowed=1
}
requests() { awk '{ print $1 + $5 }' /sys/block/nullb0/stat; }
# The timestamp of START is a record: from then on there is something.
is_recording() {
    [ -e /tmp/trace/*/trace.json ] && grep -q nullb0 /tmp/trace/*/trace.json && sleep 0.5
}
begin_recording() {  # KEYS OPTION...: $pid is lttd's
    local keys=$1
    shift
    rm -rf /tmp/trace
    start_lttd --source "blktrace:/dev/nullb0$keys" "$@"
    until_lttd is_recording
}
nothing_is_set_up() { ! ls /sys/kernel/debug/block/nullb0/trace* 2> /dev/null; }
"""
)


class Recorded(Recording):
    """The files of a recording of a block trace."""

    @property
    def segment(self) -> SegmentPaths:
        return self.segments[-1]

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.segment.manifest)

    def counter(self, name: str) -> int:
        return sum(record.counters.get(name, 0) for record in self.manifest.streams)

    def files(self) -> list[Path]:
        return [self.segment.stream(record.name).data for record in self.manifest.streams]

    def expect_whole(self) -> None:
        report = check(self.segment)
        assert [str(finding) for finding in report.findings] == []
        assert report.state == "closed"

    def expect_no_damage(self) -> None:
        """Assert that every byte belongs to a record and the numbers of each CPU have no hole."""
        for path in self.files():
            numbers = np.array([int(one["sequence"]) for one in events(path)])
            assert (np.diff(numbers) == 1).all(), path

    def refused(self) -> int:
        """Return the bytes of closed sub-buffers that the kernel never delivered."""
        lost = [stream.gaps for stream in Trace(self.out_dir / "trace").segments[-1].streams]
        return sum(gap.count or 0 for gaps in lost for gap in gaps if gap.reason is Reason.REFUSED)


def events(path: Path) -> Iterator[Any]:
    """Yield the records of a file except notes."""
    data = path.read_bytes()
    layout = layout_of(data)
    if layout is None:
        assert not data
        return
    walked = walk(data, 0, len(data), layout)
    assert walked.damage == []
    records = records_at(data, walked.offset_bytes, layout)
    yield from np.delete(records, notes(data, walked, layout))


def per_action(files: list[Path]) -> Counter[int]:
    return Counter(int(one["action"]) for path in files for one in events(path))


def record(guest: Guest, script: str, timeout_s: float = 120.0, *, status: int = 0) -> Recorded:
    return Recorded.by(guest, PRELUDE + script, timeout_s, status=status)


def test_the_records_are_those_that_blktrace_writes_and_blkparse_reads_them(guest: Guest) -> None:
    recorded = record(
        guest,
        """set -e
        begin_recording ,subbuffer-size=16K
        job 200
        end_recording
        nothing_is_set_up
        mkdir /tmp/peer
        blktrace -d /dev/nullb0 -D /tmp/peer & peer=$!
        until ls /sys/kernel/debug/block/nullb0/trace1; do sleep 0.1; done
        sleep 1
        job 200
        kill -INT $peer; wait $peer || true
        cp -r /tmp/peer $OUT/peer
        """,
    )
    recorded.expect_whole()
    recorded.expect_no_damage()
    assert recorded.summary["events_lost"] == 0
    peer = sorted((recorded.out_dir / "peer").glob("nullb0.blktrace.*"))
    assert [path.name for path in recorded.files()] == [path.name for path in peer]
    found = per_action(recorded.files())
    assert found == per_action(peer)
    assert sum(count for action, count in found.items() if action & ACT_MASK == 1) == 400
    # blkparse reads the stored files without complaint, and shows the same lines as lttv.
    run = subprocess.run(
        ["blkparse", "-q", "-i", "nullb0"],
        cwd=recorded.segment.streams, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stderr == ""
    lines = [line for line in run.stdout.splitlines() if not line.startswith("Input file")]
    assert lines == lttv("text", recorded.out_dir / "trace").stdout.splitlines()


@pytest.mark.nightly
def test_no_record_is_lost_while_a_cpu_goes_and_returns(guest: Guest) -> None:
    recorded = record(
        guest,
        """set -e
        cpu1=/sys/devices/system/cpu/cpu1/online
        trap 'echo 1 > $cpu1' EXIT
        echo 0 > $cpu1
        begin_recording ,actions=complete,subbuffer-size=4K
        ! test -e /sys/kernel/debug/block/nullb0/trace1
        echo 1 > $cpu1
        before=$(requests)
        job 1000 --thinktime=500 --thinktime_blocks=1 & load=$!
        # Before its jobs run, fio could not bind them.
        until [ $(requests) -gt $((before + 200)) ]; do sleep 0.1; done
        echo 0 > $cpu1; sleep 0.5; echo 1 > $cpu1
        wait $load
        end_recording
        nothing_is_set_up
        """,
    )
    recorded.expect_whole()
    recorded.expect_no_damage()
    assert recorded.counter("dropped") == 0
    assert sum(per_action(recorded.files()).values()) == 2000
    assert all(any(True for _ in events(path)) for path in recorded.files())


@pytest.mark.nightly
def test_records_refused_by_a_full_ring_are_counted_while_a_cpu_returns(
    guest: Guest,
) -> None:
    recorded = record(
        guest,
        """set -e
        cpu1=/sys/devices/system/cpu/cpu1/online
        trap 'echo 1 > $cpu1' EXIT
        echo 0 > $cpu1
        begin_recording ,actions=complete,buffer-size=32K,subbuffer-size=8K
        echo 1 > $cpu1
        job 100
        kill -STOP $pid
        job 4000
        kill -CONT $pid
        sleep 2
        before=$(requests)
        job 100 --thinktime=2000 --thinktime_blocks=1 & load=$!
        until [ $(requests) -gt $((before + 20)) ]; do sleep 0.05; done
        echo 0 > $cpu1; sleep 0.2; echo 1 > $cpu1
        wait $load
        end_recording
        nothing_is_set_up
        """,
    )
    recorded.expect_whole()
    recorded.expect_no_damage()
    dropped = recorded.counter("dropped")
    assert dropped > 4000
    assert recorded.summary["events_lost"] == dropped
    on_disk = sum(per_action(recorded.files()).values())
    assert recorded.refused() % 48 == 0
    assert on_disk + dropped + recorded.refused() // 48 == 2 * (100 + 4000 + 100)
    # The gap lies between earlier and later records, except those in the same sub-buffer.
    text = lttv("text", recorded.out_dir / "trace").stdout.splitlines()
    at = next(number for number, line in enumerate(text) if "LOST" in line)
    assert text[at].startswith("CPU:0 [LOST ")
    assert 1000 < at < len(text) - 100


@pytest.mark.nightly
def test_the_next_lttd_removes_the_block_trace_of_a_killed_one(guest: Guest) -> None:
    recorded = record(
        guest,
        """
        begin_recording "" || exit
        job 50
        kill -KILL $pid; wait $pid
        ls /sys/kernel/debug/block/nullb0/trace0 || exit 3
        begin_recording ""  || exit 4
        job 50
        end_recording || exit 5
        nothing_is_set_up
        """,
        300,
    )
    recorded.expect_whole()
    recorded.expect_no_damage()
    assert "a killed lttd had left its trace set up; it was torn down" in recorded.output
    action = per_action(recorded.files())
    assert sum(count for one, count in action.items() if one & ACT_MASK == 8) == 100
    assert not any(one & NOTIFY for one in action)


@pytest.mark.nightly
def test_a_block_trace_of_another_tool_is_left_alone(guest: Guest) -> None:
    result = guest.run(
        PRELUDE
        + """
        others() {
            mkdir $1
            blktrace -d /dev/nullb0 -D $1 > /dev/null & peer=$!
            until ls /sys/kernel/debug/block/nullb0/trace1 2> /dev/null; do sleep 0.1; done
        }
        others /tmp/other
        "$PYTHON" -m lttd -t /tmp/refused --source blktrace:/dev/nullb0
        echo refused with $?
        ls /sys/kernel/debug/block/nullb0/trace0 || exit 7
        kill -INT $peer; wait $peer
        test -e /tmp/refused && exit 8
        # And ours, torn down and set up anew by somebody else, is ours no more.
        begin_recording "" || exit 9
        blktrace -d /dev/nullb0 -k
        others /tmp/taken
        wait $pid
        echo ended with $?
        cat "$OUT/stderr"
        ls /sys/kernel/debug/block/nullb0/trace0 || exit 10
        kill -INT $peer; wait $peer
        nothing_is_set_up
        """,
        300,
    )
    result.expect(0)
    assert "another process traces /dev/nullb0" in result.output
    assert "refused with 1" in result.output
    assert "ended with 0" in result.output
    assert "another process has torn this trace down" in result.output


@pytest.mark.nightly
def test_another_reader_of_a_block_traces_files_is_named(guest: Guest) -> None:
    recorded = record(
        guest,
        """
        begin_recording ",subbuffer-size=4K"
        file=/sys/kernel/debug/block/nullb0/trace0
        job 200
        sleep 1
        kill -STOP $pid
        job 200
        dd if=$file of=/dev/null bs=480 count=1
        kill -CONT $pid
        sleep 60 < $file & reader=$!
        sleep 2
        job 200
        sleep 1
        kill $reader
        echo "reader $reader"
        sleep 1
        end_recording
        """,
    )
    recorded.expect_whole()
    assert "block/nullb0: sleep (pid " in recorded.output
    assert "no other process reads these files now; 480 bytes went to others" in recorded.output
    lost = recorded.manifest.streams[0].summary
    assert lost is not None
    assert lost.lost["foreign_read_bytes"] == 480
