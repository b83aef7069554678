"""Record onto real disks that fail: a full quota, I/O errors, a hang, a read-only file system.

Each disk is an ext4 on a loop device, where needed behind the device mapper, mounted where the
recording goes.
"""

import pytest

from lttd.index import read_gaps
from lttd.subbuffer import Reason
from tests.kernel.guest import Guest
from tests.kernel.test_recording import QUIET, Recorded, record

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.nightly]

DISK = r"""
modprobe -a loop dm_mod quota_v2
umount -l /tmp/trace 2> /dev/null
dmsetup remove -f lttdtest 2> /dev/null
losetup -D
rm -rf /tmp/trace /tmp/disk
mkdir /tmp/trace
truncate -s 100M /tmp/disk
loop=$(losetup -f --show /tmp/disk)
size=$(blockdev --getsz $loop)
mapped() {  # TARGET...: what the mapped device is from now on
    dmsetup suspend --noflush lttdtest
    echo "0 $size $*" | dmsetup load lttdtest
    dmsetup resume lttdtest
}
mount_mapped() {  # OPTION
    echo "0 $size linear $loop 0" | dmsetup create --noudevsync lttdtest
    dmsetup mknodes
    mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=0 /dev/mapper/lttdtest
    mount -o "$1" /dev/mapper/lttdtest /tmp/trace || exit 3
}
"""


def trouble(guest: Guest, script: str, *, status: int) -> Recorded:
    return record(guest, DISK + script, 300, status=status)


def reasons(recorded: Recorded) -> set[Reason]:
    found = set()
    for segment in recorded.segments:
        for path in segment.index.glob("*.gaps"):
            found |= {gap.reason for gap in read_gaps(path)}
    return found


def lost_subbuffers(recorded: Recorded) -> int:
    return sum(each["lost"].get("storage_subbuffers", 0) for each in recorded.summary["streams"])


def test_recording_waits_for_a_full_quota_and_goes_on_when_it_is_raised(guest: Guest) -> None:
    recorded = trouble(
        guest,
        f"""
        mkfs.ext4 -q -O quota -E quotatype=usrquota $loop
        mount -o usrquota $loop /tmp/trace || exit 3
        chown 0:0 /tmp/trace
        setquota -u 0 0 3000 0 0 /tmp/trace || exit 3
        PYTHON_AS_IT_IS=$PYTHON
        echo '#!/bin/sh' > /tmp/limited
        echo "exec setpriv --bounding-set=-sys_resource --inh-caps=-sys_resource $PYTHON" '"$@"' \
            >> /tmp/limited
        chmod +x /tmp/limited
        PYTHON=/tmp/limited
        begin_recording {QUIET} --on-full wait --flush-interval 200ms --layout packed || exit 4
        PYTHON=$PYTHON_AS_IT_IS
        for i in $(seq 40); do
            marks 1 > /dev/null
            grep -q 'quota' "$OUT/stderr" && break
        done
        grep 'quota' "$OUT/stderr" || exit 5
        marks 2 > /dev/null
        setquota -u 0 0 90000 0 0 /tmp/trace
        sleep 7
        marks 1
        end_recording
        """,
        status=1,
    )
    recorded.expect_whole()
    assert lost_subbuffers(recorded) > 0
    assert Reason.STORAGE in reasons(recorded)
    assert "can be written again" in recorded.output


def test_io_errors_of_a_device_are_told_and_recording_goes_on(guest: Guest) -> None:
    recorded = trouble(
        guest,
        f"""
        mount_mapped errors=continue
        begin_recording {QUIET} --on-write-error continue --flush-interval 200ms || exit 4
        marks 2 > /dev/null
        mapped error
        marks 8 > /dev/null
        mapped linear $loop 0
        marks 7
        end_recording
        """,
        status=1,
    )
    recorded.expect_whole()
    assert Reason.UNSYNCED in reasons(recorded)
    assert "Input/output error" in recorded.output


def test_a_device_that_hangs_costs_no_memory_and_recording_goes_on_when_it_answers(
    guest: Guest,
) -> None:
    recorded = trouble(
        guest,
        f"""
        mount_mapped errors=continue
        begin_recording {QUIET} --backlog 2M --flush-interval 200ms --buffer-size 256K || exit 4
        marks 2 > /dev/null
        before=$(awk '/VmRSS/ {{ print $2 }}' /proc/$pid/status)
        dmsetup suspend --noflush lttdtest
        marks 20 > /dev/null
        after=$(awk '/VmRSS/ {{ print $2 }}' /proc/$pid/status)
        echo $((after - before)) > $OUT/grown_kib
        dmsetup resume lttdtest
        sleep 3
        marks 1
        end_recording
        """,
        status=0,
    )
    recorded.expect_whole()
    assert int((recorded.out_dir / "grown_kib").read_text()) < 8 << 10


def test_a_file_system_that_turns_read_only_ends_recording_with_what_it_had(guest: Guest) -> None:
    recorded = trouble(
        guest,
        f"""
        mkfs.ext4 -q $loop
        mount $loop /tmp/trace || exit 3
        begin_recording {QUIET} --flush-interval 200ms || exit 4
        marks 7 > /dev/null
        mount -o remount,abort /tmp/trace
        marks 7 > /dev/null
        for i in $(seq 100); do kill -0 $pid 2> /dev/null || break; sleep 0.1; done
        wait $pid
        status=$?
        cat "$OUT/stderr"
        cp -r /tmp/trace "$OUT/trace"
        "$PYTHON" -m lttd.view check --repair "$OUT/trace" || exit 5
        exit $status
        """,
        status=1,
    )
    assert "is read-only: record elsewhere" in recorded.output
    assert recorded.all_marks()
