"""Drain what earlier boots left in a ring that survived a warm reboot, before it is used again.

The kernel keeps such a ring if its command line names it (``reserve_mem=``, ``trace_instance=``).
The ring lacks the boot's id, the kernel's release, formats, clock and names of tasks: the last
segment that lttd recorded from it has them.

Rule: enabling an event, or writing the clock, empties the ring.  So it is drained before anything
is set, and only its ``trace_pipe_raw`` and files without effect are used.
Rule: if events are on from the kernel's command line, one ring holds several boots, the oldest
first.  Where the time of sub-buffers goes back, the next boot begins; each boot is a source.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Literal, Protocol

from lttd.abi.ftrace import NAME, PageLayout, last_event_time, rows_of_pages
from lttd.errors import LttdError
from lttd.sources.at_rest import SourceAtRest, StreamAtRest
from lttd.sources.base import (
    Attachment,
    Attachments,
    Earlier,
    Nothing,
    Request,
    Source,
    SourceInfo,
    When,
)
from lttd.sources.ftrace.attachments import FtraceFiles
from lttd.sources.ftrace.instance import Instance, open_named, unread_events
from lttd.sources.ftrace.last_boot import LastBoot, parse_last_boot
from lttd.sources.ftrace.modules import KALLSYMS
from lttd.sources.ftrace.raw import RawFile
from lttd.sources.ftrace.record import TOP_LEVEL
from lttd.sources.ftrace.setup import (
    clock_of,
    described,
    enabled_events,
    overwrites,
    page_layout,
)
from lttd.sources.mounts import find_tracefs
from lttd.sources.pipe import Pipe
from lttd.sources.rows import RowBook, damage_gaps
from lttd.sources.tracefs import TraceClock, parse_stats, read_bytes
from lttd.subbuffer import (
    Batch,
    BufferPool,
    Gap,
    Reason,
    Rows,
    StreamId,
    StreamInfo,
    Unit,
    make_batch,
)

LAST_BOOT: Final = "last_boot_info"
KALLSYMS_FILE: Final = "tracefs/kallsyms"
COMMANDS_FILE: Final = "tracefs/commands"
_UNKNOWN: Final = (
    "no segment of this trace tells what an earlier boot recorded into this ring: the formats are"
    " those of the present kernel, and the times have no wall clock"
)


def open_previous_boots(request: Request) -> Iterator[Source]:
    """Yield a source for each boot of which the ring of the SPEC holds data, the oldest first.

    Drain and close each one before asking for the next.

    Raises:
        LttdError: this user may not read the ring, or another recorder has it.
    """
    name = request.target
    if not name or name == TOP_LEVEL or not _may_hold(name):
        return
    instance = open_named(str(find_tracefs(name)), name, request.owner)
    try:
        yield from _boots(instance, request)
    finally:
        instance.close()


def _may_hold(name: str) -> bool:
    """Tell whether an instance keeps its ring over reboots, and the kernel says that it has."""
    with suppress(LttdError):
        path = f"{find_tracefs(name)}/instances/{name}"
        return _last_boot(path).has_data and bool(unread_events(path))
    return False


def _last_boot(path: str) -> LastBoot:
    try:
        return parse_last_boot(read_bytes(f"{path}/{LAST_BOOT}"))
    except LttdError:
        return LastBoot()


def _boots(instance: Instance, request: Request) -> Iterator["SurvivedSource"]:
    layout = page_layout(instance)
    size, pipe = layout.subbuffer_bytes, Pipe(0)
    rings = [
        SurvivedRing(RawFile(cpu, fd, size, pipe), cpu, layout, request.pool, instance.ring_bytes)
        for cpu, fd in sorted(instance.raw_fds.items())
    ]
    instance.raw_fds.clear()
    try:
        earlier = request.owner.earlier(f"ftrace:{instance.name}")
        boot = 0
        while boot == 0 or any(ring.boot >= boot for ring in rings):
            yield SurvivedSource(instance, rings, boot, request, earlier)
            boot, earlier = boot + 1, None
    finally:
        for ring in rings:
            ring.close()
        pipe.close()


class _Raw(Protocol):
    """See ``lttd.sources.ftrace.raw.RawFile``."""

    def read(self, buffer: memoryview) -> Nothing | int:
        """Read one complete sub-buffer."""
        ...

    def close(self) -> None:
        """Close the descriptor."""
        ...


class SurvivedRing:
    """One CPU's ring: sub-buffers of one boot after those of another."""

    def __init__(
        self, raw: _Raw, cpu: int, layout: PageLayout, pool: BufferPool, size_bytes: int
    ) -> None:
        self.cpu = cpu
        self.boot = 0
        """The number of the boot whose sub-buffers come next; of those in the ring, from 0."""
        self.book = RowBook()
        self._raw = raw
        self._layout = layout
        self._pool = pool
        self._ahead = b""
        """The first sub-buffer of the next boot, which was read already."""
        self._begin = 0
        # While this boot records into the ring, it never runs dry.
        self._may_read = size_bytes // layout.subbuffer_bytes + 1

    def take(self, stream: StreamId, boot: int) -> Batch | Nothing:
        """Read sub-buffers of *boot*, at most a buffer full."""
        if self.boot != boot:
            return Nothing.EVER
        buffer = self._pool.take()
        try:
            book, used = self.book, self._fill(buffer)
        except BaseException:
            self._pool.give(buffer)
            raise
        if not used:
            self._pool.give(buffer)
            return Nothing.EVER
        return self._batch(stream, book, buffer, used)

    def _fill(self, buffer: memoryview) -> int:
        size, used = self._layout.subbuffer_bytes, 0
        while used + size <= len(buffer):
            page = buffer[used : used + size]
            if self._ahead:
                page[:], self._ahead = self._ahead, b""
            elif not self._may_read or self._raw.read(page) != size:
                break
            else:
                self._may_read -= 1
            begin = int.from_bytes(page[:8], self._order)
            if 0 < begin < self._begin:  # zeros are damage, not another boot
                self._ahead, self._begin = bytes(page), 0
                self.boot, self.book = self.boot + 1, RowBook()
                break
            self._begin = begin or self._begin
            used += size
        return used

    @property
    def _order(self) -> Literal["little", "big"]:
        return "little" if self._layout.byteorder == "<" else "big"

    def _batch(self, stream: StreamId, book: RowBook, buffer: memoryview, used: int) -> Batch:
        size = self._layout.subbuffer_bytes
        before = book.begin
        rows, missed, damaged = rows_of_pages(buffer, used, self._layout)
        at = int(rows["offset_bytes"][-1]) if len(rows) else 0
        last = last_event_time(buffer[at : at + size], self._layout) if len(rows) else before
        book.number(rows, last)
        gaps = tuple(_overwritten(row, count, rows, before) for row, count in missed)
        gaps += damage_gaps(rows, damaged, size, before, book.end)
        book.count(rows, gaps)
        return make_batch(stream, rows, pool=self._pool, buffer=buffer, gaps=gaps)

    def close(self) -> None:
        """Close the descriptor, which releases the lock."""
        self._raw.close()


