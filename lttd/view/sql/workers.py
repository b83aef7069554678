"""Processes that decode pieces beside this one.

One process is forked before this one has threads: a fork of a process with threads may find locks
that nobody opens.  It waits for scans, and forks a process for each job of a scan:

    this process ──scan, pipe──▶ the first one ──fork──▶ job 1, 2, ... ──pieces──▶ this process

Rule: between fork and exit a process neither returns nor raises into the caller's code.
Rule: a job that cannot go on ends; the reader of its pipe makes the rest by itself.
"""

import os
import pickle
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NoReturn

_SIZE: Final = struct.Struct("<Q")
_MOST_REQUEST_BYTES: Final = 1 << 20
_END: Final = b""

Job = Callable[[Any, int, int], Iterator[Any]]
"""Called with what is asked for, the number of the job, and the number of jobs."""


class Workers:
    """Starts jobs that make every n-th piece."""

    def __init__(self, job: Job, most: int) -> None:
        """*most*: the number of jobs of a scan at most, this process included."""
        self._most = most
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            self._socket.close()
            _serve(theirs, job)
        theirs.close()

    def owed(self, asked: Any, count: int) -> "Owed | None":  # noqa: ANN401  (any scan)
        """Start the jobs for what is asked for; None: one process makes it all."""
        count = min(count, self._most)
        if count < 2:
            return None
        pipes: list[int | None] = [None]
        for number in range(1, count):
            read, written = os.pipe()
            request = pickle.dumps((asked, number, count))
            sent = len(request) <= _MOST_REQUEST_BYTES
            try:
                if sent:
                    socket.send_fds(self._socket, [request], [written])
            except OSError:
                sent = False
            os.close(written)
            if not sent:
                os.close(read)
            pipes.append(read if sent else None)
        return Owed(pipes)

    def close(self) -> None:
        """End the process that starts jobs; jobs end when nobody reads their pipes."""
        self._socket.close()
        with suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


class Owed:
    """The pieces that the jobs of one scan make."""

    def __init__(self, pipes: list[int | None]) -> None:
        self._pipes = pipes

    def next(self, number: int) -> Any:  # noqa: ANN401  (what the job made)
        """Return the piece of this number, the next of its job; None: make it here."""
        at = number % len(self._pipes)
        pipe = self._pipes[at]
        if pipe is None:
            return None
        head = _read(pipe, _SIZE.size)
        body = _read(pipe, _SIZE.unpack(head)[0]) if head else b""
        if not body:
            os.close(pipe)
            self._pipes[at] = None
            return None
        return pickle.loads(body)

    def close(self) -> None:
        """End the jobs."""
        for pipe in self._pipes:
            if pipe is not None:
                os.close(pipe)
        self._pipes = [None]


def _read(fd: int, size: int) -> bytearray:
    """Read so many bytes; none, if the writer ended before."""
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = os.readv(fd, [rest])
        if not count:
            return bytearray()
        rest = rest[count:]
    return data


def _serve(requests: socket.socket, job: Job) -> NoReturn:
    """Fork a job for each request, until this process's parent ends."""
    jobs: list[int] = []
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
        while True:
            request, fds, _, _ = socket.recv_fds(requests, _MOST_REQUEST_BYTES, 1)
            if not request:
                break
            pid = os.fork()
            if not pid:
                requests.close()
                _run(fds[0], job, *pickle.loads(request))
            jobs.append(pid)
            os.close(fds[0])
    finally:
        _end(jobs)


def _end(jobs: list[int]) -> NoReturn:
    """End the jobs, and this process; wait for them, so that their CPU time is counted as its."""
    try:
        for pid in jobs:
            os.kill(pid, signal.SIGKILL)
        for pid in jobs:
            os.waitpid(pid, 0)
    finally:
        os._exit(0)


def _run(pipe: int, job: Job, asked: Any, number: int, count: int) -> NoReturn:  # noqa: ANN401
    status = 1
    try:
        for made in job(asked, number, count):
            body = pickle.dumps(made, 5)
            _write(pipe, _SIZE.pack(len(body)))
            _write(pipe, body)
        status = 0
    except BaseException:  # noqa: BLE001  (the reader meets the error in the same piece)
        pass
    finally:
        os._exit(status)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
