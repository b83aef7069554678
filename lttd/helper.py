"""The threads that work on the disk beside the reading loop.

Rule: they are the same threads as long as lttd runs.  The kernel leaves lttd's threads out by their
ids, and keeps an id after its thread has ended.  A new thread for each job would fill that list,
and hide every process that gets one of these ids later.
Rule: a thread for each kind of work that must not wait for the others.  A full sync takes seconds
on a slow disk.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

import trio

from lttd.start import start_thread

OWN_NAME: Final = "lttd"
"""The name of the thread that reads."""
NAME_PREFIX: Final = f"{OWN_NAME}-"
_Job = Callable[[], None]


class Helper:
    """Runs jobs in turn, in a thread that starts with the first one."""

    def __init__(self, name: str = "help") -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # Like trio's own threads it does not keep a process alive whose disk hangs.
        self._thread = threading.Thread(target=self._work, name=NAME_PREFIX + name, daemon=True)

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if not self._thread.is_alive():
            start_thread(self._thread)

    async def run(self, work: Callable[[], None]) -> None:
        """Wait until the thread has done *work*, even if cancelled; raise its error."""
        self.start()
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


class Helpers:
    """The helper threads of a run."""

    def __init__(self) -> None:
        self.sources = Helper()
        """Files that decoding needs, manifests, new streams: all that a source changes with."""
        self.names = Helper("name")
        """The names of segments to which data is about to go; a limit that is reached waits."""
        self.closing = Helper("close")
        """Old segments: sync and close them."""
        self.store = Helper("store")
        """The catalogue, and what has to be deleted."""

    def start(self) -> None:
        """Start all threads, so that they can be left out of the trace."""
        for helper in self._all():
            helper.start()

    def close(self) -> None:
        """End all threads after their last jobs."""
        for helper in self._all():
            helper.close()

    def _all(self) -> tuple[Helper, ...]:
        return self.sources, self.names, self.closing, self.store


def lasting_threads() -> dict[int, str]:
    """Return the threads that last as long as lttd, not those of trio: names by kernel ids."""
    threads = [each for each in threading.enumerate() if _lasts(each)]
    main = threading.main_thread()
    return {
        each.native_id: OWN_NAME if each is main else each.name
        for each in threads
        if each.native_id is not None
    }


def _lasts(thread: threading.Thread) -> bool:
    return thread is threading.main_thread() or thread.name.startswith(NAME_PREFIX)
