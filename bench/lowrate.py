"""Ten events a second, flushed ten times a second; and no events at all.

The events are markers that this process writes into the instance.  The only enabled event never
happens, so that neither lttd's own wake-ups nor other processes cause events.
"""

import math
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.common import (
    CannotMeasureError,
    Instance,
    Options,
    file_system,
    scratch,
)
from bench.ondisk import stream_bytes, streams
from bench.recorders import Lttd, check_events
from bench.report import Figure, Plot, Report

NAME: Final = "lowrate"
EVENTS: Final = "syscalls:sys_enter_reboot"
EVENTS_PER_S: Final = 10
FLUSH_MS: Final = 100
# lttd first reads the names of tasks after 10 s, and the thread that did so ends 10 s later.
SETTLE_S: Final = 25.0


@dataclass(frozen=True, slots=True)
class Low:
    """The result of ten events a second on the disk."""

    duration_s: float
    events_made: int
    events_in_trace: int
    data_bytes: int
    header_and_content_bytes: int
    entries_most: int
    """The number of entries of the stream that has most."""
    entries_padded: int
    flushes: int
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Idle:
    """The cost of recording no events."""

    duration_s: float
    wakeups: int
    written_bytes: int
    """The bytes that the process sent to the disk."""
    grown_bytes: int
    """The bytes that the streams' files grew by."""

    @property
    def wakeups_per_s(self) -> float:
        """Wake-ups a second, without the one that may lie on the edge of the interval."""
        return max(0, self.wakeups - 1) / self.duration_s


def run(options: Options) -> Report:
    """Measure a low rate, then idleness."""
    low = _low(options.disk_dir, 5 if options.quick else 60)
    idle = _idle(options.disk_dir, 3.0 if options.quick else 30.0)
    padding_bytes = low.data_bytes - low.header_and_content_bytes
    return Report(
        NAME,
        f"flush every {FLUSH_MS} ms, {file_system(options.disk_dir)}",
        ["figure", "10 events/s", "idle"],
        [
            ["seconds", low.duration_s, idle.duration_s],
            ["events made", low.events_made, 0],
            ["events in the trace", low.events_in_trace, None],
            ["data bytes", low.data_bytes, idle.grown_bytes],
            ["headers + content bytes", low.header_and_content_bytes, None],
            ["most entries of one stream", low.entries_most, None],
            ["flushes", low.flushes, None],
            ["wake-ups, all threads", None, idle.wakeups],
            ["bytes sent to the disk", None, idle.written_bytes],
            ["CPU s, whole process", low.cpu_s, None],
        ],
        [
            Figure("data on disk - headers - content", padding_bytes, "=", 0, "bytes"),
            Figure("entries whose packet is not its content", low.entries_padded, "=", 0),
            Figure("events in the trace", low.events_in_trace, "=", low.events_made),
            Figure("entries of a stream", low.entries_most, "<=", low.flushes),
            Figure("idle: wake-ups per second", idle.wakeups_per_s, "<=", 1000 / FLUSH_MS, "/s"),
            Figure("idle: written", idle.written_bytes + idle.grown_bytes, "=", 0, "bytes"),
        ],
        samples={"low": asdict(low), "idle": asdict(idle)},
        plot=Plot(
            "bytes",
            {
                "bytes": {
                    "data on disk": [float(low.data_bytes)],
                    "headers + content": [float(low.header_and_content_bytes)],
                    "in 4 KiB sub-buffers": [4096.0 * low.entries_most],
                }
            },
            log=True,
        ),
    )


def _recorder() -> Lttd:
    return Lttd("packed", "--flush-interval", f"{FLUSH_MS}ms", "--buffer-size", "1M")


def _low(parent: Path, seconds: int) -> Low:
    count = seconds * EVENTS_PER_S
    recorder = _recorder()
    with Instance("low") as instance, scratch(parent) as directory:
        began = time.monotonic()
        with recorder.recording(instance, directory, EVENTS) as recording:
            _make_markers(instance, count)
            recorded = recorder.recorded(recording, directory)
        duration_s = time.monotonic() - began
        found = [(s.data.stat().st_size, s.subbuffers_bytes(), s.entries()) for s in
                 streams(directory / "trace")]  # fmt: skip
        events, _ = check_events(directory / "trace")
    if not found:
        raise CannotMeasureError("there are no streams in the trace")
    return Low(
        duration_s=duration_s,
        events_made=count,
        events_in_trace=events,
        data_bytes=sum(size for size, _, _ in found),
        header_and_content_bytes=sum(sum(sizes) for _, sizes, _ in found),
        entries_most=max(len(entries) for _, _, entries in found),
        entries_padded=sum(
            int((entries["packet_bits"] != 8 * _array(sizes)).sum())
            if len(sizes) == len(entries)
            else abs(len(sizes) - len(entries))
            for _, sizes, entries in found
        ),
        # One more for the first read cycle and one for the drain at the end.
        flushes=math.ceil(duration_s * 1000 / FLUSH_MS) + 2,
        cpu_s=recorded.cpu_s,
    )


def _make_markers(instance: Instance, count: int) -> None:
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(0.0, began + number / EVENTS_PER_S - time.monotonic()))
        instance.write("trace_marker", number)


def _array(values: list[int]) -> Any:  # noqa: ANN401  (numpy's own type says no more)
    import numpy as np  # noqa: PLC0415

    return np.array(values, np.uint64)


def _idle(parent: Path, seconds: float) -> Idle:
    recorder = _recorder()
    with Instance("idle") as instance, scratch(parent) as directory:
        trace = directory / "trace"
        with recorder.recording(instance, directory, EVENTS) as recording:
            pid = recording.process.pid
            time.sleep(SETTLE_S)
            began = time.monotonic()
            before = voluntary_switches(pid), written_bytes(pid), stream_bytes(trace)
            time.sleep(seconds)
            after = voluntary_switches(pid), written_bytes(pid), stream_bytes(trace)
            duration_s = time.monotonic() - began
            recorder.recorded(recording, directory)
    wakeups, written, grown = (new - old for new, old in zip(after, before, strict=True))
    return Idle(duration_s, wakeups, written, grown)


def voluntary_switches(pid: int) -> int:
    """Return how often the threads of a process went to sleep, which is how often they woke."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    found = [re.search(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.M) for text in texts]
    return sum(int(match[1]) for match in found if match)


def written_bytes(pid: int) -> int:
    """Return the number of bytes that a process has sent to the disk."""
    text = Path(f"/proc/{pid}/io").read_text()
    match = re.search(r"^write_bytes:\s*(\d+)", text, re.M)
    return int(match[1]) if match else 0
