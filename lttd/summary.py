"""How a run went: its failures, and its summary as a table on stderr or as JSON.

Rule: no line is written twice.
"""

import errno
import json
import os
import stat
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from lttd.errors import LttdError, OutputError
from lttd.stats import StreamSummary, summary_json, summary_table
from lttd.terminal import Level, put_line, say, say_lines

# The lines of a run that are known at its end.
MOST_SAID: Final = 64


class Outcome:
    """What a run reports at its end."""

    def __init__(self) -> None:
        self.failures: list[LttdError] = []
        self.summaries: list[StreamSummary] = []
        self._said: deque[str] = deque(maxlen=MOST_SAID)

    def say(self, line: str, level: Level) -> None:
        """Write a line now; a failure in the same words is not reported again."""
        self._said.append(line)
        say(line, level)

    def tell(self, how: str, about: dict[str, Any]) -> None:
        """Write the summary, and a line for each failure; see write_summary()."""
        try:
            write_summary(how, self.summaries, about)
        except LttdError as error:
            self.failures.append(error)
        for line in dict.fromkeys(map(str, self.failures)):
            if line not in self._said:
                say(line, Level.ERROR)


def write_summary(how: str, streams: Sequence[StreamSummary], about: dict[str, Any]) -> None:
    """Write the summary as *how* says: ``table``, ``json``, ``json:FILE`` or ``none``.

    *about* holds the keys of the JSON object besides the streams.

    Raises:
        LttdError: it could not be written.
    """
    if how == "table" and streams:
        say_lines(summary_table(streams), Level.INFO)
    elif how.startswith("json"):
        value: dict[str, Any] = {**summary_json(streams), **about}
        path = how.removeprefix("json").removeprefix(":")
        try:
            _write(json.dumps(value), path)
        except OutputError:
            raise
        except OSError as error:
            raise LttdError(f"--summary {how}: {error.strerror}") from None


def _write(text: str, path: str) -> None:
    if not path:
        put_line(text)
        return
    with os.fdopen(_open_for_writing(path), "w") as file:
        file.write(f"{text}\n")


def _open_for_writing(path: str) -> int:
    """Open a file that a user names; nobody else can have it lead elsewhere, or make lttd wait.

    Links of this user's and of root's are followed (/dev/stdout is one); so sticky directories
    have it where fs.protected_symlinks is set.

    Raises:
        OSError: it cannot be opened, or is another user's.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "nobody reads this FIFO", path) from None
        if error.errno != errno.ELOOP:
            raise
        if os.lstat(path).st_uid not in (0, os.geteuid()):
            raise OSError(errno.ELOOP, "a symbolic link of another user", path) from None
        fd = os.open(path, flags, 0o666)
    status = os.fstat(fd)
    os.set_blocking(fd, True)
    if stat.S_ISREG(status.st_mode):
        if status.st_uid != os.geteuid():
            os.close(fd)
            raise OSError(errno.EPERM, f"belongs to user {status.st_uid}", path)
        os.ftruncate(fd, 0)
    return fd
