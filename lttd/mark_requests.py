"""The request ``mark`` on the control socket: write a line into the rings that are recorded.

    {"do": "mark", "text": "deploy 4711 begins"}  ->  {"marked": ["lttd-4242"]}

The answer names the instances.  The mark is in the ring when the answer comes; it is on disk when
the ring was read, as any event.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from lttd.control_protocol import Peer
from lttd.errors import LttdError, UsageError
from lttd.parsers import parse_mark, parse_named
from lttd.recording import Recording
from lttd.sources.base import Markable

MARK: Final = "mark"
_KEYS: Final = frozenset({"do", "text"})


class MarkRequests:
    """Carries out requests; see ``lttd.control_protocol.Handler``."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self._recordings = recordings

    async def __call__(self, request: Mapping[str, Any], _peer: Peer) -> Mapping[str, Any]:
        """Write the mark into each ring that takes marks.

        Raises:
            UsageError: it is not a line of text.
            LttdError: a ring refuses it, or no source of this run takes marks.
        """
        text = _parse(request)
        marked, refused = [], []
        for recording in self._recordings:
            source = recording.source
            if isinstance(source, Markable):
                try:
                    marked.append(source.mark(text))
                except LttdError as error:
                    refused.append(error)
        if refused:
            also = f" (it is in {', '.join(marked)})" if marked else ""
            raise LttdError(f"{'; '.join(map(str, refused))}{also}")
        if not marked:
            raise LttdError("no source of this recording takes marks; ftrace does")
        return {"marked": marked}


def _parse(request: Mapping[str, Any]) -> str:
    unknown = request.keys() - _KEYS
    if unknown:
        raise UsageError(f"{MARK}: {min(unknown)!a:.60} is not a key of this request")
    text: str = parse_named(f"{MARK}:", parse_mark, request.get("text"))
    return text
