"""Common parts of both command lines: help through the guarded writer, errors of one line."""

import argparse
from contextlib import suppress
from typing import Any, Final

from lttd.errors import UsageError
from lttd.terminal import put
from lttd.version import VERSION

_MOST_CHARACTERS: Final = 600


class Parser(argparse.ArgumentParser):
    """A parser that writes help through the guarded writer, and raises UsageError."""

    def _print_message(self, message: str, _: object = None) -> None:
        """Write help or version to stdout's descriptor; a stream would fail again at exit.

        Raises:
            OutputError: stdout does not take it.
        """
        with suppress(BrokenPipeError):  # its reader ended
            put(message.encode())

    def error(self, message: str) -> Any:  # noqa: ANN401  (argparse declares NoReturn)
        """Refuse the command line.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message} (see {self.prog} --help)")


class ShowVersion(argparse.Action):
    """The action that prints the program's name and version, and ends it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and raise SystemExit; raise OutputError as Parser does."""
        parser._print_message(f"{parser.prog} {VERSION}\n")  # noqa: SLF001
        raise SystemExit


def shortened(text: str) -> str:
    """Shorten a very long line; keep its begin and its end."""
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[: _MOST_CHARACTERS // 2]} [...] {text[-_MOST_CHARACTERS // 3 :]}"
