"""Where the CPU time of draining goes, per GB: by loop, stage, call, user and system, and symbol.

By loop: rings that were filled before are drained by the C loops of ``bench.drain`` and by lttd's
own loop.  By stage: lttd drains once without writing, once to tmpfs (no block layer) and once to
the disk; then the time of the kernel's threads that write back is added, until a sync has ended: no
process is charged for them.  By call: the two calls that move the data, and the rest.  By symbol:
perf samples one more drain to the disk, and FAMILIES sorts what it finds.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.common import (
    TMPFS_DIR,
    CannotMeasureError,
    Instance,
    Options,
    file_system,
    scratch,
    settle,
    warm,
)
from bench.drain import (
    BYTES_PER_CALL,
    PACKED_LOOP,
    SPLICE,
    SUBBUFFERS_KIB,
    packed_loop,
    splice_loop,
)
from bench.recorders import environment, last_line
from bench.report import Cell, Figure, Plot, Report, median
from bench.stages import CALLS, SAMPLES_PER_S, TAKE, WHOLE, WRITEBACK

NAME: Final = "profile"
PERF: Final = "disk, under perf"
USER: Final = "Python, numpy, libc"
OTHER: Final = "kernel: other"
BACK: Final = "kernel threads that write back"
# A sample belongs to the first family that matches its innermost symbol, else that of the caller,
# and so on: locks and interrupts are part of what they are taken and let in for.
FAMILIES: Final = {
    "kernel: copying": r"copy_|_copy|memcpy|memmove|rep_movs|clear_user|zero_user",
    "kernel: memory": r"page_from_freelist|rmqueue|alloc_(page|frozen)|clear_page|free_|fault"
    r"|kernel_init_pages|post_alloc|prep_new|charge|^lru_|memcg|kmem_cache|slab|kmalloc",
    "kernel: ring": r"ring_buffer|^rb_|tracing_|trace_access|splice|pipe",
    "kernel: block layer": r"blk|bio|virtio|virtqueue|nvme|scsi|vring|dma_|submit_",
    "kernel: page cache": r"filemap|folio|^xa|page_cache|dirty|perform_write|shmem|buffer_head"
    r"|buffers|block_(write|commit)|mpage_",
    "kernel: file system": r"ext4|jbd2|inode|__es_|^mb_|extent|iomap|xfs|btrfs|f2fs",
    "kernel: calls and threads": r"syscall|entry_|futex|schedule|fget|fput|fdget|vfs_|poll",
}
_FRAME: Final = re.compile(r"\s+[0-9a-f]+ (.*) \((.*)\)$")

Sample = dict[str, Any]
Samples = dict[tuple[str, int], list[Sample]]


def run(options: Options) -> Report:
    """Drain with each C loop, with lttd as far as each stage, and once more under perf."""
    ring_kib = (32 if options.quick else 256) << 10
    samples: Samples = defaultdict(list)
    symbols: dict[int, Counter[str]] = {kib: Counter() for kib in SUBBUFFERS_KIB}
    notes = [] if shutil.which("perf") else ["no perf here: no symbols"]
    for _ in range(options.rounds_or(proper=7, quick=1)):
        for kib in SUBBUFFERS_KIB:
            for name, parent, drain in _drains(options):
                with _filled(ring_kib, kib, parent) as (instance, directory):
                    samples[name, kib].append(drain(instance, directory))
            if not notes:
                with (
                    scratch(Path("/tmp")) as beside,
                    _filled(ring_kib, kib, options.disk_dir) as (instance, directory),
                ):
                    data = beside / "perf.data"
                    sample = _drain(WHOLE, instance, directory, "--perf", str(data))
                    symbols[kib] += _families(data, sample["pid"])
                samples[PERF, kib].append(sample)
    return _report(options, samples, symbols, notes)


def _drains(options: Options) -> list[tuple[str, Path, Callable[[Instance, Path], Sample]]]:
    """Return what is measured in each round: its name, its directory, and its function."""
    return [
        (SPLICE, options.disk_dir, splice_loop),
        (PACKED_LOOP, options.disk_dir, packed_loop),
        ("take", TMPFS_DIR, partial(_drain, TAKE)),
        ("tmpfs", TMPFS_DIR, partial(_drain, WHOLE)),
        ("disk", options.disk_dir, partial(_drain, WHOLE)),
    ]


@contextlib.contextmanager
def _filled(ring_kib: int, subbuffer_kib: int, parent: Path) -> Iterator[tuple[Instance, Path]]:
    """Fill rings, and bring disk and memory into the same state before every measurement."""
    with Instance("profile") as instance, scratch(parent) as directory:
        instance.set_sizes(ring_kib, subbuffer_kib)
        instance.fill(ring_kib * 1024 * 5 // (4 * BYTES_PER_CALL))
        settle()
        warm(directory, len(instance.rings()) * ring_kib * 1024)
        yield instance, directory


def _drain(stage: str, instance: Instance, directory: Path, *words: str) -> Sample:
    """Drain *instance* in a process of its own."""
    trace = str(directory / "trace")
    command = [sys.executable, "-m", "bench.stages", stage, instance.name, trace, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if done.returncode != 0:
        raise CannotMeasureError(last_line(done.stderr))
    sample: Sample = json.loads(done.stdout)
    return sample


def _families(data: Path, pid: int) -> Counter[str]:
    """Return the number of perf's samples of a process, and of writing back, by family."""
    command = ["perf", "script", "--input", str(data), "--fields", "comm,pid,ip,sym,dso"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotMeasureError(f"perf script: {last_line(done.stderr)}")
    found: Counter[str] = Counter()
    for sample in done.stdout.split("\n\n"):
        head, *lines = sample.strip("\n").split("\n")
        frames = [(match[1], match[2]) for line in lines if (match := _FRAME.match(line))]
        command_name, _, number = head.strip().rpartition(" ")
        if number == str(pid):
            found[family_of(frames)] += 1
        elif command_name.startswith(WRITEBACK):
            found[BACK] += 1
    return found


def family_of(frames: Sequence[tuple[str, str]]) -> str:
    """Return the family of a sample, by its (symbol, object) pairs, the innermost first."""
    if not frames or not frames[0][1].startswith("[kernel"):
        return USER
    for symbol, where in frames:
        for name, words in FAMILIES.items():
            if where.startswith("[kernel") and re.search(words, symbol):
                return name
    return OTHER


def _report(
    options: Options, samples: Samples, symbols: Mapping[int, Counter[str]], notes: list[str]
) -> Report:
    disk, tmpfs = file_system(options.disk_dir), file_system(TMPFS_DIR)
    tables = {
        kib: _parts(samples, kib, disk, tmpfs) | _by_symbol(samples, kib, symbols[kib])
        for kib in SUBBUFFERS_KIB
    }
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    rows: list[list[Cell]] = [
        [*name, *(tables[kib].get(name) for kib in SUBBUFFERS_KIB)] for name in names
    ]
    found = sum(symbols.values(), Counter())
    unexplained = found[OTHER] / found.total() if found else None
    return Report(
        NAME,
        f"where the CPU time of draining goes, per GB ({disk}, packed)",
        ["by", "part", *(f"CPU s/GB, {kib} KiB" for kib in SUBBUFFERS_KIB)],
        rows,
        [Figure("share of the samples in no family", unexplained, "<=", 0.1)],
        [
            *notes,
            "call: by the clock of each thread; readv copies out of the ring, pwritev2 into the"
            " page cache; the rest is Python, numpy, smaller calls, and threads that take turns",
            "mode: user and system time are sampled at ticks, so small differences mean little",
        ],
        {f"{name}, {kib} KiB": values for (name, kib), values in samples.items()}
        | {f"symbols, {kib} KiB": [dict(counts)] for kib, counts in symbols.items()},
        {"samples_per_s": SAMPLES_PER_S},
        plot=Plot(
            "CPU s / GB",
            {
                f"{kib} KiB": {
                    _label(part): [value]
                    for (by, part), value in tables[kib].items()
                    if by in ("loop", "call")
                }
                for kib in SUBBUFFERS_KIB
            },
        ),
    )


def _label(part: str) -> str:
    """Break the name of a part for the plot."""
    return part.replace(" ", "\n", 1).partition(":")[0]


def _parts(samples: Samples, kib: int, disk: str, tmpfs: str) -> dict[tuple[str, str], float]:
    """Return CPU seconds per GB by loop, by stage, by call and by mode."""

    def per_gb(name: str, key: str = "cpu_s") -> float:
        found = [each[key] / (each["delivered_bytes"] / 1e9) for each in samples[name, kib]]
        return median(found) or 0.0

    whole, calls = per_gb("disk"), {name: per_gb("disk", f"{name}_s") for name in CALLS}
    parts = {("loop", name): per_gb(name) for name in (SPLICE, PACKED_LOOP)}
    parts |= {
        ("loop", "lttd"): whole,
        ("stage", "take only"): per_gb("take"),
        ("stage", f"and write to {tmpfs}"): per_gb("tmpfs"),
        ("stage", f"and write to {disk}"): whole,
        ("stage", f"and the {BACK}"): whole + per_gb("disk", "writeback_s"),
    }
    parts |= {("call", name): value for name, value in calls.items()}
    parts["call", "the rest of lttd"] = whole - sum(calls.values())
    for name, words in ((SPLICE, SPLICE), (PACKED_LOOP, PACKED_LOOP), ("disk", "lttd")):
        for mode in ("user", "system"):
            parts["mode", f"{words}, {mode}"] = per_gb(name, f"{mode}_s")
    return parts


def _by_symbol(samples: Samples, kib: int, symbols: Counter[str]) -> dict[tuple[str, str], float]:
    sampled_gb = sum(sample["delivered_bytes"] for sample in samples[PERF, kib]) / 1e9
    return {
        ("symbol", name): count / SAMPLES_PER_S / sampled_gb
        for name, count in symbols.most_common()
    }
