"""``lttv sql`` beside ``trace-cmd report | awk``, and beside DuckDB on the Parquet export.

The question is "events per second by comm".  The recording is that of ``text``.  The Parquet export
has no comm: DuckDB is asked by pid there, which is less work.  All programs are whole, start
included.  Then 100 ms out of a long trace, asked by ``--begin`` and ``--end`` and by WHERE, cold
and warm; and the whole of it in bounded memory.
"""

import csv
import io
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

from bench.common import CannotMeasureError, Options, file_system, peak_bytes, scratch, settle
from bench.rare import CALLS
from bench.rare import EVENTS as LONG_EVENTS
from bench.recorders import environment
from bench.report import Cell, Figure, Report, median, ratio
from bench.text import EVENTS, LEAST_EVENTS, in_turn, output, report_of
from bench.traces import BUSY, record, repeated
from bench.window import LTTV, forget
from lttd.view.export import export
from lttd.view.times import EVERYTHING, seconds
from lttd.view.trace import Trace

NAME: Final = "sql"
QUERY: Final = "SELECT time // 1000000000 AS second, {0}, count(*) AS n FROM {1} GROUP BY ALL"
AWK: Final = (
    'NF > 3 { comm = $1; sub(/-[0-9]+$/, "", comm); n[int($3) "," comm]++ }'
    ' END { for (key in n) print key "," n[key] }'
)
DUCKDB: Final = (
    "import duckdb, sys\nfor row in duckdb.sql(sys.argv[1]).fetchall(): print(*row, sep=',')"
)
THEIRS, OURS, BY_PID, PARQUET = "trace-cmd report | awk", "sql", "sql, by pid", "DuckDB on Parquet"
FASTER: Final = 5.0
MOST_OF_PARQUET: Final = 2.0
MOST_WINDOW_S: Final = 1.0
WINDOW_NS: Final = 100_000_000
MOST_MEMORY_MIB: Final = 1024


def run(options: Options) -> Report:
    """Record, export, ask in turn; then make the long trace, and ask for a window of it."""
    if shutil.which("trace-cmd") is None:
        raise CannotMeasureError("no trace-cmd to compare with: apt install trace-cmd")
    rounds = options.rounds_or(proper=5, quick=1)
    with scratch(options.disk_dir) as directory:
        turns = LEAST_EVENTS // (80 if options.quick else 8) + 1
        trace = record(directory / "t", BUSY.format(count=turns), EVENTS)
        commands = _commands(trace, directory)
        events = _same_answers(commands)
        if events < LEAST_EVENTS and not options.quick:
            raise CannotMeasureError(f"{events} events were recorded, {LEAST_EVENTS} are wanted")
        report = report_of(
            NAME,
            f"{events:,} events of {EVENTS}",
            events,
            in_turn(commands, rounds),
            {OURS: FASTER},
        )
    walls = {name: [one["wall_s"] for one in found] for name, found in report.samples.items()}
    share = ratio(median(walls[OURS]), median(walls[PARQUET]))
    name = f"{OURS}: wall time / {PARQUET}'s"
    report.figures.append(Figure(name, share, "<=", MOST_OF_PARQUET))
    _window(options, report, rounds)
    return report


def _commands(trace: Trace, directory: Path) -> dict[str, list[str]]:
    data, files = directory / "t.dat", directory / "parquet"
    export(trace, EVERYTHING, "trace.dat", data)
    export(trace, EVERYTHING, "parquet", files)
    report = f"trace-cmd report -N {data} | awk '{AWK}'"
    ours = [*LTTV, "sql", str(trace.path)]
    found = f"read_parquet('{files}/*/*/*.parquet', union_by_name = true) WHERE system <> 'lttd'"
    return {
        THEIRS: ["sh", "-c", report],
        OURS: [*ours, QUERY.format("comm", "events"), "--format", "csv"],
        BY_PID: [*ours, QUERY.format("pid", "events"), "--format", "csv"],
        PARQUET: [sys.executable, "-c", DUCKDB, QUERY.format("common_pid", found)],
    }


def _same_answers(commands: dict[str, list[str]]) -> int:
    """Return the number of events; all programs must count as many in each second."""
    answers = {}
    for name, words in commands.items():
        counts: Counter[int] = Counter()
        for row in csv.reader(io.StringIO(output(words))):
            if row[0].isdigit():
                counts[int(row[0])] += int(row[-1])
        answers[name] = counts
    if any(one != answers[THEIRS] for one in answers.values()):
        totals = {name: one.total() for name, one in answers.items()}
        raise CannotMeasureError(f"the answers differ: {totals}")
    return answers[THEIRS].total()


def _window(options: Options, report: Report, rounds: int) -> None:
    wanted_bytes = round((options.gigabytes or (0.5 if options.quick else 10)) * 1e9)
    with scratch(options.disk_dir) as directory:
        calls = CALLS // (20 if options.quick else 1)
        recorded = record(directory / "recorded", BUSY.format(count=calls), LONG_EVENTS)
        times = -(-wanted_bytes // _data_bytes(recorded))
        trace = repeated(recorded, directory / "long", times)
        shutil.rmtree(recorded.path)
        settle()
        assert trace.span is not None
        begin = trace.span.begin + (trace.span.end - trace.span.begin) // 2
        end = begin + WINDOW_NS
        query = "SELECT comm, count(*) AS n, max(time) FROM events {}GROUP BY comm ORDER BY comm"
        asked = {
            "--begin --end": [query.format(""), "--begin", seconds(begin), "--end", seconds(end)],
            "WHERE time": [query.format(f"WHERE time BETWEEN {begin} AND {end} ")],
        }
        samples: dict[str, list[float]] = {}
        answers = set()
        for _ in range(rounds):
            for name, words in asked.items():
                forget(trace)
                for state in ("cold", "warm"):
                    wall, out = _timed("sql", str(trace.path), *words, "--format", "csv")
                    samples.setdefault(f"{name}, {state}", []).append(wall)
                    answers.add(out)
        if len(answers) != 1:
            raise CannotMeasureError("the answers about a window differ")
        whole = "sql", str(trace.path), QUERY.format("comm", "events")
        wall, _ = _timed(*whole)
        peak_mib = peak_bytes([*LTTV, *whole], environment()) / (1 << 20)
        size = _data_bytes(trace) / 1e9
    for name, walls in samples.items():
        label = f"100 ms of {size:,.1f} GB by {name}, wall"
        report.figures.append(Figure(label, median(walls), "<", MOST_WINDOW_S, "s"))
        row: list[Cell] = [label, median(walls), None, None, None, None]
        report.rows.append(row)
    report.rows.append([f"all of {size:,.1f} GB", wall, None, None, None, None])
    label = f"memory of the largest process for all of {size:,.1f} GB"
    report.figures.append(Figure(label, peak_mib, "<", MOST_MEMORY_MIB, "MiB"))
    report.notes.append(f"the long trace is on {file_system(options.disk_dir)}")
    report.samples["window"] = samples


def _data_bytes(trace: Trace) -> int:
    return sum(stream.paths.data.stat().st_size for stream in trace.segments[0].streams)


def _timed(*words: str) -> tuple[float, str]:
    """Run lttv; return its wall seconds, and its output."""
    began = time.perf_counter()
    out = output([*LTTV, *words])
    return time.perf_counter() - began, out
