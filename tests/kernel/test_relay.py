"""Record relay channels of our own module (tests/kernel/relaytest) on a real kernel.

The module counts the records that it made, stored and refused on each CPU; each record contains its
number. So a test compares the disk with the module and not with the counters of lttd.
"""

import json
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from lttd.index import SeekIndex, read_gaps
from lttd.manifest import Manifest
from lttd.subbuffer import Reason, Unit
from lttd.tracedir import SegmentPaths, segments
from lttd.view.verify import check
from tests.kernel.guest import Guest

pytestmark = [pytest.mark.guest, pytest.mark.slow]

HEAD = struct.Struct("<IIQHHI")
FRAMED = ",framing=u32le-length,time=8,sequence=4"

PRELUDE = r"""
set -e
export PYTHONPATH=$CHECKOUT
DEBUG=/sys/kernel/debug
RELAY=$DEBUG/relaytest
mountpoint -q $DEBUG || mount -t debugfs debugfs $DEBUG
unload() { if [ -d $RELAY ]; then rmmod relaytest; fi; }
trap unload EXIT
load() { unload; insmod /out/relaytest.ko "$@"; }
order() { echo "$@" > $RELAY/control; }
begin_recording() {  # KEYS OPTION...
    local keys=$1; shift
    rm -rf /tmp/trace
    "$PYTHON" -m lttd -t /tmp/trace --source "relay:$RELAY$keys" --flush-interval 100ms \
        --summary json:"$OUT/summary" "$@" 2> "$OUT/stderr" &
    pid=$!
    for _ in $(seq 900); do
        [ -e "$(echo /tmp/trace/*/trace.json)" ] && return
        kill -0 $pid 2> /dev/null || break
        sleep 0.1
    done
    cat "$OUT/stderr"
    return 1
}
begin_mapped() {  # PADDING KEYS LOAD...: PADDING is also the module's head
    local padding=$1 keys=$2; shift 2
    load head=$padding "$@"
    begin_recording "$keys,padding=$padding"
}
end_recording() {
    if [ -d $RELAY ]; then cp $RELAY/status "$OUT/status"; fi
    kill -TERM $pid
    local status=0
    wait $pid || status=$?
    cat "$OUT/stderr"
    cp -r /tmp/trace "$OUT/trace"
    return $status
}
"""


def numbers_in(data: bytes) -> list[int]:
    """Return the numbers of the records in *data*; fail if it contains anything else."""
    return list(records_in(data).values())


def records_in(data: bytes) -> dict[int, int]:
    """Return the number of each record by its begin; fail if *data* contains anything else."""
    numbers, at = dict[int, int](), 0
    while at < len(data):
        number = number_at(data, at)
        assert number is not None, f"damage at byte {at} of {len(data)}"
        numbers[at] = number
        at += int.from_bytes(data[at : at + 4], "little") + 4
    return numbers


def number_at(data: bytes, at: int) -> int | None:
    """Return the number of the intact record at *at*, or None."""
    if at + HEAD.size > len(data):
        return None
    behind, number, _, _, payload, check_word = HEAD.unpack_from(data, at)
    content = data[at + HEAD.size : at + HEAD.size + payload]
    sound = behind + 4 == HEAD.size + payload and check_word == number ^ 0xFFFFFFFF
    return number if sound and content == bytes([number & 255]) * payload else None


