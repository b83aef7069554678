"""The protocol of the control socket: one request and one answer per connection.  Pure.

    request   {"do": "roll", ...}                             at most REQUEST_BYTES, then \\n
    answer    {"ok": true, ...}                               at most ANSWER_BYTES, then \\n
              {"ok": false, "error": "...", "status": 1}      status: of the client's process

Rule: a request is a JSON object whose ``do`` names a row of the server's table; its other keys are
the handler's arguments.  A handler returns the other keys of the answer, or raises an LttdError,
whose text and exit status become the answer.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from lttd.errors import LttdError, UsageError
from lttd.plausible import parse_json

REQUEST_BYTES: Final = 64 << 10
# The state of 8,192 CPUs, the most that Linux knows, takes 5 MiB.
ANSWER_BYTES: Final = 16 << 20

STATUS: Final = "status"
"""The only request that changes nothing."""
OWNERS_ONLY: Final = frozenset({"release", "reload"})
"""Requests that only root and the recorder's own user may make; the group may make the others."""


class Peer(NamedTuple):
    """The process that made a request: what SO_PEERCRED says, in the order of ``struct ucred``."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"user {self.uid} (pid {self.pid})"


Handler = Callable[[Mapping[str, Any], Peer], Awaitable[Mapping[str, Any]]]
"""Carries out one kind of request on the loop, and returns the keys of its answer.

It is not cancelled when its client leaves, only when the recorder ends.
"""


def encode(value: Mapping[str, Any]) -> bytes:
    """Return the line of a request or an answer."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def parse_request(line: bytes) -> Mapping[str, Any]:
    """Parse the line of a request, without its line break.

    Raises:
        UsageError: it is not a request.
    """
    try:
        value = parse_json(line)
    except ValueError as error:
        raise UsageError(f"the request is not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("do"), str):
        raise UsageError('the request is not an object with a text "do"')
    return value


def done(result: Mapping[str, Any]) -> bytes:
    """Return the answer to a request that was carried out."""
    return encode({"ok": True, **result})


def refused(error: LttdError) -> bytes:
    """Return the answer to a request that was refused, or that failed."""
    text = " ".join(str(error).split())
    return encode({"ok": False, "error": text, "status": error.exit_status})
