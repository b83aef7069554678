"""What the kernel did before it crashed is read from a ring that survived the reboot.

Linux 6.12 of Debian 13 keeps an instance in reserved memory over a warm reset, if KASLR does not
put the next kernel there.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lttd.manifest import Manifest
from lttd.tracedir import SegmentPaths, segments
from tests.kernel.conftest import kernel_or_skip
from tests.kernel.guest import Guest, Machine

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.nightly]

RESERVED = "reserve_mem=20M:2M:trace"
RECORD = """
cd $CHECKOUT
B=/sys/kernel/tracing/instances/bm
"""
LTTD = "$PYTHON -m lttd --append -t /out/trace --summary none --source ftrace:bm,events=sched:*"
# The script ends only with the boot; its last marks are in the ring alone.
CRASH = f"""
{RECORD}
{LTTD},kallsyms=yes --clock boot --flush-interval 1h --daemon
for i in $(seq 200); do echo mark $i > $B/trace_marker; done
date +%s.%N > /out/died
sync
"""
WAYS = {"a panic": "echo c > /proc/sysrq-trigger", "a reset": "echo b > /proc/sysrq-trigger"}


def survivor(share: Path, *append: str) -> Iterator[Guest]:
    machine = Machine(reboots=True, append=append)
    with Guest.boot(kernel_or_skip(suite="trixie"), share, machine) as guest:
        yield guest


def crash(guest: Guest, how: str) -> None:
    """Crash until the ring survives it: the next kernel may lie where the ring was."""
    for _ in range(5):
        guest.run("rm -rf /out/trace").expect()
        guest.reboot(f"{CRASH}{how}; sleep 60")
        if "from previous boot" in guest.run("dmesg").output:
            return
    pytest.fail("the ring did not survive five crashes")


def text_of(trace: Path, *options: str) -> str:
    command = [sys.executable, "-m", "lttd.view", "text", str(trace), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def marks_in(segment: SegmentPaths) -> list[int]:
    return [int(n) for n in re.findall(r"mark (\d+)$", text_of(segment.directory), re.MULTILINE)]


def recorded(guest: Guest) -> list[SegmentPaths]:
    return segments(guest.share / "trace")


@pytest.fixture(params=WAYS)
def crashed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    for guest in survivor(tmp_path, RESERVED, "trace_instance=bm@trace"):
        crash(guest, WAYS[request.param])
        yield guest


def test_the_last_words_of_a_crashed_kernel_become_a_segment_of_their_own(crashed: Guest) -> None:
    done = crashed.run(f"{RECORD}{LTTD} --duration 1s", timeout_s=120).expect()
    assert "sub-buffers of a previous boot are kept in" in done.output
    crashed.run(f"{RECORD}$PYTHON -m lttd.view check --events /out/trace", 120).expect()
    old, last, now = recorded(crashed)
    manifests = [Manifest.read(each.manifest) for each in (old, last, now)]
    assert [m.source["previous_boot"] for m in manifests] == [False, True, False]
    boots = [m.machine["boot_id"] for m in manifests]
    assert boots[0] == boots[1] != boots[2]
    assert manifests[1].clock == "boot"  # the kernel itself says local again
    lines = text_of(last.directory).splitlines()
    marks, earlier = marks_in(last), marks_in(old)
    assert sorted([*earlier, *marks]) == list(range(1, 201))
    assert any("sched_switch: prev_comm=" in line for line in lines)
    died = datetime.fromtimestamp(float((crashed.share / "died").read_text()), UTC)
    window = [f"{died + timedelta(seconds=s):%Y-%m-%dT%H:%M:%S.%f}" for s in (-3, 1)]
    near = text_of(last.directory, "--begin", window[0], "--end", window[1])
    assert f"mark {max(marks)}" in near
    symbols = (last.directory / "tracefs/kallsyms").read_bytes()
    assert symbols == (old.directory / "tracefs/kallsyms").read_bytes()


def test_a_ring_of_two_boots_becomes_two_segments(tmp_path: Path) -> None:
    append = (RESERVED, "trace_instance=bm@trace,sched:sched_switch")
    for guest in survivor(tmp_path, *append):
        for _ in range(5):
            guest.reboot("sync; echo b > /proc/sysrq-trigger; sleep 60")
            if "from previous boot" in guest.run("dmesg").output:
                break
        done = guest.run(f"{RECORD}{LTTD} --duration 1s", timeout_s=120).expect()
        assert "sub-buffers of a previous boot" in done.output
        assert "of this boot, from before lttd came," in done.output
        found = [Manifest.read(each.manifest) for each in recorded(guest)]
        assert [m.source["previous_boot"] for m in found] == [True, False, False]
        assert found[0].machine["boot_id"] == ""
        assert not found[0].clock_snapshots
        assert found[1].machine["boot_id"] == found[2].machine["boot_id"]