@dataclass
class Recorded:
    """The files of a recording, copied from the guest."""

    output: str
    out_dir: Path

    @cached_property
    def segment(self) -> SegmentPaths:
        (segment,) = segments(self.out_dir / "trace")
        return segment

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.read(self.segment.manifest)

    @property
    def names(self) -> list[str]:
        return [record.name for record in self.manifest.streams]

    @cached_property
    def summary(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.out_dir / "summary").read_text())
        return value

    def data(self, name: str) -> bytes:
        return self.segment.stream(name).data.read_bytes()

    def lost(self, name: str, reason: Reason, unit: Unit) -> int:
        gaps = read_gaps(self.segment.stream(name).gaps)
        return sum(gap.count or 0 for gap in gaps if (gap.reason, gap.unit) == (reason, unit))

    def made(self, name: str) -> dict[str, int]:
        """Return the counts of the module for one CPU."""
        channel, _, cpu = name.rpartition("_")
        words = re.search(rf"^{channel} {cpu} (.*)$", self.status, re.MULTILINE)
        assert words, self.status
        parts = words[1].split()
        return dict(zip(parts[::2], map(int, parts[1::2]), strict=True))

    @property
    def status(self) -> str:
        return (self.out_dir / "status").read_text()

    def expect_no_gap_but_of_copies(self, name: str) -> None:
        """Assert that each gap is of the records just before it, which the kernel repeated."""
        data, stream = self.data(name), self.segment.stream(name)
        begins = records_in(data)
        rows = SeekIndex(stream.index).entries()
        for gap in read_gaps(stream.gaps):
            assert (gap.reason, gap.unit) == (Reason.DAMAGED, Unit.BYTES)
            place = int(rows[gap.row]["offset_bytes"]) if gap.row < len(rows) else len(data)
            assert gap.count
            assert place - gap.count in begins

    def expect_whole(self) -> None:
        report = check(self.segment)
        assert [str(finding) for finding in report.findings] == []
        assert report.state == "closed"


def record(guest: Guest, script: str, timeout_s: float = 300.0) -> Recorded:
    """Run a script in a guest that has the relay module."""
    result = guest.run(f"{PRELUDE}{script}", timeout_s).expect(0)
    return Recorded(result.output, result.out_dir)


def test_every_record_arrives_once_with_a_cpu_away_in_the_middle(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        f"""
        cpu1=/sys/devices/system/cpu/cpu1/online
        trap 'echo 1 > $cpu1; unload' EXIT
        load n_subbufs=1024 flush_ms=50
        begin_recording {FRAMED}
        order write 0 0 4000 0 200 50 & other=$!
        order write 0 1 2000 0 200 50
        order write 0 1 7 0 200 0
        echo 0 > $cpu1; sleep 0.5
        echo 1 > $cpu1
        order write 0 1 2000 0 200 50
        wait $other
        sleep 0.2
        order flush 0
        end_recording
        """,
    )
    assert recorded.output == ""
    recorded.expect_whole()
    for name in ("first_0", "first_1"):
        made = recorded.made(name)
        assert made["refused"] == 0
        assert numbers_in(recorded.data(name)) == list(range(made["made"]))
        # Where two empty sub-buffers wait, the kernel delivers the next one twice (docs/RELAY.md).
        recorded.expect_no_gap_but_of_copies(name)
    assert recorded.made("first_1")["made"] == 4007
    assert recorded.summary["events_lost"] == 0


def test_refused_and_undelivered_relay_bytes_are_counted(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        f"""
        load n_subbufs=4 hold_us=20
        begin_recording {FRAMED}
        kill -STOP $pid
        order write 0 0 10000 0 100 1 & other=$!
        order write 0 1 10000 0 100 1
        wait $other
        kill -CONT $pid
        sleep 0.3
        order flush 0
        for cpu in 0 1; do order write 0 $cpu 50 0 100 200; done
        order flush 0
        sleep 0.3
        end_recording
        """,
    )
    recorded.expect_whole()
    for name in ("first_0", "first_1"):
        made, data = recorded.made(name), recorded.data(name)
        numbers = numbers_in(data)
        assert numbers == sorted(set(numbers))
        assert made["refused"] > 0
        lost_bytes = recorded.lost(name, Reason.REFUSED, Unit.BYTES)
        damaged_bytes = recorded.lost(name, Reason.DAMAGED, Unit.BYTES)
        print(name, made, "on disk", len(numbers), "never given", lost_bytes, damaged_bytes)
        assert made["stored_bytes"] == len(data) + lost_bytes
        assert damaged_bytes == 0
        dropped = recorded.lost(name, Reason.DROPPED, Unit.EVENTS)
        # Records lost before the first stored one leave no trace.
        assert made["made"] == numbers[0] + len(numbers) + dropped
        assert made["made"] - len(numbers) >= made["refused"]


NAIVE = """
import os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_NONBLOCK)
out = open(sys.argv[2], "wb", buffering=0)
os.sched_setaffinity(0, {0})
print("ready", flush=True)
while not os.path.exists(sys.argv[3]):
    out.write(os.read(fd, 65536))
while data := os.read(fd, 65536):
    out.write(data)
"""


