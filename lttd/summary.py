"""Write the summary of a run: a table on stderr, or JSON on stdout or in a file."""

import errno
import json
import os
import stat
from collections.abc import Sequence
from typing import Any

from lttd.errors import LttdError, OutputError
from lttd.stats import StreamSummary, summary_json, summary_table
from lttd.terminal import Level, put_line, say_lines


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
