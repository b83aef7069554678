"""The files of an instance as a watch sees them: inotify on each, their values, and the rings.

Rule: inotify only says when to look; the value is read back.
"""

from collections.abc import Callable, Sequence
from typing import Final

from lttd.errors import LttdError
from lttd.health import Health
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.ring import Ring
from lttd.sources.inotify import IN_CLOSE_WRITE, IN_IGNORED, IN_MODIFY, IN_Q_OVERFLOW, Inotify
from lttd.sources.tracefs import read_text
from lttd.subbuffer import Reason

WRITTEN: Final = IN_MODIFY | IN_CLOSE_WRITE
Masks = Sequence[int]
"""Of the events of one file, in order."""


class Listener:
    """Calls a function when another process uses a file; reads files; marks losses in rings."""

    def __init__(self, instance: Instance, rings: Sequence[Ring]) -> None:
        """open() comes later: until then nothing is heard."""
        self.instance = instance
        self.rings = rings
        self.health = Health()
        self._inotify: Inotify | None = None
        self._calls: dict[int, Callable[[Masks], None]] = {}

    def open(self, health: Health) -> None:
        """Start inotify; report to *health* from now on."""
        self.health = health
        self._inotify = Inotify()

    @property
    def is_open(self) -> bool:
        """Tell whether changes are noticed: between open() and close()."""
        return self._inotify is not None

    def fileno(self) -> int:
        """Return the descriptor to wait on, or -1 without inotify."""
        return self._inotify.fileno() if self._inotify else -1

    def hear(self, name: str, then: Callable[[Masks], None], mask: int = WRITTEN) -> None:
        """Call *then* after events of a file of the instance."""
        self.hear_path(self.instance.file(name), then, mask)

    def hear_path(self, path: str, then: Callable[[Masks], None], mask: int = WRITTEN) -> None:
        """Call *then* after events of any file; a file that is missing has none."""
        watch = self._inotify.watch(path, mask) if self._inotify else -1
        if watch >= 0:
            self._calls[watch] = then

    def handle(self) -> bool:
        """Make the calls that are due; return whether inotify lost reports."""
        overflowed = False
        masks: dict[int, list[int]] = {}
        for watch, mask in self._inotify.events() if self._inotify else ():
            overflowed |= bool(mask & IN_Q_OVERFLOW)
            if not mask & IN_IGNORED:
                masks.setdefault(watch, []).append(mask)
        for watch, some in masks.items():
            if watch in self._calls:
                self._calls[watch](some)
        return overflowed

    def read(self, name: str) -> str | None:
        """Read a file of the instance; None if it cannot be read."""
        try:
            return read_text(self.instance.file(name))
        except LttdError:
            return None

    def suspect(self, reason: Reason | None, rings: Sequence[Ring] = ()) -> None:
        """Mark a loss of unknown number in *rings*, or in all; None: the kernel counts it."""
        for ring in rings or self.rings:
            if reason is Reason.EMPTIED:
                ring.note_emptied()
            elif reason is not None:
                ring.suspect(reason)

    def close(self) -> None:
        """Close inotify."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
