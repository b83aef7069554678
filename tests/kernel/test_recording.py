"""Record on another real kernel: CPU hotplug, stopped processes, acts of other tools.

The load writes numbered marks into the recorder's own instance. So a test finds each mark in its
stream without using the index or the counters of lttd.
"""

import re

import numpy as np
import pytest

from lttd.manifest import Manifest
from lttd.view.verify import check
from tests.kernel.guest import Guest
from tests.kernel.recording import SHELL, Recording

pytestmark = [pytest.mark.guest, pytest.mark.slow]

# No process hangs here, so the rings hold only marks.
QUIET = "--events sched:sched_process_hang"

PRELUDE = (
    SHELL
    + r"""
export TRACING=/sys/kernel/tracing
cat > /tmp/marks.py <<'P'
import errno, os, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
fd = os.open(sys.argv[1] + "/trace_marker", os.O_WRONLY)
end, n = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end and not told:
    try:
        os.write(fd, b"mark %08d\n" % n)
    except OSError as error:
        if error.errno != errno.EBADF:  # which says that the ring takes none
            raise
    n += 1
    if len(sys.argv) > 3:
        time.sleep(float(sys.argv[3]))
print(n)
P
# A new instance is on, too; lttd turns it off before it enables events.
is_recording() {
    [ "$(cat "$instance/tracing_on" 2> /dev/null)" = 1 ] && [ -n "$(cat "$instance/set_event")" ]
}
begin_recording() {  # OPTION...: $pid is lttd's, $instance its own
    rm -rf /tmp/trace
    start_lttd "$@"
    instance=$TRACING/instances/lttd-$pid
    until_lttd is_recording
}
# SECONDS [PAUSE]: prints how many it wrote.  In the background, its pid is that of the load.
marks() {
    set -- "$PYTHON" -IS /tmp/marks.py "$instance" "$@"
    if [ $BASHPID = $$ ]; then "$@"; else exec "$@"; fi
}
# COUNT: waits until so many more were written; how long a busy host takes for it nobody knows.
more_marks() {
    local sum='/^(entries|overrun|dropped events|read events):/ { n += $NF } END { print n }'
    local goal=$(($(awk "$sum" $instance/per_cpu/cpu*/stats) + $1))
    until [ $(awk "$sum" $instance/per_cpu/cpu*/stats) -ge $goal ]; do sleep 0.1; done
}
no_instance_is_left() { ! ls -d $TRACING/instances/lttd-* 2> /dev/null; }
"""
)


class Recorded(Recording):
    """The files of a recording of ftrace."""

    @property
    def manifest(self) -> Manifest:
        return Manifest.read(self.segments[-1].manifest)

    def counters(self, name: str) -> int:
        """Sum a counter of the kernel as it was at the end of recording."""
        return sum(record.counters[name] for record in self.manifest.streams)

    def marks(self, stream: str) -> list[int]:
        """Return the numbers of the marks in a packed stream, in the order of the file."""
        data = self.segments[-1].stream(stream).data.read_bytes()
        return [int(number) for number in re.findall(rb"mark (\d{8})\n", data)]

    def all_marks(self) -> list[int]:
        names = [record.name for record in self.manifest.streams]
        return sorted(number for name in names for number in self.marks(name))

    def expect_whole(self) -> int:
        """Assert that all files agree with each other and with the kernel; return the events."""
        events = 0
        for segment in self.segments:
            report = check(segment, events=True)
            assert [str(finding) for finding in report.findings] == []
            assert report.state == "closed"
            events += sum(stream.events or 0 for stream in report.streams)
        return events


def record(guest: Guest, script: str, timeout_s: float = 300.0, *, status: int = 0) -> Recorded:
    return Recorded.by(guest, PRELUDE + script, timeout_s, status=status)


