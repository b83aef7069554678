"""``python -m bench.publish [NAME]...``: put results into docs/BENCHMARKS.md and bench/results.

It copies the results of runs from ``bench/out``; nobody types a figure.
``bench/notes.md`` (what was tried, and did not pay) becomes the end of the document.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.__main__ import NAMES
from bench.report import BENCH_DIR, OUT_DIR, Cell, Figure, figure_row, text_of

RESULTS_DIR: Final = BENCH_DIR / "results"
NOTES: Final = BENCH_DIR / "notes.md"
DOCUMENT: Final = BENCH_DIR.parent / "docs" / "BENCHMARKS.md"
_HEAD: Final = """\
# Benchmarks

`python -m bench.publish` writes this page from the results of `make bench`; do not edit it.
The head of each program in `bench/` says how it takes its figures.
"""


def main() -> int:
    """Copy the results of the named benchmarks, or of all; rewrite the document."""
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    arguments = parser.parse_args()
    RESULTS_DIR.mkdir(exist_ok=True)
    for name in arguments.names or NAMES:
        for suffix in (".json", ".svg"):
            found = OUT_DIR / f"{name}{suffix}"
            if found.exists():
                shutil.copyfile(found, RESULTS_DIR / found.name)
            elif arguments.names and suffix == ".json":
                parser.error(f"{found} is not there: run python -m bench {name}")
    sections = [section(path) for name in NAMES if (path := RESULTS_DIR / f"{name}.json").exists()]
    DOCUMENT.write_text("\n".join([_HEAD, *sections, NOTES.read_text()]))
    print(DOCUMENT)
    return 0


def section(path: Path) -> str:
    """Return one benchmark's part of the document."""
    result: dict[str, Any] = json.loads(path.read_text())
    machine = result["machine"]
    lines = [
        f"## {result['name']}: {result['title']}",
        "",
        f"{machine['measured']}, commit {machine['commit']}, {machine['kernel']}, "
        f"{machine['cpus']} CPUs, {machine['memory_mib']} MiB, Python {machine['python']}, "
        f"load average at the end {', '.join(map(str, machine['load_average']))}.",
        "",
        *table(result["columns"], result["rows"]),
        "",
    ]
    figures = [
        Figure(**{key: value for key, value in figure.items() if key != "met"})
        for figure in result["figures"]
    ]
    lines += table(("figure", "goal", "measured", ""), [figure_row(figure) for figure in figures])
    lines += ["", *(f"- {note}" for note in result["notes"]), ""]
    if path.with_suffix(".svg").exists():
        lines += [f"![{result['title']}](../bench/results/{path.stem}.svg)", ""]
    return "\n".join(lines)


def table(columns: Sequence[str], rows: list[list[Cell]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(text_of(cell) for cell in row) + " |" for row in rows]


if __name__ == "__main__":
    sys.exit(main())