def _overwritten(row: int, count: int | None, rows: Rows, before: int) -> Gap:
    begin = int(rows["end"][row - 1]) if row else before
    return Gap(row, Reason.OVERWRITTEN, Unit.EVENTS, count, begin, int(rows["begin"][row]))


class SurvivedStream(StreamAtRest):
    """See ``lttd.sources.base.Stream``."""

    def __init__(self, ring: SurvivedRing, boot: int, info: StreamInfo, stats: str) -> None:
        self.info = info
        self._ring = ring
        self._boot = boot
        self._stats = stats
        self._is_over = False

    def take(self, flush: bool) -> Batch | Nothing:
        """Read sub-buffers of the boot; see Stream.take()."""
        if self._is_over:
            return Nothing.EVER
        taken = self._ring.take(self.info.id, self._boot)
        self._is_over = isinstance(taken, Nothing)
        return taken

    def counters(self) -> Mapping[str, int]:
        """Return the kernel's counters."""
        try:
            return parse_stats(read_bytes(self._stats))
        except LttdError:
            return {}

    def close(self) -> None:
        """End the stream; its ring may hold the next boot."""
        self._is_over = True


class SurvivedSource(SourceAtRest):
    """One boot's part of a ring; see ``lttd.sources.base.Source``."""

    def __init__(
        self,
        instance: Instance,
        rings: Sequence[SurvivedRing],
        boot: int,
        request: Request,
        earlier: Earlier | None,
    ) -> None:
        """*earlier* describes the boot; None: nothing does."""
        self._instance = instance
        self._kallsyms = bool(request.options.get("kallsyms"))
        self._earlier = earlier
        layout = page_layout(instance)
        # With events on, the last boot in the ring is this one.
        self._is_this_boot = boot > 0 and bool(enabled_events(instance.path))
        self.streams = [
            SurvivedStream(
                ring,
                boot,
                StreamInfo(
                    StreamId(instance.name, ring.cpu),
                    NAME,
                    layout.subbuffer_bytes,
                    layout.header_bytes,
                ),
                instance.file(f"per_cpu/cpu{ring.cpu}/stats"),
            )
            for ring in rings
        ]
        self.info = self._described(earlier)
        super().__init__([] if earlier or self._is_this_boot else [_UNKNOWN])

    def _described(self, earlier: Earlier | None) -> SourceInfo:
        instance = self._instance
        settings = described(instance, page_layout(instance), overwrite=overwrites(instance))
        machine = earlier.machine if earlier else {"boot_id": "", "kernel": ""}
        return SourceInfo(
            "ftrace",
            f"ftrace:{instance.name}",
            earlier.clock if earlier else clock_of(instance),
            settings,
            live=self._is_this_boot,
            previous_boot=not self._is_this_boot,
            snapshot=earlier.snapshot if earlier else None,
            machine={} if self._is_this_boot else machine,
        )

    def now(self) -> int:
        """Read the trace clock."""
        with_stats = self._instance.file("per_cpu/cpu0/stats")
        clock = TraceClock(clock_of(self._instance), with_stats)
        try:
            return clock.now()
        finally:
            clock.close()

    def attachments(self) -> Attachments:
        """Return the files of the earlier segment; without one, those of this boot."""
        of_this_boot = self._is_this_boot
        now = FtraceFiles(
            self._instance, self.now, (), kallsyms=of_this_boot and self._kallsyms
        ).due
        return now if of_this_boot else partial(self._of_an_earlier_boot, now)

    def _of_an_earlier_boot(self, now: Attachments, when: When) -> Iterator[Attachment]:
        if when is not When.OPEN:
            return
        names = set()
        for attachment in self._earlier.files() if self._earlier else now(when):
            # A pid of this boot is another task.
            if self._earlier or attachment.name != COMMANDS_FILE:
                names.add(attachment.name)
                yield attachment
        if self._kallsyms and KALLSYMS_FILE not in names:
            symbols = _last_boot(self._instance.path).symbols_of(read_bytes(KALLSYMS))
            if symbols:
                yield Attachment(KALLSYMS_FILE, symbols)

    def close(self) -> None:
        """End the streams; the ring is closed after the last boot."""
        for stream in self.streams:
            stream.close()
