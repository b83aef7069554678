"""The catalogue of a trace's segments, kept within its limits while lttd records.

    Store()      list the names                         at the start, before the first segment
    step()       remove leftovers, read the segments    beside recording, newest first
    opened(), closed(), changed()                       as segments come and change form
    step()       delete what has to go                  after each closed segment, every few seconds

lttd.retention decides, lttd.removal deletes.  Reading a segment costs its manifest, its kept.json
and the status of its files, however much data they hold.

Rule: one thread, the helper, calls everything that touches the disk.  Any thread may call state(),
protect(), unprotect(), in_window() and kept(), which never wait for the disk.
Rule: no segment is deleted before the catalogue is complete, because the oldest is read last.
Rule: what cannot be deleted is reported once, counted, and left alone.
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

from sortedcontainers import SortedDict

from lttd.boot_times import BootTimes
from lttd.errors import LttdError, StorageError, TraceDamagedError
from lttd.files import Disk, storage_error
from lttd.health import Limiter, Say
from lttd.kept import BY_PERSON, NOT_KEPT, Kept, read_kept, write_kept
from lttd.manifest import Manifest, recorded_source, this_machine
from lttd.namespaces import kernel_clock_ns
from lttd.removal import hide, measure, remove_hidden, remove_in_place
from lttd.retention import (
    Deletion,
    FreeSpace,
    Held,
    Keeper,
    Limits,
    Reason,
    bytes_of,
    what_goes,
    without_newest,
)
from lttd.stats import counted, human_bytes
from lttd.terminal import Level, say
from lttd.tracedir import SegmentPaths, number_of, segment_directories
from lttd.trigger import Trigger

# A longer step would keep other work of the helper thread waiting.
STEP_S: Final = 0.1
# Reasons that concern one segment; after any other the next round tries again.
_OF_THE_SEGMENT: Final = {"EPERM", "EACCES", "EBUSY", "EXDEV", "ELOOP", "ENOTEMPTY"}
_NO_SPACE: Final = {"ENOSPC", "EDQUOT"}

_Key = tuple[int, str]
"""Number and name: a copied segment may have the number of another."""


class Now(NamedTuple):
    """The present time."""

    boottime_ns: int
    realtime_ns: int


def _now() -> Now:
    return Now(kernel_clock_ns(time.CLOCK_BOOTTIME), time.time_ns())


class StoreState(NamedTuple):
    """The present numbers of a store."""

    segments: int
    allocated_bytes: int
    """Of all segments, also open, kept and hidden ones."""
    kept_segments: int
    kept_bytes: int
    deletions: Mapping[str, int]
    """By reason, in this run."""
    reach_seconds: float | None
    """How far back the trace is complete on all CPUs; None: nothing is recorded yet."""
    compression_backlog: int
    """The closed segments that wait for the compressor."""


class Store:
    """The segments of a trace that is recorded."""

    def __init__(
        self,
        disk: Disk,
        trace: Path,
        limits: Limits = Limits(),  # noqa: B008  (a NamedTuple cannot be changed)
        say: Say = say,
        now: Callable[[], Now] = _now,
    ) -> None:
        """List the segments that are there.

        Raises:
            StorageError: the directory cannot be listed.
        """
        self.limits = limits
        self.deletions: Counter[Reason] = Counter()
        self.compression_backlog: Callable[[], int] = lambda: 0
        self._disk = disk
        self._trace = disk.hold(trace)
        self._limiter = Limiter(say)
        self._say = say
        self._now = now
        self._boot_id = this_machine()["boot_id"]
        self._guard = threading.Lock()
        self._held: SortedDict[_Key, Held] = SortedDict()
        self._kept: dict[int, Kept] = {}
        self._hidden: dict[str, int] = {}
        """The bytes of segments whose deletion is not complete, by hidden name."""
        self._windows: dict[int, Now] = {}
        self._tokens = count(1)
        self._free_space = FreeSpace()
        self._unreached: set[str] = set()
        names, leftovers = segment_directories(self._trace)
        self._reading: Iterator[None] | None = self._read(names, leftovers)

    # -- what is there

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
            yield
        self._reading = None
        plan = self._plan()
        if plan:
            size = human_bytes(bytes_of(deletion.held for deletion in plan))
            words = f"{counted(len(plan), 'segment')} of {size}"
            reasons = ", ".join(dict.fromkeys(deletion.reason for deletion in plan))
            self._say(
                f"{self._trace.path}: deleting {words}, by the limits on {reasons}", Level.NOTICE
            )

    def _times(self) -> BootTimes:
        return BootTimes(self._boot_id, self._now().boottime_ns)

    def opened(self, paths: SegmentPaths) -> None:
        """Add a segment that is recorded from now on."""
        self._put(paths.directory.name, self._times(), is_open=True)

    def closed(self, paths: SegmentPaths) -> None:
        """Look at a segment again that was closed, or discarded."""
        self._put(paths.directory.name, self._times())

    def changed(self, paths: SegmentPaths) -> None:
        """Measure a segment again: it was compressed or decompressed."""
        self._measure((paths.number, paths.directory.name))

    def _put(self, name: str, times: BootTimes, *, is_open: bool = False) -> None:
        """Read a segment, and add it to the catalogue or replace it there."""
        key = number_of(name), name
        paths = SegmentPaths(self._trace.path / name, self._trace)
        try:
            measured = measure(self._trace, name)
        except OSError:
            self._drop(key)
            return
        manifest = _manifest_of(paths)
        span = times.place(manifest)
        kept = self._kept_of(paths)
        held = Held(
            key[0],
            name,
            recorded_source(manifest.source) if manifest else "",
            measured.allocated_bytes,
            is_open=is_open,
            begin_ns=span.begin_ns,
            end_ns=span.end_ns,
            keeper=_keeper_of(kept),
        )
        if manifest and manifest.clock_snapshots:
            realtimes = [snapshot.realtime_ns for snapshot in manifest.clock_snapshots]
            held = held._replace(begin_realtime_ns=min(realtimes), end_realtime_ns=max(realtimes))
        with self._guard:
            self._held[key] = held
            self._note_kept(key[0], kept)

    def _kept_of(self, paths: SegmentPaths) -> Kept:
        try:
            return read_kept(paths)
        except TraceDamagedError as error:
            self._limiter.say("kept", str(error), Level.WARNING)
            return BY_PERSON

    def _note_kept(self, number: int, kept: Kept) -> None:
        if kept:
            self._kept[number] = kept
        else:
            self._kept.pop(number, None)

    def _measure(self, key: _Key) -> None:
        try:
            measured = measure(self._trace, key[1])
        except FileNotFoundError:
            self._drop(key)
            return
        except OSError:
            return  # the old size is good enough
        with self._guard:
            if key in self._held:
                known: Held = self._held[key]
                self._held[key] = known._replace(allocated_bytes=measured.allocated_bytes)

    def _drop(self, key: _Key) -> Held | None:
        with self._guard:
            self._kept.pop(key[0], None)
            held: Held | None = self._held.pop(key, None)
        return held

    # -- what goes

    def step(self, within_s: float = STEP_S) -> bool:
        """Work for about *within_s*; return whether more is left to do now."""
        end_s = time.monotonic() + within_s
        while self._reading is not None:
            if next(self._reading, self) is self:
                break
            if time.monotonic() >= end_s:
                return True
        return self._delete_some(end_s)

    def enforce(self) -> None:
        """Delete everything that has to go."""
        self.read()
        while self.step():
            pass

    def _delete_some(self, end_s: float) -> bool:
        """Delete until the time is over; return whether more may have to go."""
        for key in [key for key, held in self._held.items() if held.is_open]:
            self._measure(key)
        plan = self._plan()
        self._report_unreached(plan)
        for deletion in plan:
            if not self._delete(deletion):
                return False
            if time.monotonic() >= end_s:
                return True
        return False

    def _plan(self) -> list[Deletion]:
        now_ns, limit_bytes = self._now().boottime_ns, self.limits.free_bytes
        missing_bytes = 0
        if limit_bytes is not None:
            missing_bytes = self._free_space.missing_bytes(
                limit_bytes, self._free_bytes(), self._own_bytes(), now_ns
            )
        hidden_bytes = sum(self._hidden.values())
        return what_goes(
            self._in_order(), self.limits, now_ns,
            hidden_bytes=hidden_bytes, missing_bytes=missing_bytes,
        )  # fmt: skip

    def _in_order(self) -> list[Held]:
        """Return the segments in the order of their numbers, with the present windows."""
        with self._guard:
            held: list[Held] = list(self._held.values())
            if self._windows:
                held = [one._replace(in_window=self._is_in_window(one)) for one in held]
        return held

    def _free_bytes(self) -> int:
        status = os.fstatvfs(self._trace.fd)
        return status.f_bavail * status.f_frsize

    def _own_bytes(self) -> int:
        return bytes_of(self._held.values()) + sum(self._hidden.values())

    def make_room(self) -> int:
        """Delete the oldest segment that may go because the disk is full; return its bytes.

        Return 0 if none may go: the newest two of each source stay.
        """
        self.read()
        for held in without_newest(self._in_order()):
            if self._delete(Deletion(held, Reason.FULL)) and not self._knows(held):
                return held.allocated_bytes
        return 0

    def _knows(self, held: Held) -> bool:
        return (held.number, held.name) in self._held

    def _delete(self, deletion: Deletion) -> bool:
        """Delete a segment; return whether others can be deleted, too."""
        held, reason = deletion
        key, path = (held.number, held.name), self._trace.path / held.name
        free_bytes, own_bytes = self._free_bytes(), self._own_bytes()
        with self._guard:
            known: Held | None = self._held.get(key)
            if known is None or self._is_in_window(known):
                return True  # somebody asked for its window meanwhile
            self._held[key] = known._replace(stuck=True)
        try:
            self._remove_whole(held)
        except FileNotFoundError:
            self._drop(key)
            return True
        except (OSError, StorageError) as error:
            failure = error if isinstance(error, StorageError) else storage_error(path, error)
            of_the_segment = failure.errno_name in _OF_THE_SEGMENT
            if not of_the_segment:
                with self._guard:
                    self._held[key] = known
            self._limiter.say(
                "stuck", f"{failure}; cannot be deleted, left as it is", Level.WARNING
            )
            return of_the_segment
        if reason is Reason.KEPT_SIZE:
            words = f"{path}: kept, and deleted because all kept segments exceed max-kept-size"
            self._limiter.say(reason, words, Level.WARNING)
        self.deletions[reason] += 1
        self._free_space.deleted(
            held.allocated_bytes, free_bytes, own_bytes, self._now().boottime_ns
        )
        return True

    def _remove_whole(self, held: Held) -> None:
        """Remove a segment; without any more room on the disk, less carefully."""
        measured = measure(self._trace, held.name)
        if measured.obstacle is not None:
            raise measured.obstacle
        try:
            name = hide(self._disk, self._trace, held.name)
        except StorageError as error:
            if error.errno_name not in _NO_SPACE:
                raise
            remove_in_place(self._disk, self._trace, held.name)
            self._drop((held.number, held.name))
            return
        self._drop((held.number, held.name))
        self._hidden[name] = measured.allocated_bytes
        self._remove(name)

    def _remove(self, hidden: str) -> None:
        """Remove a segment that has its hidden name; what is left of it stays counted."""
        try:
            remove_hidden(self._trace, hidden)
        except OSError as error:
            words = f"{storage_error(Path(error.filename or self._trace.path / hidden), error)}"
            self._limiter.say("stuck", f"{words}; cannot be removed, left as it is", Level.WARNING)
            with suppress(OSError):
                self._hidden[hidden] = measure(self._trace, hidden).allocated_bytes
        else:
            self._hidden.pop(hidden, None)

    def _report_unreached(self, plan: Sequence[Deletion]) -> None:
        """Write a line when a limit begins to be out of reach, and one when that is over."""
        going = bytes_of(deletion.held for deletion in plan)
        limit_bytes = self.limits.size_bytes
        plain = [one for one in self._in_order() if not one.counts_as_kept]
        used_bytes = bytes_of(plain) + sum(self._hidden.values()) - going
        words = ""
        if limit_bytes is not None and used_bytes > limit_bytes:
            words = f"{human_bytes(used_bytes)} cannot be deleted: open segments, or parts left"
        self._report("max-size", words)
        limit_bytes, free_bytes = self.limits.free_bytes, self._free_bytes()
        words = ""
        if limit_bytes is not None and free_bytes + going < limit_bytes:
            left = f"{human_bytes(free_bytes)} are free"
            if self._free_space.is_futile(self._now().boottime_ns):
                words = f"{left}, and deleting segments does not raise that; deleting no more"
            else:
                words = f"{left}, and only segments that must stay are left"
        self._report("min-free", words)

    def _report(self, option: str, words: str) -> None:
        if words and option not in self._unreached:
            self._unreached.add(option)
            self._say(f"{self._trace.path}: {option} is out of reach: {words}", Level.WARNING)
        elif not words and option in self._unreached:
            self._unreached.discard(option)
            self._say(f"{self._trace.path}: {option} is reached again", Level.NOTICE)

    # -- kept segments

    def keep(self, numbers: Iterable[int], trigger: Trigger | None = None) -> list[int]:
        """Keep segments for *trigger*, or for a person; return the numbers of those kept.

        Raises:
            LttdError: one is not there, and the caller is a person; or one could not be kept.
        """
        kept = []
        for held in self._named(numbers, must=trigger is None):
            known = self._kept.get(held.number, NOT_KEPT)
            new = known.with_trigger(trigger) if trigger else replace(known, by_person=True)
            self._write_kept(held, new)
            kept.append(held.number)
        return kept

    def release(self, numbers: Iterable[int]) -> list[int]:
        """Let retention delete segments again, whoever keeps them; return their numbers.

        Raises:
            LttdError: one is not there, or could not be released.
        """
        found = self._named(numbers, must=True)
        for held in found:
            self._write_kept(held, NOT_KEPT)
        return [held.number for held in found]

    def _named(self, numbers: Iterable[int], *, must: bool) -> list[Held]:
        self.read()
        found = []
        for number in dict.fromkeys(numbers):
            keys = list(self._held.irange((number, ""), (number + 1, ""), (True, False)))
            if must and not keys:
                raise LttdError(f"segment {number}: there is none in {self._trace.path}")
            found += [self._held[key] for key in keys]
        return found

    def _write_kept(self, held: Held, kept: Kept) -> None:
        paths = SegmentPaths(self._trace.path / held.name, self._trace)
        write_kept(paths, kept, self._disk)
        key = held.number, held.name
        with self._guard:
            if key in self._held:
                self._held[key] = self._held[key]._replace(keeper=_keeper_of(kept))
            self._note_kept(held.number, kept)

    def kept(self) -> Mapping[int, Kept]:
        """Return the reasons of all kept segments, by number; complete after read()."""
        with self._guard:
            return dict(self._kept)

    # -- windows of triggers

    def protect(self, since_ns: int) -> int:
        """Delete no segment with data from *since_ns* (CLOCK_REALTIME) on; return a token."""
        now = self._now()
        since = Now(now.boottime_ns - (now.realtime_ns - since_ns), since_ns)
        with self._guard:
            token = next(self._tokens)
            self._windows[token] = since
        return token

    def unprotect(self, token: int) -> None:
        """End what protect() began."""
        with self._guard:
            self._windows.pop(token, None)

    def _is_in_window(self, held: Held) -> bool:
        return any(_is_since(held, since) for since in self._windows.values())

    def in_window(self, begin_ns: int, end_ns: int) -> list[int]:
        """Return the numbers of the segments with data between two times of CLOCK_REALTIME."""
        now = self._now()
        offset_ns = now.boottime_ns - now.realtime_ns
        begin, end = Now(begin_ns + offset_ns, begin_ns), Now(end_ns + offset_ns, end_ns)
        with self._guard:
            found = [one for one in self._held.values() if _is_since(one, begin)]
        return [one.number for one in found if _is_until(one, end)]

    # -- numbers

    def state(self) -> StoreState:
        """Return the present numbers."""
        with self._guard:
            held: list[Held] = list(self._held.values())
            deletions = {reason.value: self.deletions[reason] for reason in Reason}
            hidden_bytes = sum(self._hidden.values())
        kept = [one for one in held if one.keeper is not Keeper.NOBODY]
        begin_ns = complete_since(held)
        now_ns = self._now().boottime_ns
        return StoreState(
            segments=len(held),
            allocated_bytes=bytes_of(held) + hidden_bytes,
            kept_segments=len(kept),
            kept_bytes=bytes_of(kept),
            deletions=deletions,
            reach_seconds=None if begin_ns is None else max(now_ns - begin_ns, 0) / 1e9,
            compression_backlog=self.compression_backlog(),
        )


def complete_since(held: Sequence[Held]) -> int | None:
    """Return from when on no segment is missing, on this boot's CLOCK_BOOTTIME; None: never.

    It is the latest begin of a source's first segment after the last number that is missing.
    """
    begins: dict[str, int] = {}
    newer = None
    for one in reversed(held):
        if newer is not None and one.number < newer - 1:
            break
        newer = one.number
        begins[one.source] = one.begin_ns
    return max(begins.values(), default=None)


def _is_since(held: Held, since: Now) -> bool:
    """Tell whether a segment may have data from *since* on; a clock that was set leaves doubt."""
    by_wall = held.end_realtime_ns is not None and held.end_realtime_ns >= since.realtime_ns
    return held.is_open or by_wall or held.end_ns >= since.boottime_ns


def _is_until(held: Held, until: Now) -> bool:
    by_wall = held.begin_realtime_ns is not None and held.begin_realtime_ns <= until.realtime_ns
    return by_wall or held.begin_ns <= until.boottime_ns


def _keeper_of(kept: Kept) -> Keeper:
    if not kept:
        return Keeper.NOBODY
    return Keeper.HTTP if kept.by_http_only else Keeper.PERSON


def _manifest_of(paths: SegmentPaths) -> Manifest | None:
    try:
        return Manifest.read(paths.place(paths.manifest))
    except TraceDamagedError:
        return None
