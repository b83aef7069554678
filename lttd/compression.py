"""The segments that wait for compression, and the process that compresses them, one at a time.

    idle  --first segment-->  process runs  --its answer-->  next segment
                              process ends  -->  started again after a while, three times at most

Rule: recording never waits for it.  What fails is reported once, and its segment stays plain.
Rule: at the end of a run the process has a second to give up.  What a killed one had made so far is
removed at once while lttd runs (``on_changed``), else by the next start.
"""

import json
import os
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import trio

from lttd.beneath import OpenDirectory
from lttd.compressor import Result
from lttd.health import Limiter, Say
from lttd.notify import ADDRESSED
from lttd.terminal import Level
from lttd.tracedir import SegmentPaths, segment_directories

# The process may be killed for want of memory, and a segment may be the reason.
MOST_STARTS: Final = 4
MOST_TRIES: Final = 2
RESTART_S: Final = 10.0
GIVE_UP_S: Final = 1.0
# A full disk may have room again.
RETRY_S: Final = 60.0
_MOST_LINE_BYTES: Final = 1 << 24

LeaveOut = Callable[[int, str], Awaitable[object]]
Changed = Callable[[SegmentPaths], Awaitable[object]]


class _ProcessEndedError(Exception):
    """The process ended, or does not speak its protocol."""


class Compression:
    """Compresses the closed segments of a trace while lttd records."""

    def __init__(
        self,
        trace: OpenDirectory,
        level: int,
        leave_out: LeaveOut,
        say: Say,
    ) -> None:
        """*leave_out* excludes a process from the trace, or notes its id and name in it.

        Raises:
            StorageError: the trace cannot be listed.
        """
        self._trace = trace
        self._level = level
        # The segments of this run are open yet.
        self._earlier = len(segment_directories(trace)[0]) > 1
        self._leave_out = leave_out
        self.on_changed: list[Changed] = []
        """Called for each segment that has become compressed, or at which the process ended."""
        self._limiter = Limiter(say)
        self._waiting: deque[str] = deque()
        self._later: deque[str] = deque()
        self._tries: Counter[str] = Counter()
        self._came = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._process: trio.Process | None = None
        self._answers = bytearray()
        self._starts = 0

    @property
    def backlog(self) -> int:
        """The number of closed segments that wait, the one in work included; from any thread."""
        return len(self._waiting) + len(self._later)

    def closed(self, paths: SegmentPaths) -> None:
        """Queue a segment that was closed; from any thread of the run."""
        self._waiting.append(paths.directory.name)
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        self._came.set()  # that of now, which is not the one of when the segment was closed

    async def run(self, ready: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint) -> None:
        """Compress segments, those of earlier runs first, until cancelled.

        *ready* returns when nobody else works in them.
        """
        await ready()
        try:
            while self._starts < MOST_STARTS:
                if not self._earlier:
                    await self._came_or_due()
                try:
                    await self._work()
                except (_ProcessEndedError, trio.BrokenResourceError, OSError, ValueError) as error:
                    self._limiter.say("ended", f"the compressor ended: {error}", Level.WARNING)
                    await self._give_up()
                    if self._waiting:
                        await self._tell_changed(self._waiting[0])
                    await trio.sleep(RESTART_S)
            words = "the compressor ended too often: segments stay plain from now on"
            self._limiter.say("given up", f"{self._trace.path}: {words}", Level.WARNING)
        finally:
            with trio.CancelScope(shield=True):
                await self._give_up()

    async def _came_or_due(self) -> None:
        """Wait for a segment: for a new one, or until others are tried again."""
        while not self._waiting:
            self._came = trio.Event()
            with trio.move_on_after(RETRY_S) as waited:
                await self._came.wait()
            if waited.cancelled_caught:
                self._waiting.extend(self._later)
                self._later.clear()

    async def _work(self) -> None:
        await self._start()
        if self._earlier:
            found = (await self._ask({"do": "list"}))["segments"]
            known = {*self._waiting, *self._later}
            self._waiting.extendleft(name for name in reversed(found) if name not in known)
            self._earlier = False
        while True:
            await self._came_or_due()
            name = self._waiting[0]
            self._tries[name] += 1
            if self._tries[name] <= MOST_TRIES:
                answer = await self._ask({"do": "compress", "segment": name})
                self._waiting.popleft()
                await self._take(name, answer)
            else:
                self._waiting.popleft()

    async def _take(self, name: str, answer: Mapping[str, Any]) -> None:
        result = answer["result"]
        del self._tries[name]
        if result in (Result.LATER, Result.NEVER):
            self._limiter.say(result, f"not compressed: {answer['words']}", Level.WARNING)
        if result == Result.LATER:
            self._later.append(name)
        if result == Result.DONE:
            await self._tell_changed(name)

    async def _tell_changed(self, name: str) -> None:
        for changed in self.on_changed:
            await changed(SegmentPaths(self._trace.path / name, self._trace))

    # -- the process

    async def _start(self) -> None:
        self._starts += 1
        self._answers.clear()
        # -P: the working directory may be another user's, and is no place for modules.
        module = [sys.executable, "-P", "-m", "lttd.compressor"]
        kept = {name: value for name, value in os.environ.items() if name not in ADDRESSED}
        self._process = await trio.lowlevel.open_process(
            [*module, str(self._trace.fd), str(self._trace.path), str(self._level)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[self._trace.fd],
            start_new_session=True,  # Ctrl-C is for lttd, which ends it
            env=kept | {"OPENBLAS_NUM_THREADS": "1"},
        )
        from lttd.compressor import PROCESS_NAME  # noqa: PLC0415  (only this process needs it)

        await self._leave_out(self._process.pid, PROCESS_NAME)

    async def _ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.send_all(json.dumps(command).encode() + b"\n")
        while b"\n" not in self._answers:
            more = await process.stdout.receive_some()
            self._answers += more
            if not more or len(self._answers) > _MOST_LINE_BYTES:
                raise _ProcessEndedError(f"status {process.poll()}")
        line, _, rest = self._answers.partition(b"\n")
        self._answers = rest
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _give_up(self) -> None:
        """Let the process end; kill it if it does not."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.aclose()
        with trio.move_on_after(GIVE_UP_S):
            await process.wait()
        if process.poll() is None:
            process.kill()
            with trio.move_on_after(GIVE_UP_S):  # longer only if its disk hangs
                await process.wait()
        await process.stdout.aclose()
