"""Where the CPU time of draining goes, per GB: by stage, by user and system, and by symbol.

By stage: rings that were filled before are drained by lttd's own loop, once without writing, once
to tmpfs (no block layer) and once to the disk; then the time of the kernel's threads that write
back is added, until a sync has ended: no process is charged for them.  By symbol: perf samples one
more drain to the disk, and FAMILIES sorts what it finds.
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
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
from bench.drain import BYTES_PER_CALL
from bench.recorders import environment, last_line
from bench.report import Cell, Figure, Plot, Report, median
from bench.stages import SAMPLES_PER_S, TAKE, WHOLE, WRITEBACK

NAME: Final = "profile"
SUBBUFFER_KIB: Final = 4
USER: Final = "Python, numpy, libc"
OTHER: Final = "kernel: other"
BACK: Final = "kernel threads that write back"
_LABELS: Final = ("take\nonly", "write\nto tmpfs", "write\nto disk", "and write\nback")
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


def run(options: Options) -> Report:
    """Drain as far as each stage in turn, and once more under perf."""
    ring_kib = (32 if options.quick else 256) << 10
    places = {"disk": options.disk_dir, "tmpfs": TMPFS_DIR}
    samples: dict[str, list[Sample]] = {"take": [], "tmpfs": [], "disk": []}
    symbols: Counter[str] = Counter()
    sampled_bytes, notes = 0, [] if shutil.which("perf") else ["no perf here: no symbols"]
    for _ in range(options.rounds_or(proper=7, quick=1)):
        samples["take"].append(_drain(TAKE, TMPFS_DIR, ring_kib))
        for name, parent in places.items():
            samples[name].append(_drain(WHOLE, parent, ring_kib))
        if not notes:
            with scratch(Path("/tmp")) as directory:
                data = directory / "perf.data"
                sample = _drain(WHOLE, options.disk_dir, ring_kib, "--perf", str(data))
                symbols += _families(data, sample["pid"])
            sampled_bytes += sample["delivered_bytes"]
    return _report(options, samples, symbols, sampled_bytes, notes)


def _drain(stage: str, parent: Path, ring_kib: int, *words: str) -> Sample:
    """Fill rings, and drain them in a process of its own."""
    with Instance("profile") as instance, scratch(parent) as directory:
        instance.set_sizes(ring_kib, SUBBUFFER_KIB)
        instance.fill(ring_kib * 1024 * 5 // (4 * BYTES_PER_CALL))
        settle()
        warm(directory, len(instance.rings()) * ring_kib * 1024)
        trace = str(directory / "trace")
        command = [sys.executable, "-m", "bench.stages", stage, instance.name, trace, *words]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment()
        )
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
    options: Options,
    samples: dict[str, list[Sample]],
    symbols: Counter[str],
    sampled_bytes: int,
    notes: list[str],
) -> Report:
    def per_gb(name: str, key: str = "cpu_s") -> float:
        found = [each[key] / (each["delivered_bytes"] / 1e9) for each in samples[name]]
        return median(found) or 0.0

    disk, tmpfs = file_system(options.disk_dir), file_system(TMPFS_DIR)
    whole = per_gb("disk") + per_gb("disk", "writeback_s")
    by_stage = {
        "take only": per_gb("take"),
        f"and write to {tmpfs}": per_gb("tmpfs"),
        f"and write to {disk}": per_gb("disk"),
        f"and write to {disk}, with the {BACK}": whole,
    }
    by_mode = {
        f"{where}, {mode}": per_gb(name, f"{mode}_s")
        for name, where in (("take", "take only"), ("disk", f"to {disk}"))
        for mode in ("user", "system")
    }
    by_symbol = {
        name: count / SAMPLES_PER_S / (sampled_bytes / 1e9) for name, count in symbols.most_common()
    }
    sampled = sum(by_symbol.values())
    rows: list[list[Cell]] = [["stage", name, s, 100 * s / whole] for name, s in by_stage.items()]
    rows += [["mode", name, s, 100 * s / whole] for name, s in by_mode.items()]
    rows += [["symbol", name, s, 100 * s / sampled] for name, s in by_symbol.items()]
    unexplained = by_symbol.get(OTHER, 0.0) / sampled if sampled else None
    return Report(
        NAME,
        f"where the CPU time of draining goes ({disk}, sub-buffers of {SUBBUFFER_KIB} KiB, packed)",
        ["by", "part", "CPU s/GB", "%"],
        rows,
        [Figure("share of the samples in no family", unexplained, "<=", 0.1)],
        [*notes, "%: of lttd and of the kernel's threads that write back, sync included"],
        {**samples, "symbols": dict(symbols)},
        {"samples_per_s": SAMPLES_PER_S, "sampled_bytes": sampled_bytes},
        plot=Plot(
            "CPU s / GB",
            {
                "by stage": dict(zip(_LABELS, ([s] for s in by_stage.values()), strict=True)),
                "by symbol": {
                    name.replace(": ", "\n"): [s]
                    for name, s in by_symbol.items()
                    if name not in (BACK, OTHER)
                },
            },
        ),
    )
