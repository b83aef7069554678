"""Read a relay channel through a mapping of its ring, with the control files of its module.

    first0             the ring: ``subbuffers`` sub-buffers of ``subbuffer_bytes``
    first0.produced    how many sub-buffers were closed so far; a size_t
    first0.consumed    how many were consumed so far; what is written is added to it

Each sub-buffer begins with a head, in which the module states the sub-buffer's padding: the bytes
at its end that hold nothing.  Heads and padding are not stored.

Rule: sub-buffer *i* is in slot ``i % subbuffers``.  In a ring that overwrites itself it is whole
while fewer than ``subbuffers`` were closed after it began to be copied; lttd compares after the
copy, and drops what may be torn.
Rule: the kernel raises ``produced``, then ``st_size``, and then the module writes the padding
(kernel/relay.c, relay_switch_subbuf()).  So the newest closed sub-buffer is taken once st_size has
grown by what all heads state; if the growth is unknown, after PATIENCE_NS.
Rule: ``consumed`` is raised for sub-buffers that the recorder has, not before: a kill loses nothing
that is not in memory, and the next reader goes on where this one was.
Source of this protocol: the example modules of relay-apps, see docs/RELAY.md.
"""

import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from lttd.sources.relay.file import PATIENCE_NS, Ready
from lttd.subbuffer import Reason

_MOST_WRITES: Final = 1024
_PAUSE_S: Final = 0.001


class Geometry(NamedTuple):
    """The layout of a ring."""

    subbuffer_bytes: int
    subbuffers: int
    head_bytes: int
    """The size of the padding's number at the begin of each sub-buffer."""


class Ring(Protocol):
    """A mapped ring and its control files; tests put a model of the kernel in their place."""

    view: memoryview
    """All sub-buffers."""

    def fileno(self) -> int:
        """Return the descriptor to poll: IN while a closed sub-buffer is not consumed."""
        ...

    def produced(self) -> int:
        """Return how many sub-buffers were closed.

        Raises:
            OSError: the control file was removed.
        """
        ...

    def consumed(self) -> int:
        """Return how many sub-buffers were consumed.

        Raises:
            OSError: the control file was removed.
        """
        ...

    def consume(self, count: int) -> None:
        """Add *count*, at most the sub-buffers of the ring, to those consumed.

        Raises:
            OSError: the control file was removed.
        """
        ...

    def size_bytes(self) -> int:
        """Return ``st_size``: the bytes in all closed sub-buffers, heads included."""
        ...

    def is_closed(self) -> bool:
        """Tell whether the channel was closed or its file removed."""
        ...

    def close(self) -> None:
        """Remove the mapping, and close the descriptors."""
        ...


class _Unread(NamedTuple):
    """A closed sub-buffer that is not copied to its end."""

    number: int
    content_bytes: int


