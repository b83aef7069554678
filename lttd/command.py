"""COMMAND: what is run while lttd records.

Rule: COMMAND's failure is reported and does not change lttd's status; SIGTERM is forwarded, SIGINT,
which a terminal sends to both, is not sent twice.
"""

import signal
from collections.abc import Sequence
from typing import Final

import trio

# After this, a COMMAND that outlives the recording is killed.
GRACE_S: Final = 5.0


class Command:
    """One run of COMMAND."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.status: int | None = None
        """As a shell tells it: 128 + n for a signal; None before its end."""
        self._process: trio.Process | None = None
        self._told = False

    async def run(self) -> None:
        """Run to its end; when cancelled, give it time to end by itself.

        Raises:
            OSError: it cannot be run.
        """
        self._process = await trio.lowlevel.open_process(self.words)
        try:
            await self._process.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self._outlive(self._process)
            code = self._process.returncode
            self.status = 128 - code if code is not None and code < 0 else code

    def forward(self, number: int) -> None:
        """Pass a signal on that lttd got."""
        self._told = True
        if number == signal.SIGTERM and self._process and self._process.returncode is None:
            self._process.terminate()

    async def _outlive(self, process: trio.Process) -> None:
        if process.returncode is None and not self._told:
            process.terminate()
        with trio.move_on_after(GRACE_S):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
