"""``lttd roll``: let a running recorder go on in new segments."""

from collections.abc import Sequence

from lttd.clients.base import ask, client_parser, show
from lttd.terminal import printable


def run(words: Sequence[str]) -> int:
    """Roll, and print the segments that are closed now; return the exit status."""
    about = "Let a running lttd close its segments and go on in new ones, without a pause."
    given = client_parser("roll", about).parse_args(words)
    answer = ask(given, {"do": "roll"}, None)
    return show(given, answer, "\n".join(map(printable, answer["closed"])))
