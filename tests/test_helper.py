"""The thread that works on the disk beside the reading loop."""

import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from lttd.helper import Helper, lasting_threads


@pytest.fixture
def helper() -> Iterator[Helper]:
    helper = Helper()
    yield helper
    helper.close()


async def test_all_jobs_run_in_one_thread_that_is_not_the_loops(helper: Helper) -> None:
    found: list[int] = []
    for _ in range(3):
        await helper.run(lambda: found.append(threading.get_native_id()))
    assert len(found) == 3
    assert len(set(found)) == 1
    assert found[0] != threading.get_native_id()
    assert found[0] in lasting_threads()


async def test_an_error_of_a_job_reaches_who_waits_and_the_next_job_runs(helper: Helper) -> None:
    def fail() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        await helper.run(fail)
    ran: list[bool] = []
    await helper.run(lambda: ran.append(True))
    assert ran == [True]


async def test_a_job_is_finished_although_who_waits_is_cancelled(helper: Helper) -> None:
    ended = threading.Event()
    ran: list[bool] = []

    def work() -> None:
        ended.wait()
        ran.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(helper.run, work)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        ended.set()
    assert ran == [True]


async def test_a_thread_of_trio_does_not_last() -> None:
    worker = await trio.to_thread.run_sync(threading.get_native_id)
    assert worker not in lasting_threads()
    assert threading.main_thread().native_id in lasting_threads()
