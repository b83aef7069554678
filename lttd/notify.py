"""Tells systemd how the service stands: one datagram a message, no library.

Source: sd_notify(3).  Without NOTIFY_SOCKET nothing is sent.
"""

import math
import os
import socket
from collections.abc import Callable
from typing import Final

from lttd.terminal import printable

READY: Final = "READY=1"
WATCHDOG: Final = "WATCHDOG=1"
STOPPING: Final = "STOPPING=1"
# The loop comes round, and systemd hears of it, once in a quarter of the watchdog's time each: half
# of it passes at most, as sd_watchdog_enabled(3) advises.
BEATS_PER_WATCHDOG: Final = 4
STATUS_INTERVAL_S: Final = 1.0
ADDRESSED: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Variables that are addressed to lttd, not to its children."""


class Notifier:
    """The socket that systemd named; a no-op where it named none."""

    def __init__(self) -> None:
        """Read NOTIFY_SOCKET and WATCHDOG_USEC, and keep them from lttd's children."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = os.environ.pop("WATCHDOG_USEC", "")
        watched_pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        self.watchdog_s: float | None = None
        """How often at least WATCHDOG is expected; None where systemd does not watch."""
        if watchdog_us.isdigit() and watched_pid == str(os.getpid()):
            self.watchdog_s = int(watchdog_us) / 1e6
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def is_heard(self) -> bool:
        """Tell whether somebody wants to know."""
        return self._socket is not None

    @property
    def beat_interval_s(self) -> float:
        """How often Heart.beat() is to be called, at least."""
        watched = self.is_heard and self.watchdog_s
        return watched / BEATS_PER_WATCHDOG if watched else math.inf

    def send(self, *messages: str) -> None:
        """Send; a manager that does not listen is no reason to stop recording."""
        if self._socket is not None:
            try:
                self._socket.sendto("\n".join(messages).encode(), self._address)
            except OSError:
                return

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self.send(f"STATUS={printable(text)}")  # a line break would begin another message

    def close(self) -> None:
        """Give the socket back; what is sent then is heard by nobody."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Heart:
    """Makes of the read loop's signs of life what systemd gets, seldom enough to cost nothing.

    Rule: nothing here has a timer or a thread: a loop that hangs calls no beat().
    """

    def __init__(self, notifier: Notifier, status: Callable[[], str]) -> None:
        """*status* tells in a line how recording stands."""
        self._notifier = notifier
        self._status = status
        self._interval_s = notifier.beat_interval_s
        self._next_watchdog = -math.inf if self._interval_s < math.inf else math.inf
        self._next_status = -math.inf
        self._told = ""

    def beat(self, now: float) -> None:
        """Feed the watchdog and renew the status line where that is due; *now* in seconds."""
        if not self._notifier.is_heard:
            return
        if now >= self._next_watchdog:
            self._next_watchdog = now + self._interval_s
            self._notifier.send(WATCHDOG)
        if now >= self._next_status:
            self._next_status = now + STATUS_INTERVAL_S
            text = self._status()
            if text != self._told:
                self._told = text
                self._notifier.status(text)
