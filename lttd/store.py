"""The segments of a trace, kept within its limits while lttd records.

    Store()                        list the names, before the first segment is made
    step()                         read the segments, beside recording; remove what kills left
    opened(), closed(), changed()  note segments that come and change
    step()                         delete what has to go, again and again

lttd.retention decides, lttd.removal deletes.  Reading a segment costs its manifest, its kept.json
and the status of its files, however much data they hold.

Rule: a lock lets one thread in, as long as it takes to delete a segment.  A writer thread calls
make_room() when the disk is full; other threads but the loop's call the rest.  The loop never waits
here: it leaves its news with later(), and asks the catalogue.
Rule: no segment is deleted before the catalogue is complete, because the oldest is read last.
Rule: what cannot be deleted is reported once, counted, and left alone.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

from lttd.boot_times import BootTimes
from lttd.catalogue import Catalogue, Key, StoreState, boottime_ns
from lttd.errors import LttdError, StorageError, TraceDamagedError, storage_error
from lttd.files import Disk
from lttd.health import Limiter, Say
from lttd.kept import BY_PERSON, NOT_KEPT, Kept, read_kept, write_kept
from lttd.leftovers import remove_leftovers
from lttd.manifest import Manifest, recorded_source, this_machine
from lttd.removal import hide, measure, remove_hidden, remove_in_place
from lttd.retention import (
    Deletion,
    FreeSpace,
    Held,
    Limits,
    Reason,
    bytes_of,
    what_goes,
    without_newest,
)
from lttd.roll import MOST_UNCLOSED
from lttd.stats import counted, human_bytes
from lttd.terminal import Level, say
from lttd.tracedir import SegmentPaths, number_of, segment_directories
from lttd.trigger import Trigger
from lttd.unreached import MAX_SIZE, MIN_FREE, UnreachedLimits, why_not_free, why_too_large

# A longer step would keep other work of the helper thread waiting.
STEP_S: Final = 0.1
# Reasons that concern one segment; after any other the next round tries again.
_OF_THE_SEGMENT: Final = {"EPERM", "EACCES", "EBUSY", "EXDEV", "ELOOP", "ENOTEMPTY"}
_NO_SPACE: Final = {"ENOSPC", "EDQUOT"}
NO_LIMITS: Final = Limits()


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _one_at_a_time(
    method: Callable[Concatenate["Store", _P], _R],
) -> Callable[Concatenate["Store", _P], _R]:
    @wraps(method)
    def alone(store: "Store", /, *args: _P.args, **named: _P.kwargs) -> _R:
        with store.lock:
            store.hear_news()
            return method(store, *args, **named)

    return alone


class Store:
    """The segments of a trace that is recorded."""

    def __init__(
        self,
        disk: Disk,
        trace: Path,
        limits: Limits = NO_LIMITS,
        say: Say = say,
        now_ns: Callable[[], int] = boottime_ns,
    ) -> None:
        """List the segments that are there.  *now_ns* is CLOCK_BOOTTIME.

        Raises:
            StorageError: the directory cannot be listed.
        """
        self.limits = limits
        """Any thread may replace them."""
        self.catalogue = Catalogue(now_ns)
        self.lock = threading.RLock()
        self._news: deque[Callable[[], None]] = deque()
        self._hears_news = False
        self._now_ns = now_ns
        self._disk = disk
        self._trace = disk.hold(trace)
        self._limiter = Limiter(say)
        self._say = say
        self._boot_id = this_machine()["boot_id"]
        self._free_space = FreeSpace()
        self._unreached = UnreachedLimits(self._trace.path, self._limiter)
        names, leftovers = segment_directories(self._trace)
        self.catalogue.unread = len(names)
        self._reading: Iterator[None] | None = self._read(names, leftovers)

    # -- what is there

    def later(self, news: Callable[[], None]) -> None:
        """Let *news*, a call of this store, come before any other.  Never waits."""
        self._news.append(news)

    def hear_news(self) -> None:
        """Do what later() was given, in its order; the caller has the lock."""
        if self._hears_news:
            return  # one of them calls this
        self._hears_news = True
        try:
            while self._news:
                self._news.popleft()()
        finally:
            self._hears_news = False

    @_one_at_a_time
    def read(self) -> None:
        """Read the catalogue to its end."""
        for _ in self._reading or ():
            pass

    def _read(self, names: Collection[str], leftovers: Collection[str]) -> Iterator[None]:
        for name in leftovers:
            self._remove(name)
            yield
        times = self._times()
        for name in sorted(names, key=number_of, reverse=True):
            self._put(name, times)
            self.catalogue.unread -= 1
            yield
        self._reading = None
        plan = self._plan()
        if plan:
            size = human_bytes(bytes_of(deletion.held for deletion in plan))
            reasons = ", ".join(dict.fromkeys(deletion.reason for deletion in plan))
            words = (
                f"deleting {counted(len(plan), 'segment')} of {size}, by the limits on {reasons}"
            )
            self._say(f"{self._trace.path}: {words}", Level.NOTICE)

    @_one_at_a_time
    def prepared(self, paths: SegmentPaths) -> None:
        """Count a hidden segment that is made ahead."""
        self._measure_hidden(paths.directory.name)

    def _measure_hidden(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.catalogue.hide(name, measure(self._trace, name).allocated_bytes)
            return
        self.catalogue.hide(name, 0)

    @_one_at_a_time
    def opened(self, paths: SegmentPaths) -> None:
        """Add a segment that is recorded from now on, and is no longer hidden.

        Those before it may be waiting to be closed; older ones that are open could not be closed.
        """
        for name in self.catalogue.hidden():
            self._measure_hidden(name)
        self._put(paths.directory.name, self._times(), is_open=True)
        opened = [one for one in self.catalogue.in_order() if one.is_open]
        source = next((one.source for one in opened if one.number == paths.number), "")
        for one in [one for one in opened if one.source == source][: -1 - MOST_UNCLOSED]:
            self._put(one.name, self._times())

    @_one_at_a_time
    def closed(self, paths: SegmentPaths) -> None:
        """Look at a segment again that was closed, or discarded."""
        self._put(paths.directory.name, self._times())

    @_one_at_a_time
    def close_all(self) -> None:
        """Look at all open segments again: they are closed now."""
        for held in self.catalogue.in_order():
            if held.is_open:
                self._put(held.name, self._times())

    @_one_at_a_time
    def changed(self, paths: SegmentPaths) -> None:
        """Look at a segment again that was compressed or decompressed, or whose compressor died."""
        self._put(paths.directory.name, self._times())

    def _times(self) -> BootTimes:
        return BootTimes(self._boot_id, self._now_ns())

    def paths(self, name: str) -> SegmentPaths:
        """Return the files of the segment called *name*."""
        return SegmentPaths(self._trace.path / name, self._trace)

    def _put(self, name: str, times: BootTimes, *, is_open: bool = False) -> None:
        """Read a segment, and add it to the catalogue or replace it there."""
        paths = self.paths(name)
        manifest = _manifest_of(paths)
        if manifest is not None:
            remove_leftovers(paths, manifest)
        try:
            allocated_bytes = measure(self._trace, name).allocated_bytes
        except OSError:
            self.catalogue.drop((paths.number, name))
            return
        source = recorded_source(manifest.source) if manifest else ""
        begin_ns, end_ns = times.place(manifest)
        held = Held(paths.number, name, source, allocated_bytes, is_open, begin_ns, end_ns)
        is_compressed = manifest is not None and bool(manifest.compression)
        self.catalogue.put(held._replace(is_compressed=is_compressed), self._kept_of(paths))

    def _kept_of(self, paths: SegmentPaths) -> Kept:
        try:
            return read_kept(paths)
        except TraceDamagedError as error:
            self._limiter.say("kept", str(error), Level.WARNING)
            return BY_PERSON

    def _measure(self, key: Key) -> None:
        try:
            self.catalogue.update(key, measure(self._trace, key[1]).allocated_bytes)
        except FileNotFoundError:
            self.catalogue.drop(key)
        except OSError:
            pass  # the old size is good enough

    # -- what goes

    @_one_at_a_time
    def step(self, within_s: float = STEP_S) -> bool:
        """Work for about *within_s*; return whether more is left to do now."""
        end_s = time.monotonic() + within_s
        while self._reading is not None:
            if next(self._reading, self) is not self and time.monotonic() >= end_s:
                return True
        return self._delete_some(end_s)

    def enforce(self) -> None:
        """Delete everything that has to go; without limits that is nothing."""
        if self.limits == NO_LIMITS:
            return  # a short run on a trace of many segments must not wait for the catalogue
        self.read()
        while self.step():
            pass

    def _delete_some(self, end_s: float) -> bool:
        """Delete until the time is over; return whether more may have to go.

        A plan looks at every segment, so deleting gets as much time as planning took.
        """
        begin_s = time.monotonic()
        for held in self.catalogue.in_order():
            if held.is_open:
                self._measure(held.key)
        plan = self._plan()
        self._report_unreached(plan)
        planned_s = time.monotonic()
        end_s = max(end_s, 2 * planned_s - begin_s)
        for deletion in plan:
            if not self._delete(deletion):
                return False
            if time.monotonic() >= end_s:
                return True
        return False

    def _report_unreached(self, plan: Sequence[Deletion]) -> None:
        catalogue, limits = self.catalogue, self.limits
        held, hidden_bytes = catalogue.in_order(), catalogue.hidden_bytes
        is_futile = self._free_space.is_futile(self._now_ns())
        why = why_too_large(limits.size_bytes, held, plan, hidden_bytes)
        self._unreached.report(MAX_SIZE, why)
        why = why_not_free(limits.free_bytes, self._free_bytes(), plan, is_futile=is_futile)
        self._unreached.report(MIN_FREE, why)

    def _plan(self) -> list[Deletion]:
        held, hidden_bytes = self.catalogue.in_order(), self.catalogue.hidden_bytes
        now_ns, limit_bytes, missing_bytes = self._now_ns(), self.limits.free_bytes, 0
        if limit_bytes is not None:
            own_bytes = bytes_of(held) + hidden_bytes
            missing_bytes = self._free_space.missing_bytes(
                limit_bytes, self._free_bytes(), own_bytes, now_ns
            )
        return what_goes(
            held, self.limits, now_ns, hidden_bytes=hidden_bytes, missing_bytes=missing_bytes
        )

    def _free_bytes(self) -> int:
        status = os.fstatvfs(self._trace.fd)
        return status.f_bavail * status.f_frsize

    @_one_at_a_time
    def make_room(self) -> int:
        """Delete the oldest segment that may go because the disk is full; return its bytes.

        Return 0 if none may go: the newest two of each source stay.
        """
        self.read()
        for held in without_newest(self.catalogue.in_order()):
            if self._delete(Deletion(held, Reason.FULL)) and not self._knows(held):
                words = f"{self._trace.path}: the disk is full: deleting the oldest segments"
                self._limiter.say(Reason.FULL, words, Level.WARNING)
                return held.allocated_bytes
        return 0

    def _knows(self, held: Held) -> bool:
        return any(one.name == held.name for one in self.catalogue.numbered(held.number))

    def _delete(self, deletion: Deletion) -> bool:
        """Delete a segment; return whether others can be deleted, too."""
        key, reason = deletion.held.key, deletion.reason
        free_bytes, own_bytes = self._free_bytes(), self.catalogue.allocated_bytes
        kept = self.catalogue.kept(key)
        held = self.catalogue.take(key)
        if held is None:
            return True  # somebody asked for its window meanwhile
        path = self._trace.path / held.name
        try:
            self._remove_whole(held)
        except FileNotFoundError:
            self.catalogue.drop(key)  # somebody else removed it
            return True
        except (OSError, StorageError) as error:
            failure = error if isinstance(error, StorageError) else storage_error(path, error)
            stuck = failure.errno_name in _OF_THE_SEGMENT
            self.catalogue.put(held._replace(stuck=stuck), kept)
            self._report_stuck(failure)
            return stuck
        self.catalogue.deleted(key, reason)
        self._free_space.deleted(held.allocated_bytes, free_bytes, own_bytes, self._now_ns())
        if reason is Reason.KEPT_SIZE:
            words = f"{path}: kept, and deleted because all kept segments exceed max-kept-size"
            self._limiter.say(reason, words, Level.WARNING)
        return True

    def _remove_whole(self, held: Held) -> None:
        """Remove a segment; where the disk has no room for its hidden name, less carefully."""
        measured = measure(self._trace, held.name)
        if measured.obstacle is not None:
            raise measured.obstacle
        try:
            name = hide(self._disk, self._trace, held.name)
        except StorageError as error:
            if error.errno_name not in _NO_SPACE:
                raise
            remove_in_place(self._disk, self._trace, held.name)
            return
        self.catalogue.hide(name, measured.allocated_bytes)
        self._remove(name)

    def _remove(self, hidden: str) -> None:
        """Remove a segment that has its hidden name; what is left of it stays counted."""
        left_bytes = 0
        try:
            remove_hidden(self._trace, hidden)
        except OSError as error:
            self._report_stuck(storage_error(Path(error.filename), error))
            with suppress(OSError):
                left_bytes = measure(self._trace, hidden).allocated_bytes
        self.catalogue.hide(hidden, left_bytes)

    def _report_stuck(self, error: StorageError) -> None:
        words = f"{error}; it cannot be deleted, and is left as it is"
        self._limiter.say("stuck", words, Level.WARNING)

    # -- kept segments

    @_one_at_a_time
    def keep(self, numbers: Iterable[int], trigger: Trigger | None = None) -> list[int]:
        """Keep segments for *trigger*, or for a person; return the numbers of those kept.

        Raises:
            LttdError: one is not there, and the caller is a person; or one could not be kept.
        """
        kept = []
        for held in self._named(numbers, must=trigger is None):
            known = self.catalogue.kept(held.key)
            new = known.with_trigger(trigger) if trigger else replace(known, by_person=True)
            self._write_kept(held, new)
            kept.append(held.number)
        return kept

    @_one_at_a_time
    def release(self, numbers: Iterable[int]) -> list[int]:
        """Let retention delete segments again, whoever keeps them; return their numbers.

        Raises:
            LttdError: one is not there, or could not be released.
        """
        found = self._named(numbers, must=True)
        for held in found:
            self._write_kept(held, NOT_KEPT)
        return [held.number for held in found]

    def forget(self, numbers: Iterable[int], trigger_number: int) -> None:
        """Let a trigger keep segments no more; other reasons for them stay.

        Raises:
            StorageError: one could not be changed.
        """
        for held in self._named(numbers, must=False):
            known = self.catalogue.kept(held.key)
            self._write_kept(held, known.without_trigger(trigger_number))

    def _named(self, numbers: Iterable[int], *, must: bool) -> list[Held]:
        self.read()
        found: list[Held] = []
        for number in dict.fromkeys(numbers):
            some = self.catalogue.numbered(number)
            if must and not some:
                raise LttdError(f"segment {number}: there is none in {self._trace.path}")
            found += some
        return found

    def _write_kept(self, held: Held, kept: Kept) -> None:
        write_kept(self.paths(held.name), kept, self._disk)
        self.catalogue.put(held, kept)

    def state(self) -> StoreState:
        """Return the present numbers; any thread may ask."""
        return self.catalogue.state()


def _manifest_of(paths: SegmentPaths) -> Manifest | None:
    try:
        return Manifest.read(paths.place(paths.manifest))
    except TraceDamagedError:
        return None
