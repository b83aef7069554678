"""One thread that works on the disk beside the reading loop.

Rule: it is the same thread as long as lttd runs.  The kernel leaves lttd's threads out by their
ids, and keeps an id after its thread has ended.  A new thread for each job would fill that list,
and hide every process that gets one of these ids later.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

import trio

NAME_PREFIX: Final = "lttd-"
_Job = Callable[[], None]


class Helper:
    """Runs jobs in turn, in a thread that starts with the first one."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # Like trio's own threads it does not keep a process alive whose disk hangs.
        self._thread = threading.Thread(target=self._work, name=f"{NAME_PREFIX}help", daemon=True)

    async def run(self, work: Callable[[], None]) -> None:
        """Wait until the thread has done *work*, even if cancelled; raise its error."""
        if not self._thread.is_alive():
            self._thread.start()
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        errors: list[BaseException] = []

        def job() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  (run() raises it again)
                errors.append(error)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        self._jobs.put(job)
        with trio.CancelScope(shield=True):
            await done.wait()
        if errors:
            raise errors[0]

    def close(self) -> None:
        """End the thread after its last job."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def lasting_thread_ids() -> list[int]:
    """Return the kernel's ids of the threads that last as long as lttd: not those of trio."""
    threads = (each for each in threading.enumerate() if _lasts(each))
    return [each.native_id for each in threads if each.native_id is not None]


def _lasts(thread: threading.Thread) -> bool:
    return thread is threading.main_thread() or thread.name.startswith(NAME_PREFIX)