def test_every_event_that_the_kernel_delivered_is_in_the_trace(guest: Guest) -> None:
    recorded = record(
        guest,
        """set -e
        # Not raw_syscalls: docs/TESTING-KERNEL.md tells why.
        begin_recording --events 'sched:*,irq:*' --flush-interval 100ms
        marks 3 > /dev/null & first=$!
        marks 3 > /dev/null & second=$!
        taskset -apc 0 $first; taskset -apc 1 $second
        wait $first $second
        end_recording
        no_instance_is_left
        """,
    )
    events = recorded.expect_whole()
    assert events == recorded.counters("read events") > 10_000
    assert recorded.counters("entries") == 0
    assert recorded.summary["events_lost"] == 0


def test_a_cpu_that_is_possible_but_absent_has_an_empty_stream(guest: Guest) -> None:
    recorded = record(guest, f"set -e; begin_recording {QUIET}; marks 1; end_recording")
    recorded.expect_whole()
    assert [each.info.id.cpu for each in recorded.manifest.streams] == [0, 1, 2]
    assert recorded.segments[0].stream("ftrace_2").data.stat().st_size == 0
    assert "CPU" not in recorded.output


def test_a_cpu_goes_off_and_on_under_load_and_nothing_is_lost(guest: Guest) -> None:
    recorded = record(
        guest,
        f"""set -e
        cpu1=/sys/devices/system/cpu/cpu1/online
        trap 'echo 1 > $cpu1' EXIT
        begin_recording {QUIET} --buffer-size 16M --flush-interval 200ms
        marks 600 0.0002 > $OUT/written & load=$!
        for round in 1 2 3; do
            taskset -apc 1 $load; more_marks 500
            echo 0 > $cpu1; more_marks 500
            echo 1 > $cpu1
        done
        taskset -apc 1 $load; more_marks 500
        kill $load; wait $load
        end_recording
        no_instance_is_left
        """,
    )
    recorded.expect_whole()
    written = int((recorded.out_dir / "written").read_text())
    assert recorded.all_marks() == list(range(written))
    assert recorded.summary["events_lost"] == 0
    # It was offline three times: other CPUs have the marks that CPU 1 lacks.
    holes = np.flatnonzero(np.diff(recorded.marks("ftrace_1")) > 100)
    assert len(holes) >= 3
    assert recorded.marks("ftrace_1")[-1] > written - 100


@pytest.mark.nightly
def test_a_cpu_that_comes_while_recording_is_recorded(guest: Guest) -> None:
    recorded = record(
        guest,
        f"""set -e
        cpu1=/sys/devices/system/cpu/cpu1/online
        trap 'echo 1 > $cpu1' EXIT
        echo 0 > $cpu1
        begin_recording {QUIET} --flush-interval 200ms
        marks 1 0.001 > /dev/null
        echo 1 > $cpu1
        taskset -pc 1 $$
        marks 2 0.0002 > $OUT/written
        end_recording
        """,
    )
    recorded.expect_whole()
    written = int((recorded.out_dir / "written").read_text())
    assert recorded.marks("ftrace_1") == list(range(written))


@pytest.mark.nightly
def test_a_recorder_paused_for_ten_seconds_resumes_and_counts_the_loss(
    guest: Guest,
) -> None:
    recorded = record(
        guest,
        f"""set -e
        begin_recording {QUIET} --buffer-size 64K
        marks 600 > $OUT/written & load=$!
        sleep 1
        kill -STOP $pid; sleep 10; kill -CONT $pid
        more_marks 500
        kill $load; wait $load
        end_recording
        """,
    )
    recorded.expect_whole()
    written = int((recorded.out_dir / "written").read_text())
    marks = recorded.all_marks()
    lost = recorded.summary["events_lost"]
    assert lost == recorded.counters("overrun") > 0
    assert len(marks) == len(set(marks)) == written - lost
    assert marks[-1] == written - 1, "it went on"


