"""Find the channel files of an LTTng 0.x trace below a directory, and notice new ones.

They are called ``[flight-]CHANNEL_CPU`` and are in the directory of the trace or, up to format 2.2,
in its ``control``.

Rule: inotify only says when to search; a search once a second finds the files that it misses.
"""

import os
import stat
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from lttd.plausible import is_name
from lttd.sources.inotify import Inotify
from lttd.sources.ltt.rows import NAME
from lttd.subbuffer import StreamId

FLIGHT: Final = "flight-"
RESCAN_S: Final = 1.0


class ChannelFile(NamedTuple):
    """A file with the name of a channel."""

    path: str
    stream: StreamId
    """The channel is the path below the directory, without ``_CPU``; it is unique."""
    identity: tuple[int, int]
    """Device and inode: another file under the same name is another channel."""


class ChannelTree:
    """Walks a directory for channel files."""

    def __init__(self, root: str, channels: str, rescan_s: float = RESCAN_S) -> None:
        """*channels*: ``all``, ``flight`` or ``normal``."""
        self._root = root
        self._channels = channels
        self._inotify = Inotify()
        self._rescan_s = rescan_s
        self._next_look_s = 0.0
        self.odd: list[str] = []
        """Lines on files that were skipped, each once."""
        self._told: set[str] = set()
        self.passed_over = 0
        """The number of channel files of the other kind in the last search."""

    def look(self) -> list[ChannelFile]:
        """Search for channel files; return all."""
        self._next_look_s = time.monotonic() + self._rescan_s
        self._inotify.heard()
        self.passed_over = 0
        seen = set[tuple[int, int]]()  # so that links cannot lead in circles
        return sorted(self._in(self._root, "", seen), key=lambda file: file.stream)

    def look_if_due(self) -> list[ChannelFile]:
        """Search only if a file was created, or the last search was long ago; else return none."""
        due = time.monotonic() >= self._next_look_s
        return self.look() if self._inotify.heard() or due else []

    def close(self) -> None:
        """Close the descriptor."""
        self._inotify.close()

    def _in(self, directory: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[ChannelFile]:
        # Before the directory is read, so that files that appear meanwhile are reported.
        self._inotify.watch(directory)
        try:
            seen.add(_identity(os.stat(directory)))
            names = os.listdir(directory)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._tell(f"{directory}: passed over: {os.strerror(error.errno or 0)}")
            return
        for name in names:
            if not name.startswith("."):
                yield from self._at(f"{directory}/{name}", prefix, name, seen)

    def _at(
        self, path: str, prefix: str, name: str, seen: set[tuple[int, int]]
    ) -> Iterator[ChannelFile]:
        try:
            status = os.stat(path)
        except OSError:
            return  # it was removed
        if stat.S_ISDIR(status.st_mode) and not is_name(prefix + name):
            self._tell(f"{path}: passed over: its name is not UTF-8, or too long")
        elif stat.S_ISDIR(status.st_mode) and _identity(status) not in seen:
            yield from self._in(path, f"{prefix}{name}/", seen)
        elif stat.S_ISREG(status.st_mode):
            yield from self._file(path, prefix, name, _identity(status))

    def _file(
        self, path: str, prefix: str, name: str, identity: tuple[int, int]
    ) -> Iterator[ChannelFile]:
        words = NAME.fullmatch(name)
        if words is None:
            self._tell(f"{path}: passed over: its name does not end in _CPU")
        elif not is_name(prefix + words["channel"]):
            self._tell(f"{path}: passed over: its name is not UTF-8, or too long")
        elif self._channels == "all" or (self._channels == "flight") == name.startswith(FLIGHT):
            yield ChannelFile(
                path, StreamId(prefix + words["channel"], int(words["cpu"])), identity
            )
        else:
            self.passed_over += 1

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self.odd.append(line)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
