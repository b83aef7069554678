"""Record lttng-modules in a guest, and read what was recorded with babeltrace2 on this machine."""

import re
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from lttd.index import ENTRY_DTYPE
from lttd.tracedir import SegmentPaths
from lttd.view.verify import check
from tests.kernel.guest import Guest
from tests.kernel.lttng import LOAD
from tests.kernel.recording import SHELL, Recording
from tests.segment_builder_lttng import HEADER

PRELUDE = (
    SHELL
    + f"""
cd /tmp; rm -rf /tmp/trace /tmp/busy
{LOAD} || exit 8
"""
    + r"""
cat > /tmp/busy.sh <<'S'
# Both CPUs switch tasks and make system calls while there is /tmp/busy.
for cpu in 0 1; do
    (while [ -e /tmp/busy ]; do
        for i in 1 2 3 4 5; do taskset -c $cpu /bin/true; done
        taskset -c $cpu dd if=/dev/zero of=/dev/null bs=64 count=2000 2> /dev/null
    done) &
done
wait
S
busy() { touch /tmp/busy; nice -n 19 bash /tmp/busy.sh > /dev/null 2>&1 & load=$!; }
idle() { rm -f /tmp/busy; wait $load; }
begun() { ls /tmp/trace/*/streams/metadata 2> /dev/null | wc -l; }
has_begun() { [ $(begun) -gt $segments ] && sleep 2; }
begin_recording() {  # OPTION...: $pid is lttd's; returns once it records
    segments=$(begun)
    start_lttd "$@"
    until_lttd has_begun || exit 9
}
sessions() { cat /sys/module/lttng_tracer/refcnt /sys/module/lttng_probe_sched/refcnt; }
small_disk() { mkdir -p $1; mount -t tmpfs -o mode=700,size=1500k none $1; }
more_room() { mount -o remount,mode=700,size=80m $1; }
"""
)


class Packet(NamedTuple):
    """The header of a packet."""

    begin: int
    end: int
    content_bits: int
    packet_bits: int
    sequence: int
    discarded: int
    cpu: int


class Recorded(Recording):
    """The files of a recording of lttng-modules."""

    def lost(self, reason: str) -> dict[int, int]:
        """Return how much each CPU of a single channel lost, as the summary says."""
        return {each["cpu"]: each["lost"].get(reason, 0) for each in self.summary["streams"]}


def packets_of(path: Path) -> list[Packet]:
    """Walk a stream by its headers; assert that nothing lies between packets."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        magic, _, _, cpu, begin, end, content, size, number, discarded, _ = HEADER.unpack_from(
            data, at
        )
        assert magic == 0xC1FC1FC1, f"{path}: byte {at}"
        assert content == size, f"{path}: byte {at}: {size - content} bits of padding"
        found.append(Packet(begin, end, content, size, number, discarded, cpu))
        at += size // 8
    assert at == len(data)
    return found


def data_files(segment: SegmentPaths) -> list[Path]:
    streams = segment.directory / "streams"
    return sorted(path for path in streams.iterdir() if path.is_file() and path.name != "metadata")


class Babeltraced(NamedTuple):
    """The output of babeltrace2 for a segment."""

    events: list[str]
    discarded: int
    missing_packets: int


def babeltrace(segment: SegmentPaths) -> Babeltraced:
    """Read a segment with babeltrace2; see babeltrace_of()."""
    return babeltrace_of(segment.directory / "streams")


def babeltrace_of(streams: Path) -> Babeltraced:
    """Read a trace with babeltrace2; assert that it complains of nothing but known losses."""
    done = run_babeltrace(streams)
    assert done.returncode == 0, done.stderr[-2000:]
    lost = Counter[str]()
    for line in done.stderr.splitlines():
        said = re.search(r"Tracer discarded (\d+) (event|packet)s? ", line)
        assert said, line
        lost[said[2]] += int(said[1])
    return Babeltraced(done.stdout.splitlines(), lost["event"], lost["packet"])


def run_babeltrace(streams: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["babeltrace2", streams, *options], capture_output=True, text=True, timeout=300, check=False
    )


def events_in(streams: Path) -> int:
    """Return how many events babeltrace2 finds; assert that it complains of nothing."""
    done = run_babeltrace(streams, "--component=sink.utils.counter", "--params=step=+0")
    assert (done.returncode, done.stderr) == (0, "")
    found = re.search(r"(\d+) Event message", done.stdout)
    assert found, done.stdout
    return int(found[1])


def names_in(lines: list[str]) -> Counter[str]:
    return Counter(re.sub(r"^\[.*?\] \(.*?\) \S+ (\w+): .*", r"\1", line) for line in lines)


def record(guest: Guest, script: str, timeout_s: float = 600.0, *, status: int = 0) -> Recorded:
    return Recorded.by(guest, PRELUDE + script, timeout_s, status=status)


def expect_whole(segment: SegmentPaths) -> None:
    """Assert that packets, index and gaps of a segment agree."""
    assert [str(finding) for finding in check(segment).findings] == []
    for path in data_files(segment):
        packets = packets_of(path)
        entries = (segment.index / f"{path.name}.idx").read_bytes()[16:]
        rows = list(struct.iter_unpack(">9Q", entries))
        assert ENTRY_DTYPE.itemsize == 72
        assert [row[1:4] for row in rows] == [
            (one.packet_bits, one.content_bits, one.begin) for one in packets
        ]
        assert [row[5] for row in rows] == [one.discarded for one in packets]
        assert [row[8] for row in rows] == [one.sequence for one in packets]
        for row, one in zip(rows, packets, strict=True):
            assert row[4] >= one.end