@pytest.mark.nightly
def test_lttd_gets_no_damage_where_a_plain_reader_does(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        f"""
        cat > /tmp/naive.py <<'P'
{NAIVE}
P
        load n_subbufs=64 hold_us=300
        rm -f /tmp/enough
        "$PYTHON" -IS /tmp/naive.py $RELAY/first1 "$OUT/naive" /tmp/enough > /tmp/said & naive=$!
        until [ -s /tmp/said ]; do sleep 0.1; done
        order write 0 1 1000 0 100 0
        touch /tmp/enough
        wait $naive
        load n_subbufs=64 hold_us=300
        begin_recording {FRAMED}
        order write 0 1 1000 0 100 0
        order flush 0
        end_recording
        """,
    )
    naive = (recorded.out_dir / "naive").read_bytes()
    sound = damaged = at = 0
    while at < len(naive):
        if number_at(naive, at) is None:
            damaged += 1
            at += 1
            while at < len(naive) and number_at(naive, at) is None:
                at += 1
        else:
            sound += 1
            at += int.from_bytes(naive[at : at + 4], "little") + 4
    print(f"read everything: {sound} of 1000 records, {damaged} damaged places")
    assert damaged > 0
    assert sound < 1000
    recorded.expect_whole()
    assert numbers_in(recorded.data("first_1")) == list(range(1000))
    assert recorded.summary["events_lost"] == 0


@pytest.mark.nightly
def test_relay_channels_may_come_and_go(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        f"""
        load n_subbufs=1024 flush_ms=50
        begin_recording {FRAMED}
        order write 0 0 100 0 100 0
        order open
        sleep 0.5
        order write 1 1 300 0 100 0
        sleep 0.3
        cp $RELAY/status "$OUT/before"
        unload
        sleep 0.5
        load n_subbufs=1024 flush_ms=50
        sleep 0.5
        order write 0 0 200 0 100 0
        sleep 0.3
        end_recording
        """,
    )
    recorded.expect_whole()
    assert {"first_0", "first_1", "late_0", "late_1"} <= set(recorded.names)
    assert numbers_in(recorded.data("late_1")) == list(range(300))
    assert numbers_in(recorded.data("first_0")) == [*range(100), *range(200)]
    assert "first0: went away; 0 bytes of closed sub-buffers" in recorded.output


@pytest.mark.nightly
def test_the_record_numbers_reveal_a_lapped_reader(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        f"""
        load n_subbufs=4 overwrite=1
        begin_recording {FRAMED},overwrite=yes
        order write 0 1 10 0 100 200
        order flush 0
        sleep 0.3
        order write 0 1 20000 0 100 0
        sleep 0.3
        order write 0 1 10 0 100 200
        order flush 0
        sleep 0.3
        end_recording
        ! "$PYTHON" -m lttd -t /tmp/refused --source relay:$RELAY,overwrite=yes
        """,
    )
    recorded.expect_whole()
    made, numbers = recorded.made("first_1"), numbers_in(recorded.data("first_1"))
    assert made["refused"] == 0
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == made["made"] - 1
    overwritten = recorded.lost("first_1", Reason.OVERWRITTEN, Unit.EVENTS)
    damaged = recorded.lost("first_1", Reason.DAMAGED, Unit.BYTES)
    # The record before a loss may be partly overwritten; it is reported as damaged bytes.
    suspect = made["made"] - len(numbers) - overwritten
    print(made, "on disk", len(numbers), "overwritten", overwritten, "damaged bytes", damaged)
    assert 0 <= 24 * suspect <= damaged
    assert numbers[0] == 0
    assert overwritten > 0
    assert "lap its reader without a mark" in recorded.output


@pytest.mark.nightly
def test_the_absence_of_relay_channels_is_explained(each_relay_guest: Guest) -> None:
    recorded = record(
        each_relay_guest,
        """
        load
        tell() {
            local status=0
            "$PYTHON" -m lttd -t /tmp/none --source "$1" || status=$?
            echo "status $status"
        }
        mkdir -p /tmp/files /tmp/empty; echo > /tmp/files/trace0
        tell relay:/tmp/empty
        tell relay:/tmp/files
        tell relay:$RELAY,pattern=other
        ls -d /tmp/none || echo "nothing is left"
        """,
    )
    assert recorded.output.count("status 77") == 3
    assert "/tmp/files/trace0 is a regular file on tmpfs, not a relay file" in recorded.output
    assert "nothing is left" in recorded.output
