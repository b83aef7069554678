"""Ask a recorder to keep or to release segments, which a user names by their numbers."""

from collections.abc import Sequence
from typing import Any, Final

from lttd.clients.base import ask, client_parser, show
from lttd.errors import UsageError
from lttd.parsers import parse_count, parse_named

_DONE: Final = {"keep": "kept", "release": "released"}


def run_for(name: str, description: str, words: Sequence[str]) -> int:
    """Make the request *name* for the segments in *words*; return the exit status."""
    parser = client_parser(name, description)
    parser.add_argument(
        "segments", metavar="N", nargs="+", help="a segment's number; 3-7 are five of them"
    )
    given = parser.parse_args(words)
    numbers = [number for word in given.segments for number in _numbers(word)]
    answer = ask(given, {"do": name, "segments": numbers}, patience_s=None)
    return show(given, answer, _text(name, answer))


def _text(name: str, answer: dict[str, Any]) -> str:
    numbers = answer["segments"]
    noun = "segment" if len(numbers) == 1 else "segments"
    return f"{_DONE[name]} {noun} {', '.join(map(str, numbers))}"


def _numbers(word: str) -> range:
    first, dash, last = word.partition("-")
    begin = parse_named("segment", parse_count, first)
    end = parse_named("segment", parse_count, last) if dash else begin
    if not 1 <= begin <= end < begin + 1000:
        raise UsageError(f"segment {word!r:.40}: write numbers from 1, as 12, or 12-15")
    return range(begin, end + 1)
