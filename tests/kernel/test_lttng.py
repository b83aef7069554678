"""Record real lttng-modules; babeltrace2 reads each segment on this machine.

The modules print the losses of each buffer when it is destroyed; lttd has to count the same.
"""

import re
import shutil
from collections import Counter

import pytest

from lttd.index import read_gaps
from lttd.kept import read_kept
from lttd.subbuffer import Reason, Unit
from lttd.view.verify import check
from tests.kernel.guest import Guest
from tests.kernel.lttng_recording import (
    PRELUDE,
    babeltrace,
    data_files,
    expect_whole,
    names_in,
    packets_of,
    record,
)

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.skipif(not shutil.which("babeltrace2"), reason="babeltrace2 is not installed"),
]


def kernels_losses(output: str) -> dict[int, int]:
    """Return what the modules printed of a destroyed channel: events that found the ring full."""
    found = re.findall(
        r"cpu (\d+): records were lost.*\n.*\[ (\d+) buffer full, 0 nest buffer wrap-around, 0",
        output,
    )
    return {int(cpu): int(count) for cpu, count in found}


def test_babeltrace_reads_channels_of_a_busy_machine(lttng_guest: Guest) -> None:
    recorded = record(
        lttng_guest,
        """
        cat > /tmp/lttng.toml <<'T'
[[source]]
kind = "lttng"
context = ["procname", "tid"]
[source.channel.cpu]
events = ["sched_*", "irq_*"]
[source.channel.calls]
syscalls = ["*"]
kprobe = ["leaving=do_exit"]
[source.channel.state]
events = ["lttng_statedump_*"]
T
        busy
        begin_recording --config /tmp/lttng.toml --segment-size 1M
        sleep 20
        idle
        end_recording
        """,
    )
    assert recorded.output == ""
    assert len(recorded.segments) > 1
    seen = Counter[str]()
    for segment in recorded.segments:
        expect_whole(segment)
        found = babeltrace(segment)
        assert found.discarded == found.missing_packets == 0
        assert all("procname = " in line and "tid = " in line for line in found.events)
        seen += names_in(found.events)
    assert recorded.summary["events_lost"] == 0
    assert {"sched_switch", "irq_softirq_entry", "leaving"} <= seen.keys()
    assert {"syscall_entry_write", "syscall_exit_write"} <= seen.keys()
    assert seen["lttng_statedump_process_state"] >= 1
    assert recorded.summary["padding_bytes"] > 0


def test_the_ready_channels_are_recorded(lttng_guest: Guest) -> None:
    recorded = record(
        lttng_guest,
        """
        begin_recording --config $CHECKOUT/systemd/lttng-channels.toml
        sleep 2
        end_recording
        """,
    )
    (segment,) = recorded.segments
    expect_whole(segment)
    assert [path.name for path in data_files(segment)] == [
        f"{channel}_{cpu}"
        for channel in ("cpu", "interrupts", "modules", "network", "processes")
        for cpu in (0, 1)
    ]
    assert babeltrace(segment).events


def test_events_that_a_full_ring_discards_are_counted_per_cpu(lttng_guest: Guest) -> None:
    recorded = record(
        lttng_guest,
        """
        busy
        dmesg -C
        begin_recording --source 'lttng,events=sched_*,syscalls=*,subbuffer-size=4K,subbuffers=2,\
read-timer=500ms'
        sleep 4
        end_recording || exit
        idle
        dmesg
        """,
    )
    kernels = kernels_losses(recorded.output)
    assert recorded.lost("discarded") == kernels
    assert min(kernels.values()) > 0
    (segment,) = recorded.segments
    expect_whole(segment)
    found = babeltrace(segment)
    assert found.discarded == sum(kernels.values())
    last = {
        packets[-1].cpu: packets[-1].discarded for packets in map(packets_of, data_files(segment))
    }
    assert last == kernels


def test_packets_that_a_full_ring_overwrites_are_counted_per_cpu(lttng_guest: Guest) -> None:
    recorded = record(
        lttng_guest,
        """
        busy
        begin_recording --source 'lttng,events=sched_*,syscalls=*,overwrite=yes,\
subbuffer-size=4K,subbuffers=2,read-timer=500ms'
        sleep 4
        idle
        end_recording
        """,
    )
    (segment,) = recorded.segments
    expect_whole(segment)
    missing, at_begin = {}, 0
    for path in data_files(segment):
        numbers = [packet.sequence for packet in packets_of(path)]
        missing[packets_of(path)[0].cpu] = numbers[-1] + 1 - len(numbers)
        at_begin += numbers[0]
        gaps = read_gaps(segment.index / f"{path.name}.gaps")
        assert {(gap.reason, gap.unit) for gap in gaps} == {(Reason.OVERWRITTEN, Unit.SUBBUFFERS)}
    assert recorded.lost("overwritten_subbuffers") == missing
    assert min(missing.values()) > 0
    # It cannot know of packets before the first one.
    assert babeltrace(segment).missing_packets == sum(missing.values()) - at_begin


