"""Handle every signal, from the first step of main() to its last.

    phase          a signal that ends        a reload       one without a meaning yet
    starting       exit 1, nothing is made   once recording one line (a request: nothing)
    recording      deliver()                 deliver()      deliver()
    ending         nothing, for a while      nothing        nothing

SIGHUP means that the terminal is gone, or that a person wants a reload:

    lttd has a controlling terminal at its start    it ends lttd
    it was ignored (nohup)                          it stays ignored
    no terminal: a service, or -d                   it reloads the configuration

Rule: only SIGKILL and the signals of a crash end lttd half-way.
Rule: the handler takes no lock and writes to no buffer, because it may interrupt code that does.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from types import FrameType, TracebackType
from typing import Any, Final, Self


class Meaning(Enum):
    """lttd's reactions to a signal."""

    END = "end in order"
    ROLL = "close the open segments and go on in new ones"
    TRIGGER = "keep the window around now"
    RELOAD = "read the configuration again"
    HANG_UP = "end in order with a terminal, else reload"
    NONE = "report once a minute and go on"


_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
_FREE: Final = (
    *(signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF),
    *(signal.SIGXCPU, signal.SIGIO, signal.SIGPWR, signal.SIGSTKFLT),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)
MEANINGS: Final[Mapping[int, Meaning]] = {
    **dict.fromkeys(_ENDS, Meaning.END),
    signal.SIGUSR1: Meaning.ROLL,
    signal.SIGUSR2: Meaning.TRIGGER,
    signal.SIGHUP: Meaning.HANG_UP,
    **dict.fromkeys(_FREE, Meaning.NONE),
}
"""It lacks signals that stop and continue, those of a crash, SIGCHLD, and SIGPIPE and SIGXFSZ,
which Python ignores: a failed write reports the reason."""
# nohup, and a shell without a terminal, have this one ignored.
_MAY_BE_IGNORED: Final = frozenset({signal.SIGHUP})
# Python ignores these before main() runs, so their earlier disposition is unknown.
_UNKNOWN_BEFORE: Final = (signal.SIGPIPE, signal.SIGXFSZ)
REPORT_INTERVAL_S: Final = 60.0
# The remaining work at the end takes less, unless something hangs.
ENDING_S: Final = 10.0


def has_terminal() -> bool:
    """Tell whether this process has a controlling terminal, whose end sends SIGHUP."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def name_of(number: int) -> str:
    """Return the name of a signal."""
    if signal.SIGRTMIN < number < signal.SIGRTMAX:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    return signal.Signals(number).name


class Signals:
    """The signals of this process; a context manager that restores the earlier handlers."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._before: dict[int, Any] = {}
        self._mask_before: set[int] = set()
        self._deliver: Callable[[int], None] | None = None
        self._ending_since: float | None = None
        self._has_terminal = False
        self._too_early: list[int] = []
        """Requests that came before recording began."""
        self._reported: dict[int, float] = {}

    def __enter__(self) -> Self:
        self.take_over()
        return self

    def take_over(self) -> None:
        """Handle all of MEANINGS.  Only the main thread may do this."""
        self._has_terminal = has_terminal()
        self._mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        for number in MEANINGS:
            if number in _MAY_BE_IGNORED and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._handle)
        # If SIGCHLD stayed ignored, lttd could not see how COMMAND ended.
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, MEANINGS)

    def left_terminal(self) -> None:
        """Let SIGHUP reload, also if it was ignored: this process is a daemon now."""
        self._has_terminal = False
        before = signal.signal(signal.SIGHUP, self._handle)
        self._before.setdefault(signal.SIGHUP, before)

    def meaning(self, number: int) -> Meaning:
        """Return the meaning of a signal for this process."""
        if MEANINGS[number] is Meaning.HANG_UP:
            return Meaning.END if self._has_terminal else Meaning.RELOAD
        return MEANINGS[number]

    def __exit__(self, error_type: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)

    def restore_for_exec(self) -> None:
        """In a forked child: restore the dispositions that the program had when it started."""
        for number, before in self._before.items():
            is_ignored = before is signal.SIG_IGN
            signal.signal(number, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
        for number in _UNKNOWN_BEFORE:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Block signals meanwhile."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, MEANINGS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @contextmanager
    def delivered_to(self, deliver: Callable[[int], None]) -> Iterator[None]:
        """Call *deliver* in the signal handler for each signal; then the phase is ending."""
        self._deliver = deliver
        for number in self._too_early:
            deliver(number)
        self._too_early.clear()
        try:
            yield
        finally:
            self._deliver = None
            self._ending_since = self._now()

    def report(self, number: int) -> str | None:
        """Return the line for a signal without a meaning; None within a minute of the last one."""
        now = self._now()
        if now < self._reported.get(number, -REPORT_INTERVAL_S) + REPORT_INTERVAL_S:
            return None
        self._reported[number] = now
        return f"{name_of(number)} has no meaning for lttd and is ignored; SIGTERM ends recording"

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._deliver is not None:
            self._deliver(number)
        elif self.meaning(number) is Meaning.RELOAD:
            self._too_early[:] = [number]
        elif MEANINGS[number] is Meaning.NONE:
            if self._ending_since is None and (line := self.report(number)):
                _write_now(line)
        elif MEANINGS[number] in (Meaning.ROLL, Meaning.TRIGGER):
            return  # there is nothing to roll or to keep
        elif self._ending_since is None:
            _write_now("interrupted before anything was recorded")
            os._exit(1)
        elif self._now() > self._ending_since + ENDING_S:
            _write_now("interrupted while it was ending, which hangs")
            os._exit(1)


def _write_now(line: str) -> None:
    try:
        os.write(2, f"lttd: {line}\n".encode())
    except OSError:
        return
