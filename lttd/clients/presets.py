"""``lttd presets``: list the groups of events of ``--preset``.  It asks no recorder."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from lttd.presets import OF_USER, Preset, read_presets
from lttd.terminal import is_terminal, printable, put_line
from lttd.usage import Parser

# Into a file or a pipe each text is one line, for grep.
_NO_LIMIT: Final = 1 << 20


def run(words: Sequence[str]) -> int:
    """List the presets; return the exit status."""
    parser = Parser(
        prog="lttd presets",
        description="List the groups of events of --preset: the events, and what they cost.",
        epilog=f"{OF_USER} has those of this machine's user; see the file that lttd ships.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    given = parser.parse_args(words)
    presets = read_presets()
    if given.json:
        values = {name: {**each._asdict(), "events": list(each.events)}
                  for name, each in presets.items()}  # fmt: skip
        put_line(json.dumps(values))
        return 0
    columns = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else _NO_LIMIT
    put_line("\n".join(lines_of(presets.values(), columns)))
    return 0


def lines_of(presets: Iterable[Preset], columns: int) -> Iterator[str]:
    """Yield a line for each preset's purpose, its events and its cost; longer ones go on."""
    presets = list(presets)
    width = max(len(printable(each.name)) for each in presets)
    for each in presets:
        head = printable(each.name).ljust(width + 2)
        for text in (each.what, f"events: {' '.join(each.events)}", each.cost):
            if text:
                shown = printable(text)
                yield from textwrap.wrap(
                    shown,
                    max(columns, width + 30),
                    initial_indent=head,
                    subsequent_indent=" " * (width + 2),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                head = " " * (width + 2)
