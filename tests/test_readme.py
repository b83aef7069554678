"""README's figures are those of docs/BENCHMARKS.md, which the benchmarks write."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_figures_are_those_of_the_benchmarks() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    page = (ROOT / "docs" / "BENCHMARKS.md").read_text()
    of_trace_cmd = re.findall(
        r"^\| whole process \| lttd .*? \| ([\d.]+) \| [\d.]+ \| ([\d.]+) \|$", page, re.MULTILINE
    )
    ratios = [float(ratio) for row in of_trace_cmd for ratio in row]
    assert len(ratios) == 8

    def measured(figure: str) -> float:
        (found,) = re.findall(
            rf"^\| {re.escape(figure)} \| [^|]+ \| ([\d.]+) \|", page, re.MULTILINE
        )
        return float(found)

    text = measured("text, 1 process: events/s, times trace-cmd's")
    window = measured("window, 1,000,000 sub-buffers / 1,000")
    for claim in (
        f"took {min(ratios):.2f} to {max(ratios):.2f} of the CPU time of trace-cmd",
        f"printed text {text:.0f} times as fast",
        f"out of 1,000,000 sub-buffers takes {window:g} times as long as out of 1,000",
    ):
        assert claim in readme
