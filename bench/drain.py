"""CPU seconds per GB drained: lttd beside a C splice loop and ``trace-cmd record``.

In the loop: the rings are filled first, then drained with tracing off; only the CPU time of the
draining counts.  Whole process: the CPU time of a recorder from exec to exit on a live load.  Whole
machine: that of all CPUs from before the recorder's start until its data is synced, without the
load's own, so that writeback by kernel threads counts.  Left in cache: the part of the recorder's
files that is in the page cache then.  One run measures all variants in turn, round by round.
"""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bench.common import (
    TMPFS_DIR,
    CannotMeasureError,
    Instance,
    Options,
    children_cpu_s,
    compiled,
    file_system,
    left_in_cache_bytes,
    machine_cpu_s,
    scratch,
    settle,
    syscall_load,
    warm,
)
from bench.recorders import Lttd, TraceCmd, environment, last_line
from bench.report import Cell, Figure, Plot, Report, median, ratio

NAME: Final = "drain"
BYTES_PER_CALL: Final = 98  # two raw_syscalls events with their share of the page headers
EVENTS: Final = "raw_syscalls:*"
SUBBUFFERS_KIB: Final = (4, 64)
LAYOUTS: Final = ("packed", "sparse")
LIVE_RING_KIB: Final = 16 << 10
SPLICE: Final = "C splice loop (a)"
SPLICE_BEHIND: Final = "the same, writing behind"
PACKED_LOOP: Final = "C packed loop"
TRACE_CMD: Final = "trace-cmd (b)"


@dataclass(frozen=True, slots=True)
class Amounts:
    """The amount of data that one measurement drains."""

    ring_kib: int
    live_calls_per_cpu: int
    cold_memory: bool

    def prepare(self, directory: Path, size_bytes: int) -> None:
        """Bring disk and memory into the same state before every measurement."""
        settle()
        if not self.cold_memory:
            warm(directory, size_bytes)


@dataclass(frozen=True, slots=True)
class Variant:
    """One line of the table."""

    where: str
    """``in the loop`` or ``whole process``."""
    who: str
    subbuffer_kib: int

    @property
    def label(self) -> str:
        """The name in the plot."""
        return f"{self.who}\n{self.subbuffer_kib} KiB"


Samples = dict[tuple[Variant, str], list[dict[str, Any]]]


def run(options: Options) -> Report:
    """Measure everything, on the disk and on tmpfs."""
    ring_kib, calls = (32 << 10, 500_000) if options.quick else (256 << 10, 6_000_000)
    amounts = Amounts(ring_kib, calls, options.cold_memory)
    places = {file_system(options.disk_dir): options.disk_dir}
    places[file_system(TMPFS_DIR)] = TMPFS_DIR
    samples: Samples = defaultdict(list)
    notes: list[str] = []
    for _ in range(options.rounds_or(proper=7, quick=1)):
        for place, parent in places.items():
            _round(samples, notes, place, parent, amounts)
    return _report(samples, list(places), amounts, notes)


def _round(samples: Samples, notes: list[str], place: str, parent: Path, amounts: Amounts) -> None:
    for variant, measure in _variants(amounts):
        try:
            with scratch(parent) as directory:
                samples[variant, place].append(measure(directory))
        except CannotMeasureError as error:
            note = f"{variant.where}, {variant.who}, {variant.subbuffer_kib} KiB: {error}"
            if note not in notes:
                notes.append(note)


def _variants(amounts: Amounts) -> list[tuple[Variant, Callable[[Path], dict[str, Any]]]]:
    found: list[tuple[Variant, Callable[[Path], dict[str, Any]]]] = []
    for kib in SUBBUFFERS_KIB:
        found.append((Variant("in the loop", SPLICE, kib), _filled(splice_loop, kib, amounts)))
        behind = Variant("in the loop", SPLICE_BEHIND, kib)
        found.append((behind, _filled(_splice_behind, kib, amounts)))
        least = Variant("in the loop", PACKED_LOOP, kib)
        found.append((least, _filled(packed_loop, kib, amounts)))
        for layout in LAYOUTS:
            drain = _lttd_drainer(layout)
            found.append(
                (Variant("in the loop", f"lttd {layout}", kib), _filled(drain, kib, amounts))
            )
    found.append((Variant("whole process", TRACE_CMD, 4), _live(TraceCmd(), 4, amounts)))
    plain = TraceCmd("--compression", "none")
    variant = Variant("whole process", "trace-cmd uncompressed", 4)
    found.append((variant, _live(plain, 4, amounts)))
    for kib in SUBBUFFERS_KIB:
        for layout in LAYOUTS:
            variant = Variant("whole process", f"lttd {layout}", kib)
            found.append((variant, _live(Lttd(layout), kib, amounts)))
    return found


