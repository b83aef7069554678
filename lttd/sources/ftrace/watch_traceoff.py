"""Find out which traceoff trigger turned tracing off, and between which moments.

Rule: the kernel tells nobody when a trigger fired, so lttd only knows two looks before and after
it.  It notes the later one for viewers, which find the last event before that.
"""

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from lttd.errors import LttdError
from lttd.sources.ftrace.listener import Listener
from lttd.sources.ftrace.stream import Shared
from lttd.sources.ftrace.triggers import trigger_file
from lttd.sources.ftrace.watched_settings import TRACING_ON

_MOST_NAMED: Final = 3
Noted = tuple[int, str]
"""By when tracing was off, on the trace clock, and the event whose trigger did it."""


class TraceoffWatch:
    """Explains why tracing is off that nobody turned off by a write."""

    def __init__(self, listener: Listener, shared: Shared) -> None:
        self.noted: deque[Noted] = deque()
        """Those that no segment has yet."""
        self._listener = listener
        self._shared = shared
        self._seen_on_ns: int | None = None
        """When the last look that found tracing on began, on CLOCK_REALTIME."""
        self._seen_off_ns: int | None = None
        """When the first look after it had found it off."""
        self._off_by: int | None = None
        """The same on the trace clock; None: it could not be read."""

    def seen_on(self, began_ns: int) -> None:
        """Note that tracing was on when a look began."""
        self._seen_on_ns, self._seen_off_ns = began_ns, None

    def seen_off(self, ended_ns: int) -> None:
        """Note that tracing was off when a look ended."""
        if self._seen_off_ns is None:
            self._seen_off_ns, self._off_by = ended_ns, None
            with suppress(LttdError):
                self._off_by = self._shared.now()

    def candidates(self) -> Sequence[str]:
        """Return the events that have a traceoff trigger; of them, those whose count is used up.

        Called from any thread.
        """
        instance = self._listener.instance
        listed = (self._listener.read("set_event") or "").splitlines()
        found = {name: self._trigger_of(name) for name in {*listed, *instance.triggers}}
        fired = [name for name, line in found.items() if line.startswith("traceoff:count=0")]
        return sorted(fired or (name for name, line in found.items() if line))

    def _trigger_of(self, event: str) -> str:
        lines = (self._listener.read(trigger_file(event)) or "").splitlines()
        return next((line for line in lines if line.startswith("traceoff")), "")

    def explained(self, names: Sequence[str]) -> str:
        """Note that the trigger of one of these events did it; return the line for people."""
        self.seen_off(time.time_ns())  # a recording that ends was not looked at since
        assert self._seen_off_ns is not None
        more = len(names) - _MOST_NAMED
        others = [f"one of {more:,} others"] if more > 0 else []
        who = " or ".join([*names[:_MOST_NAMED], *others])
        if self._off_by is not None:
            self.noted.append((self._off_by, who))
        at_least = f"at least at {utc_ms(self._seen_on_ns)}, " if self._seen_on_ns else ""
        path = self._listener.instance.file(TRACING_ON.file)
        return (
            f"tracing is off, as a traceoff trigger asks for ({who}), since {at_least}"
            f"at most at {utc_ms(self._seen_off_ns)}: write 1 to {path} to trace again; lttv info"
            " prints the time of the last event before"
        )


def utc_ms(time_ns: int) -> str:
    """Return a time of CLOCK_REALTIME in UTC, cut to milliseconds."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest_ns // 1_000_000:03}Z"
