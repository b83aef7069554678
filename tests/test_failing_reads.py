"""A ring that is unreadable for a while is reported at once, counted, and read again later."""

import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from lttd.config import parse_command_line
from lttd.daemon import Daemon
from lttd.errors import SourceError
from lttd.signals import Signals
from lttd.sources.ftrace import instance as ftrace_instance
from lttd.sources.ftrace import source as ftrace
from lttd.sources.ftrace.raw import RawFile, Taken
from lttd.sources.mounts import find_tracefs
from tests.running import (
    PATIENCE_S,
    assert_whole,
    free_port,
    get,
    info,
    loaded,
    needs_kernel,
    scraped,
)

pytestmark = needs_kernel()


def failing_raw(broken: threading.Event) -> type[RawFile]:
    """Return a RawFile whose takes from CPU 0 fail while *broken* is set."""

    class FailingRaw(RawFile):
        def take_full(self, buffer: memoryview, *, full: int, once: bool) -> Taken:
            if broken.is_set() and "/cpu0/" in os.readlink(f"/proc/self/fd/{self.fileno()}"):
                raise SourceError("CPU 0: trace_pipe_raw: Input/output error")
            return super().take_full(buffer, full=full, once=once)

    return FailingRaw


def overwritten(metrics: str) -> dict[int, int]:
    """Return the overwritten events by CPU."""
    line = re.compile(r'^lttd_events_lost_total\{.*cpu="(\d+)".*reason="overwritten"\} (\d+)', re.M)
    return {int(cpu): int(count) for cpu, count in line.findall(metrics)}


async def test_an_unreadable_cpu_is_reported_at_once_and_its_losses_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syscall_load: Path
) -> None:
    broken = threading.Event()
    monkeypatch.setattr(ftrace_instance, "OWN_PREFIX", prefix := f"lttdtest{os.getpid()}eio-")
    monkeypatch.setattr(ftrace, "RawFile", failing_raw(broken))
    port, trace = free_port(), tmp_path / "t"
    words = ["-t", str(trace), "--events", "raw_syscalls:*", "--buffer-size", "512K"]
    words += ["--flush-interval", "50ms", "--summary", "none", "--metrics", f"127.0.0.1:{port}"]
    ready, status = trio.Event(), []
    signals = Signals()
    daemon = Daemon(parse_command_line(words), ready.set, signals=signals)

    async def run() -> None:
        status.append(await daemon.run())

    async def until(what: Callable[[], bool]) -> None:
        while not await trio.to_thread.run_sync(what):  # noqa: ASYNC110  (nobody tells us)
            await trio.sleep(0.02)

    def health() -> tuple[int, str]:
        return get(port, "/healthz")

    def lost_on_cpu_0() -> int:
        return overwritten(scraped(port)).get(0, 0)

    with signals, loaded(syscall_load, (0,)), trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await ready.wait()
            await until(lambda: health()[0] == 200)
            broken.set()
            await until(lambda: health()[0] == 503)
            said = (await trio.to_thread.run_sync(health))[1]
            assert "stream ftrace_0: cannot be read, trying again" in said
            assert "Input/output error" in said
            assert 'reason="stream_failing"} 1' in await trio.to_thread.run_sync(scraped, port)
            before = await trio.to_thread.run_sync(lost_on_cpu_0)
            # No page reports them yet: only the counters of the kernel do.
            await until(lambda: lost_on_cpu_0() > before + 10_000)
            broken.clear()
            await until(lambda: health()[0] == 200)
            os.kill(os.getpid(), signal.SIGTERM)
    assert status == [0]
    found = info(trace)
    assert found["events_lost"] >= 10_000
    assert_whole(trace, "--events")
    left = [name for name in os.listdir(find_tracefs() / "instances") if name.startswith(prefix)]
    assert left == []


async def test_a_cpu_unreadable_to_the_end_fails_the_run_and_counts_its_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syscall_load: Path
) -> None:
    broken = threading.Event()
    monkeypatch.setattr(ftrace_instance, "OWN_PREFIX", f"lttdtest{os.getpid()}eio-")
    monkeypatch.setattr(ftrace, "RawFile", failing_raw(broken))
    words = ["-t", str(tmp_path / "t"), "--events", "raw_syscalls:*", "--buffer-size", "512K"]
    words += ["--flush-interval", "50ms", "--summary", "none", "--duration", "1s"]
    daemon = Daemon(parse_command_line(words), broken.set)
    with loaded(syscall_load, (0,)), trio.fail_after(PATIENCE_S):
        assert await daemon.run() == 1
    (row,) = (each for each in info(tmp_path / "t")["streams"] if each["cpu"] == 0)
    assert row["lost"]["overwritten"] > 0
    assert row["lost"]["abandoned"] > 0
    assert_whole(tmp_path / "t", "--events")