def test_a_full_disk_costs_what_does_not_fit_and_no_more(lttng_guest: Guest) -> None:
    recorded = record(
        lttng_guest,
        """
        small_disk /tmp/trace
        trap 'umount /tmp/trace' EXIT
        busy
        begin_recording --on-full wait --source 'lttng,events=sched_*,syscalls=*'
        for _ in $(seq 60); do grep -q space "$OUT/stderr" && break; sleep 1; done
        more_room /tmp/trace
        sleep 7
        idle
        end_recording
        """,
        status=1,
    )
    assert "space" in recorded.output
    (segment,) = recorded.segments
    lost = [each["lost"] for each in recorded.summary["streams"]]
    assert sum(each.get("storage_subbuffers", 0) for each in lost) > 0
    for path in data_files(segment):
        assert packets_of(path)
    found = babeltrace(segment)
    assert found.events


def test_a_cpu_that_comes_while_recording_gets_its_streams(lttng_guest: Guest) -> None:
    recorded = record(
        lttng_guest,
        """
        cpu1=/sys/devices/system/cpu/cpu1/online
        trap 'echo 1 > $cpu1' EXIT
        echo 0 > $cpu1
        begin_recording --source 'lttng,events=sched_*'
        echo 1 > $cpu1
        sleep 2
        for _ in $(seq 100); do taskset -c 1 /bin/true; done
        echo 0 > $cpu1
        sleep 2
        echo 1 > $cpu1
        for _ in $(seq 100); do taskset -c 1 /bin/true; done
        sleep 2
        end_recording
        """,
    )
    (segment,) = recorded.segments
    expect_whole(segment)
    assert [path.name for path in data_files(segment)] == ["channel0_0", "channel0_1"]
    lines = [line for line in babeltrace(segment).events if "{ cpu_id = 1 }" in line]
    assert names_in(lines)["sched_process_exec"] >= 200
    assert recorded.summary["events_lost"] == 0


def test_a_reload_records_other_events_that_babeltrace_knows(lttng_guest: Guest) -> None:
    recorded = record(
        lttng_guest,
        """
        channel() {
            printf '[[source]]\\nkind = "lttng"\\n[source.channel.a]\\nevents = [%s]\\n' "$1"
        }
        channel '"sched_process_fork"' > /tmp/lttng.toml
        begin_recording --config /tmp/lttng.toml
        for _ in $(seq 10); do /bin/true; done
        channel '"sched_process_exec"' > /tmp/lttng.toml
        "$PYTHON" -m lttd reload -t /tmp/trace || exit 8
        for _ in $(seq 10); do /bin/true; done
        end_recording
        """,
    )
    (segment,) = recorded.segments
    expect_whole(segment)
    names = [next(iter(names_in([line]))) for line in babeltrace(segment).events]
    forks, execs = names.count("sched_process_fork"), names.count("sched_process_exec")
    assert forks >= 10, recorded.output
    assert execs >= 10, recorded.output
    assert names == ["sched_process_fork"] * forks + ["sched_process_exec"] * execs


def test_triggers_store_windows_of_rings_that_go_on_overwriting_themselves(
    lttng_guest: Guest,
) -> None:
    recorded = record(
        lttng_guest,
        """
        written() { cat /tmp/trace/*/streams/channel0_* | wc -c; }
        trigger() { "$PYTHON" -m lttd trigger -t /tmp/trace "$@" || exit 8; }
        busy
        begin_recording --mode flight --source 'lttng,events=sched_*,overwrite=yes,\
buffer-size=64K,subbuffer-size=8K'
        sleep 5
        [ $(written) = 0 ] || exit 3
        trigger --reason first --before 1h --after 1s
        first=$(written)
        [ $first -gt 0 ] || exit 4
        sleep 5
        [ $(written) = $first ] || exit 5
        trigger --reason second --before 1h --after 0s
        idle
        end_recording
        """,
    )
    windows = [segment for segment in recorded.segments if babeltrace(segment).events]
    assert len(windows) == 2
    for segment in windows:
        assert [str(finding) for finding in check(segment).findings] == []
        (kept,) = read_kept(segment).triggers
        assert kept.complete
        gaps = [
            gap
            for path in data_files(segment)
            for gap in read_gaps(segment.index / f"{path.name}.gaps")
        ]
        # Each ring had overwritten itself before the window, and lost nothing in it.
        assert {(gap.reason, gap.unit, gap.row) for gap in gaps} == {
            (Reason.UNWANTED, Unit.SUBBUFFERS, 0)
        }
        assert len(gaps) == 2
        for path in data_files(segment):
            numbers = [packet.sequence for packet in packets_of(path)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert recorded.summary["events_lost"] == 0
    assert recorded.summary["flight_overwritten_events"] is None, "lttng counts packets"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("events=sched_swich", "did you mean sched_switch?"),
        ("syscalls=opennat", "did you mean openat?"),
        ("kprobe=x=no_such_function", "there is no no_such_function in /proc/kallsyms"),
    ],
)
def test_what_the_kernel_does_not_have_is_refused(lttng_guest: Guest, keys: str, said: str) -> None:
    lttd = f"""{PRELUDE}\n"$PYTHON" -m lttd -t /tmp/trace --source 'lttng,{keys}'"""
    result = lttng_guest.run(lttd)
    assert result.status in (1, 77)
    assert said in result.output
    assert len(result.output.splitlines()) == 1
