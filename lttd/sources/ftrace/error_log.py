"""Read the kernel's words on a text that it refused: the ``error_log`` of tracefs.

    [74766.214637] event filter parse error: error: Field not found
      Command: nofield == 3
                       ^

Filters and triggers have their errors in the log of their instance, probes in that of the top
level.  A log keeps the last 8 errors, of all users.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from lttd.errors import LttdError
from lttd.sources.tracefs import read_text

_HEAD: Final = r"\[ *(\d+\.\d+)\] (.*?): error: (.*)"
_COMMAND: Final = "  Command: "
_EACH_SIDE: Final = 60


class KernelError(NamedTuple):
    """One error of a log."""

    stamp: str
    """The time in s, as the kernel prints it."""
    part: str
    """The part of the kernel that refused: ``event filter parse error``, ``trace_kprobe``."""
    message: str
    command: str
    at: int
    """The place in *command*, from 0 on."""

    def __str__(self) -> str:
        start, end = max(0, self.at - _EACH_SIDE), self.at + _EACH_SIDE
        shown = "..." * (start > 0) + self.command[start:end] + "..." * (end < len(self.command))
        return f'{self.message}: "{shown}", at character {self.at + 1}'


def parse_error_log(text: str) -> list[KernelError]:
    """Return the errors of a log, the oldest first; other lines are skipped."""
    errors = []
    lines = text.split("\n")
    for number, line in enumerate(lines):
        head = re.fullmatch(_HEAD, line)
        if head is None:
            continue
        command, caret = (*lines[number + 1 : number + 3], "", "")[:2]
        at = max(0, len(caret.rstrip()) - 1 - len(_COMMAND))
        shown = command.removeprefix(_COMMAND)
        errors.append(KernelError(head[1], head[2], head[3], shown, at))
    return errors


class ErrorLog:
    """The errors that a log gets from now on."""

    def __init__(self, path: str) -> None:
        """*path* is that of the file; before Linux 5.2 there is none."""
        self._path = path
        self._before = frozenset(self._read())

    def newest(self) -> KernelError | None:
        """Return the last error that was not there before; None: the kernel did not explain."""
        new = [error for error in self._read() if error not in self._before]
        return new[-1] if new else None

    def _read(self) -> Sequence[KernelError]:
        with suppress(LttdError):
            return parse_error_log(read_text(self._path))
        return ()
