"""Tells systemd how the service stands: one datagram a message, no library.

Source: sd_notify(3).  Without NOTIFY_SOCKET nothing is sent.
"""

import os
import socket
from typing import Final

READY: Final = "READY=1"
WATCHDOG: Final = "WATCHDOG=1"
STOPPING: Final = "STOPPING=1"


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

    def send(self, *messages: str) -> None:
        """Send; a manager that does not listen is no reason to stop recording."""
        if self._socket is not None:
            try:
                self._socket.sendto("\n".join(messages).encode(), self._address)
            except OSError:
                return

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self.send(f"STATUS={text}")
