"""Ways to take sub-buffers of lttng-modules into a file, measured in the guest.

    python -m bench.lttng_takes ROUNDS > samples.json

Each sample fills the rings of all CPUs with system calls, drains them into a file, fills them again
and measures the second drain, when all pages are mapped:

    copy      a copy from the mapping into memory, and a write of many sub-buffers (as lttd does)
    mapping   a write from the mapping, while the sub-buffer is held, of its padded size
    pipe      a splice into a pipe, a read into memory, and a write of many sub-buffers
    patched   a splice into a pipe, a read and a write of the header, and a splice of the rest of
              the content into the file: packed, but the disk holds up the ring
    file      a splice into a pipe and into the file, of the padded size (as lttng-consumerd does)

A sample is the bytes of the sub-buffers' content, and the CPU time.
"""

import fcntl
import json
import mmap
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from lttd.sources.lttng import abi
from lttd.sources.lttng.ring import Ring, Taken
from lttd.sources.lttng.session import PATH

SUBBUFFER_BYTES: Final = 256 << 10
SUBBUFFERS: Final = 32
AT_ONCE_BYTES: Final = 4 << 20
SPLICE: Final = 0
HEADER_BYTES: Final = 84
# Each call of dd is two system calls, so four events.
CALLS: Final = 90_000

Drain = Callable[[int], int]
"""Drains a stream into a file; returns the bytes of content."""


@contextmanager
def rings(output: int) -> Iterator[tuple[list[int], int]]:
    """Yield the descriptors of a ring for each CPU, and of their session; it records nothing."""
    with ExitStack() as undo:

        def kept(fd: int) -> int:
            undo.callback(_close, fd)
            return fd

        tracer = kept(os.open(PATH, os.O_RDWR))
        session = kept(abi.call(tracer, abi.SESSION))
        form = abi.CHANNEL.pack(SUBBUFFER_BYTES, SUBBUFFERS, 0, 200_000, output, 0, b"")
        channel = kept(abi.give(session, abi.NEW_CHANNEL, form))
        calls = abi.SYSCALL.pack(0, 0, 0, 0, 0)
        event = abi.EVENT.pack(b"*", abi.SYSCALL_EVENT, 0, b"", calls)
        abi.call(kept(abi.give(channel, abi.NEW_EVENT, event)), abi.ENABLE)
        streams = []
        with suppress(OSError):  # ENOENT: each CPU has one
            while True:
                streams.append(kept(abi.call(channel, abi.STREAM)))
        yield streams, session


def _close(fd: int) -> None:
    with suppress(OSError):  # a Ring has closed its own
        os.close(fd)


def fill(session: int, cpus: int) -> None:
    """Record system calls on each CPU until its ring is full."""
    abi.call(session, abi.START)
    for cpu in range(cpus):
        command = f"taskset -c {cpu} dd if=/dev/zero of=/dev/null bs=1 count={CALLS} status=none"
        subprocess.run(command.split(), check=True)
    abi.call(session, abi.STOP)


def by_copy(fd: int) -> Drain:
    """Copy from the mapping; write many sub-buffers at a time."""
    ring, buffer = Ring(fd, "stream"), memoryview(bytearray(AT_ONCE_BYTES))

    def drain(out: int) -> int:
        total = used = 0
        while isinstance(taken := ring.take(buffer[used:]), Taken):
            used += taken.used_bytes
            if used + SUBBUFFER_BYTES > AT_ONCE_BYTES:
                total += os.write(out, buffer[:used])
                used = 0
        return total + os.write(out, buffer[:used])

    return drain


def by_mapping(fd: int) -> Drain:
    """Write from the mapping."""
    length = abi.ask_word(fd, abi.MAPPING_BYTES)
    mapped = memoryview(mmap.mmap(fd, length, mmap.MAP_PRIVATE, mmap.PROT_READ))

    def drain(out: int) -> int:
        total = 0
        for content, padded in held(fd):
            begin = abi.ask_word(fd, abi.MAPPING_OFFSET)
            os.write(out, mapped[begin : begin + padded])
            total += content
        return total

    return drain


