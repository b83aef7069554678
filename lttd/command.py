"""Run COMMAND while lttd records.

    spawn()   before lttd changes anything about itself: a forked child waits
    run()     the child becomes COMMAND
    end()     it has ended, by itself or by a signal

Rule: COMMAND gets the environment, limits, signal dispositions and mask, umask, scheduling and
descriptors that lttd was started with.  It is forked at the start, so it inherits no later change
of lttd's, and no lock of another thread.  Two exceptions: it does not get systemd's variables,
which are for lttd, and signals that Python ignores before main() have their default (SIGPIPE).
Rule: lttd reports COMMAND's failure and keeps its own status.  It forwards SIGTERM, but not SIGINT,
which a terminal sends to both.
Rule: COMMAND ends before recording ends, so that its own end is recorded.
"""

import errno
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NoReturn

import trio

# After SIGTERM, COMMAND has this long until the second one, and as long again until SIGKILL.
GRACE_S: Final = 5.0
_GO: Final = b"\0"
# Without a pidfd (before Linux 5.3), lttd asks for COMMAND's end this often.
_LOOK_S: Final = 0.05


class Command:
    """One run of COMMAND."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.pid: int | None = None
        """The pid, known from spawn() on; exec does not change it."""
        self.status: int | None = None
        """The status as in a shell, 128 + n for signal n; None before its end or start."""
        self._go_fd = -1
        self._failed_fd = -1
        self._begun = False
        self._ended = trio.Event()
        self._signals: list[int] = []
        self._hurry = trio.CancelScope()

    def spawn(self, prepare: Callable[[], None] = lambda: None) -> None:
        """Fork the child that waits for run(); *prepare* undoes lttd's changes in it.

        Raises:
            OSError: the system allows no more processes.
        """
        go_fd, self._go_fd = os.pipe()
        self._failed_fd, failed_fd = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go_fd)
            os.close(self._failed_fd)
            _become(self.words, go_fd, failed_fd, prepare)
        os.close(go_fd)
        os.close(failed_fd)

    async def run(self) -> None:
        """Run COMMAND, and wait for its end.

        Raises:
            OSError: it cannot be run.
        """
        assert self.pid is not None
        self._begun = True
        for number in self._signals:
            self._pass_on(number)
        try:
            with suppress(BrokenPipeError):  # the child was killed while it waited
                os.write(self._go_fd, _GO)
            await trio.lowlevel.wait_readable(self._failed_fd)
            number = int(os.read(self._failed_fd, 16) or b"0")
            await _until_exited(self.pid)
        except trio.Cancelled:
            os.kill(self.pid, signal.SIGKILL)  # recording ended while it was being started
            raise
        finally:
            self._reap()
        if number:
            self.status = None
            raise OSError(number, os.strerror(number))

    def signalled(self, number: int) -> None:
        """Forward a signal that lttd got; after a second one COMMAND is killed at once."""
        self._signals.append(number)
        self._pass_on(number)
        if len(self._signals) > 1:
            self._hurry.cancel()

    def _pass_on(self, number: int) -> None:
        if number == signal.SIGTERM:
            self._send(number)

    def _send(self, number: int) -> None:
        # The pid stays the child's until it is reaped.
        if self._begun and self.pid is not None and not self._ended.is_set():
            os.kill(self.pid, number)

    async def end(self) -> None:
        """End COMMAND and wait for it; send SIGTERM unless a signal was forwarded before."""
        if not self._begun:
            self.give_up()
            return
        if not self._signals:
            self._send(signal.SIGTERM)
        with self._hurry:
            with trio.move_on_after(GRACE_S):
                await self._ended.wait()
            self._send(signal.SIGTERM)
            with trio.move_on_after(GRACE_S):
                await self._ended.wait()
        self._send(signal.SIGKILL)
        await self._ended.wait()

    def give_up(self) -> None:
        """Let a waiting child exit; do nothing if there is none, or COMMAND has begun."""
        if self.pid is not None and not self._begun and not self._ended.is_set():
            os.close(self._go_fd)
            self._go_fd = -1
            self._reap()
            self.status = None

    def _reap(self) -> None:
        assert self.pid is not None
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.status = 128 - code if code < 0 else code
        for fd in (self._go_fd, self._failed_fd):
            if fd >= 0:
                os.close(fd)
        self._ended.set()


def _become(
    words: Sequence[str], go_fd: int, failed_fd: int, prepare: Callable[[], None]
) -> NoReturn:
    try:
        prepare()
        if os.read(go_fd, 1) == _GO:
            os.execvp(words[0], list(words))  # this closes all descriptors of lttd
    except OSError as error:
        os.write(failed_fd, str(error.errno or errno.EIO).encode())
    finally:
        os._exit(127)


async def _until_exited(pid: int) -> None:
    """Wait until *pid* can be reaped."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:  # ENOSYS
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, pid, flags) is None:  # noqa: ASYNC110, ASYNC222  (no event)
            await trio.sleep(_LOOK_S)
        return
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
