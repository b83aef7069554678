"""The reasons why lttd is unhealthy, and their lines. Only the test moves the clock."""

import threading

import pytest

from lttd.health import ACT_NS, LINE_INTERVAL_NS, Condition, Health, Limiter, Trouble
from lttd.terminal import Level


class Clock:
    def __init__(self) -> None:
        self.now = 5

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def health(clock: Clock, lines: list[str]) -> Health:
    return Health(lambda line, _: lines.append(line), clock)


FULL, FAILED = Trouble.BACKLOG_FULL, Trouble.WRITER_FAILED


def test_health_is_good_while_nothing_is_reported(health: Health) -> None:
    assert health.verdict() == (True, "ok")


def test_a_state_lasts_until_its_end(health: Health, clock: Clock) -> None:
    health.begins(FAILED, "disk full", "x_0")
    clock.now += 100 * ACT_NS
    assert health.verdict() == (False, "x_0: disk full")
    health.ends(FAILED, "written again", "x_0")
    assert health.verdict() == (True, "ok")


def test_an_act_counts_for_one_minute(health: Health, clock: Clock) -> None:
    health.happened(FULL, "somebody emptied it")
    clock.now += ACT_NS - 1
    assert health.verdict() == (False, "somebody emptied it")
    clock.now += 1
    assert health.verdict() == (True, "ok")


def test_an_act_that_is_repeated_counts_from_the_last_time(health: Health, clock: Clock) -> None:
    health.happened(FULL, "once")
    clock.now += ACT_NS - 1
    health.happened(FULL, "twice")
    clock.now += ACT_NS - 1
    assert health.verdict() == (False, "twice")


def test_two_streams_with_the_same_trouble_are_both_named(health: Health) -> None:
    health.begins(FAILED, "disk full", "x_0")
    health.begins(FAILED, "device failed", "x_1")
    health.ends(FAILED, "well", "x_0")
    assert health.conditions() == [Condition(FAILED, "x_1", "device failed")]


def test_every_health_check_asks_the_probe(health: Health) -> None:
    found: list[Condition] = []
    health.ask(lambda: found)
    assert health.verdict() == (True, "ok")
    found.append(Condition(FULL, "", "full"))
    health.begins(FAILED, "failed")
    assert health.verdict() == (False, "full; failed")


def test_a_trouble_writes_one_line_at_its_begin_and_one_at_its_end(
    health: Health, lines: list[str]
) -> None:
    health.begins(FAILED, "disk full", "x_0")
    health.begins(FAILED, "disk full still", "x_0")
    assert health.verdict() == (False, "x_0: disk full still")
    health.ends(FAILED, "written again", "x_0")
    health.ends(FAILED, "written again", "x_0")
    assert lines == ["x_0: disk full", "x_0: written again"]


def test_a_trouble_writes_one_line_a_minute_and_counts_the_others(
    health: Health, clock: Clock, lines: list[str]
) -> None:
    for number in range(20):
        health.happened(FULL, f"emptied {number}")
    health.begins(FAILED, "another kind is not held back")
    clock.now += LINE_INTERVAL_NS
    health.happened(FULL, "emptied again")
    assert lines == [
        "emptied 0",
        "another kind is not held back",
        "emptied again (19 more of these since the last such line)",
    ]


def test_a_limiter_limits_each_kind_of_line(clock: Clock, lines: list[str]) -> None:
    limiter = Limiter(lambda line, _: lines.append(line), clock, interval_ns=10)
    limiter.say("a", "one", Level.WARNING)
    limiter.say("b", "two", Level.WARNING)
    clock.now += 9
    limiter.say("a", "three", Level.WARNING)
    clock.now += 1
    limiter.say("b", "four", Level.WARNING)
    assert lines == ["one", "two", "four"]


def test_threads_may_report_while_another_thread_asks(health: Health) -> None:
    def report(number: int) -> None:
        for _ in range(500):
            health.begins(FAILED, "failed", str(number))
            health.happened(FULL, "emptied", str(number))
            health.ends(FAILED, "over", str(number))

    threads = [threading.Thread(target=report, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        health.conditions()
    for thread in threads:
        thread.join()
    assert health.conditions() == [Condition(FULL, str(number), "emptied") for number in range(4)]
