"""``lttd reload``: let a running recorder read its configuration again."""

from collections.abc import Sequence

from lttd.clients.base import ask, client_parser, show
from lttd.terminal import printable


def run(words: Sequence[str]) -> int:
    """Reload; print what was taken over and what needs a restart; return the exit status."""
    about = "Let a running lttd read its configuration file again, without a pause in recording."
    given = client_parser("reload", about).parse_args(words)
    answer = ask(given, {"do": "reload"}, None)
    return show(given, answer, printable(answer["words"]))
