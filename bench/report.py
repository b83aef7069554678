"""The result of a benchmark: a table on the terminal, JSON and a plot below ``bench/out``.

Rule: a benchmark measures and fills a Report; only this file prints, writes and draws.
"""

import json
import operator
import os
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

BENCH_DIR: Final = Path(__file__).resolve().parent
OUT_DIR: Final = BENCH_DIR / "out"
_LABEL_WIDTH: Final = 14

Cell = str | int | float | None
_RELATIONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    "<": operator.lt,
    "=": operator.eq,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its goal; ``value`` is None if it could not be measured."""

    name: str
    value: float | None
    relation: str
    limit: float
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where nothing was measured."""
        if self.value is None:
            return None
        return _RELATIONS[self.relation](self.value, self.limit)


@dataclass(slots=True)
class Plot:
    """Medians as bars with every sample as a dot: ``samples[series][category]``."""

    y_label: str
    samples: dict[str, dict[str, list[float]]]
    log: bool = False


@dataclass(slots=True)
class Report:
    """The outcome of one benchmark."""

    name: str
    title: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    """All measurements, as JSON values."""
    settings: dict[str, Any] = field(default_factory=dict)
    plot: Plot | None = None

    def print(self) -> None:
        """Print the table, the figures against their goals and the notes."""
        print(f"\n== {self.name}: {self.title}")
        print_table(self.columns, self.rows)
        if self.figures:
            print()
            print_figures(self.figures)
        for note in self.notes:
            print(f"   {note}")
        sys.stdout.flush()

    def save(self, out_dir: Path = OUT_DIR) -> None:
        """Write ``NAME.json``, and ``NAME.svg`` and ``NAME.png`` where there is a plot."""
        out_dir.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        values["figures"] = [{**asdict(figure), "met": figure.met} for figure in self.figures]
        values["machine"] = machine()
        (out_dir / f"{self.name}.json").write_text(json.dumps(values, indent=1) + "\n")
        if self.plot is not None:
            _draw(self.title, self.plot, out_dir / self.name)


def machine() -> dict[str, Any]:
    """Return time, commit, kernel and hardware of a measurement."""
    commit = subprocess.run(
        ["git", "-C", str(BENCH_DIR), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    uname = os.uname()
    return {
        "kernel": f"{uname.sysname} {uname.release} {uname.machine}",
        "cpus": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "python": sys.version.split()[0],
        "commit": commit.stdout.strip() or None,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def median(values: Sequence[float]) -> float | None:
    """Return the median, or None where nothing was measured."""
    return statistics.median(values) if values else None


def ratio(value: float | None, base: float | None) -> float | None:
    """Return value / base, or None where either is missing."""
    return None if value is None or not base else value / base


def text_of(cell: Cell) -> str:
    """Return the text of a cell."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def figure_row(figure: Figure) -> list[Cell]:
    """Return goal, figure and verdict of *figure* for a table."""
    verdict = {True: "met", False: "MISSED", None: "not measured"}[figure.met]
    unit = f" {figure.unit}" if figure.unit else ""
    goal = f"{figure.relation} {text_of(figure.limit)}{unit}"
    value = "-" if figure.value is None else f"{text_of(figure.value)}{unit}"
    return [figure.name, goal, value, verdict]


def print_figures(figures: Sequence[Figure]) -> None:
    """Print the table goal / figure / met."""
    print_table(("figure", "goal", "measured", ""), [figure_row(figure) for figure in figures])


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Print rows under their column heads, numbers to the right."""
    texts = [[text_of(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *texts]) for i in range(len(columns))]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    for line in [list(columns), ["-" * width for width in widths], *texts]:
        cells = zip(line, widths, right, strict=True)
        padded = [cell.rjust(w) if to_right else cell.ljust(w) for cell, w, to_right in cells]
        print("   " + "  ".join(padded).rstrip())


def _wrapped(label: str) -> str:
    """Return a label of lines that fit below their bars."""
    lines = (textwrap.wrap(line, _LABEL_WIDTH) for line in label.split("\n"))
    return "\n".join(one for some in lines for one in some)


def _draw(title: str, plot: Plot, stem: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 (an optional dependency: tables come without it)

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    categories = list(dict.fromkeys(c for values in plot.samples.values() for c in values))
    figure, axes = plt.subplots(figsize=(max(6.4, 1.2 * len(categories) + 2), 4.2))
    width = 0.8 / max(1, len(plot.samples))
    for number, (series, by_category) in enumerate(plot.samples.items()):
        left = [i - 0.4 + width * (number + 0.5) for i in range(len(categories))]
        heights = [median(by_category.get(category, [])) or 0.0 for category in categories]
        axes.bar(left, heights, width * 0.92, label=series, alpha=0.75)
        for x, category in zip(left, categories, strict=True):
            dots = by_category.get(category, [])
            axes.plot([x] * len(dots), dots, "k.", markersize=3, alpha=0.6)
    axes.set_xticks(range(len(categories)), [_wrapped(category) for category in categories])
    axes.set_ylabel(plot.y_label)
    axes.set_title(title, fontsize=10)
    if plot.log:
        axes.set_yscale("log")
    axes.margins(y=0.1)
    axes.legend(fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    for suffix in (".svg", ".png"):
        figure.savefig(stem.with_suffix(suffix), dpi=120)
    plt.close(figure)
