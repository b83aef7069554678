"""Run the examples of docs/LIBRARY.md."""

import json
import platform
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import lttd
from lttd.view.export import export
from lttd.view.times import EVERYTHING
from lttd.view.trace import Trace
from tests.ftraced import Traced, pages_of, switch, tick
from tests.tools import replayed

DOCUMENT = Path(__file__).parents[1] / "docs" / "LIBRARY.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def seconds_by_text(trace: Path) -> Counter[tuple[int, int]]:
    words = [sys.executable, "-m", "lttd.view", "text", str(trace), "--json"]
    out = subprocess.run(words, check=True, capture_output=True).stdout
    told = (json.loads(line) for line in out.splitlines())
    return Counter((one["time"] // 10**9, one["pid"]) for one in told if "event" in one)


def test_every_block_of_the_document_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for library in ("pyarrow", "polars"):
        pytest.importorskip(library)
    trace = replayed(tmp_path / "TRACE")
    export(trace, EVERYTHING, "parquet", tmp_path / "PARQUET")
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, str(DOCUMENT), "exec"), known)
    assert len(BLOCKS) >= 10
    assert known["events"] == 2189
    assert "sched_switch" in capsys.readouterr().out
    told = seconds_by_text(tmp_path / "TRACE")
    assert told.total() == 2248
    assert known["seconds"] == told
    by_pid = known["by_pid"].to_pylist()  # type: ignore[attr-defined]
    assert {(one["second"], one["common_pid"]): one["time_count"] for one in by_pid} == told


def test_events_per_second_by_pid_are_the_same_in_parquet_and_in_text(tmp_path: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset")
    made = Traced(tmp_path / "t", cpus=2)
    for cpu in (0, 1):
        for number in range(30):
            events = [tick(number, pid=5 + number % 3), switch(("a", 6), ("b", cpu))]
            made.append([pages_of(300_000_000 * (number + 1) + cpu, events)], cpu=cpu)
    made.finish()
    export(Trace(tmp_path / "t"), EVERYTHING, "parquet", tmp_path / "p")
    table = dataset.dataset(tmp_path / "p", partitioning="hive").to_table()
    pairs = zip(table["time"].to_pylist(), table["common_pid"].to_pylist(), strict=True)
    found = Counter((time // 10**9, pid) for time, pid in pairs)
    assert found == seconds_by_text(tmp_path / "t")
    assert found.total() == 120
    assert len(found) > 20


def test_objects_of_the_library_describe_themselves_in_a_shell(tmp_path: Path) -> None:
    replayed(tmp_path / "t")
    trace = lttd.open(tmp_path / "t")
    batch = next(iter(trace.window(events=["sys_exit"])))
    assert re.fullmatch(r"<[\d,]+ events of 1 type, \d+ to \d+>", repr(batch))
    assert re.fullmatch(r"<[\d,]+ raw_syscalls:sys_exit: id, ret>", repr(batch["sys_exit"]))
    assert repr(trace) == f"<OpenedTrace {tmp_path / 't'}, 1 segment>"
    with pytest.raises(KeyError, match="nosuch"):
        batch["sys_exit"]["nosuch"]


FAULTS = """
import resource, sys
import numpy as np
import lttd
for batch in lttd.open(sys.argv[1]).window():
    pass
counts = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(6 << 20, np.uint8) for _ in range(8)]
    del arrays
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(counts[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries keep what they like")
def test_the_arrays_of_a_piece_reuse_the_memory_of_those_before(tmp_path: Path) -> None:
    trace = replayed(tmp_path / "t")
    command = [sys.executable, "-c", FAULTS, str(trace.path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000  # of 12288 pages
