"""Read the files of tracefs that a segment keeps beside its streams.

Rule: a file that is absent or unreadable counts as empty, because the events are there all the
same.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

from lttd.abi.formats_file import Key
from lttd.abi.ftrace import PageLayout
from lttd.abi.ftrace_format import id_of
from lttd.beneath import Place
from lttd.errors import TraceDamagedError
from lttd.index import FOREVER
from lttd.limits import COMMAND_LINES, COMMANDS, FORMATS, TRACEFS_FILE
from lttd.readfile import read_limited
from lttd.view.format_files import FormatFiles
from lttd.view.notes import Notes
from lttd.view.task_names import COMMAND, MOST_PID
from lttd.view.trace import Segment

# /proc adds the present work to the name of a kernel worker; the command in events is shorter.
_WORKER: Final = re.compile(rb"(kworker/u?\d+:\d+H?)[-+].*", re.DOTALL)
_COMMAND_BYTES: Final = 15
# A worker's name with its work, possibly escaped; and a line with such a name.
_MOST_NOTED_BYTES: Final = 128
_MOST_LINE_BYTES: Final = 4096
_ESCAPED: Final = re.compile(rb"\\(.)")


class SavedFiles:
    """``tracefs/`` of one segment."""

    def __init__(self, segment: Segment) -> None:
        self._root = segment.paths.tracefs

    def read(self, name: str) -> bytes:
        """Return a file's content; *name* is its path below tracefs.

        Raises:
            TraceDamagedError: it is too large.
        """
        try:
            return read_limited(self._root / name, TRACEFS_FILE)
        except OSError:
            return b""

    def header_page(self, layout: PageLayout) -> bytes:
        """Return ``events/header_page``, or make it from *layout*."""
        long_bytes, head = layout.long_bytes, layout.header_bytes
        return (
            self.read("events/header_page")
            or (
                "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
                f"\tfield: local_t commit;\toffset:8;\tsize:{long_bytes};\tsigned:1;\n"
                f"\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
                f"\tfield: char data;\toffset:{head};\tsize:{layout.subbuffer_bytes - head};"
                "\tsigned:1;\n"
            ).encode()
        )

    def formats(self) -> dict[tuple[str, str], bytes]:
        """Return every format file by (system, event), but those of ids that had several formats.

        Raises:
            TraceDamagedError: one is too large, or all are, or one cannot be read.
        """
        notes = Notes()
        files = FormatFiles(self._root, notes)
        found: dict[tuple[str, str], bytes] = {}
        left = FORMATS.most
        for key in files:
            path = Path(files.path(key))
            try:
                text = files.text(key)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise TraceDamagedError(path, 0, error.strerror or str(error)) from None
            left -= len(text)
            if left < 0:
                raise TraceDamagedError(path, 0, f"{FORMATS}; remove formats that no event needs")
            found[key] = text
        for key in _of_reused_ids(found, files.earlier):
            del found[key]
        for note in notes.told():
            raise TraceDamagedError(Path(str(files)), 0, note)
        return found

    @cached_property
    def _commands(self) -> Place:
        return self._root / "commands"

    def last_commands(self, until: int) -> dict[int, bytes]:
        """Return the last command of each pid up to the trace-clock time *until*.

        If a pid was first observed later, return its first command.
        """
        found: dict[int, bytes] = {}
        for line in self._command_lines():
            parts = COMMAND.match(line)
            if parts is None:
                continue  # a torn line at the end
            time, pid = int(parts[1]), int(parts[2])
            if time > FOREVER or pid > MOST_PID:
                continue
            if time <= until or pid not in found:
                told = parts[4][:_MOST_NOTED_BYTES]
                if b"\\" in told:
                    told = _ESCAPED.sub(_unescaped, told)
                if b"kworker/" in told:
                    told = _WORKER.sub(rb"\1", told)
                found[pid] = told[:_COMMAND_BYTES]
        return found

    def _command_lines(self) -> Iterator[bytes]:
        try:
            with os.fdopen(self._commands.open(), "rb") as lines:
                # A very long line is read in parts, which do not parse.
                for _ in range(COMMAND_LINES.most):
                    line = lines.readline(_MOST_LINE_BYTES)
                    if not line or lines.tell() > COMMANDS.most:
                        return
                    yield line
        except OSError:
            return  # absent


def _of_reused_ids(
    formats: Mapping[Key, bytes], earlier: Iterable[tuple[Key, bytes]]
) -> Iterator[Key]:
    """Yield the events whose ids had other formats before."""
    numbers = Counter(id_of(text) for text in formats.values())
    numbers.update(id_of(text) for _, text in earlier)
    return (key for key, text in list(formats.items()) if numbers[id_of(text)] > 1)


def _unescaped(found: re.Match[bytes]) -> bytes:
    # A line end inside a command would end the line of the output.
    return b" " if found[1] == b"n" else found[1]
