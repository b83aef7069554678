"""Triggers are accepted at a bounded rate, and wait for windows and the disk; none is lost."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from lttd import triggers
from lttd.errors import LttdError, StorageError
from lttd.flight import Reach, Reached
from lttd.terminal import Level
from lttd.trigger import Refusal, Trigger, TriggerRefusedError
from lttd.triggers import Now, Pending, Triggers

S = 1_000_000_000
REAL_AT_0 = 1_795_807_520 * S
BOOT_AT_0 = 5000 * S


class RingsOfTest:
    """Rings that are read all the time, or since a trigger came that found *reached_back_s*."""

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine
        self.reached_back_s: float | None = None
        self.log: list[str] = []

    def want(self, until: float) -> Reach:
        self.log.append(f"want until {until - self.machine.began_at:g}")
        now_ns, back_s = self.machine.now().boot_ns, self.reached_back_s

        async def reach() -> Reached | None:
            return None if back_s is None else Reached(now_ns - round(back_s * S), now_ns + S // 10)

        return reach

    async def flush(self) -> None:
        machine = self.machine
        machine.log.append(f"flush at {trio.current_time() - machine.began_at:g}")

    def close(self) -> None:
        self.log.append(f"close at {trio.current_time() - self.machine.began_at:g}")


class Machine:
    """A store, a disk and the clocks, moved by trio's clock."""

    def __init__(self) -> None:
        self.began_at = trio.current_time()
        self.reaches_back_s = 3600.0
        self.log: list[str] = []
        self.lines: list[str] = []
        self.kept: dict[int, Trigger] = {}
        self.windows: dict[int, tuple[int, int]] = {}
        self.protected: dict[object, int] = {}
        self.fails: Exception | None = None
        self.disk = trio.Event()
        self.disk.set()
        self.rings = RingsOfTest(self)
        self.of_run = Triggers(
            self, self.rings, self.work, lambda: self.log.append("settle"), self.now, self.say
        )

    def now(self) -> Now:
        passed_ns = round((trio.current_time() - self.began_at) * S)
        return Now(BOOT_AT_0 + passed_ns, REAL_AT_0 + passed_ns)

    def say(self, line: str, _level: Level) -> None:
        self.lines.append(line)

    async def work(self, do: Callable[[], None]) -> bool:
        await self.disk.wait()
        do()
        return True

    def reach_ns(self) -> int:
        return BOOT_AT_0 - int(self.reaches_back_s * S)

    def protect(self, begin_ns: int) -> object:
        token = object()
        self.protected[token] = begin_ns
        return token

    def unprotect(self, token: object) -> None:
        del self.protected[token]

    def keep(self, begin_ns: int, end_ns: int, trigger: Trigger) -> Trigger:
        if self.fails is not None:
            raise self.fails
        self.log.append(f"keep {trigger.number} {'complete' if trigger.complete else 'open'}")
        self.kept[trigger.number] = trigger
        self.windows[trigger.number] = begin_ns, end_ns
        return trigger


@pytest.fixture
async def machine() -> Machine:
    return Machine()


@asynccontextmanager
async def running(machine: Machine, *stored: Trigger) -> AsyncIterator[Triggers]:
    async with trio.open_nursery() as nursery:
        machine.of_run.begin(stored)
        nursery.start_soon(machine.of_run.run)
        yield machine.of_run
        nursery.cancel_scope.cancel()


def asked(machine: Machine, before_s: float = 10, after_s: float = 5, by: str = "command",
          at_s: float = 0, alert: str = "") -> Trigger:  # fmt: skip
    at_ns = machine.now().real_ns + round(at_s * S)
    window = round(before_s * S), round(after_s * S)
    return Trigger("slow", {}, by, at_ns, *window, fingerprint=alert, starts_at=alert and "2026")


async def taken(of_run: Triggers, trigger: Trigger) -> Pending:
    pending = await of_run.accept(trigger)
    assert pending is not None
    return pending


