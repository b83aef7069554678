"""Make an instance as a start does, try in it what lttd uses of the kernel, and remove it.

Rule: only instances of lttd's own are tried; the settings and data of others stay untouched.
Rule: signals wait until the instance is removed, and a runtime directory that was made goes, too.
"""

import os
import select
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from lttd.config import SourceSpec
from lttd.doctor.controls import in_instance
from lttd.doctor.finding import Finding, Findings, Mark, either, refused
from lttd.errors import LttdError
from lttd.runtime import directory_path
from lttd.signals import MEANINGS
from lttd.sources.base import Child, Source, When, child_of
from lttd.sources.mounts import find_tracefs
from lttd.sources.registry import open_source
from lttd.sources.table import DEFAULT
from lttd.sources.tracefs import read_text, write_text
from lttd.stats import counted, human_bytes
from lttd.subbuffer import TAKE_BYTES, BufferPool

# A CPU in a loop of system calls, with raw_syscalls on: bench/ prints it.
BURST_BYTES_PER_S: Final = 100_000_000
# The scheduler may let lttd wait so long on a busy machine.
LEAST_BURST_S: Final = 0.02
TRIED_SUBBUFFER_KIB: Final = 64
MEMORY: Final = Path("/proc/meminfo")


def try_sources(
    specs: Sequence[SourceSpec], backlog_bytes: int, *, command: bool = False
) -> Findings:
    """Try each source as a start would; see the rules of this file.

    *command*: it would run COMMAND.
    """
    try:
        pool = BufferPool(backlog_bytes + TAKE_BYTES)
    except (OSError, MemoryError):
        words = f"this process may not have the {human_bytes(backlog_bytes)} of --backlog"
        yield Finding("memory", Mark.BAD, words, "ulimit -v, systemd: MemoryMax=; ask for less")
        return
    for spec in specs:
        if spec.kind == DEFAULT and spec.target is None:
            with _nothing_left():
                found = _tried(spec, pool, child_of(os.getpid() if command else None, ["lttd"]))
            yield from found
        else:
            words = f"{spec}: not tried, because that would change what is not lttd's"
            yield Finding("recording", Mark.NOTE, words, "lttd --duration 1s tries it")


@contextmanager
def _nothing_left() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, MEANINGS)
    made: list[Path] = []
    with suppress(LttdError):
        runtime = Path(directory_path()).absolute()
        made = [path for path in (runtime, *runtime.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):  # it was not made, or another lttd uses it now
                path.rmdir()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _tried(spec: SourceSpec, pool: BufferPool, command: Child | None) -> list[Finding]:
    with ExitStack() as stack:
        try:
            source = open_source(spec, pool, command=command)
            stack.callback(source.close)
            for _ in source.attachments()(When.OPEN):
                pass  # the files that decoding needs can be read
            source.start()
            found = [*_source(source), *_features(_path(source))]
            source.stop()
        except LttdError as error:
            return [refused("recording", error)]
    # What the end could not undo, too.
    return found + [Finding("recording", Mark.NOTE, note) for note in source.notes()]


def _path(source: Source) -> str:
    return f"{find_tracefs()}/instances/{source.info.settings['instance']}"


def _source(source: Source) -> Findings:
    settings, cpus = source.info.settings, len(source.streams)
    events = ", ".join(settings["events"])
    yield Finding(
        "recording",
        Mark.OK,
        f"an instance was made and read: {counted(cpus, 'CPU')}, clock {source.info.clock},"
        f" events {events}",
    )
    ring_bytes = settings["buffer_bytes"]
    burst_s = ring_bytes / BURST_BYTES_PER_S
    each = f"{human_bytes(ring_bytes)} for each of {counted(cpus, 'CPU')}"
    lasts = f"100 MB/s on one CPU (a loop of system calls) fill it in {burst_s * 1000:.0f} ms"
    available_bytes = _available_bytes()
    if burst_s < LEAST_BURST_S:
        yield Finding("rings", Mark.NOTE, f"{each}; {lasts}", "--buffer-size 4M or more")
    else:
        share = f"{human_bytes(ring_bytes * cpus)} of {human_bytes(available_bytes)} of free memory"
        yield either(
            "rings",
            4 * ring_bytes * cpus < available_bytes,
            f"{each}; {lasts}",
            f"{each}: {share}",
            "a smaller --buffer-size",
        )


def _available_bytes() -> int:
    text = MEMORY.read_text().partition("MemAvailable:")[2]
    return int(text.split()[0]) << 10


def _features(path: str) -> Findings:
    """Try the kernel's features in the instance at *path*, which records."""
    yield either(
        "poll",
        _poll_waits(path),
        "waits for a share of the ring (buffer_percent)",
        "reports the first event, so that lttd wakes up more often",
        "Linux 6.1 waits for a share of the ring",
    )
    yield either(
        "sub-buffers",
        _subbuffers_can_be_sized(path),
        f"of any size: {TRIED_SUBBUFFER_KIB} KiB were tried",
        "of one page only, so that --subbuffer-size has no effect",
        "Linux 6.8 has buffer_subbuf_size_kb",
    )
    yield either(
        "own threads",
        Path(path, "set_event_notrace_pid").exists(),
        "can be left out of the trace by --no-trace-self",
        "cannot be left out by --no-trace-self; lttv --hide-self can",
        "Linux 5.7 has set_event_notrace_pid",
    )
    yield from in_instance(path)
    has_snapshot = Path(path, "snapshot").exists()
    words = "can be taken" if has_snapshot else "this kernel has none, and lttd needs none"
    yield Finding("snapshot", Mark.OK, words)
    surviving = sorted(Path(path).parent.glob("*/last_boot_info"))
    yield either(
        "over a reboot",
        surviving,
        f"the ring of {', '.join(each.parent.name for each in surviving)} survives",
        "no ring survives a crash of the kernel",
        "Linux 6.12: boot with reserve_mem=20M:2M:trace trace_instance=bm@trace",
    )


def _poll_waits(path: str) -> bool:
    """Tell whether poll still waits with one event in the ring.

    Linux 42fb0a1e84ff (v6.1) lets poll wait for buffer_percent.
    """
    percent = f"{path}/buffer_percent"
    if not Path(percent).exists() or read_text(percent) == "0":
        return False
    poller, fds = select.poll(), []
    try:
        for raw in Path(path).glob("per_cpu/cpu*/trace_pipe_raw"):
            fds.append(os.open(raw, os.O_RDONLY | os.O_NONBLOCK))
            poller.register(fds[-1], select.POLLIN)
        write_text(f"{path}/trace_marker", "lttd doctor")
        # A CPU that is absent has no ring, and poll reports an error of it.
        return not any(events & select.POLLIN for _, events in poller.poll(0))
    finally:
        for fd in fds:
            os.close(fd)


def _subbuffers_can_be_sized(path: str) -> bool:
    file = f"{path}/buffer_subbuf_size_kb"
    try:
        write_text(file, str(TRIED_SUBBUFFER_KIB))
        return read_text(file) == str(TRIED_SUBBUFFER_KIB)
    except LttdError:
        return False
