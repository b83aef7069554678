"""An emulated LTTng 0.x kernel: a tracer, and its channel files with real ioctl, splice and poll.

    with running_kernel(mountpoint) as kernel:
        kernel.add("kernel_0", overwrite=True)
        kernel.fill("kernel_0", 3)
        ... lttd on mountpoint ...
        kernel.finalize()
        kernel.report("kernel_0").delivered

A process of its own serves the FUSE file system. So the emulation continues while a consumer waits
in a system call, and the consumer does not hang if the server dies. The rules are those of
ltt/ltt-relay-vfs.c of LTTng 0.x; see lttd/sources/ltt/channel.py.

Differences from a real kernel: splice reads through the page cache of FUSE; inotify does not report
new channels; and POLLPRI can be made to come earlier, because real writers hardly ever fill every
sub-buffer (they refuse an event without closing the sub-buffer that it does not fit into).
"""

import errno
import os
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuse import Server, mounted, unmount
from tests.segment_builder_ltt import LttBuffer, Marker, Tracer, describe

GET, PUT, COUNT, SIZE, MAX_SIZE = 0x8004F500, 0x4004F501, 0x8004F502, 0x8004F503, 0x8004F504
IN, URGENT, HUP = (
    select.POLLIN | select.POLLRDNORM,
    select.POLLPRI | select.POLLRDBAND,
    select.POLLHUP,
)


@dataclass
class Report:
    """The history of a channel, from its tracer and its file."""

    written: list[bytes]
    """Header and events of each closed sub-buffer, by number."""
    overwritten: list[int]
    """Numbers of the sub-buffers that the writer overwrote before they were read."""
    refused: list[int]
    """Numbers of the sub-buffers for which PUT or splice returned an error."""
    first: int
    """Number of the first sub-buffer that a reader got."""
    events: int
    events_lost: int
    """As the last closed sub-buffer states it."""

    @property
    def delivered(self) -> list[bytes]:
        """Return exactly the sub-buffers that a reader must have."""
        gone = {*self.overwritten, *self.refused}
        return [data for number, data in enumerate(self.written) if number not in gone]


