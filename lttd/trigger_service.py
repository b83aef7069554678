"""Run the senders of triggers, and the reading and writing that they wait for."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from lttd.errors import LttdError, StorageError
from lttd.flight import Rings
from lttd.housekeeping import Housekeeping
from lttd.keeping import StoreKeeper, complete_cut_windows
from lttd.namespaces import kernel_clock_ns
from lttd.recorder import Recorder
from lttd.recording import Recording
from lttd.store import Store
from lttd.terminal import Level, say
from lttd.trigger import Trigger, TriggerRefusedError
from lttd.trigger_requests import TriggerRequests
from lttd.triggers import Now, Triggers

RETRY_S: Final = 10.0
BY_SIGNAL: Final = "signal SIGUSR2"


def now() -> Now:
    """Return the present time by both clocks."""
    return Now(kernel_clock_ns(time.CLOCK_BOOTTIME), time.time_ns())


class TriggerService:
    """The triggers of a run, and their senders."""

    def __init__(
        self,
        store: Store,
        recordings: Sequence[Recording],
        recorder: Recorder,
        house: Housekeeping,
        rings: Rings,
    ) -> None:
        """Recording begins now."""
        self._store = store
        self._recordings = recordings
        self._recorder = recorder
        self._house = house
        keeper = StoreKeeper(store, now, now().boot_ns)
        self.triggers = Triggers(keeper, rings, self._work, self._settle, now, say)
        self.handler = TriggerRequests(self.triggers, time.time_ns)
        """Carries out the request ``trigger`` of the control socket."""
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve triggers until finish() is called."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.triggers.run)
            self.triggers.begin(await self._stored())

    async def _stored(self) -> list[Trigger]:
        """Complete the windows that a kill cut; return all triggers of the trace so far."""
        stored: list[Trigger] = []

        def read() -> None:
            stored[:] = complete_cut_windows(self._store)

        while True:
            try:
                await self._work(read)
            except StorageError as error:
                say(f"no trigger is accepted: {error}; trying again", Level.ERROR)
                await trio.sleep(RETRY_S)
            else:
                return stored

    def signalled(self) -> None:
        """Take a trigger with the default window: SIGUSR2 came."""
        if self._nursery is not None:
            trigger = Trigger(BY_SIGNAL, {}, "signal", time.time_ns())
            self._nursery.start_soon(self._accept, trigger)

    def state_json(self) -> dict[str, Any]:
        """Return the totals for ``lttd status``."""
        return self.triggers.counts()._asdict()

    async def _accept(self, trigger: Trigger) -> None:
        try:
            await self.triggers.accept(trigger)
        except TriggerRefusedError:
            pass  # the line was written
        except LttdError as error:
            say(str(error), Level.ERROR)

    async def _work(self, do: Callable[[], None]) -> bool:
        async with self._house.one_at_a_time:
            return await self._house.work(do)

    def _settle(self) -> None:
        """Write and sync all that was taken; in the helper thread."""
        self._recorder.drain()
        for recording in self._recordings:
            recording.sync()