class MappedRing:
    """See ``lttd.sources.relay.file.Descriptor``; the size counts contents without heads."""

    def __init__(
        self,
        ring: Ring,
        geometry: Geometry,
        *,
        overwrite: bool,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.copied_subbuffers = 0
        self.subbuffer_bytes: Final = geometry.subbuffer_bytes
        self._sizes: list[int] = []
        self._ring = ring
        self._geometry = geometry
        self._overwrite = overwrite
        self._now_ns = now_ns
        self._lost: Counter[Reason] = Counter()
        self._unread: deque[_Unread] = deque()
        self._copied_bytes = 0
        """Of the first unread sub-buffer."""
        self._size_bytes = 0
        produced = ring.produced()
        self._seen = ring.consumed()
        """The first sub-buffer that was not looked at."""
        nothing_waits = self._seen == produced
        self._given = self._seen
        """The recorder has all sub-buffers before this one."""
        self._known_bytes = ring.size_bytes() if nothing_waits else None
        """The st_size that is due to the sub-buffers before that one; None: unknown."""
        self._newest = produced
        self._newest_since_ns = now_ns()

    @property
    def _next(self) -> int:
        """The number of the first sub-buffer that is not copied to its end."""
        return self._unread[0].number if self._unread else self._seen

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._ring.fileno()

    def size_bytes(self) -> int:
        """Look for closed sub-buffers; return the content of those that can or could be copied."""
        self._look()
        return self._size_bytes

    def ready(self) -> Ready:
        """Tell whether there are closed sub-buffers to copy."""
        if self._unread:
            return Ready.YES
        return Ready.CLOSED if self._ring.is_closed() else Ready.NO

    def pass_empty(self, most: int) -> None:
        """Do nothing: sub-buffers without content are passed as they are found."""

    def close(self) -> None:
        """Tell the kernel what was copied, and close the ring."""
        if self._ring.fileno() >= 0:
            self.acknowledge()
            self._ring.close()

    def take_lost(self) -> Counter[Reason]:
        """Return the sub-buffers that were lost since the last call, by reason."""
        lost, self._lost = self._lost, Counter()
        return lost

    def take_sizes(self) -> list[int]:
        """Return the sizes of the sub-buffers, or parts of one, copied since the last call."""
        sizes, self._sizes = self._sizes, []
        return sizes

    def given(self) -> None:
        """Note that what was copied so far is about to be given to the recorder."""
        self._given = self._next

    def acknowledge(self) -> None:
        """Let the kernel reuse what the recorder has."""
        try:
            due = self._given - self._ring.consumed()
            for _ in range(_MOST_WRITES):
                if due <= 0:
                    break
                count = min(due, self._geometry.subbuffers)
                self._ring.consume(count)
                due -= count
        except OSError:
            pass  # the module is gone: nobody writes any more

    def wait_for_newest(self) -> None:
        """Wait until the sub-buffer that is the newest now is finished, for about PATIENCE_NS."""
        self._look()
        newest, until = self._newest, self._now_ns() + 2 * PATIENCE_NS
        while self._seen < newest and self._now_ns() < until:
            time.sleep(_PAUSE_S)
            self._look()

    # -- finding closed sub-buffers

    def _look(self) -> None:
        produced, size_bytes = self._produced(), self._ring.size_bytes()
        if produced != self._newest:
            self._newest, self._newest_since_ns = produced, self._now_ns()
        if produced < self._seen:  # relay_reset()
            self._unread.clear()
            self._seen, self._known_bytes = produced, size_bytes
        self._pass_over(produced)
        end = produced
        if end > self._seen and not self._is_finished(size_bytes):
            end -= 1
        for number in range(self._seen, end):
            self._enter(number)

    def _produced(self) -> int:
        try:
            return self._ring.produced()
        except OSError:  # the module is gone, and st_size says how much it had closed
            number, bytes_ = self._seen, self._known_bytes
            while bytes_ is not None and bytes_ < self._ring.size_bytes():
                bytes_ += self._stated_bytes(number)
                number += 1
            return number

    def _pass_over(self, produced: int) -> None:
        """Count the sub-buffers that the writer has overwritten, or is overwriting."""
        most = self._geometry.subbuffers
        laps = self._overwrite or produced - self._next > most
        oldest = produced - most + 1 if laps else self._next
        if oldest <= self._next:
            return
        # In a ring that does not overwrite, only another reader can let the writer go on.
        why = Reason.OVERWRITTEN if self._overwrite else Reason.FOREIGN_READ
        self._lost[why] += oldest - self._next
        while self._unread and self._unread[0].number < oldest:
            self._drop_first()
        if self._seen < oldest:
            self._seen, self._known_bytes = oldest, None

    def _drop_first(self) -> None:
        """Forget the first unread sub-buffer."""
        self._size_bytes -= self._unread.popleft().content_bytes - self._copied_bytes
        self._copied_bytes = 0

    def _is_finished(self, size_bytes: int) -> bool:
        """Tell whether the newest sub-buffer states its own padding, not that of an earlier lap."""
        if self._known_bytes is not None:
            stated = sum(map(self._stated_bytes, range(self._seen, self._newest)))
            if self._known_bytes + stated == size_bytes:
                return True
        if self._now_ns() - self._newest_since_ns < PATIENCE_NS:
            return False
        stated = sum(map(self._stated_bytes, range(self._seen, self._newest)))
        self._known_bytes = size_bytes - stated
        return True

    def _enter(self, number: int) -> None:
        content_bytes = self._content_bytes(number)
        if content_bytes is None:
            self._lost[Reason.DAMAGED] += 1
        elif content_bytes:
            self._unread.append(_Unread(number, content_bytes))
            self._size_bytes += content_bytes
        self._seen = number + 1
        if self._known_bytes is not None:
            self._known_bytes += self._stated_bytes(number)

    def _begin(self, number: int) -> int:
        return number % self._geometry.subbuffers * self._geometry.subbuffer_bytes

    def _padding_bytes(self, number: int) -> int:
        begin = self._begin(number)
        head = self._ring.view[begin : begin + self._geometry.head_bytes]
        return int.from_bytes(head, sys.byteorder)

    def _stated_bytes(self, number: int) -> int:
        return self._geometry.subbuffer_bytes - self._padding_bytes(number)

    def _content_bytes(self, number: int) -> int | None:
        """Return the size of a sub-buffer's content; None if its head is not possible."""
        content_bytes = self._stated_bytes(number) - self._geometry.head_bytes
        return content_bytes if content_bytes >= 0 else None

    # -- copying

    def read(self, buffer: memoryview) -> int:
        """Copy the content of closed sub-buffers; return its number of bytes."""
        done, ends = 0, []
        while self._unread and done < len(buffer):
            number, content_bytes = self._unread[0]
            begin = self._begin(number) + self._geometry.head_bytes + self._copied_bytes
            some = min(content_bytes - self._copied_bytes, len(buffer) - done)
            buffer[done : done + some] = self._ring.view[begin : begin + some]
            done += some
            ends.append((number, done))
            self._copied_bytes += some
            if self._copied_bytes == content_bytes:
                self._unread.popleft()
                self._copied_bytes = 0
                self.copied_subbuffers += 1
        torn = self._torn_bytes(ends)
        if torn:
            buffer[: done - torn] = bytes(buffer[torn:done])
            self._size_bytes -= torn
        at = torn
        for _, end in ends:
            if end > torn:
                self._sizes.append(end - at)
                at = end
        return done - torn

    def _torn_bytes(self, ends: list[tuple[int, int]]) -> int:
        """Return how many of the copied bytes the writer may have overwritten meanwhile."""
        if not self._overwrite or not ends:
            return 0
        oldest = self._produced() - self._geometry.subbuffers + 1
        torn = [end for number, end in ends if number < oldest]
        self._lost[Reason.OVERWRITTEN] += len(torn)
        self.copied_subbuffers -= sum(number < oldest for number, _ in ends)
        if torn and self._unread and self._unread[0].number < oldest:
            # The last one was not copied to its end; the rest of it is gone, too.
            self.copied_subbuffers += 1
            self._drop_first()
        return torn[-1] if torn else 0