async def test_a_window_is_flushed_synced_and_kept_after_its_end(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(machine) as of_run:
        pending = await taken(of_run, asked(machine))
        assert machine.log == ["keep 1 open"]
        await pending.done.wait()
    assert machine.log == ["keep 1 open", "flush at 5", "settle", "keep 1 complete"]
    kept = machine.kept[1]
    assert (kept.begin_ns, kept.end_ns) == (REAL_AT_0 - 10 * S, REAL_AT_0 + 5 * S)
    assert machine.windows[1] == (BOOT_AT_0 - 10 * S, BOOT_AT_0 + 5 * S)
    assert kept.complete
    assert kept.note == ""
    assert machine.protected == {}
    assert machine.lines == ["trigger 1 (slow) by command: 15.0 s are kept"]


async def test_a_segment_of_the_window_is_protected_until_the_window_is_complete(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(machine) as of_run:
        pending = await taken(of_run, asked(machine))
        assert list(machine.protected.values()) == [BOOT_AT_0 - 10 * S]
        await pending.done.wait()
        assert machine.protected == {}


async def test_a_window_that_ended_before_the_trigger_is_complete_at_once(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(machine) as of_run:
        pending = await taken(of_run, asked(machine, at_s=-300))
        await pending.done.wait()
        assert trio.current_time() == machine.began_at
    assert machine.kept[1].end_ns == REAL_AT_0 - 295 * S


async def test_a_time_in_the_future_becomes_now(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(machine) as of_run:
        assert (await taken(of_run, asked(machine, at_s=60))).trigger.at_ns == REAL_AT_0


async def test_overlapping_triggers_are_each_kept_with_their_own_bounds(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(machine) as of_run:
        one = await taken(of_run, asked(machine, after_s=5))
        await trio.sleep(1)
        other = await taken(of_run, asked(machine, after_s=1))
        await one.done.wait()
        assert other.done.is_set()
    assert machine.kept[1].end_ns == REAL_AT_0 + 5 * S
    assert machine.kept[2].end_ns == REAL_AT_0 + 2 * S


async def test_a_trace_that_reaches_back_less_far_says_how_far(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    machine.reaches_back_s = 3.25
    async with running(machine) as of_run:
        pending = await taken(of_run, asked(machine))
        await pending.done.wait()
    assert machine.kept[1].begin_ns == REAL_AT_0 - 3_250_000_000
    words = "the trace reached back 3.2 s before it, 10 s were asked for"
    assert machine.kept[1].note == words
    assert machine.lines[-1] == f"trigger 1 (slow) by command: 8.2 s are kept; {words}"


async def test_a_window_before_the_trace_is_refused(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    machine.reaches_back_s = 3
    async with running(machine) as of_run:
        with pytest.raises(TriggerRefusedError, match=r"begins 292\.0 s after") as raised:
            await of_run.accept(asked(machine, at_s=-300))
    assert raised.value.refusal is Refusal.OUT_OF_REACH
    assert machine.protected == {}


async def test_a_thousand_triggers_in_a_second_are_limited_and_counted(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    refused = 0
    async with running(machine) as of_run:
        for _ in range(1000):
            try:
                await of_run.accept(asked(machine, after_s=0))
            except TriggerRefusedError as error:
                refused += error.refusal is Refusal.TOO_MANY
            await trio.sleep(0.001)
        counts = of_run.counts()
    assert 1000 - refused == counts.accepted["command"] == triggers.BURST
    assert counts.refused == {"too_many": refused}
    assert len(machine.lines) < triggers.BURST + 3
    assert sum("refused" in line for line in machine.lines) == 1


async def test_an_alert_is_taken_once_also_after_a_restart(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    stored = replace(asked(machine, by="http", alert="f0"), number=7)
    async with running(machine, stored) as of_run:
        assert await of_run.accept(asked(machine, by="http", alert="f0")) is None
        first = await taken(of_run, asked(machine, by="http", alert="f1"))
        assert first.trigger.number == 8
        assert await of_run.accept(asked(machine, by="http", alert="f1")) is None
        assert of_run.counts().accepted == {"http": 1}


async def test_triggers_wait_for_a_slow_disk_and_none_is_lost(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    machine.disk = trio.Event()
    async with running(machine) as of_run:
        all_taken = [await taken(of_run, asked(machine, after_s=1)) for _ in range(3)]
        assert trio.current_time() - machine.began_at == pytest.approx(3 * triggers.RECORDED_S)
        assert machine.kept == {}
        assert len(machine.protected) == 3
        machine.disk.set()
        for each in all_taken:
            await each.done.wait()
    assert [kept.complete for kept in machine.kept.values()] == [True] * 3


async def test_a_failing_disk_is_tried_again_and_said_once(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    machine.fails = StorageError(Path("/t/kept.json"), "No space left on device", "ENOSPC")
    async with running(machine) as of_run:
        pending = await taken(of_run, asked(machine, after_s=1))
        await trio.sleep(20)
        assert not pending.done.is_set()
        assert len(machine.protected) == 1
        machine.fails = None
        await pending.done.wait()
    assert machine.kept[1].complete
    assert sum("No space left" in line for line in machine.lines) == 1


async def test_a_trigger_that_cannot_be_kept_is_reported_to_its_sender(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    machine.fails = LttdError("trigger 1: 4,096 others keep its segment")
    async with running(machine) as of_run:
        with pytest.raises(LttdError, match="4,096 others"):
            await of_run.accept(asked(machine))
        assert of_run.counts().waiting == 0
    assert machine.protected == {}


async def test_a_trigger_before_lttd_is_ready_waits_and_is_then_refused(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(TriggerRefusedError) as raised:
        await machine.of_run.accept(asked(machine))
    assert raised.value.refusal is Refusal.NOT_NOW
    assert trio.current_time() - machine.began_at == triggers.READY_S


async def test_the_end_of_recording_completes_windows_with_what_there_is(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(machine) as of_run:
        pending = await taken(of_run, asked(machine))
        await trio.sleep(2)
        of_run.stop()
        with pytest.raises(TriggerRefusedError):
            await of_run.accept(asked(machine))
        await trio.sleep(5)  # the rings are drained, which outlasts the window
        await of_run.finish()
    assert pending.done.is_set()
    kept = machine.kept[1]
    assert kept.end_ns == REAL_AT_0 + 2 * S
    assert kept.note == "recording ended 3.0 s before the end of the window"
    assert machine.log[-1] == "keep 1 complete"
    assert "flush" not in "".join(machine.log)  # the drain at the end has flushed all


# -- mode flight


async def test_a_window_begins_where_the_rings_began_and_says_so(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    machine.rings.reached_back_s = 3.0
    async with running(machine) as of_run:
        pending = await taken(of_run, asked(machine, before_s=10, after_s=1))
        assert machine.kept[1].begin_ns == REAL_AT_0 - 3 * S  # the first record has it
        await pending.done.wait()
    assert machine.windows[1] == (BOOT_AT_0 - 3 * S, BOOT_AT_0 + S)
    assert pending.trigger.note == "the trace reached back 3.0 s before it, 10 s were asked for"


async def test_rings_that_reach_back_far_enough_shorten_no_window(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    machine.rings.reached_back_s = 30.0
    async with running(machine) as of_run:
        pending = await taken(of_run, asked(machine, before_s=10, after_s=1))
        await pending.done.wait()
    assert (pending.begin_ns, pending.trigger.note) == (BOOT_AT_0 - 10 * S, "")


async def test_the_segment_of_windows_is_closed_when_the_last_of_them_is_kept(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(machine) as of_run:
        first = await taken(of_run, asked(machine, after_s=2))
        second = await taken(of_run, asked(machine, after_s=5))
        await first.done.wait()
        assert machine.rings.log == ["want until 2", "want until 5"]
        machine.disk = trio.Event()
        await trio.sleep(10)
        machine.disk.set()
        await second.done.wait()
    assert machine.rings.log[2:] == ["close at 12"]


async def test_a_window_without_a_time_of_its_own_lasts_at_least_until_the_rings_were_read(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    # A burst overwrote the rings between the request and the first takes, 0.3 s later.
    machine.rings.reached_back_s = 0.0
    async with running(machine) as of_run:
        pending = await taken(of_run, asked(machine, before_s=10, after_s=0, at_s=-0.2))
        await pending.done.wait()
    assert machine.windows[1] == (BOOT_AT_0, BOOT_AT_0 + S // 10)
    kept = machine.kept[1]
    assert (kept.begin_ns, kept.end_ns, kept.complete) == (REAL_AT_0, REAL_AT_0 + S // 10, True)
    assert kept.note == "the trace reached back 0.0 s before it, 10 s were asked for"


async def test_an_alert_that_ended_before_the_rings_begin_is_an_error_and_ends_the_reading(
    machine: Machine, autojump_clock: trio.testing.MockClock
) -> None:
    machine.rings.reached_back_s = 3.0
    async with running(machine) as of_run:
        with pytest.raises(
            LttdError, match=r"the rings began 4\.000 s after the end of its window"
        ):
            await of_run.accept(asked(machine, at_s=-10, after_s=3, alert="a"))
    assert machine.kept == {}
    assert machine.protected == {}
    assert machine.rings.log == ["want until -7", "close at 0"]