def by_pipe(fd: int) -> Drain:
    """Splice into a pipe, and read; write many sub-buffers at a time."""
    source, sink = pipe()
    buffer = memoryview(bytearray(AT_ONCE_BYTES))

    def drain(out: int) -> int:
        total = used = 0
        for content, padded in held(fd):
            at = 0
            while at < padded:
                got = os.splice(fd, sink, padded - at, offset_src=at)
                os.readv(source, [buffer[used + at : used + at + got]])
                at += got
            used += content
            if used + SUBBUFFER_BYTES > AT_ONCE_BYTES:
                total += os.write(out, buffer[:used])
                used = 0
        return total + os.write(out, buffer[:used])

    return drain


def by_patched(fd: int) -> Drain:
    """Read and write the header; splice the rest of the content, and drop the padding."""
    source, sink = pipe()
    null = os.open(os.devnull, os.O_WRONLY)

    def drain(out: int) -> int:
        total = 0
        for content, padded in held(fd):
            at, left = 0, content
            while at < padded:
                got = os.splice(fd, sink, padded - at, offset_src=at)
                if not at:
                    head = os.read(source, HEADER_BYTES)
                    left -= os.write(out, head)
                part = min(got - (0 if at else HEADER_BYTES), left)
                spliced(source, out, part)
                spliced(source, null, got - (0 if at else HEADER_BYTES) - part)
                at, left = at + got, left - part
            total += content
        return total

    return drain


def by_file(fd: int) -> Drain:
    """Splice into a pipe, and on into the file."""
    source, sink = pipe()

    def drain(out: int) -> int:
        total = 0
        for content, padded in held(fd):
            at = 0
            while at < padded:
                got = os.splice(fd, sink, padded - at, offset_src=at)
                spliced(source, out, got)
                at += got
            total += content
        return total

    return drain


def held(fd: int) -> Iterator[tuple[int, int]]:
    """Yield the size of each sub-buffer, without and with padding, while it is held."""
    while True:
        try:
            abi.call(fd, abi.GET_NEXT)
        except BlockingIOError:
            return
        yield abi.ask_word(fd, abi.SUBBUFFER_BYTES), abi.ask_word(fd, abi.PADDED_BYTES)
        abi.call(fd, abi.PUT_NEXT)


def spliced(source: int, out: int, count: int) -> None:
    """Splice *count* bytes from a pipe."""
    while count:
        count -= os.splice(source, out, count)


def pipe() -> tuple[int, int]:
    """Return both ends of a pipe that holds a sub-buffer."""
    source, sink = os.pipe()
    fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, SUBBUFFER_BYTES)
    return source, sink


WAYS: Final[dict[str, tuple[int, Callable[[int], Drain]]]] = {
    "copy": (abi.OUTPUT_MMAP, by_copy),
    "mapping": (abi.OUTPUT_MMAP, by_mapping),
    "pipe": (SPLICE, by_pipe),
    "patched": (SPLICE, by_patched),
    "file": (SPLICE, by_file),
}


def measured(way: str) -> dict[str, float]:
    """Fill the rings and drain them, twice; return bytes and CPU time of the second drain."""
    output, make = WAYS[way]
    with rings(output) as (streams, session), tempfile.TemporaryFile() as file:
        drains = [make(fd) for fd in streams]
        for _ in range(2):
            fill(session, len(streams))
            os.lseek(file.fileno(), 0, os.SEEK_SET)
            before = resource.getrusage(resource.RUSAGE_SELF)
            content_bytes = sum(drain(file.fileno()) for drain in drains)
            after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "bytes": content_bytes,
        "user_s": after.ru_utime - before.ru_utime,
        "system_s": after.ru_stime - before.ru_stime,
    }


def main() -> None:
    """Measure each way in turn; print the samples."""
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(int(sys.argv[1])):
        for way, some in samples.items():
            some.append(measured(way))
    json.dump(samples, sys.stdout)


if __name__ == "__main__":
    main()
