"""``python -m bench [NAME]... [--quick]``: run benchmarks, print every figure beside its goal."""

import argparse
import importlib
import sys
from typing import Final

from bench.common import CannotMeasureError, Options, add_options, options_from
from bench.report import OUT_DIR, Cell, Report, figure_row, print_table

NAMES: Final = (
    "drain", "live", "loss", "start", "lowrate", "seek", "seek_ltt", "streams", "wide",
    "profile", "window", "text", "stats", "sql", "ctf", "lttng", "compress", "compressing", "roll",
    "rare", "cost", "presets",
)  # fmt: skip


def main() -> int:
    """Run the benchmarks that the command line names; return 0 if no goal is missed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    add_options(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    options = options_from(arguments)
    rows: list[list[Cell]] = []
    for name in arguments.names or NAMES:
        rows += _run(name, options)
    print("\n== all figures")
    print_table(("benchmark", "figure", "goal", "measured", ""), rows)
    print(f"   details and plots: {OUT_DIR}")
    return int(any(row[-1] == "MISSED" for row in rows))


def _run(name: str, options: Options) -> list[list[Cell]]:
    module = importlib.import_module(f"bench.{name}")
    print(f"\nmeasuring {name} ...", flush=True)
    try:
        report: Report = module.run(options)
    except CannotMeasureError as error:
        print(f"   {error}")
        return [[name, str(error)[:60], "-", "-", "not measured"]]
    report.print()
    report.save()
    return [[name, *figure_row(figure)] for figure in report.figures]


if __name__ == "__main__":
    sys.exit(main())
