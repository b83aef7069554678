"""Report the state of the service to systemd, in one datagram per message, without a library.

Source: sd_notify(3).  Without NOTIFY_SOCKET it sends nothing.
"""

import math
import os
import socket
import time
from collections.abc import Callable
from typing import Final

from lttd.inherited import VARIABLES
from lttd.terminal import printable

READY: Final = "READY=1"
RELOADING: Final = "RELOADING=1"
WATCHDOG: Final = "WATCHDOG=1"
STOPPING: Final = "STOPPING=1"
# The loop beats each quarter of the watchdog's time, and a beat is sent each quarter: so at most
# half of it passes between two, as sd_watchdog_enabled(3) advises.
BEATS_PER_WATCHDOG: Final = 4
STATUS_INTERVAL_S: Final = 1.0
ADDRESSED: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", *VARIABLES)
"""Environment variables that are for lttd, not for its children."""


class Notifier:
    """The socket of systemd; without one it does nothing."""

    def __init__(self) -> None:
        """Read NOTIFY_SOCKET and WATCHDOG_USEC, and remove them from the environment."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = os.environ.pop("WATCHDOG_USEC", "")
        watched_pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        self.watchdog_s: float | None = None
        """The longest time between two WATCHDOG messages; None if systemd does not watch."""
        if watchdog_us.isdigit() and watched_pid == str(os.getpid()):
            self.watchdog_s = int(watchdog_us) / 1e6
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def is_heard(self) -> bool:
        """Tell whether systemd listens."""
        return self._socket is not None

    @property
    def beat_interval_s(self) -> float:
        """The longest time between two calls of Heart.beat()."""
        watched = self.is_heard and self.watchdog_s
        return watched / BEATS_PER_WATCHDOG if watched else math.inf

    def send(self, *messages: str) -> None:
        """Send; a manager that does not listen is no reason to stop recording."""
        if self._socket is not None:
            try:
                self._socket.sendto("\n".join(messages).encode(), self._address)
            except OSError:
                return

    def reloading(self) -> None:
        """Say that a reload begins; READY says that it is done.

        The time is for Type=notify-reload (systemd 253), which earlier managers ignore.
        """
        self.send(RELOADING, f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self.send(f"STATUS={printable(text)}")  # a line break would begin another message

    def close(self) -> None:
        """Close the socket; later messages are not sent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Heart:
    """Makes of the read loop's signs of life what systemd gets, seldom enough to cost nothing.

    Rule: nothing here has a timer or a thread: a loop that hangs calls no beat().
    """

    def __init__(self, notifier: Notifier, status: Callable[[], str]) -> None:
        """*status* returns one line on the recording."""
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
