"""What recording costs the recorded machine: the time of two loads, untraced and recorded.

The variants run in turn, round by round: untraced, *ring alone* (an instance with the same events
and rings, which nobody reads), the same with a pid in ``set_event_notrace_pid``, as ``lttd
--no-trace-self`` has, ``trace-cmd record``, and lttd.  *pipes* are two pairs of processes
that fill both CPUs, and cause up to a million events a second on each; *compile* compiles C files,
two at a time.  So a figure holds all that recording costs: the kernel's tracing, the CPU time of
the recorder and of the kernel's threads that write its file, and what both do to the caches.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from bench.common import (
    CannotMeasureError,
    Instance,
    Options,
    compiled,
    cpu_s,
    file_system,
    scratch,
    settle,
    wait,
)
from bench.recorders import Lttd, Recorded, TraceCmd
from bench.report import Cell, Figure, Plot, Report, median, ratio

NAME: Final = "cost"
RING_MIB: Final = 8
MOST_TO_TRACE_CMD: Final = 0.9
MOST_TO_ALONE: Final = 1.05
FILES: Final = 20
"""The files to compile."""
_FUNCTION: Final = """
int f{n}(const int *of, int many)
{{
	int sum = {n};
	for (int i = 0; i < many; i++)
		sum = sum * 31 + (of[i] % {n} ? of[i] << 3 : sum >> {n} % 7);
	return sum;
}}
"""


class Case(NamedTuple):
    """A load, and the events that are recorded."""

    load: str
    events: str

    def __str__(self) -> str:
        return f"{self.load}, {'syscalls' if 'raw_syscalls' in self.events else 'sched'}"


CASES: Final = (
    Case("pipes", "sched:*"),
    Case("pipes", "sched:*,raw_syscalls:*"),
    Case("compile", "sched:*,raw_syscalls:*"),
)
Sample = dict[str, float]
Samples = dict[str, list[Sample]]
"""The measurements of each variant."""


def run(options: Options) -> Report:
    """Measure each case with each variant, round by round."""
    rounds = options.rounds_or(proper=10, quick=1)
    passes, files = (20_000, 4) if options.quick else (100_000, FILES)
    found: dict[Case, Samples] = {case: {variant: [] for variant in VARIANTS} for case in CASES}
    with scratch(options.disk_dir) as sources:
        _write_sources(sources, files)
        for number in range(rounds):
            for case in CASES:
                for variant in _in_turn(number):
                    settle()
                    with VARIANTS[variant](options.disk_dir, case) as sample:
                        sample.update(_load(case, sources, passes))
                    found[case][variant].append(sample)
    return Report(
        NAME,
        f"time of a load on 2 CPUs, {RING_MIB} MiB rings, {file_system(options.disk_dir)}",
        ["load and events", "variant", "seconds", "to untraced", "to ring alone", "to trace-cmd",
         "load CPU s", "recorder CPU s", "MB taken", "events lost"],
        [_row(case, variant, found[case]) for case in CASES for variant in VARIANTS],
        [figure for case in CASES for figure in _figures(case, found[case])],
        ["syscalls: sched:* and raw_syscalls:*; pipes: the mean time of two pairs",
         "lost: by the kernel's counters; a recorder's CPU time includes its start"],
        {f"{case}, {variant}": found[case][variant] for case in CASES for variant in VARIANTS},
        {"rounds": rounds, "passes": passes, "files": files, "ring_mib": RING_MIB},
        Plot("time / untraced time", {
            variant: {str(case): _to_untraced(case, variant, found[case]) for case in CASES}
            for variant in VARIANTS
        }),
    )  # fmt: skip


def _in_turn(number: int) -> list[str]:
    """Return the variants in an order in which none always follows the same other one."""
    names = list(VARIANTS)
    first = number % len(names)
    return (names[first:] + names[:first])[:: -1 if number // len(names) % 2 else 1]


# -- loads


def _load(case: Case, sources: Path, passes: int) -> Sample:
    return _pipes(passes) if case.load == "pipes" else _compile(sources)


def _pipes(passes: int) -> Sample:
    """Run two pairs at the same time; return the mean of their times."""
    command = [str(compiled("pingpong")), str(passes)]
    seconds, load_cpu_s = [], 0.0
    with _started(command) as first, _started(command) as second:
        for pair in (first, second):
            assert pair.stdout is not None
            seconds.append(pair.stdout.read())
            load_cpu_s += _cpu_s(pair)
    return {"seconds": sum(map(float, seconds)) / 2, "load_cpu_s": load_cpu_s}


@contextlib.contextmanager
def _started(command: Sequence[str], cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=cwd, text=True)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            process.wait()


def _cpu_s(process: subprocess.Popen[str]) -> float:
    """Wait for a load; return the CPU seconds of it and of its children."""
    used_s = cpu_s(wait(process))
    if process.returncode:
        raise CannotMeasureError(f"{process.args!r} failed; apt install gcc")
    return used_s


def _write_sources(directory: Path, files: int) -> None:
    for number in range(files):
        functions = (_FUNCTION.format(n=1 + number + n) for n in range(30))
        (directory / f"{number}.c").write_text("".join(functions))


def _compile(sources: Path) -> Sample:
    """Compile all files, two at a time."""
    began = time.monotonic()
    with _started(["sh", "-c", "ls *.c | xargs -n1 -P2 cc -O1 -c"], sources) as job:
        load_cpu_s = _cpu_s(job)
    return {"seconds": time.monotonic() - began, "load_cpu_s": load_cpu_s}


# -- variants: each runs a block, and fills in a sample


@contextlib.contextmanager
def _untraced(_parent: Path, _case: Case) -> Iterator[Sample]:
    yield {}


@contextlib.contextmanager
def _alone(_parent: Path, case: Case, left_out: int | None = None) -> Iterator[Sample]:
    with Instance("cost") as instance:
        if left_out is not None:
            instance.write("set_event_notrace_pid", left_out)
        instance.set_sizes(RING_MIB << 10, 4)
        instance.write("trace_clock", "mono")
        for events in case.events.split(","):
            instance.write(f"events/{events.removesuffix(':*')}/enable", 1)
        yield {}


@contextlib.contextmanager
def _alone_with_list(parent: Path, case: Case) -> Iterator[Sample]:
    with _alone(parent, case, left_out=os.getpid()) as sample:
        yield sample


@contextlib.contextmanager
def _beside_trace_cmd(parent: Path, case: Case) -> Iterator[Sample]:
    recorder, sample = TraceCmd("-b", str(RING_MIB << 10)), Sample()
    with Instance("cost") as instance, scratch(parent) as directory:
        instance.set_sizes(RING_MIB << 10, 4)
        with recorder.recording(instance, directory, case.events) as recording:
            yield sample
            sample |= _took(recorder.recorded(recording, directory))
        sample["lost"] = instance.counters().lost


@contextlib.contextmanager
def _beside_lttd(parent: Path, case: Case) -> Iterator[Sample]:
    recorder, sample = Lttd("packed", "--buffer-size", f"{RING_MIB}M"), Sample()
    with scratch(parent) as directory:
        with recorder.recording(None, directory, case.events) as recording:
            yield sample
            recorded = recorder.recorded(recording, directory)
        sample |= _took(recorded) | {"lost": recorded.summary["events_lost"]}


def _took(recorded: Recorded) -> Sample:
    return {"recorder_cpu_s": recorded.cpu_s, "taken_bytes": recorded.delivered_bytes}


UNTRACED, ALONE, TRACE_CMD, LTTD = "untraced", "ring alone", "trace-cmd", "lttd"
WITH_LIST: Final = "ring alone, pid list"
VARIANTS: Final = {
    UNTRACED: _untraced, ALONE: _alone, WITH_LIST: _alone_with_list, TRACE_CMD: _beside_trace_cmd,
    LTTD: _beside_lttd,
}  # fmt: skip


# -- the report


def _row(case: Case, variant: str, of: Samples) -> list[Cell]:
    row: list[Cell] = [str(case), variant, _median(of[variant], "seconds")]
    row += [_ratio(of, variant, to) for to in (UNTRACED, ALONE, TRACE_CMD)]
    row += [_median(of[variant], key) for key in ("load_cpu_s", "recorder_cpu_s")]
    return [*row, _median(of[variant], "taken_bytes", 1e-6), _median(of[variant], "lost")]


def _figures(case: Case, of: Samples) -> list[Figure]:
    return [
        Figure(f"{case}: lttd / {to}", _ratio(of, LTTD, to), "<=", most)
        for to, most in ((TRACE_CMD, MOST_TO_TRACE_CMD), (ALONE, MOST_TO_ALONE))
    ]


def _ratio(of: Samples, variant: str, to: str) -> float | None:
    return ratio(_median(of[variant], "seconds"), _median(of[to], "seconds"))


def _median(samples: Sequence[Sample], key: str, scale: float = 1.0) -> float | None:
    return median([sample[key] * scale for sample in samples if key in sample])


def _to_untraced(case: Case, variant: str, of: Samples) -> list[float]:
    base = _median(of[UNTRACED], "seconds") or 1.0
    return [sample["seconds"] / base for sample in of[variant]]