class Ring(LttBuffer):
    """A buffer that keeps every closed sub-buffer."""

    def __post_init__(self) -> None:
        self.written: list[bytes] = []
        self.overwritten: list[int] = []
        super().__post_init__()

    def _end(self, tsc: int) -> None:
        super()._end(tsc)
        used = (self.offset - 1) % self.subbuffer_bytes + 1
        at = (self.offset - used) % self.buffer_bytes
        assert len(self.written) == (self.offset - used) // self.subbuffer_bytes
        self.written.append(bytes(self.memory[at : at + used]))

    def _switch(self, tsc: int) -> bool:
        before = self.consumed
        switched = super()._switch(tsc)
        if self.consumed != before:
            self.overwritten.append(before // self.subbuffer_bytes)
        return switched


@dataclass
class Faults:
    """Failures to emulate; each happens once per setting."""

    uncommitted: int = 0
    """How many times GET returns EAGAIN although poll announced data."""
    splice_errors: int = 0
    put_errno: int = 0
    get_errno: int = 0
    """The errno of every GET while this is not 0."""
    open_errno: int = 0
    no_subbuffers: int = 0


class ChannelFile:
    """The file of a channel, and the sub-buffer that its one reader holds."""

    def __init__(self, server: Server, path: str, ring: Ring, urgent_from: int | None) -> None:
        self.ring = ring
        self.size_bytes = ring.subbuffer_bytes
        self.faults = Faults()
        self.refused: list[int] = []
        self.first = -1
        self.waiting_since = 0
        self._server = server
        self._path = path
        self._urgent_from = urgent_from or ring.count
        self.is_open = False
        self._held: int | None = None
        # Since 2.5 (and in late 2.4) the reader swaps in a sub-buffer of its own.
        self._swaps = ring.overwrite and ring.tracer.minor >= 5
        self._swapped = b""

    def open(self) -> "ChannelFile":
        if self.is_open or self.faults.open_errno:
            raise OSError(self.faults.open_errno or errno.EBUSY, self._path)
        self.is_open = True
        return self

    def release(self) -> None:
        self.is_open = False

    def changed(self) -> None:
        """Wake the reader, as the timer of each buffer does."""
        if self.is_open:
            self._server.wake(self)

    def poll(self) -> int:
        waiting = self.ring.readable
        if not waiting:
            return HUP if self.ring.finalized else 0
        return URGENT if waiting >= self._urgent_from else IN

    def ioctl(self, request: int, argument: bytes) -> bytes:
        ring = self.ring
        if request == COUNT:
            return _u32(0 if self.faults.no_subbuffers else ring.count)
        if request == GET:
            return _u32(self._get())
        if request == PUT:
            self._put(int.from_bytes(argument, "little"))
            return b""
        if request == SIZE and ring.tracer.minor < 5:
            return _u32(ring.subbuffer_bytes)
        if request == SIZE and self._held is not None:
            header = self._memory(self._held)
            return header[56:60] if ring.tracer.order == "<" else header[56:60][::-1]
        if request == MAX_SIZE and ring.tracer.minor >= 5:
            return _u32(ring.subbuffer_bytes)
        raise OSError(errno.ENOTTY, "no such ioctl")

    def read(self, offset_bytes: int, limit_bytes: int) -> bytes:
        if self.faults.splice_errors:
            self.faults.splice_errors -= 1
            raise OSError(errno.EIO, "splice")
        if self._held is None:
            return b""
        return self._memory(self._held)[offset_bytes : offset_bytes + limit_bytes]

    def _memory(self, position: int) -> bytes:
        """Return the current content of the place of a sub-buffer."""
        if self._swapped:
            return self._swapped
        at = position % self.ring.buffer_bytes
        return bytes(self.ring.memory[at : at + self.ring.subbuffer_bytes])

    def _get(self) -> int:
        if self.faults.get_errno:
            raise OSError(self.faults.get_errno, "GET")
        if self.ring.readable and self.faults.uncommitted:
            self.faults.uncommitted -= 1
            raise OSError(errno.EAGAIN, "not committed")
        if not self.ring.readable:
            raise OSError(errno.EAGAIN, "nothing closed")
        self._held = self.ring.consumed
        if self.first < 0:
            self.first = self._held // self.ring.subbuffer_bytes
        self._swapped = self._memory(self._held) if self._swaps else b""
        self._server.forget_content(self._path)
        return self._held % (1 << 32)

    def _put(self, cookie: int) -> None:
        held, self._held = self._held, None
        swapped, self._swapped = self._swapped, b""
        assert held is not None, "PUT without GET"
        assert held % (1 << 32) == cookie, "PUT of what is not held"
        number = held // self.ring.subbuffer_bytes
        if self.ring.consumed == held:
            self.ring.consumed += self.ring.subbuffer_bytes
        elif swapped:
            self.ring.overwritten.remove(number)  # overwritten, but read all the same
        else:
            # It counts as refused, not as overwritten.
            self.ring.overwritten.remove(number)
            self.refused.append(number)
            raise OSError(errno.EIO, "pushed")
        if self.faults.put_errno:
            if self.faults.put_errno == errno.EIO:
                self.refused.append(number)
            number, self.faults.put_errno = self.faults.put_errno, 0
            raise OSError(number, "PUT")


def stripped(subbuffer: bytes) -> bytes:
    """Return a sub-buffer as a packed file stores it, with the sizes set accordingly."""
    minor = subbuffer[21]
    used = _u32(len(subbuffer)) if minor >= 5 else _u32(0)
    return subbuffer[:52] + used + _u32(len(subbuffer)) + subbuffer[60:]


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


class Load(NamedTuple):
    """A random load that the tracer logs while a consumer reads."""

    seed: int
    subbuffers: int
    """Destroy the trace after this many closed sub-buffers."""
    flush_share: float = 0.01
    """The share of steps in which a timer closes a sub-buffer."""
    steps_per_call: int = 2
    """Steps of the tracer for each answered call of the consumer."""
    largest_bytes: int = 2500
    late: tuple[tuple[int, str, dict[str, Any]], ...] = ()
    """Channels that appear later: (number of closed sub-buffers, path, options)."""


@dataclass
class Machine:
    """The emulated kernel, in the serving process; Kernel calls its methods."""

    server: Server
    tsc: int = 1_000_000_000_000
    channels: dict[str, ChannelFile] = field(default_factory=dict)
    load: Load | None = None
    _random: random.Random = field(default_factory=random.Random)
    _late: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)

    def add(self, path: str, *, minor: int = 6, order: str = "<", urgent_from: int | None = None,
            start_us: int = 408_819, **how: Any) -> None:  # noqa: ANN401  # fmt: skip
        """Make a channel file; POLLPRI from *urgent_from* sub-buffers on; *how*: see LttBuffer."""
        tracer = Tracer(minor=minor, order=order, start_tsc=self.tsc, start_us=start_us)
        ring = Ring(tracer, **how)
        self.channels[path] = ChannelFile(self.server, path, ring, urgent_from)
        self.server.add(path, self.channels[path])

    def fill(self, path: str, subbuffers: int) -> None:
        """Log and flush until *subbuffers* more are closed; events without room are lost."""
        ring = self.channels[path].ring
        for _ in range(subbuffers):
            self.tsc += 1000
            ring.log(1, self._random.randbytes(200), self.tsc)
            self.tsc += 1000
            ring.flush(self.tsc)
        self.channels[path].changed()

    def burst(self, path: str, events: int, payload_bytes: int = 200) -> None:
        """Log events without flushing."""
        for _ in range(events):
            self.tsc += 1000
            self.channels[path].ring.log(1, self._random.randbytes(payload_bytes), self.tsc)
        self.channels[path].changed()

    def is_open(self, path: str) -> bool:
        return self.channels[path].is_open

    def describe(self, path: str, *marker: Any) -> None:  # noqa: ANN401
        """Log the declaration of a marker (channel, name, id, format)."""
        self.tsc += 1000
        describe(self.channels[path].ring, Marker(*marker), self.tsc)

    def log(self, path: str, event_id: int, *fields: tuple[str, int | bytes]) -> None:
        """Log an event with these fields."""
        self.tsc += 1000
        ring = self.channels[path].ring
        ring.log(event_id, ring.tracer.pack(*fields), self.tsc)

    def flush(self, path: str) -> None:
        """Close the current sub-buffer."""
        self.tsc += 1000
        self.channels[path].ring.flush(self.tsc)
        self.channels[path].changed()

    def lose(self, path: str, events: int, subbuffers: int = 0) -> None:
        self.channels[path].ring.lose(events, subbuffers)

    def damage(self, path: str, number: int, at: int, value: bytes = b"\0") -> None:
        """Overwrite bytes of a sub-buffer that is still in the ring."""
        ring = self.channels[path].ring
        start = number * ring.subbuffer_bytes % ring.buffer_bytes + at
        ring.memory[start : start + len(value)] = value

    def resize(self, path: str, size_bytes: int) -> None:
        """Limit later splices to *size_bytes*."""
        self.channels[path].size_bytes = size_bytes

    def die(self) -> None:
        """Kill the serving process."""
        os._exit(1)

    def fault(self, path: str, **faults: int) -> None:
        for name, value in faults.items():
            setattr(self.channels[path].faults, name, value)

    def finalize(self, *paths: str) -> None:
        """Finalize these channels; without arguments, destroy the trace."""
        for path in paths or list(self.channels):
            self.tsc += 1000
            if not self.channels[path].ring.finalized:
                self.channels[path].ring.finalize(self.tsc)
            self.channels[path].changed()

    def remove(self, path: str) -> None:
        """Remove the file of a channel, as the kernel does after its last close."""
        del self.channels[path]
        self.server.remove(path)

    def clear(self) -> None:
        """Remove all channels and the load."""
        self.load = None
        self.channels.clear()
        for path in list(self.server.files):
            if path:
                self.server.remove(path)

    def report(self, path: str) -> Report:
        file = self.channels[path]
        ring = file.ring
        return Report(
            ring.written, ring.overwritten, file.refused, file.first, len(ring.logged),
            ring.events_told,
        )  # fmt: skip

    def start(self, load: Load) -> None:
        self.load = load
        self._late = sorted(load.late, reverse=True)
        self._random = random.Random(load.seed)

    def is_loaded(self) -> bool:
        return self.load is not None

    def step(self) -> None:
        """Run the tracer for the time between two calls of the consumer."""
        load, chance = self.load, self._random
        assert load is not None
        for _ in range(load.steps_per_call):
            self.tsc += chance.randrange(10, 100_000)
            path = chance.choice(list(self.channels))
            ring = self.channels[path].ring
            closed = ring.closed
            if chance.random() < load.flush_share:
                ring.flush(self.tsc)
            else:
                size = int(load.largest_bytes ** chance.random())
                ring.log(chance.randrange(64), chance.randbytes(size), self.tsc)
            if ring.closed != closed:
                self.channels[path].changed()
        closed = sum(file.ring.closed for file in self.channels.values())
        while self._late and closed >= self._late[-1][0]:
            _, path, how = self._late.pop()
            self.add(path, **how)
        if closed >= load.subbuffers:
            self.finalize()
            self.load = None