# -- in the loop


def _filled(
    drain: Callable[[Instance, Path], dict[str, Any]], subbuffer_kib: int, amounts: Amounts
) -> Callable[[Path], dict[str, Any]]:
    def measure(directory: Path) -> dict[str, Any]:
        with Instance("drain") as instance:
            instance.set_sizes(amounts.ring_kib, subbuffer_kib)
            # A little more than fits, so that every page of the ring is full.
            instance.fill(amounts.ring_kib * 1024 * 5 // (4 * BYTES_PER_CALL))
            held = instance.counters().entries
            amounts.prepare(directory, len(instance.rings()) * amounts.ring_kib * 1024)
            sample = drain(instance, directory)
            left = instance.counters().entries
        if left > held // 100:
            raise CannotMeasureError(f"{left} of {held} events are still in the rings")
        return sample

    return measure


def splice_loop(instance: Instance, directory: Path) -> dict[str, Any]:
    """Drain with the C loop that keeps padding and reads no header."""
    return _c_loop("splice_loop", instance, directory)


def _splice_behind(instance: Instance, directory: Path) -> dict[str, Any]:
    return _c_loop("splice_loop", instance, directory, "-w")


def packed_loop(instance: Instance, directory: Path) -> dict[str, Any]:
    """Drain with the C loop that does what a recorder of packed data must do."""
    subbuffer_kib = instance.read("buffer_subbuf_size_kb")
    return _c_loop("packed_loop", instance, directory, subbuffer_kib)


def _c_loop(program: str, instance: Instance, directory: Path, *words: str) -> dict[str, Any]:
    pairs: list[str] = []
    for cpu, ring in enumerate(instance.rings()):
        pairs += [str(ring), str(directory / f"cpu{cpu}")]
    done = _output_of([str(compiled(program)), *words, *pairs])
    drained_bytes, user_us, system_us = map(int, done.split())
    return {
        "cpu_s": (user_us + system_us) / 1e6,
        "user_s": user_us / 1e6,
        "system_s": system_us / 1e6,
        "delivered_bytes": drained_bytes,
    }


def _lttd_drainer(layout: str) -> Callable[[Instance, Path], dict[str, Any]]:
    def drain(instance: Instance, directory: Path) -> dict[str, Any]:
        command = [sys.executable, "-m", "bench.inloop", instance.name, str(directory / "trace")]
        sample: dict[str, Any] = json.loads(_output_of([*command, "--layout", layout]))
        return sample

    return drain


def _output_of(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if done.returncode != 0:
        raise CannotMeasureError(f"{Path(command[0]).name}: {last_line(done.stderr)}")
    return done.stdout


# -- whole process


def _live(
    recorder: Lttd | TraceCmd, subbuffer_kib: int, amounts: Amounts
) -> Callable[[Path], dict[str, Any]]:
    def measure(directory: Path) -> dict[str, Any]:
        with Instance("live") as instance:
            instance.set_sizes(LIVE_RING_KIB, subbuffer_kib)
            amounts.prepare(directory, 2 * amounts.live_calls_per_cpu * BYTES_PER_CALL)
            machine_s = machine_cpu_s()
            with recorder.recording(instance, directory, EVENTS) as recording:
                children_s = children_cpu_s()
                with syscall_load(amounts.live_calls_per_cpu) as load:
                    load.wait()
                load_s = children_cpu_s() - children_s
                recorded = recorder.recorded(recording, directory)
            settle()
            machine_s = machine_cpu_s() - machine_s - load_s
            counters = instance.counters()
        return {
            "cpu_s": recorded.cpu_s,
            "delivered_bytes": recorded.delivered_bytes,
            "lost_share": counters.lost_share,
            "machine_s": machine_s,
            "left_in_cache_mib": left_in_cache_bytes(directory) / (1 << 20),
        }

    return measure


# -- the table


def _report(samples: Samples, places: list[str], amounts: Amounts, notes: list[str]) -> Report:
    def per_gb(variant: Variant, place: str) -> list[float]:
        return [
            sample["cpu_s"] / (sample["delivered_bytes"] / 1e9)
            for sample in samples.get((variant, place), [])
            if sample["delivered_bytes"]
        ]

    def live(key: str, who: str, place: str) -> list[float]:
        variant = Variant("whole process", who, 4)
        found = samples.get((variant, place), [])
        return [each[key] / (each["delivered_bytes"] / 1e9) for each in found]

    def left(who: str) -> list[float]:
        found = samples.get((Variant("whole process", who, 4), places[0]), [])
        return [each["left_in_cache_mib"] for each in found]

    def ratio_to_base(variant: Variant, place: str) -> float | None:
        base = (
            Variant("in the loop", SPLICE, variant.subbuffer_kib)
            if variant.where == "in the loop"
            else Variant("whole process", TRACE_CMD, 4)
        )
        return ratio(median(per_gb(variant, place)), median(per_gb(base, place)))

    variants = [variant for variant, _ in _variants(amounts)]
    rows: list[list[Cell]] = []
    for variant in variants:
        row: list[Cell] = [variant.where, variant.who, variant.subbuffer_kib]
        for place in places:
            row += [median(per_gb(variant, place)), ratio_to_base(variant, place)]
        rows.append(row)
    disk = places[0]
    figures = [
        Figure(
            f"in the loop, {kib} KiB {layout} / C splice loop",
            ratio_to_base(Variant("in the loop", f"lttd {layout}", kib), disk),
            "<=",
            limit,
        )
        for kib, layout, limit in ((4, "packed", 1.15), (4, "sparse", 1.1), (64, "packed", 1.3))
    ]
    whole = ratio_to_base(Variant("whole process", "lttd packed", 4), disk)
    figures.append(Figure("whole process, 4 KiB packed / trace-cmd record", whole, "<=", 0.45))
    machine = [median(live("machine_s", who, disk)) for who in ("lttd packed", TRACE_CMD)]
    name = "whole machine, sync included, 4 KiB packed / trace-cmd record"
    figures.append(Figure(name, ratio(*machine), "<=", 0.6))
    name = "left in the page cache, 4 KiB packed"
    figures.append(Figure(name, median(left("lttd packed")), "<=", 64, "MiB"))
    for who in ("lttd packed", TRACE_CMD):
        cpu = median(live("machine_s", who, disk))
        if cpu is not None:
            words = f"{who}: whole machine {cpu:.3g} CPU s/GB"
            notes.append(f"{words}, left in the page cache {median(left(who)):.0f} MiB ({disk})")
    columns = ["counted", "recorder", "KiB"]
    for place in places:
        columns += [f"CPU s/GB {place}", "ratio"]
    notes.append(f"memory: {'cold' if amounts.cold_memory else 'warm'}; see bench.common.warm()")
    notes.append("writing behind: sync_file_range and fadvise, whose CPU time is else a kworker's")
    notes.append("C packed loop: the least work for packed data; see bench/packed_loop.c")
    notes.append("ratios: in the loop to (a) at the same sub-buffer size; whole process to (b)")
    return Report(
        NAME,
        "CPU seconds per GB drained (median)",
        columns,
        rows,
        figures,
        notes,
        {
            f"{variant.where}, {variant.who}, {variant.subbuffer_kib} KiB, {place}": values
            for (variant, place), values in samples.items()
        },
        asdict(amounts),
        Plot(
            "CPU s / GB",
            {
                f"{where}, {place}": {
                    variant.label: per_gb(variant, place)
                    for variant in variants
                    if variant.where == where
                }
                for where in ("in the loop", "whole process")
                for place in places
            },
        ),
    )
