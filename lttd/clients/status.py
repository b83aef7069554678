"""``lttd status``: print what a running recorder does."""

from collections.abc import Sequence

from lttd.clients.base import ask, client_parser, show
from lttd.control_protocol import STATUS


def run(words: Sequence[str]) -> int:
    """Print the state of a recorder; return the exit status."""
    given = client_parser("status", "Print what a running lttd does.").parse_args(words)
    answer = ask(given, {"do": STATUS})
    from lttd.status_table import status_table  # noqa: PLC0415  (only for people)

    return show(given, answer, "" if given.json else status_table(answer))
