"""While the disk hangs, lttd reads until the backlog is full; then the kernel counts losses."""

import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from lttd.config import parse_command_line
from lttd.daemon import Daemon
from lttd.signals import Signals
from lttd.sources.ftrace import instance as ftrace_instance
from lttd.sources.mounts import find_tracefs
from lttd.stats import StreamStats
from lttd.subbuffer import Reason
from tests.failing_disk import FailingDisk
from tests.running import PATIENCE_S, assert_whole, free_port, get, info, loaded, needs_kernel

pytestmark = needs_kernel()

HANG_S = 5.0 if os.environ.get("LTTD_NIGHTLY") == "1" else 0.5
BACKLOG_BYTES = 16 << 20
# Memory that the interpreter uses by itself: arrays of rows, a scrape.
SLACK_BYTES = 24 << 20


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def lost(stats: Sequence[StreamStats]) -> int:
    return sum(each.events_lost[Reason.OVERWRITTEN] for each in stats)


async def test_a_hanging_disk_uses_bounded_memory_and_recording_resumes_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syscall_load: Path
) -> None:
    prefix = f"lttdtest{os.getpid()}hang-"
    monkeypatch.setattr(ftrace_instance, "OWN_PREFIX", prefix)
    port = free_port()
    words = ["-t", str(tmp_path / "t"), "--events", "raw_syscalls:*", "--buffer-size", "256K"]
    words += ["--flush-interval", "20ms", "--backlog", str(BACKLOG_BYTES), "--summary", "none"]
    config = parse_command_line([*words, "--metrics", f"127.0.0.1:{port}"])
    disk, ready, status = FailingDisk(), trio.Event(), []
    signals = Signals()
    daemon = Daemon(config, ready.set, disk, signals=signals)
    recorder, streams = daemon._recorder, daemon._observer.streams

    async def health() -> tuple[int, str]:
        return await trio.to_thread.run_sync(get, port, "/healthz")

    async def until_health(code: int) -> str:
        while (answer := await health())[0] != code:  # noqa: ASYNC110  (nobody tells us)
            await trio.sleep(0.01)
        return answer[1]

    async def run() -> None:
        status.append(await daemon.run())

    with signals, loaded(syscall_load, (0, 1)), trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await ready.wait()
            await until_health(200)
            disk.works.clear()
            before_bytes, taken = resident_bytes(), [each.subbuffers for each in streams()]
            assert "backlog full" in await until_health(503)
            assert all(a.subbuffers > b for a, b in zip(streams(), taken, strict=True))
            lost_before = lost(streams())
            with trio.move_on_after(HANG_S):
                while True:
                    assert recorder.backlog_bytes <= BACKLOG_BYTES
                    assert resident_bytes() < before_bytes + BACKLOG_BYTES + SLACK_BYTES
                    assert (await health())[0] in (503, 0), "0: it was too busy to answer"
                    await trio.sleep(0.05)
            disk.works.set()
            await until_health(200)
            while lost(streams()) <= lost_before:  # noqa: ASYNC110
                await trio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
    assert status == [0]
    assert BACKLOG_BYTES // 2 < recorder.backlog_high_water_bytes <= BACKLOG_BYTES
    found = info(tmp_path / "t")
    assert found["events_lost"] == lost(streams()) > 0
    assert_whole(tmp_path / "t", "--events")
    left = [name for name in os.listdir(find_tracefs() / "instances") if name.startswith(prefix)]
    assert left == []
