"""lttd beside lttng-sessiond and lttng-consumerd: the same load, disks that fail in the same way.

``python -m bench lttng`` compares their CPU time.
"""

import re
import shutil

import pytest

from lttd.index import read_gaps
from lttd.subbuffer import Reason
from tests.kernel.guest import Guest
from tests.kernel.lttng_recording import (
    Recorded,
    babeltrace,
    babeltrace_of,
    data_files,
    record,
    run_babeltrace,
)
from tests.kernel.lttng_stock import GROWTH, STOCK
from tests.kernel.test_disk_trouble import DISK
from tests.running import lttv

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.nightly,
    pytest.mark.skipif(
        not (shutil.which("babeltrace2") and shutil.which("lttng-sessiond")),
        reason="no babeltrace2, or no lttng-tools",
    ),
]


def said(recorded: Recorded, words: str) -> int:
    """Return the number that the script printed after *words*."""
    found = re.search(rf"^{words} (\d+)$", recorded.output, re.MULTILINE)
    assert found, recorded.output
    return int(found[1])


def expect_success_of_stock(recorded: Recorded) -> None:
    """Assert that lttng reported neither an error nor a loss when it stopped."""
    assert said(recorded, "stop") == 0
    assert "Discarded events: 0" in recorded.output


def test_lttd_survives_a_full_disk_and_stock_lttng_loses_its_streams_without_a_word(
    lttng_guest: Guest,
) -> None:
    recorded = record(
        lttng_guest,
        STOCK
        + GROWTH
        + r"""
        full_disk() {  # WHO PATTERN: the disk is full for 3 s, then has room for 7 s
            for _ in $(seq 60); do
                [ $(df --output=avail /tmp/trace | tail -1) -lt 64 ] && break
                sleep 1
            done
            sleep 3
            echo "$1 full $(bytes_in /tmp/trace "$2")"
            more_room /tmp/trace
            sleep 7
            echo "$1 later $(bytes_in /tmp/trace "$2")"
        }
        small_disk /tmp/trace
        trap 'umount /tmp/trace' EXIT
        busy
        begin_recording --on-full wait --source "$WHAT"
        full_disk lttd '*/streams/channel0_*'
        end_recording
        echo "lttd ends with $?"
        umount /tmp/trace
        small_disk /tmp/trace
        start_stock
        begin_stock /tmp/trace/stock
        full_disk stock '*/kernel/all_*'
        idle
        end_stock
        stop_stock
        cp -r /tmp/trace/stock $OUT/stock-trace
        grep -i "discarded\|warning\|error" $OUT/stock
        exit 0
        """,
    )
    assert said(recorded, "lttd later") > said(recorded, "lttd full")
    assert said(recorded, "lttd ends with") == 1
    (segment,) = recorded.segments
    assert babeltrace(segment).events
    lost = [each["lost"].get("storage_subbuffers", 0) for each in recorded.summary["streams"]]
    assert sum(lost) > 0
    assert said(recorded, "stock later") == said(recorded, "stock full")
    expect_success_of_stock(recorded)
    done = run_babeltrace(recorded.out_dir / "stock-trace/kernel")
    assert (done.returncode, done.stdout) == (1, ""), "it reads no event"


def test_lttd_reports_io_errors_and_stock_lttng_reports_success(lttng_guest: Guest) -> None:
    recorded = record(
        lttng_guest,
        STOCK
        + DISK
        + r"""
        trouble() {  # the disk fails for 10 s, under load
            busy
            sleep 5
            mapped error
            sleep 10
            mapped linear $loop 0
            sleep 5
            idle
        }
        as_on_disk() {  # DIR NAME: without what only the page cache has
            umount /tmp/trace
            mount -o errors=continue /dev/mapper/lttdtest /tmp/trace
            cp -r $1 $OUT/$2
            umount /tmp/trace
        }
        mount_mapped errors=continue
        begin_recording --on-write-error continue --source "$WHAT"
        trouble
        end_recording
        echo "lttd ends with $?"
        as_on_disk /tmp/trace lttd-on-disk
        mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=0 /dev/mapper/lttdtest
        mount -o errors=continue /dev/mapper/lttdtest /tmp/trace
        start_stock
        begin_stock /tmp/trace/stock
        trouble
        end_stock
        stop_stock
        as_on_disk /tmp/trace/stock stock-on-disk
        grep -i "discarded\|warning\|error" $OUT/stock $OUT/sessiond
        exit 0
        """,
        300,
    )
    assert said(recorded, "lttd ends with") == 1
    assert "Input/output error" in recorded.output
    for path in data_files(recorded.segments[0]):
        gaps = read_gaps(recorded.segments[0].index / f"{path.name}.gaps")
        assert Reason.UNSYNCED in {gap.reason for gap in gaps}
    # Packets that the disk lacks end babeltrace2; the others can be exported for it.
    exported = recorded.out_dir / "exported"
    done = lttv("export", recorded.out_dir / "lttd-on-disk", "--to", "ctf", "-o", exported)
    assert done.returncode == 0, done.stderr
    assert babeltrace_of(exported).events
    expect_success_of_stock(recorded)
    assert run_babeltrace(recorded.out_dir / "stock-on-disk/kernel").returncode == 1
