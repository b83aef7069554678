"""Notice other processes that read the relay files which lttd records, and count what they took.

All readers of a relay file share one position in the kernel, so each byte goes to one of them.  No
count says who got it.  But the file's ``st_size`` counts all bytes that were written: those that
never come although lttd has read everything went to others, while there are any (or the kernel
skipped them, which it does without other readers, too).

Rule: inotify only says when to look; /proc says who has a file open.
Rule: the last bytes that a reader took may be of the sub-buffer that is still open; so losses count
as its own until a later sub-buffer was closed and everything is read.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

from lttd.health import Health, Trouble
from lttd.sources.inotify import (
    IN_CLOSE_NOWRITE,
    IN_CLOSE_WRITE,
    IN_IGNORED,
    IN_OPEN,
    Inotify,
)
from lttd.sources.processes import File, openers

_OPENED: Final = IN_OPEN | IN_CLOSE_WRITE | IN_CLOSE_NOWRITE
LOOK_AGAIN_NS: Final = 10_000_000_000
"""The time after which processes are listed again: while there are readers, or without inotify."""


class Others:
    """The other readers of one file, as far as its stream has to know."""

    def __init__(self) -> None:
        self.present = False
        """Whether bytes that never come count as taken by others."""
        self.taken_bytes = 0
        """What others took so far."""
        self._left_at_bytes: int | None = None

    def came(self) -> None:
        """Note that another process has the file open."""
        self.present, self._left_at_bytes = True, None

    def left(self, size_bytes: int) -> None:
        """Note that no other process has it open any more, at that ``st_size``."""
        if self.present and self._left_at_bytes is None:
            self._left_at_bytes = size_bytes

    def everything_read(self, size_bytes: Callable[[], int]) -> None:
        """Note that all closed sub-buffers are read or counted; *size_bytes* returns st_size."""
        if self._left_at_bytes is not None and size_bytes() > self._left_at_bytes:
            self.present, self._left_at_bytes = False, None


class Watched(Protocol):
    """A stream of a relay file."""

    others: Others

    @property
    def path(self) -> str:
        """The path of the file."""
        ...

    def fileno(self) -> int:
        """Return the descriptor; -1 when closed."""
        ...

    def size_bytes(self) -> int:
        """Return ``st_size``."""
        ...


class OthersWatch:
    """See ``lttd.sources.base.Watch``."""

    def __init__(self, where: str, streams: Callable[[], Iterable[Watched]]) -> None:
        """*where* names the source in messages; *streams* returns those that exist now."""
        self.wants_closer_look = True
        self._where = where
        self._streams = streams
        self._health = Health()
        self._inotify: Inotify | None = None
        self._by_watch: dict[int, Watched] = {}
        self._files: Mapping[File, Watched] = {}
        """The files whose readers are looked for; replaced as a whole."""
        self._found: deque[Sequence[tuple[str, set[File]]]] = deque()
        """The results of look_closer(), for the reading thread."""
        self._opened = False
        self._looks_again = False
        """Whether this look is the second one for a reader that the first one did not find."""
        self._had_readers = False
        self._reported_bytes = 0
        self._look_again_ns = 0

    # -- from the reading thread

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1."""
        return self._inotify.fileno() if self._inotify else -1

    def arm(self, health: Health) -> None:
        """Report other readers from now on."""
        self._health = health
        self._inotify = Inotify()
        self._look_again_ns = time.monotonic_ns() + LOOK_AGAIN_NS
        self._watch_new()

    def disarm(self) -> None:
        """Stop noticing readers."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def heard(self) -> None:
        """Handle the reports of inotify."""
        for number, mask in self._inotify.events() if self._inotify else ():
            stream = self._by_watch.get(number)
            if stream is None or mask & IN_IGNORED:
                self._by_watch.pop(number, None)
                continue
            if mask & IN_OPEN:
                self._opened = True
                stream.others.came()
            else:
                _left(stream)
            self.wants_closer_look = True

    def tick(self) -> None:
        """Watch new files; report what look_closer() found, and what others took since."""
        if self._inotify is None:
            return
        self.heard()
        self._watch_new()
        while self._found:
            self._judge(self._found.popleft())
        told = self._had_readers or self._opened
        if not told and self._taken_bytes() > self._reported_bytes:
            self._tell_act()
        if time.monotonic_ns() >= self._look_again_ns:
            self._look_again_ns = time.monotonic_ns() + LOOK_AGAIN_NS
            self.wants_closer_look |= self._had_readers or self.fileno() < 0

    def _watch_new(self) -> None:
        known, files = set(map(id, self._files.values())), {}
        for stream in self._streams():
            if stream.fileno() < 0:
                continue
            with suppress(OSError):
                status = os.fstat(stream.fileno())
                files[status.st_dev, status.st_ino] = stream
            if id(stream) not in known and self._inotify is not None:
                number = self._inotify.watch(stream.path, _OPENED)
                if number >= 0:
                    self._by_watch[number] = stream
                self.wants_closer_look = True
        self._files = files

    def _judge(self, found: Sequence[tuple[str, set[File]]]) -> None:
        opened, self._opened = self._opened, False
        if opened and not found and not self._looks_again:
            # The kernel reports an open before the process has the descriptor: look once more.
            self._opened = self._looks_again = self.wants_closer_look = True
            return
        self._looks_again = False
        held = set().union(*(files for _, files in found))
        for file, stream in self._files.items():
            if file in held:
                stream.others.came()
            else:
                _left(stream)
        had_readers, self._had_readers = self._had_readers, bool(found)
        taken = self._taken_bytes()
        if found:
            has = f"has taken {taken} bytes" if taken else "can take data"
            words = (
                f"{', '.join(who for who, _ in found)} {has} of these files, too: each byte goes to"
                " one of the readers only; stop it"
            )
            self._health.begins(Trouble.FOREIGN_READER, words, self._where)
        elif had_readers:
            words = f"no other process reads these files now; {taken} bytes went to others"
            self._health.ends(Trouble.FOREIGN_READER, words, self._where)
        elif opened:
            self._tell_act()
        self._reported_bytes = taken

    def _tell_act(self) -> None:
        self._reported_bytes = taken = self._taken_bytes()
        words = "another process opened a file that lttd reads, which takes data from it"
        told = f"; {taken} bytes went to others" if taken else ""
        self._health.happened(Trouble.FOREIGN_READER, words + told, self._where)

    def _taken_bytes(self) -> int:
        return sum(stream.others.taken_bytes for stream in self._streams())

    # -- from a thread beside the reading loop

    def look_closer(self) -> None:
        """Find the processes that have one of the files open."""
        self.wants_closer_look = False
        files = self._files
        names = {stream.path.rpartition("/")[2] for stream in files.values()}
        with suppress(OSError):  # /proc cannot be listed just now
            self._found.append(list(openers(files.keys(), names)))


def _left(stream: Watched) -> None:
    with suppress(OSError):  # the channel is gone, and its stream is closed
        stream.others.left(stream.size_bytes())