@pytest.mark.nightly
def test_without_overwriting_the_newest_events_are_refused_and_counted(guest: Guest) -> None:
    recorded = record(
        guest,
        f"""set -e
        begin_recording {QUIET} --buffer-size 64K --no-overwrite
        marks 600 > $OUT/written & load=$!
        sleep 1
        kill -STOP $pid; sleep 4; kill -CONT $pid
        more_marks 500
        kill $load; wait $load
        end_recording
        """,
    )
    recorded.expect_whole()
    written = int((recorded.out_dir / "written").read_text())
    lost = recorded.summary["events_lost"]
    assert lost == recorded.counters("dropped events") > 0
    assert recorded.counters("overrun") == 0
    assert len(recorded.all_marks()) == written - lost
    assert recorded.all_marks()[-1] == written - 1, "it went on"


@pytest.mark.nightly
def test_an_instance_in_use_cannot_be_removed_and_recording_continues(guest: Guest) -> None:
    recorded = record(
        guest,
        f"""set -e
        begin_recording {QUIET}
        ! rmdir $instance
        ! "$PYTHON" -m lttd -t /tmp/second --source ftrace:lttd-$pid --duration 1s
        marks 2 0.001 > $OUT/written
        end_recording
        no_instance_is_left
        ! test -e /tmp/second
        """,
    )
    recorded.expect_whole()
    written = int((recorded.out_dir / "written").read_text())
    assert recorded.all_marks() == list(range(written))
    assert re.search(r"trace_pipe_raw: \S+ \(pid \d+\) reads it", recorded.output)


@pytest.mark.nightly
def test_resizing_and_turning_off_the_ring_is_not_an_error(guest: Guest) -> None:
    recorded = record(
        guest,
        f"""set -e
        begin_recording {QUIET} --buffer-size 1M
        marks 6 0.0005 > $OUT/written & load=$!
        for size in 4096 512 2048; do sleep 1; echo $size > $instance/buffer_size_kb; done
        sleep 1; echo 0 > $instance/tracing_on; sleep 0.5; echo 1 > $instance/tracing_on
        wait $load
        end_recording
        no_instance_is_left
        """,
    )
    recorded.expect_whole()
    written = int((recorded.out_dir / "written").read_text())
    marks = recorded.all_marks()
    assert len(marks) == len(set(marks))
    assert marks[0] == 0
    assert marks[-1] == written - 1
    assert not any("Traceback" in line for line in recorded.output.splitlines())


def test_unmounting_tracefs_is_reported_and_leaves_a_whole_trace(guest: Guest) -> None:
    recorded = record(
        guest,
        f"""
        trap 'mountpoint -q $TRACING || mount -t tracefs tracefs $TRACING
              rmdir $TRACING/instances/lttd-*' EXIT
        begin_recording {QUIET} || exit
        marks 2 0.001 > $OUT/written
        umount -l $TRACING
        sleep 2
        end_recording
        echo status $?
        """,
    )
    assert "Traceback" not in recorded.output
    assert "tracing_on" in recorded.output
    assert "tracefs unmounted" in recorded.output
    assert "status 0" in recorded.output, "what was to be recorded is"
    recorded.expect_whole()
    written = int((recorded.out_dir / "written").read_text())
    assert recorded.all_marks() == list(range(written))


@pytest.mark.nightly
def test_a_sparse_stream_has_every_sub_buffer_in_its_slot(guest: Guest) -> None:
    recorded = record(
        guest,
        "set -e; begin_recording --events 'sched:*' --layout sparse --flush-interval 100ms;"
        " marks 2 > /dev/null; end_recording",
    )
    events = recorded.expect_whole()
    assert events == recorded.counters("read events")
    stored = 0
    for each in recorded.manifest.streams:
        size = recorded.segments[0].stream(each.name).data.stat().st_size
        assert size % each.info.subbuffer_bytes == 0
        stored += size // each.info.subbuffer_bytes
    assert stored == recorded.summary["subbuffers"] > 20


