"""Compare docs/FORMAT.md with the code: record its example again, compare its tables."""

import re
import shutil
from pathlib import Path

import pytest

from lttd.cli import main
from lttd.index import ENTRY_BYTES, INDEX_HEADER, SeekIndex, parse_gaps
from lttd.subbuffer import Reason
from tests.data import FTRACE

PAGE = Path(__file__).parents[1] / "docs" / "FORMAT.md"
SUBBUFFER_BYTES = 4096
IN_THE_EXAMPLE = (15, 20)
"""Sub-buffers of CPU 0 of the fixtures."""

_DUMP = re.compile(r"`streams/(\S+)`[^\n]*:\n\n```\n(.*?)```", re.DOTALL)


def dumps() -> dict[str, bytes]:
    """Return the hex dumps of the page by file name."""
    found = {}
    for name, block in _DUMP.findall(PAGE.read_text()):
        lines = [line.partition(": ")[2] for line in block.splitlines()]
        found[name] = bytes.fromhex("".join(lines))
    return found


def table_rows(first_column: str) -> list[list[str]]:
    """Return the cells of the table whose first column is headed *first_column*."""
    lines = iter(PAGE.read_text().splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            break
    next(lines)  # the rule below the head
    rows = []
    for line in lines:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def recorded(tmp_path: Path, pages: tuple[int, ...] | None) -> Path:
    """Record CPU 0 of the fixtures, or *pages* of it; return the directory of streams."""
    directory = tmp_path / "in"
    shutil.copytree(FTRACE, directory)
    shutil.rmtree(directory / "per_cpu" / "cpu1")
    raw = directory / "per_cpu" / "cpu0" / "trace_pipe_raw"
    data = raw.read_bytes()
    if pages is not None:
        starts = [number * SUBBUFFER_BYTES for number in pages]
        raw.write_bytes(b"".join(data[at : at + SUBBUFFER_BYTES] for at in starts))
    trace = tmp_path / "t"
    assert main(["-t", str(trace), "--source", f"replay:{directory}", "--summary", "none"]) == 0
    (segment,) = trace.glob("*-replay")
    return segment / "streams"


@pytest.mark.parametrize("name", ["ftrace_0", "index/ftrace_0.idx"])
def test_lttd_writes_the_bytes_of_the_example(tmp_path: Path, name: str) -> None:
    assert (recorded(tmp_path, IN_THE_EXAMPLE) / name).read_bytes() == dumps()[name]


def test_lttd_writes_the_gaps_of_the_example(tmp_path: Path) -> None:
    name = "index/ftrace_0.gaps"
    assert (recorded(tmp_path, None) / name).read_bytes() == dumps()[name]


def test_the_values_beside_the_data_match_its_bytes() -> None:
    data = dumps()["ftrace_0"]
    rows = table_rows("bytes")
    assert rows
    for where, value, _ in rows:
        first, last = map(int, where.split("-"))
        cut = data[first : last + 1]
        if value.startswith("`"):
            assert cut == value.strip("`").encode()
        else:
            assert int.from_bytes(cut, "little") == int(value)


def test_the_values_below_the_index_match_its_entries(tmp_path: Path) -> None:
    path = tmp_path / "idx"
    path.write_bytes(dumps()["index/ftrace_0.idx"])
    first, second = SeekIndex(path).entries().tolist()
    text = " ".join(PAGE.read_text().split())
    begin, end = first[3], first[4]
    assert f"offset 0, {first[1]} bits stored, {first[2]} bits of content" in text
    assert f"begin {begin}, end {end}, 0 discarded" in text
    assert f"Entry 1 (byte {len(INDEX_HEADER) + ENTRY_BYTES}): offset {second[0]}" in text
    assert f"{second[1]} bits, begin {second[3]}" in text


def test_the_sentence_below_the_gaps_matches_them() -> None:
    (gap,) = parse_gaps(dumps()["index/ftrace_0.gaps"], PAGE)
    words = f"Before entry {gap.row}, between {gap.begin} and {gap.end}, {gap.count} events were"
    assert f"{words} {gap.reason.name.lower()}" in PAGE.read_text()


def test_every_gap_reason_has_a_row() -> None:
    rows = table_rows("`reason`")
    assert [(int(row[0]), row[1]) for row in rows] == [(r.value, r.name.lower()) for r in Reason]
