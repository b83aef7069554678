"""``lttv export --to perfetto`` beside ``--to systrace``: ``python -m bench.perfetto``.

The benchmark records a trace (sched, irq, timer, system calls; two busy CPUs), and exports it to
both forms in turn, in processes of their own, to a file.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Final

from bench.common import Options, add_options, options_from, scratch
from bench.text import in_turn
from bench.traces import BUSY, record
from lttd import open as opened

EVENTS: Final = "sched:*,irq:*,timer:*,raw_syscalls:*"
LEAST_EVENTS: Final = 1_000_000
FORMS: Final = ("perfetto", "systrace")
# A process that exports to a new name each time would fill the disk.
EXPORT: Final = (
    "import sys; from pathlib import Path; import lttd; from lttd.view.export import export;"
    "from lttd.view.times import EVERYTHING; out = Path(sys.argv[3]); out.unlink(missing_ok=True);"
    "export(lttd.open(sys.argv[1]), EVERYTHING, sys.argv[2], out)"
)


def main() -> int:
    """Record, export to both forms, print events per second and the sizes."""
    parser = argparse.ArgumentParser(prog="python -m bench.perfetto", description=__doc__)
    add_options(parser)
    options = options_from(parser.parse_args())
    with scratch(options.disk_dir) as directory:
        _measure(directory, options)
    return 0


def _measure(directory: Path, options: Options) -> None:
    turns = LEAST_EVENTS // (80 if options.quick else 8) + 1
    trace = record(directory / "t", BUSY.format(count=turns), EVENTS)
    events = sum(len(batch) for batch in opened(trace.path).window())
    commands = {
        form: [sys.executable, "-c", EXPORT, str(trace.path), form, str(directory / form)]
        for form in FORMS
    }
    samples = in_turn(commands, options.rounds_or(proper=5, quick=1))
    print(f"{events:,} events of {EVENTS}")
    for form in FORMS:
        cpu_s = statistics.median(cpu for _, cpu in samples[form])
        wall_s = statistics.median(wall for wall, _ in samples[form])
        size = (directory / form).stat().st_size
        print(
            f"--to {form:9} {wall_s:5.2f} s, {cpu_s:5.2f} s CPU, {events / wall_s / 1e6:4.2f} M"
            f" events/s, {size / 1e6:6.1f} MB, {size / events:5.1f} bytes an event"
        )


if __name__ == "__main__":
    sys.exit(main())
