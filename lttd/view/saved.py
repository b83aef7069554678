"""The files of tracefs that a segment keeps beside its streams.

Rule: what is absent or unreadable is empty: the events are there all the same.
"""

import re
from functools import cached_property
from pathlib import Path
from typing import Final

from lttd.abi.ftrace import PageLayout
from lttd.view.trace import Segment

# /proc tells of a worker what it works at, too; its command, as events have it, is shorter.
_WORKER: Final = re.compile(rb"(kworker/u?\d+:\d+H?)[-+].*", re.DOTALL)
_COMMAND_BYTES: Final = 15
_ESCAPED: Final = re.compile(rb"\\(.)")


class SavedFiles:
    """``tracefs/`` of one segment."""

    def __init__(self, segment: Segment) -> None:
        self._root = segment.paths.directory / "tracefs"

    def read(self, name: str) -> bytes:
        """Return a file's content; *name* is as below tracefs."""
        try:
            return (self._root / name).read_bytes()
        except OSError:
            return b""

    def header_page(self, layout: PageLayout) -> bytes:
        """Return ``events/header_page``, or what it would say of *layout*."""
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
        """Return every format file by (system, event)."""
        return {
            (path.parts[-3], path.parts[-2]): path.read_bytes()
            for path in self._root.glob("events/*/*/format")
        }

    @cached_property
    def _commands(self) -> Path:
        return self._root / "commands"

    def last_commands(self, until: int) -> dict[int, bytes]:
        """Return the command that each pid had last, up to the trace-clock time *until*.

        Where its first one was seen later only, that one.
        """
        found: dict[int, bytes] = {}
        try:
            with self._commands.open("rb") as lines:
                for line in lines:
                    time, pid, _, command = line.rstrip(b"\n").split(b"\t", 3)
                    if int(time) <= until or int(pid) not in found:
                        told = _WORKER.sub(rb"\1", _ESCAPED.sub(_unescaped, command))
                        found[int(pid)] = told[:_COMMAND_BYTES]
        except (OSError, ValueError):  # absent, or torn at its end
            return found
        return found


def _unescaped(found: re.Match[bytes]) -> bytes:
    # A line end inside a command would end the line that it is written to.
    return b" " if found[1] == b"n" else found[1]
