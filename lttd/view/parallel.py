"""Make text in several processes, which write it one after the other.

Job k of n takes every n-th piece of the window; each job finds the pieces by itself.  The jobs pass
a token through pipes, and the job with the token writes, so the output is that of one process.  It
also reports an error, which others may meet in other pieces.

Rule: between fork and exit a job neither returns nor raises into the caller's code.
"""

import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, NoReturn, TypeVar

from lttd.errors import LttdError
from lttd.start import unforeseen
from lttd.terminal import PIPE_CLOSED, Level, say

Item = TypeVar("Item")
Made = TypeVar("Made")
_STEP: Final = struct.Struct("<Q")
NOTES_BYTES: Final = 1 << 16
INTERRUPTED: Final = 128 + 2


class SharedNotes:
    """The notes that any of the processes has written; only the job with the token uses it."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, NOTES_BYTES)

    def is_new(self, note: str) -> bool:
        """Tell whether *note* is new, and remember it."""
        mark = _STEP.pack(hash(note) & ((1 << 64) - 1) | 1)
        for at in range(0, NOTES_BYTES, _STEP.size):
            held = self._shared[at : at + _STEP.size]
            if held == mark:
                return False
            if not any(held):
                self._shared[at : at + _STEP.size] = mark
                return True
        return True


def in_turn(
    items: Callable[[], Iterable[Item]],
    make: Callable[[Item], Made],
    write: Callable[[Item, Made], None],
    count: int,
) -> int:
    """Make *items* in *count* processes and write them in order; return an exit status.

    *items* must yield the same items in each process.
    """
    pipes = [os.pipe() for _ in range(count)]
    children = []
    for number in range(count):
        pid = os.fork()
        if not pid:
            _job(number, pipes, items, make, write)
        children.append(pid)
    os.write(pipes[0][1], b".")
    for read, written in pipes:
        os.close(read)
        os.close(written)
    return _wait(children)


def _wait(children: list[int]) -> int:
    worst = 0
    while children:
        try:
            _, status = os.waitpid(children[0], 0)
        except KeyboardInterrupt:
            worst = INTERRUPTED  # the jobs got the signal, too, and end by themselves
            continue
        children.pop(0)
        worst = max(worst, os.waitstatus_to_exitcode(status), key=abs)
    return worst


def _job(
    number: int,
    pipes: list[tuple[int, int]],
    items: Callable[[], Iterable[Any]],
    make: Callable[[Any], Any],
    write: Callable[[Any, Any], None],
) -> NoReturn:
    status, has_turn = 1, False
    try:
        mine, following = _own_ends(pipes, number)
        for item in _every(items(), number, len(pipes)):
            made = make(item)
            if not os.read(mine, 1):
                break  # another job ended early, and reported why
            has_turn = True
            write(item, made)
            with suppress(BrokenPipeError):  # the next job has no piece left, and ended
                os.write(following, b".")
            has_turn = False
        status = 0
    except BrokenPipeError:
        status = PIPE_CLOSED
    except KeyboardInterrupt:
        status = INTERRUPTED
    except LttdError as error:
        if has_turn or os.read(mine, 1):  # others may meet it, too
            say(str(error), Level.ERROR, "lttv")
        status = error.exit_status
    except Exception as error:  # noqa: BLE001  (a job must not return into the caller's code)
        say(unforeseen(error), Level.ERROR, "lttv")
    finally:
        os._exit(status)


def _own_ends(pipes: list[tuple[int, int]], number: int) -> tuple[int, int]:
    """Return where a job gets the token and where it passes it on; close the other ends."""
    after = (number + 1) % len(pipes)
    for at, (read, written) in enumerate(pipes):
        if at != number:
            os.close(read)
        if at != after:
            os.close(written)
    return pipes[number][0], pipes[after][1]


def _every(items: Iterable[Item], number: int, count: int) -> Iterator[Item]:
    for at, item in enumerate(items):
        if at % count == number:
            yield item