@pytest.mark.nightly
def test_the_ring_is_as_large_as_was_asked_for(guest: Guest) -> None:
    recorded = record(
        guest,
        f"""set -e
        begin_recording {QUIET} --buffer-size 1M --subbuffer-size 16K
        cat $instance/per_cpu/cpu[01]/buffer_size_kb > $OUT/sizes
        marks 1 > $OUT/written
        end_recording
        """,
    )
    # The ring holds the requested size without the headers of its pages.
    for size_kb in recorded.out_dir.joinpath("sizes").read_text().split():
        assert 1024 <= int(size_kb) < 1024 + 4
    recorded.expect_whole()
    # This kernel has only sub-buffers of a page; lttd reports it and records all the same.
    assert "buffer_subbuf_size_kb" in recorded.output
    assert recorded.manifest.streams[0].info.subbuffer_bytes == 4096


@pytest.mark.nightly
def test_a_ring_too_large_for_memory_leaves_nothing_in_the_kernel(guest: Guest) -> None:
    recorded = record(
        guest,
        f"""
        "$PYTHON" -m lttd -t /tmp/large {QUIET} --buffer-size 64G
        echo status $?
        no_instance_is_left && ! test -e /tmp/large
        """,
    )
    assert "status 1" in recorded.output
    assert "ask for a smaller buffer" in recorded.output


@pytest.mark.nightly
def test_an_own_instance_inherits_no_option(guest: Guest) -> None:
    recorded = record(
        guest,
        f"""set -e
        set_all() {{
            for pair in "$@"; do echo ${{pair#*=}} > $TRACING/options/${{pair%=*}}; done
        }}
        trap 'set_all overwrite=1 stacktrace=0 userstacktrace=0 irq-info=1 markers=1' EXIT
        set_all overwrite=0 stacktrace=1 userstacktrace=1 irq-info=0 markers=0
        begin_recording {QUIET} --flush-interval 10m
        for name in overwrite stacktrace userstacktrace irq-info markers event-fork; do
            echo $name $(cat $instance/options/$name)
        done > $OUT/options
        marks 1 0.001 > $OUT/written
        kill -KILL $pid
        wait $pid || true
        "$PYTHON" -m lttd -t /tmp/other {QUIET} --duration 1s --summary none 2> $OUT/other
        "$PYTHON" -m lttd -t /tmp/trace --append {QUIET} --duration 1s --summary none
        no_instance_is_left
        rm -rf /tmp/other
        cp -r /tmp/trace $OUT/trace
        """,
    )
    options = dict(line.split() for line in (recorded.out_dir / "options").read_text().splitlines())
    assert options == {
        "overwrite": "1",
        "stacktrace": "0",
        "userstacktrace": "0",
        "irq-info": "1",
        "markers": "1",
        "event-fork": "0",
    }
    other = (recorded.out_dir / "other").read_text()
    assert "lttd --append -t /tmp/trace keeps them" in other
    written = int((recorded.out_dir / "written").read_text())
    streams = [one.stream(f"ftrace_{cpu}").data for one in recorded.segments for cpu in (0, 1)]
    found = b"".join(path.read_bytes() for path in streams)
    marks = sorted(int(number) for number in re.findall(rb"mark (\d{8})\n", found))
    assert marks == list(range(written))
    recorded.expect_whole()


@pytest.mark.nightly
def test_the_next_recorder_keeps_the_rings_of_a_killed_one(guest: Guest) -> None:
    recorded = record(
        guest,
        f"""set -e
        begin_recording {QUIET} --flush-interval 10m --buffer-size 4M
        marks 2 0.001 > $OUT/written
        kill -KILL $pid
        wait $pid || true
        "$PYTHON" -m lttd -t /tmp/trace --append {QUIET} --duration 1s \\
            --summary json:$OUT/summary
        no_instance_is_left
        cp -r /tmp/trace $OUT/trace
        """,
    )
    previous = [Manifest.read(one.manifest).source["previous_run"] for one in recorded.segments]
    assert previous == [False, True, False]
    recorded.expect_whole()
    names = ("ftrace_0", "ftrace_1")
    found = b"".join(
        one.stream(name).data.read_bytes() for one in recorded.segments for name in names
    )
    marks = sorted(int(number) for number in re.findall(rb"mark (\d{8})\n", found))
    written = int((recorded.out_dir / "written").read_text())
    assert marks == list(range(written))