class Kernel:
    """A proxy: each method call runs in the Machine of the serving process."""

    def __init__(self, root: Path, connection: Connection) -> None:
        self.root = root
        self._connection = connection

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: object, **how: object) -> object:
            self._connection.send((name, arguments, how))
            if name == "die":
                return None
            failure, answer = self._connection.recv()
            assert failure is None, failure
            return answer

        return call


@contextmanager
def running_kernel(root: Path) -> Iterator[Kernel]:
    """Emulate a kernel with its channel files in *root*."""
    ours, theirs = socket.socketpair()
    # Not -m: pickled values must name this module, not __main__.
    code = "import sys; from tests.ltt_kernel import serve; serve(sys.argv[1], int(sys.argv[2]))"
    words = [sys.executable, "-c", code, str(root), str(theirs.fileno())]
    process = subprocess.Popen(words, cwd=Path(__file__).parents[1], pass_fds=[theirs.fileno()])
    theirs.close()
    connection = Connection(ours.detach())
    try:
        assert connection.recv() == "mounted"
        yield Kernel(root, connection)
    finally:
        connection.close()  # this ends the process
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        unmount(root)


def serve(root: str, connection_fd: int) -> None:
    """Serve the files until the connection closes."""
    # Signals to the process group end the tests; their end closes the connection.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(connection_fd)
    with mounted(Path(root)) as fd:
        machine = Machine(Server(fd))
        connection.send("mounted")
        while True:
            timeout_s = 0.0005 if machine.load else None
            ready, _, _ = select.select([fd, connection], [], [], timeout_s)
            if connection in ready and not _obey(machine, connection):
                return
            if fd in ready:
                machine.server.serve()
            if machine.load:
                machine.step()


def _obey(machine: Machine, connection: Connection) -> bool:
    try:
        name, arguments, how = connection.recv()
    except (EOFError, ConnectionResetError):
        return False
    try:
        answer = None, getattr(machine, name)(*arguments, **how)
    except Exception as error:  # noqa: BLE001  (it is the test's)
        answer = repr(error), None
    connection.send(answer)
    return True
