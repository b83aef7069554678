"""Run a function in a child process with limits of time and memory, and report its end."""

import os
import pickle
import resource
import select
import signal
import struct
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple

# Of CPU time: on a busy machine a second of it can take ten.
MOST_SECONDS: Final = 10
# Of real time, for a function that waits for something and uses no CPU time.
HANGS_AFTER_S: Final = 120
MOST_BYTES: Final = 1 << 30
# The head of an input of a worker: its length and its limit of CPU time in s.
_INPUT: Final = struct.Struct("<Id")
# In KiB.  When it is loaded, the allocator of pyarrow would else reserve all of MOST_BYTES.
os.environ.setdefault("MIMALLOC_ARENA_RESERVE", "65536")


class Ended(NamedTuple):
    """The end of a function: well, or with a reason."""

    well: bool
    told: str
    """The returned value as text, the traceback, or the status of the child."""


def limit_memory(most_bytes: int = MOST_BYTES) -> None:
    """Limit this process to *most_bytes* more memory; mapped files do not count."""
    with open("/proc/self/status") as status:
        used_kb = next(int(line.split()[1]) for line in status if line.startswith("VmData"))
    most = (used_kb << 10) + most_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))


def limit_cpu(most_seconds: float) -> None:
    """Let SIGPROF kill this process after *most_seconds* of CPU time from now; 0: never."""
    signal.setitimer(signal.ITIMER_PROF, most_seconds)


def _why(status: int, most_seconds: float) -> str:
    """Return the reason of a child's end, from its wait status."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return f"not over after {most_seconds} s of CPU time"
    return f"ended with status {status}"


def confined(act: Callable[[], object], *, most_seconds: float = MOST_SECONDS) -> Ended:
    """Run *act* in a child with 1 GiB of memory and *most_seconds* of CPU time."""
    mine, its = os.pipe()
    child = os.fork()
    if not child:
        os.close(mine)
        limit_cpu(most_seconds)
        _answer(act, its)
    os.close(its)
    try:
        ready, _, _ = select.select([mine], [], [], HANGS_AFTER_S)
        if not ready:
            os.kill(child, signal.SIGKILL)
        with open(mine, "rb") as answers:
            answer = answers.read()
    finally:
        _, status = os.waitpid(child, 0)
    if not ready:
        return Ended(False, f"not over after {HANGS_AFTER_S} s")
    if not answer:
        return Ended(False, _why(status, most_seconds))
    return Ended(*pickle.loads(answer))


def _answer(act: Callable[[], object], to: int) -> None:
    """Run *act*, write its end to a descriptor, and exit."""
    limit_memory()
    try:
        answer = Ended(True, str(act()))
    except BaseException:  # noqa: BLE001  (reported by the parent)
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
        answer = Ended(False, traceback.format_exc())
    os.write(to, pickle.dumps((answer.well, answer.told[-20000:])))
    os._exit(0)


class Worker:
    """A child process that runs one function on many inputs, one after the other."""

    MOST_INPUTS: Final = 300
    """Replace the child after this many, so that leftovers of one input do not harm later ones."""

    def __init__(self, act: Callable[[bytes], object]) -> None:
        self._act = act
        self._child = 0
        self._inputs = 0
        self._to = self._from = -1

    def run(
        self,
        data: bytes,
        most_seconds: float = MOST_SECONDS,
        hangs_after_s: float = HANGS_AFTER_S,
    ) -> Ended:
        """Run the function on *data*, for *most_seconds* of CPU time, and return its end."""
        if not self._child:
            self._start()
        self._inputs += 1
        os.write(self._to, _INPUT.pack(len(data), most_seconds) + data)
        ready, _, _ = select.select([self._from], [], [], hangs_after_s)
        head = os.read(self._from, 5) if ready else b""
        if len(head) < 5:
            status = self.stop()
            hung = f"not over after {hangs_after_s} s"
            return Ended(False, _why(status, most_seconds) if ready else hung)
        well, size = struct.unpack("<?I", head)
        told = b""
        while len(told) < size:
            told += os.read(self._from, size - len(told))
        if self._inputs == self.MOST_INPUTS:
            self.stop()
        return Ended(well, told.decode(errors="replace"))

    def _start(self) -> None:
        its_input, self._to = os.pipe()
        self._from, its_output = os.pipe()
        self._inputs = 0
        self._child = os.fork()
        if not self._child:
            os.close(self._to)
            os.close(self._from)
            self._serve(its_input, its_output)
        os.close(its_input)
        os.close(its_output)

    def _serve(self, source: int, to: int) -> None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nowhere, fd)
        limit_memory()
        while head := os.read(source, _INPUT.size):
            length, most_seconds = _INPUT.unpack(head)
            data = os.read(source, length)
            limit_cpu(most_seconds)
            try:
                self._act(data)
                well, told = True, b""
            except BaseException:  # noqa: BLE001  (reported by the parent)
                well, told = False, traceback.format_exc()[-20000:].encode(errors="replace")
            limit_cpu(0)
            os.write(to, struct.pack("<?I", well, len(told)) + told)
        os._exit(0)

    def stop(self) -> int:
        """Kill the child and return its wait status."""
        if not self._child:
            return 0
        os.kill(self._child, signal.SIGKILL)
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        os.close(self._to)
        os.close(self._from)
        return status
