"""Keep a trace within its limits beside the reading loop, and answer ``keep`` and ``release``.

Rule: a thread of its own does it, in short steps, so that answers come between.
Rule: limits that contradict the file system are refused before anything is deleted.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from lttd.control_protocol import Handler, Peer
from lttd.errors import LttdError, UsageError
from lttd.files import Disk
from lttd.housekeeping import Housekeeping
from lttd.plausible import is_count
from lttd.retention import Keeper, Limits, limits_on
from lttd.store import Store
from lttd.tracedir import MOST_NUMBER, SegmentPaths, made_ns

INTERVAL_S: Final = 5.0
"""The time between two looks; each segment that is closed causes one at once."""
MOST_NAMED: Final = 1000
# The state is one line on the control socket, and a sender may have chosen long labels.
MOST_SHOWN: Final = 20
MOST_SEGMENTS: Final = 12


class Retaining:
    """Runs the store of a trace."""

    def __init__(self, disk: Disk, trace: Path, limits: Limits, house: Housekeeping) -> None:
        """*trace* is held by *disk*, and no segment of this run exists yet.

        Raises:
            UsageError: the limits contradict the file system.
            StorageError: the trace cannot be listed.
        """
        self._fd = disk.hold(trace).fd
        self.store = Store(disk, trace, self._checked(limits))
        self._house = house
        self._thread = house.helpers.store
        self._due = trio.Event()
        self.has_read = trio.Event()
        """Set once the catalogue is complete."""
        self.handlers: Mapping[str, Handler] = {"keep": self._keep, "release": self._release}

    def limit(self, limits: Limits) -> None:
        """Replace the limits, from now on.

        Raises:
            UsageError: they contradict the file system; those before stay.
        """
        self.store.limits = self._checked(limits)
        self._due.set()

    def check(self, limits: Limits) -> None:
        """Raise UsageError if the limits contradict the file system."""
        self._checked(limits)

    def _checked(self, limits: Limits) -> Limits:
        status = os.fstatvfs(self._fd)
        return limits_on(limits, status.f_blocks * status.f_frsize)

    def prepared(self, paths: SegmentPaths) -> None:
        """Count a hidden segment that is made ahead.  Never waits."""
        self.store.later(partial(self.store.prepared, paths))

    def opened(self, paths: SegmentPaths) -> None:
        """Note a segment that data goes to now, and look at the limits soon.  Never waits."""
        self.store.later(partial(self.store.opened, paths))
        self._due.set()

    def closed(self, paths: SegmentPaths) -> None:
        """Note a segment that was closed, and look at the limits soon.  Never waits."""
        self.store.later(partial(self.store.closed, paths))
        self._due.set()

    async def run(self) -> None:
        """Read the catalogue, then keep the limits, until cancelled."""
        while True:
            self._due = trio.Event()
            while await self._step():
                pass
            self.has_read.set()
            with trio.move_on_after(INTERVAL_S):
                await self._due.wait()

    async def _step(self) -> bool:
        more = [False]

        def step() -> None:
            more[0] = self.store.step()

        await self.work(step)
        return more[0]

    async def work(self, do: Callable[[], object]) -> None:
        """Call *do* in the thread of the store, between other work there."""
        await self._house.work_in(self._thread, do)

    async def finish(self) -> None:
        """Keep the limits once more, when every segment is closed."""

        def finish() -> None:
            self.store.close_all()
            self.store.enforce()

        await self._thread.run(finish)

    # -- the control socket

    @property
    def state_parts(self) -> dict[str, Callable[[], Any]]:
        """The parts of the state that the store knows, by their keys."""
        return {
            "store": self.state_json,
            "windows": self.windows_json,
            "newest_segments": self.segments_json,
        }

    def state_json(self) -> dict[str, Any]:
        """Return the numbers of the store for ``lttd status``."""
        limits = self.store.limits
        return self.store.state()._asdict() | {
            "limit_bytes": limits.size_bytes,
            "kept_limit_bytes": limits.kept_bytes,
        }

    def windows_json(self) -> list[dict[str, Any]]:
        """Return the latest triggers that keep segments, for ``lttd status`` and the page."""
        return [one.to_json() for one in self.store.catalogue.latest_triggers(MOST_SHOWN)]

    def segments_json(self) -> list[dict[str, Any]]:
        """Return the newest segments, for ``lttd status --json`` and the page."""
        return [
            {
                "number": one.number,
                "source": one.source,
                "made_ns": made_ns(one.name),
                "bytes": one.allocated_bytes,
                "open": one.is_open,
                "kept": one.keeper is not Keeper.NOBODY,
                "compressed": one.is_compressed,
            }
            for one in self.store.catalogue.newest(MOST_SEGMENTS)
        ]

    async def _keep(self, request: Mapping[str, Any], _: Peer) -> Mapping[str, Any]:
        return {"segments": await self._answer(self.store.keep, request)}

    async def _release(self, request: Mapping[str, Any], _: Peer) -> Mapping[str, Any]:
        released = await self._answer(self.store.release, request)
        self._due.set()
        return {"segments": released}

    async def _answer(
        self, do: Callable[[Sequence[int]], list[int]], request: Mapping[str, Any]
    ) -> list[int]:
        numbers = _numbers_of(request)
        results: list[list[int]] = []
        failures: list[LttdError] = []

        def answer() -> None:
            try:
                results.append(do(numbers))
            except LttdError as error:  # it concerns who asked, not the recording
                failures.append(error)

        await self.work(answer)
        if failures:
            raise failures[0]
        return results[0]


def _numbers_of(request: Mapping[str, Any]) -> list[int]:
    numbers = request.get("segments")
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= MOST_NAMED:
        raise UsageError(f"segments: not a list of 1 to {MOST_NAMED} numbers")
    if not all(is_count(number, MOST_NUMBER) for number in numbers):
        raise UsageError("segments: a number of a segment is between 1 and 999999999")
    return numbers
