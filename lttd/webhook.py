"""POST /-/trigger on the metrics port: who may post, and the answer.

    401   no token, or a wrong one        411   no Content-Length     413   a body above 1 MiB
    400   not understood                  429   too many triggers     503   not now: try again
    200   {"ok": true, "accepted": [3], "known": 1, "resolved": 0, "refused": []}

Rule: the token is compared in constant time, before anything of the body is read.
Rule: the answer does not wait for a window.  An alert that is known already is not an error, since
Alertmanager repeats it; it repeats a request at once after 503, and later after other failures.
"""

import hmac
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from lttd.alerts import UnusableError, parse_body, parse_query
from lttd.endpoint import Answer
from lttd.terminal import printable
from lttd.trigger import Accept, Refusal, TriggerRefusedError

PATH: Final = b"/-/trigger"
MOST_BODY_BYTES: Final = 1 << 20
_JSON_TYPE: Final = "application/json"
_CHALLENGE: Final = (("WWW-Authenticate", "Bearer"),)

_STATUS: Final = {
    Refusal.NOT_NOW: HTTPStatus.SERVICE_UNAVAILABLE,
    Refusal.TOO_MANY: HTTPStatus.TOO_MANY_REQUESTS,
    # It is refused for good, so nobody should repeat it.
    Refusal.OUT_OF_REACH: HTTPStatus.OK,
    Refusal.TOO_LARGE: HTTPStatus.OK,
}


class Webhook:
    """The path /-/trigger; see ``lttd.endpoint.Post``."""

    most_bytes = MOST_BODY_BYTES

    def __init__(self, token: bytes | None, accept: Accept, now_ns: Callable[[], int]) -> None:
        """*token* None: nobody may post; *now_ns* reads CLOCK_REALTIME."""
        self.token = token
        self._accept = accept
        self._now_ns = now_ns

    def refuse(self, authorization: bytes | None) -> Answer | None:
        """Return the answer to a request that may not post; None: it may."""
        if self.token is None:
            return _text(403, "triggers by HTTP are off; --web-enable-trigger turns them on")
        scheme, _, given = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self.token):
            words = "send the token of --web-token-file: Authorization: Bearer TOKEN"
            return _text(401, words, _CHALLENGE)
        return None

    async def answer(self, query: bytes, body: bytes) -> Answer:
        """Accept the triggers of a request, and return at once."""
        try:
            asked = parse_body(body, parse_query(query), self._now_ns())
        except UnusableError as error:
            return _text(400, str(error))
        accepted: list[int] = []
        refused: list[str] = []
        known = 0
        status = HTTPStatus.OK
        for trigger in asked.triggers:
            try:
                taken = await self._accept(trigger)
            except TriggerRefusedError as error:
                status = max(status, _STATUS[error.refusal])
                refused.append(str(error))
            else:
                known += taken is None
                accepted += [taken.number] if taken is not None else []
        told = {"ok": status == HTTPStatus.OK, "accepted": accepted, "known": known}
        told |= {"resolved": asked.resolved, "refused": refused}
        return Answer(status, json.dumps(told).encode() + b"\n", _JSON_TYPE)


def _text(status: int, words: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    return Answer(status, f"{printable(words)}\n".encode(), headers=headers)
