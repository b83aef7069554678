"""Keep what is written below a rate, whatever the kernel delivers (``--max-rate``).

Rule: a batch is written whole or not at all, and passes while the budget is not spent; so what is
written exceeds rate x time by at most the burst and one batch of each writer thread.
Thread-safe.  The caller passes the clock, so that tests need no real one.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

from lttd.subbuffer import TAKE_BYTES

BURST_S: Final = 1.0


class RateLimit:
    """A budget of bytes that grows with time, up to a burst of one second or one take."""

    def __init__(self, bytes_per_s: int, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.bytes_per_s = bytes_per_s
        self._now_ns = now_ns
        self._most = max(bytes_per_s * BURST_S, TAKE_BYTES)
        self._budget = self._most
        self._at_ns = now_ns()
        self._lock = threading.Lock()

    def admits(self, size_bytes: int) -> bool:
        """Spend *size_bytes* and return True, or return False if the budget is spent."""
        with self._lock:
            now = self._now_ns()
            grown = (now - self._at_ns) / 1e9 * self.bytes_per_s
            self._budget = min(self._budget + grown, self._most)
            self._at_ns = now
            if self._budget <= 0:
                return False
            self._budget -= size_bytes
            return True
