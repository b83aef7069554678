"""The victims of the fuzzer: traces of every kind, and directories that a replay reads.

Functions import lttd when they run, because atheris instruments only later imports.
"""

import io
import shutil
import struct
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Final

from tests.data import FIXTURES


def small(trace: Path) -> Path:
    """Make a trace of a few pages with fields of every type, losses and an unknown event."""
    from tests.ftraced import Traced, opened, pages_of, switch, tick  # noqa: PLC0415

    made = Traced(trace, cpus=2)
    made.commands((0, 7, "bash"), (1500, 8, "sh"))
    for cpu in (0, 1):
        for number in range(4):
            events = [tick(number), opened("/a/b" * number, 1), switch(("x", 7), ("y", 8))]
            events.append(struct.pack("<HBBiI", 99, 0, 0, 7, number))
            made.append([pages_of(1000 * number + cpu, events)], cpu=cpu)
        made.append([], cpu=cpu, trailing_loss=5)
    made.finish()
    return trace


def recorded(trace: Path) -> Path:
    """Make a trace of real sub-buffers and formats of a kernel."""
    from lttd.abi.formats_file import pack  # noqa: PLC0415
    from tests.segment_builder import Made  # noqa: PLC0415

    made = Made(trace, cpus=2)
    for cpu in (0, 1):
        raw = (FIXTURES / f"ftrace/per_cpu/cpu{cpu}/trace_pipe_raw").read_bytes()
        pages = [raw[at : at + 4096] for at in range(0, len(raw), 4096)]
        made.append(pages[:8], cpu=cpu)
    events = FIXTURES / "ftrace/events"
    paths = events.glob("*/*/format")
    packed = pack({(path.parts[-3], path.parts[-2]): path.read_bytes() for path in paths})
    _put(made.paths.directory / "tracefs/formats.gz", packed)
    head = (events / "header_page").read_bytes()
    _put(made.paths.directory / "tracefs/events/header_page", head)
    made.finish()
    return trace


def blocks(trace: Path) -> Path:
    """Make a trace of a block device."""
    from tests.blk import c, message, process, record, timestamp  # noqa: PLC0415

    for cpu in (0, 1):
        told = [timestamp(10, 1_700_000_000, cpu), process(20, 10, "dd", cpu)]
        for number in range(12):
            action = (number % 8 + 1) | c["fs"] | c["write"]
            told.append(record(100 * number + 30, action, b"pdu!" * (number % 3), cpu=cpu))
        told.append(message(2000, b"hello", cpu))
        _put(trace.parent / "blktrace" / f"made.blktrace.{cpu}", b"".join(told))
    return _replayed(trace.parent / "blktrace", "blktrace", trace)


def markers(trace: Path) -> Path:
    """Make a trace of LTTng 0.x."""
    from tests.logging_ltt import logged_marker  # noqa: PLC0415
    from tests.segment_builder_ltt import LttBuffer, Marker, Tracer, describe, write_trace  # noqa: PLC0415

    tracer = Tracer()
    logged = logged_marker(tracer, Marker("kernel", "say", 2, "s %s n %u"), ["%s", "%u"])
    buffers = {name: LttBuffer(tracer) for name in ("metadata_0", "kernel_0", "kernel_1")}
    describe(buffers["metadata_0"], logged.marker, tracer.start_tsc)
    for number in range(60):
        payload = logged.payload(tracer, (b"x" * number, number))
        buffers[f"kernel_{number % 2}"].log(2, payload, tracer.start_tsc + 9 * number, 4)
    write_trace(trace.parent / "ltt", buffers)
    return _replayed(trace.parent / "ltt", "ltt", trace)


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _replayed(directory: Path, abi: str, trace: Path) -> Path:
    from lttd.cli import main as record  # noqa: PLC0415

    spec = f"replay:{directory},abi={abi}"
    with redirect_stderr(io.StringIO()) as told:
        status = record(["-t", str(trace), "--source", spec, "--summary", "none"])
    if status:
        raise ValueError(told.getvalue())
    return trace


def ftrace_files(directory: Path) -> Path:
    """Copy a tracefs tree with the first sub-buffers of each CPU."""
    shutil.copytree(FIXTURES / "ftrace", directory)
    for path in directory.glob("per_cpu/cpu*/trace_pipe_raw"):
        path.write_bytes(path.read_bytes()[: 8 * 4096])
    return directory


def blktrace_files(directory: Path) -> Path:
    """Make the files that ``blktrace`` writes."""
    blocks(directory.parent / "unused-blocks")
    shutil.copytree(directory.parent / "blktrace", directory)
    return directory


def ltt_files(directory: Path) -> Path:
    """Make a trace as legacy lttd wrote it."""
    markers(directory.parent / "unused-markers")
    shutil.copytree(directory.parent / "ltt", directory)
    return directory


def compressed(trace: Path) -> Path:
    """Make a trace of several compressed frames, with losses."""
    from lttd.compress import compress  # noqa: PLC0415
    from lttd.files import Disk  # noqa: PLC0415
    from lttd.tracedir import segments  # noqa: PLC0415
    from tests.ftraced import Traced, pages_of, tick  # noqa: PLC0415

    made = Traced(trace, cpus=2)
    for cpu in (0, 1):
        for number in range(200):
            page = pages_of(1000 * number, [tick(at * 7919) for at in range(89)], delta=5)
            made.append([page], cpu=cpu, trailing_loss=number % 50 == 7)
    made.finish()
    compress(segments(trace)[0], Disk())
    return trace


def ctf_files(directory: Path) -> Path:
    """Make a trace as lttng-consumerd writes it, with losses, on two CPUs."""
    from tests.ctf_writer import CtfChannel, CtfTracer, metadata_packets, write_ctf  # noqa: PLC0415

    tracer = CtfTracer(page_bytes=1024)
    channels = [CtfChannel(tracer, cpu=cpu) for cpu in (0, 1)]
    for channel in channels:
        channel.packet().packet(0, lost=2).packet(20, skip=1).packet()
    return write_ctf(directory, *channels, metadata=metadata_packets(tracer))


def packets(trace: Path) -> Path:
    """Make a packed trace of CTF packets."""
    return _replayed(ctf_files(trace.parent / "ctf"), "ctf", trace)


# Inputs are indexes into these lists, one after the other: new entries go to the end of the last.
TRACES: Final[Sequence[Callable[[Path], Path]]] = (small, recorded, blocks, markers)
SOURCES: Final[Sequence[Callable[[Path], Path]]] = (ftrace_files, blktrace_files, ltt_files)
MORE_TRACES: Final[Sequence[Callable[[Path], Path]]] = (compressed,)
LATER_SOURCES: Final[Sequence[Callable[[Path], Path]]] = (ctf_files,)
LATER_TRACES: Final[Sequence[Callable[[Path], Path]]] = (packets,)
