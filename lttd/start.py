"""Prepare limits and threads at the start, and make the one line for an unforeseen failure."""

import os
import resource
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lttd.errors import MemoryUsedUpError, refusal
from lttd.spare import reserve
from lttd.terminal import Level, say

_MOST_CHARACTERS: Final = 300
_STACK_BYTES: Final = 8 << 20
_ROOM_BYTES: Final = 2 << 20


def raise_file_limit() -> None:
    """Raise the limit of open files as far as allowed: lttd needs a few per CPU and channel."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return


def start_thread(thread: threading.Thread) -> None:
    """Start a thread if it has memory to begin with.

    A thread that gets none before its first line ends without a word, and start() waits for ever.

    Raises:
        RuntimeError: it cannot be started.
    """
    stack_bytes, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if stack_bytes == resource.RLIM_INFINITY:
        stack_bytes = _STACK_BYTES
    try:
        reserve(stack_bytes + _ROOM_BYTES).close()
    except (OSError, MemoryError):
        raise RuntimeError("can't start new thread") from None
    thread.start()


def unforeseen(error: BaseException) -> str:
    """Return the line for an error that lttd does not raise on purpose."""
    error, others = _first_of(error)
    words = " ".join(_words(error).split())
    if len(words) > _MOST_CHARACTERS:
        words = words[: _MOST_CHARACTERS - 3] + "..."
    return words + (f" (and {others} more errors)" if others else "")


def _words(error: BaseException) -> str:
    if isinstance(error, ImportError):
        # numpy wraps the error in a page of advice; its root says what failed.
        while error.__cause__ is not None:
            error = error.__cause__
        return f"cannot load {error}; reinstall lttd, or allow it more memory (ulimit -v)"
    if refused := refusal(error):
        return str(refused)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"unforeseen {type(error).__name__}{where}: {error}; please report this line"


def _first_of(error: BaseException) -> tuple[BaseException, int]:
    """Return the first error of nested exception groups, and the number of others."""
    if not isinstance(error, BaseExceptionGroup):
        return error, 0
    leaves = [_first_of(inner) for inner in error.exceptions]
    return leaves[0][0], sum(others for _, others in leaves) + len(leaves) - 1


@contextmanager
def threads_that_fail_end_all() -> Iterator[None]:
    """End the process when a thread fails: otherwise all others would wait for it."""

    def end(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_value is None or isinstance(failed.exc_value, SystemExit):
            return
        say(unforeseen(failed.exc_value), Level.ERROR)
        os._exit(1)

    before, threading.excepthook = threading.excepthook, end
    try:
        yield
    finally:
        threading.excepthook = before


def exit_if_without_memory(error: BaseException, status: int) -> None:
    """Exit at once if memory is used up: an interpreter that ends so writes lines of its own."""
    if isinstance(_first_of(error)[0], MemoryError | MemoryUsedUpError):
        os._exit(status)


def exit_if_threads_run(before: frozenset[int], status: int) -> None:
    """Exit at once if threads are left after the loop failed: nothing will end them."""
    left = {thread.ident for thread in threading.enumerate() if not thread.daemon} - before
    if left:
        os._exit(status)
