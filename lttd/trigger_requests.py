"""The request ``trigger`` on the control socket.

    {"do": "trigger", "reason": "deploy", "labels": {"by": "ci"}, "before": "10s", "after": "5s",
     "wait": true, "by": "command"}

Every key but ``do`` may be missing.  The answer is ``{"trigger": RECORD}``: with ``wait`` the
record of the complete window, without it that of the accepted trigger.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from lttd.alerts import Around, UnusableError, parse_around, parse_labels, parse_text
from lttd.control_protocol import Peer
from lttd.errors import UsageError
from lttd.trigger import Trigger
from lttd.triggers import Triggers

TRIGGER: Final = "trigger"
_KEYS: Final = frozenset({"do", "reason", "labels", "before", "after", "wait", "by"})


def parse_trigger_request(request: Mapping[str, Any], now_ns: int) -> Trigger:
    """Return the trigger that a request asks for.

    Raises:
        UsageError: the request has a key or a value that it cannot have.
    """
    unknown = request.keys() - _KEYS
    if unknown:
        raise UsageError(f"{TRIGGER}: {min(unknown)!a:.60} is not a key of this request")
    try:
        around = parse_around(request.get("before"), request.get("after"), Around())
        reason = parse_text(request.get("reason", ""), "reason")
        labels = parse_labels(request.get("labels", {}), "labels")
    except UnusableError as error:
        raise UsageError(f"{TRIGGER}: {error}") from None
    by = "command" if request.get("by") == "command" else "socket"
    return Trigger(reason or f"asked for by {by}", labels, by, now_ns, *around).within_limits()


class TriggerRequests:
    """Carries out requests; see ``lttd.control_protocol.Handler``."""

    def __init__(self, triggers: Triggers, now_ns: Callable[[], int]) -> None:
        """*now_ns* reads CLOCK_REALTIME."""
        self._triggers = triggers
        self._now_ns = now_ns

    async def __call__(self, request: Mapping[str, Any], _peer: Peer) -> Mapping[str, Any]:
        """Accept a trigger, and wait for its window if that is asked for.

        Raises:
            LttdError: it is not accepted, or cannot be kept.
        """
        pending = await self._triggers.accept(parse_trigger_request(request, self._now_ns()))
        assert pending is not None  # it comes from no alert
        if request.get("wait"):
            await pending.done.wait()
            if pending.error is not None:
                raise pending.error
        return {"trigger": pending.trigger.to_json()}
