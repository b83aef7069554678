"""Roll while a kernel writes relay channels and a block trace: no record is missing, none doubled.

The relay module numbers its records and says how many it made; null_blk counts its requests, and
the kernel numbers the records of a block trace by CPU.  So no test asks lttd how much there was.
"""

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from lttd.abi.blktrace import ACT_MASK
from lttd.manifest import Manifest
from lttd.tracedir import SegmentPaths, segments
from tests.kernel import test_blktrace, test_relay
from tests.kernel.guest import Guest
from tests.running import assert_whole, lttv

pytestmark = [pytest.mark.guest, pytest.mark.slow]

ROLLS = 100 if os.environ.get("LTTD_NIGHTLY") == "1" else 1
nightly = pytest.mark.nightly
LIMITS = [
    "--segment-size=64K",
    pytest.param("--segment-duration=100ms", marks=nightly),
    pytest.param("SIGUSR1", marks=nightly),
]
ROLL = f"""
made() {{ ls -d /tmp/trace/*/streams | wc -l; }}
roll() {{  # LIMIT: until there are {ROLLS} rolls, and a segment that may have been made ahead
    local begun
    for _ in $(seq 3000); do
        begun=$(made)
        [ $begun -gt {ROLLS + 1} ] && return
        if [ $1 = SIGUSR1 ]; then
            kill -USR1 $pid
            for _ in $(seq 100); do [ $(made) -gt $begun ] && break; sleep 0.05; done
        else
            sleep 0.1
        fi
    done
    echo "only $begun segments"; cat "$OUT/stderr"
    return 1
}}
"""


def option(limit: str) -> str:
    return limit if limit.startswith("--") else ""


def rolled(trace: Path) -> list[SegmentPaths]:
    """Return the segments; assert that they are whole and each continues the one before."""
    report = assert_whole(trace, "--events")
    assert {one["state"] for one in report["segments"]} == {"closed"}
    found = segments(trace)
    assert len(found) > ROLLS
    names = ["", *(segment.directory.name for segment in found)]
    befores = [Manifest.read(one.manifest).source.get("rolled_from", "") for one in found]
    assert befores == names[:-1]
    return found


@pytest.mark.parametrize("limit", LIMITS)
def test_no_relay_record_is_missing_or_doubled_over_many_rolls(
    relay_guest: Guest, limit: str
) -> None:
    recorded = test_relay.record(
        relay_guest,
        f"""{ROLL}
        load n_subbufs=1024
        begin_recording {test_relay.FRAMED} {option(limit)}
        writing() {{ while [ ! -e $OUT/enough ]; do order write 0 $1 500 0 100 200; done; }}
        writing 0 & first=$!
        writing 1 & second=$!
        roll {limit}
        touch $OUT/enough
        wait $first $second
        sleep 0.2
        order flush 0
        end_recording
        """,
        1800,
    )
    assert recorded.output == ""
    found = rolled(recorded.out_dir / "trace")
    for name in ("first_0", "first_1"):
        made = recorded.made(name)
        assert made["refused"] == 0
        # Each segment begins and ends between two records.
        parts = [test_relay.numbers_in(one.stream(name).data.read_bytes()) for one in found]
        assert list(itertools.chain(*parts)) == list(range(made["made"]))
        assert sum(bool(part) for part in parts) > ROLLS / 2
    assert recorded.summary["events_lost"] == 0


@nightly
@pytest.mark.parametrize("limit", LIMITS)
def test_no_block_record_is_missing_or_doubled_over_many_rolls(guest: Guest, limit: str) -> None:
    recorded = test_blktrace.record(
        guest,
        f"""{ROLL}
        begin_recording ,subbuffer-size=4K --flush-interval 100ms {option(limit)} || exit 3
        before=$(requests)
        job 10000000 --time_based --runtime=3600 --thinktime=500 --thinktime_blocks=1 & load=$!
        roll {limit} || exit 4
        pkill -TERM -P $load
        wait $load
        echo $(($(requests) - before)) > $OUT/requests
        end_recording || exit 5
        nothing_is_set_up
        """,
        1800,
    )
    trace = recorded.out_dir / "trace"
    found = rolled(trace)
    names = [record.name for record in Manifest.read(found[-1].manifest).streams]
    done = 0
    for name in names:
        files = [one.stream(name).data for one in found]
        records = [record for path in files for record in test_blktrace.events(path)]
        numbers = [int(record["sequence"]) for record in records]
        assert numbers == list(range(1, len(numbers) + 1))
        done += sum(int(record["action"]) & ACT_MASK == 8 for record in records)
    assert done == int((recorded.out_dir / "requests").read_text()) > 0
    print(f"{done} requests, {len(found)} segments, {recorded.summary['events_lost']} events lost")
    assert recorded.summary["events_lost"] == 0
    assert_text_is_that_of_blkparse(trace, recorded.out_dir / "exported")
    assert_last_segment_is_self_contained(trace, found[-1])


def shown(path: Path) -> list[str]:
    done = lttv("text", path)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def assert_text_is_that_of_blkparse(trace: Path, exported: Path) -> None:
    done = lttv("export", trace, "--to", "blktrace", "-o", exported)
    assert done.returncode == 0, done.stderr
    (name,) = {path.name.partition(".blktrace.")[0] for path in exported.iterdir()}
    parsed = subprocess.run(
        ["blkparse", "-q", "-i", name], cwd=exported, capture_output=True, text=True, check=True
    )
    assert parsed.stderr == ""
    lines = [line for line in parsed.stdout.splitlines() if not line.startswith("Input file")]
    assert shown(trace) == lines


def assert_last_segment_is_self_contained(trace: Path, last: SegmentPaths) -> None:
    """Assert that the last segment alone shows the same lines, with all names of processes."""
    alone, whole = (by_cpu(shown(path)) for path in (last.directory, trace))
    assert alone
    for cpu, lines in alone.items():
        assert lines == whole[cpu][-len(lines) :]
        assert not any("(null)" in line for line in lines)


def by_cpu(lines: list[str]) -> dict[str, list[str]]:
    """Group lines by CPU; without times, which count from the first event that there is."""
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(line.split()[1], []).append(line[:20] + line[35:])
    return found
