"""Common parts of both command lines: help through the guarded writer, errors of one line."""

import argparse
from contextlib import suppress
from typing import Any, Final

from lttd.errors import UsageError
from lttd.terminal import put
from lttd.version import VERSION

_MOST_CHARACTERS: Final = 600


class Parser(argparse.ArgumentParser):
    """A parser that writes help as lttd writes everything, and raises what it refuses."""

    def _print_message(self, message: str, _: object = None) -> None:
        """Write help or version; a stream would fail once more at exit.

        Raises:
            OutputError: stdout does not take it.
        """
        with suppress(BrokenPipeError):  # its reader has seen enough
            put(message.encode())

    def error(self, message: str) -> Any:  # noqa: ANN401  (argparse declares NoReturn)
        """Refuse the command line.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message} (see {self.prog} --help)")


class ShowVersion(argparse.Action):
    """Writes the program's name and version, and ends it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Raise SystemExit; OutputError as Parser does."""
        parser._print_message(f"{parser.prog} {VERSION}\n")  # noqa: SLF001
        raise SystemExit


def shortened(text: str) -> str:
    """Shorten a line that is too long for a person; keep its begin and its end."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[: _MOST_CHARACTERS // 2]} [...] {text[-_MOST_CHARACTERS // 3 :]}"
