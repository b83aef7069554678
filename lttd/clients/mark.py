"""``lttd mark TEXT``: write a line into the running recording."""

from collections.abc import Sequence

from lttd.clients.base import ask, client_parser, show
from lttd.parsers import parse_mark, parse_named
from lttd.terminal import printable


def run(words: Sequence[str]) -> int:
    """Write a mark; return the exit status."""
    parser = client_parser("mark", "Write a line into the running recording, at this moment.")
    parser.add_argument("text", metavar="TEXT", help="one line; quote it if it has spaces")
    given = parser.parse_args(words)
    text = parse_named("mark", parse_mark, given.text)
    answer = ask(given, {"do": "mark", "text": text})
    return show(given, answer, printable(f"marked {', '.join(map(str, answer['marked']))}"))
