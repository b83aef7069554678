"""debugfs of a real kernel: behaviour that the emulated one (tests/ltt_kernel.py) lacks."""

import pytest

from tests.kernel.guest import Guest

pytestmark = [pytest.mark.guest, pytest.mark.slow]

HEAR = """
import subprocess
from lttd.sources.inotify import Inotify

inotify = Inotify()
inotify.watch("/sys/kernel/debug/block")
print(inotify.heard())
subprocess.run(["modprobe", "brd", "rd_nr=1"], check=True)
print(inotify.heard(), inotify.heard())
subprocess.run(["rmmod", "brd"], check=True)
print(inotify.heard())
"""


def test_inotify_reports_files_that_the_kernel_creates_in_debugfs(guest: Guest) -> None:
    result = guest.run(
        f"""
        mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
        cd "$CHECKOUT"
        "$PYTHON" -c '{HEAR}'
    """,
        timeout_s=60,
    )
    result.expect(0)
    assert result.output.splitlines() == ["False", "True False", "False"]
