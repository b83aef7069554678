"""Which other processes can consume from the rings, and how many events they took."""

from collections.abc import Callable, Sequence
from typing import Final

from lttd.health import Trouble
from lttd.sources.ftrace.listener import Listener, Masks
from lttd.sources.ftrace.ring import Ring
from lttd.sources.inotify import IN_CLOSE_NOWRITE, IN_CLOSE_WRITE, IN_OPEN

_OPENED: Final = IN_OPEN | IN_CLOSE_WRITE | IN_CLOSE_NOWRITE


class ReadersWatch:
    """Counts what others read from when they open a consuming file."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.has_readers = False
        self.wants_closer_look = False
        """True: judge() is to be called with the processes that have such a file open."""
        self._open: set[str] = set()
        """The consuming files that were opened, and not closed since."""
        self._opened = False
        self._looks_again = False
        """Whether this look is the second one for a reader that the first one did not find."""
        self._foreign_reported = 0

    def arm(self) -> None:
        """Watch the consuming files."""
        self._hear("trace_pipe", self._listener.rings)
        for ring in self._listener.rings:
            for name in ("trace_pipe", "trace_pipe_raw"):
                self._hear(f"per_cpu/cpu{ring.cpu}/{name}", [ring])

    def tick(self) -> None:
        """Ask for a closer look if the kernel counts reads that nobody else was seen to make."""
        foreign = sum(ring.foreign_read_events for ring in self._listener.rings)
        self.wants_closer_look |= foreign > self._foreign_reported and not self.has_readers

    def _hear(self, name: str, rings: Sequence[Ring]) -> None:
        self._listener.hear(name, self._on_opened(name, rings), _OPENED)

    def _on_opened(self, name: str, streams: Sequence[Ring]) -> Callable[[Masks], None]:
        def opened(masks: Masks) -> None:
            if any(mask & IN_OPEN for mask in masks):
                self._opened = True
                for ring in streams:
                    ring.count_reads()
            if masks[-1] & IN_OPEN:
                self._open.add(name)
            else:
                self._open.discard(name)
            self.wants_closer_look = True

        return opened

    def judge(self, who: Sequence[str]) -> None:
        """Report other processes that can consume from the ring."""
        if self._open and not who and not self._looks_again:
            # The kernel reports an open before the process has the descriptor: look once more.
            self._looks_again = self.wants_closer_look = True
            return
        self._looks_again = False
        path, opened, self._opened = self._listener.instance.path, self._opened, False
        readers = ", ".join(who) or ("somebody" if self._open else "")
        had_readers, self.has_readers = self.has_readers, bool(readers)
        for ring in self._listener.rings:
            if readers:
                ring.count_reads()
            else:
                ring.trust_reads()
        foreign = sum(ring.foreign_read_events for ring in self._listener.rings)
        grew, self._foreign_reported = foreign > self._foreign_reported, foreign
        if readers:
            has = f"has consumed {foreign} events" if foreign else "can consume events"
            words = (
                f"{readers} {has} of this buffer, too: each event goes to one of them only; "
                "stop it, or record from another instance"
            )
            self._listener.health.begins(Trouble.FOREIGN_READER, words, path)
            return
        went = f"{foreign} events went to others"
        if had_readers:
            words = f"no other process reads this buffer now; {went}"
            self._listener.health.ends(Trouble.FOREIGN_READER, words, path)
        elif opened or grew:
            words = f"another process opened a file that consumes events; {went}"
            self._listener.health.happened(Trouble.FOREIGN_READER, words, path)
