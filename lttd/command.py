"""COMMAND: what is run while lttd records.

Rule: COMMAND's failure is reported and does not change lttd's status; SIGTERM is forwarded, SIGINT,
which a terminal sends to both, is not sent twice.
Rule: COMMAND is over before recording ends, so that its own end is recorded.
"""

import signal
from collections.abc import Sequence
from typing import Final

import trio

# Told to end, COMMAND has so long before it is told once more, and then before it is killed.
GRACE_S: Final = 5.0


class Command:
    """One run of COMMAND."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self._process: trio.Process | None = None
        self._starting: trio.Event | None = None
        """Set once it has been started, or could not be; None before that was tried."""
        self._signals: list[int] = []
        self._hurry = trio.CancelScope()

    @property
    def status(self) -> int | None:
        """As a shell tells it: 128 + n for a signal; None before its end."""
        code = self._process.returncode if self._process is not None else None
        return 128 - code if code is not None and code < 0 else code

    async def run(self) -> None:
        """Run to its end.

        Raises:
            OSError: it cannot be run.
        """
        self._starting = trio.Event()
        try:
            self._process = await trio.lowlevel.open_process(self.words)
        finally:
            self._starting.set()
        for number in self._signals:
            self._pass_on(number)
        try:
            await self._process.wait()
        except trio.Cancelled:
            self._process.kill()  # recording ended while it was being started
            raise

    def signalled(self, number: int) -> None:
        """Pass a signal on that lttd got; a second one leaves COMMAND no time."""
        self._signals.append(number)
        self._pass_on(number)
        if len(self._signals) > 1:
            self._hurry.cancel()

    def _pass_on(self, number: int) -> None:
        if number == signal.SIGTERM and self._process is not None:
            self._process.terminate()

    async def end(self) -> None:
        """Wait until it has ended: by itself where a signal told it to, else when it is told."""
        if self._starting is not None:
            # It may be at work already while its start is not known here yet.
            await self._starting.wait()
        process = self._process
        if process is None or process.returncode is not None:
            return
        if not self._signals:
            process.terminate()
        with self._hurry:
            with trio.move_on_after(GRACE_S):
                await process.wait()
            process.terminate()
            with trio.move_on_after(GRACE_S):
                await process.wait()
        process.kill()
        await process.wait()
