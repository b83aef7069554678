"""``lttv text`` and columns against ``trace-cmd report``: events per second on the same trace."""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import lttd

LTTV = [sys.executable, "-m", "lttd.view.cli"]


def timed(words: list[str]) -> tuple[float, float]:
    """Return wall and CPU seconds of a command whose output nobody keeps."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def columns(trace: Path) -> tuple[int, float, float]:
    """Return events, wall and CPU seconds of decoding every event into columns."""
    began, cpu = time.perf_counter(), time.process_time()
    count = sum(len(batch) for batch in lttd.open(trace).window())
    return count, time.perf_counter() - began, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, help="a trace that lttd recorded with ftrace")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    exported = options.trace.parent / f"{options.trace.name}.dat"
    if not exported.exists():
        words = [*LTTV, "export", str(options.trace), "--to", "trace.dat", "-o", str(exported)]
        subprocess.run(words, check=True)
    count, *_ = columns(options.trace)
    best: dict[str, tuple[float, float]] = {}
    for _ in range(options.rounds):
        runs = {
            "trace-cmd report": timed(["trace-cmd", "report", "-N", str(exported)]),
            "lttv text, 1 process": timed([*LTTV, "text", str(options.trace), "--jobs", "1"]),
            "lttv text, 2 processes": timed([*LTTV, "text", str(options.trace), "--jobs", "2"]),
            "columns": columns(options.trace)[1:],
        }
        for name, run in runs.items():
            best[name] = min(run, best.get(name, run))
    theirs = best["trace-cmd report"]
    found = {
        name: {
            "wall_s": round(wall, 3),
            "cpu_s": round(cpu, 3),
            "events_per_s": round(count / wall),
            "times_faster": round(theirs[0] / wall, 2),
            "times_less_cpu": round(theirs[1] / cpu, 2),
        }
        for name, (wall, cpu) in best.items()
    }
    load = os.getloadavg()[0]
    print(json.dumps({"events": count, "load": load, "runs": found}, indent=1))


if __name__ == "__main__":
    main()
