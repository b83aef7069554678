"""``lttv sql`` and ``trace.sql()`` answer as ``lttv text`` prints, and touch nothing else."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("duckdb", reason="no duckdb here: pip install 'lttd[sql]'")
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

import lttd
from lttd.errors import LttdError, UsageError
from lttd.view import window
from lttd.view.columns import EventBatch
from lttd.view.intervals.names import KIND_NAMES
from lttd.view.intervals.table import KINDS
from lttd.view.library import ClockGroup
from lttd.view.opened import OpenedTrace
from lttd.view.sql import reading
from lttd.view.sql.asking import ask
from lttd.view.sql.bounds import Chosen
from lttd.view.sql.columns import of_all_events, schema_of
from lttd.view.sql.reading import Asked, Reading
from lttd.view.sql.rows import RowMaker
from lttd.view.times import ALWAYS_END, EVERYTHING
from lttd.view.trace import Trace
from tests.data import SHARED_BLKTRACE, SHARED_CTF, SHARED_FTRACE, SHARED_LTT, needs
from tests.every_type import common, every_type, made_of
from tests.segment_builder import Made, subbuffer
from tests.tools import replayed
from tests.viewer import run

CTF = SHARED_CTF / "kernel61-s_timer"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> OpenedTrace:
    made = replayed(tmp_path_factory.mktemp("sql") / "t")
    return lttd.open(made.path)


def printed(path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> list[dict[str, Any]]:
    status, out, _ = run(capfdbinary, "text", "--json", path)
    assert status == 0
    return [event for event in map(json.loads, out.splitlines()) if "event" in event]


def rows_of(trace: OpenedTrace, query: str) -> list[dict[str, Any]]:
    result = trace.sql(query)
    return [dict(zip(result.names, row, strict=True)) for row in result.fetchall()]


def as_printed(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


@pytest.fixture(
    params=[
        "fixture",
        pytest.param("ftrace", marks=[needs(SHARED_FTRACE), pytest.mark.nightly]),
        pytest.param("ctf", marks=needs(CTF)),
        pytest.param("blktrace", marks=needs(SHARED_BLKTRACE)),
        pytest.param("ltt", marks=[needs(SHARED_LTT), pytest.mark.nightly]),
    ]
)
def of_any_family(
    request: pytest.FixtureRequest, tmp_path: Path, trace: OpenedTrace
) -> OpenedTrace:
    if request.param == "fixture":
        return trace
    directory = {
        "ftrace": SHARED_FTRACE / "raw",
        "ctf": CTF,
        "blktrace": SHARED_BLKTRACE,
        "ltt": SHARED_LTT,
    }
    return lttd.open(replayed(tmp_path / "t", directory=directory[request.param]).path)


def test_each_view_has_the_events_and_fields_that_text_prints(
    of_any_family: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    events = printed(of_any_family.path, capfdbinary)
    names = Counter(event["event"] for event in events)
    found = rows_of(of_any_family, "SELECT event, count(*) AS n FROM events GROUP BY event")
    assert {row["event"]: row["n"] for row in found} == names
    for name in names:
        systems = (
            {event["channel"] for event in events if event["event"] == name} - {None}
            if ("channel" in events[0])
            else {None}
        )
        for system in systems:
            ours = [
                event
                for event in events
                if event["event"] == name and (system is None or event["channel"] == system)
            ]
            called = f"{system}.{name}" if system else name
            rows = rows_of(of_any_family, f'SELECT * FROM "{called}"')
            assert len(rows) == len(ours)
            for row, event in zip(rows, ours, strict=True):
                told = {field: as_printed(row[field]) for field in event["fields"]}
                assert told == event["fields"]
                assert (row.get("common_time", row["time"]), row.get("common_cpu", row["cpu"])) == (
                    event["time"],
                    event["cpu"],
                )


@needs(SHARED_FTRACE)
def test_counts_of_a_real_trace_are_those_of_pandas_over_its_text(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    pandas = pytest.importorskip("pandas")
    path = replayed(tmp_path / "t", directory=SHARED_FTRACE / "raw").path
    status, out, _ = run(capfdbinary, "text", "--ns", path)
    assert status == 0
    line = (
        r"^ *(?P<comm>.+)-(?P<pid>\d+) +\[(?P<cpu>\d+)\] \S+"
        r" +(?P<second>\d+)\.\d{9}: (?P<event>\w+):"
    )
    found = pandas.DataFrame(
        [one.groupdict() for one in re.finditer(line, out.decode(), re.MULTILINE)]
    )
    keys = ["second", "comm", "event"]
    expected = found.groupby(keys).size()
    query = (
        "SELECT time // 1000000000 AS second, comm, event, count(*) AS n"
        " FROM events GROUP BY ALL ORDER BY ALL"
    )
    rows = lttd.open(path).sql(query).fetchall()
    assert len(found) > 2_000
    assert {(str(second), comm, event): n for second, comm, event, n in rows} == expected.to_dict()


def test_an_own_field_hides_a_common_column_of_its_name(trace: OpenedTrace) -> None:
    waking = trace.sql("SELECT * FROM sched_waking")
    assert waking.names[:8] == [
        "time", "realtime", "cpu", "common_comm", "common_pid", "tgid", "flags", "preempt_count",
    ]  # fmt: skip
    assert waking.names[8:] == ["comm", "pid", "prio", "target_cpu"]
    waking.close()
    sql = "SELECT count(*) FROM sched_waking WHERE comm = {0} AND common_pid = {1}"
    (batch,) = trace.window(events=["sched_waking"])
    rows = batch["sched_waking"]
    comm, pid = rows["comm"][0].decode(), int(rows.pid[0])
    expected = sum((rows["comm"] == comm.encode()) & (rows.pid == pid))
    assert trace.sql(sql.format(f"'{comm}'", pid)).fetchall() == [(expected,)]


def test_every_type_of_field_has_its_sql_type(tmp_path: Path) -> None:
    events = [
        every_type(b"hello\0", [1, 2, 3], 0b101, b"by\0"),
        every_type(b"\xff\0\0\0\0\0", [], 1 << 63, b"\0\0\0"),
        common(77) + b"\1\2\3\4",
        common(301),
    ]
    opened = lttd.open(made_of(tmp_path, events).path)
    one, other = rows_of(opened, "SELECT * FROM every_type")
    assert one["comm"] == "bash"
    assert (one["pid"], one["flags"], one["preempt_count"], one["tgid"]) == (42, 1, 2, None)
    assert (one["small"], one["large"], one["list"]) == (-5, 1 << 63, [-1, 0, 7])
    assert (one["thing"], one["text"], one["numbers"]) == (b"\1\2\3", "hello", [1, 2, 3])
    assert (other["text"], other["numbers"], other["near"]) == ("\ufffd", [], "")
    assert one["realtime"] is not None
    events_of = rows_of(opened, "SELECT event, event = 'unknown-77' AS is_unknown FROM events")
    assert [row["event"] for row in events_of] == [
        "every_type", "every_type", "unknown-77", "printed",
    ]  # fmt: skip
    assert rows_of(opened, "SELECT count(*) AS n FROM events WHERE event = 'unknown-77'") == [
        {"n": 1}
    ]
    # An event that is shorter than its format has no fields, but it is there.
    assert rows_of(opened, "SELECT event, buf FROM printed") == [{"event": None, "buf": None}]


@pytest.mark.parametrize(
    ("query", "columns", "asked"),
    [
        ("SELECT count(*) FROM events", {"time"}, (0, ALWAYS_END, None, None)),
        ("SELECT comm FROM events WHERE time >= 7", {"comm", "time"}, (7, ALWAYS_END, None, None)),
        (
            "SELECT pid FROM sched_switch WHERE time > 5 AND time < 100 AND cpu = 1",
            {"pid", "time", "cpu"},
            (6, 99, (1,), ("sched:sched_switch",)),
        ),
        ("SELECT 1 FROM events WHERE time = 5 OR time = 9", {"time"}, (5, 9, None, None)),
        ("SELECT sum(next_pid) FROM sched_switch", {"next_pid"}, (0, ALWAYS_END, None,
                                                                   ("sched:sched_switch",))),
    ],
)  # fmt: skip
def test_only_what_a_query_needs_is_decoded(
    trace: OpenedTrace,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
    columns: set[str],
    asked: tuple[int, int, tuple[int, ...] | None, tuple[str, ...] | None],
) -> None:
    seen: list[Asked] = []
    scan = Reading.scan
    monkeypatch.setattr(Reading, "scan", lambda self, one: seen.append(one) or scan(self, one))
    trace.sql(query).fetchall()
    (one,) = seen
    assert {column.name for column in one.columns} == columns
    assert (one.begin, one.end, one.cpus, one.globs) == asked


def test_an_event_in_a_filter_selects_the_events_to_decode(
    trace: OpenedTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Asked] = []
    scan = Reading.scan
    monkeypatch.setattr(Reading, "scan", lambda self, one: seen.append(one) or scan(self, one))
    query = "SELECT count(*) FROM events WHERE event IN ('sched_waking', 'sched_wakeup')"
    ((found,),) = trace.sql(query).fetchall()
    assert seen[0].globs == ("sched_wakeup", "sched_waking", "unknown-*")
    assert found == sum(len(batch) for batch in trace.window(events=["sched_wak*"])) > 0


FIELD = pc.field


@pytest.mark.parametrize(
    ("expression", "span", "cpus"),
    [
        (FIELD("time") >= 10, (10, ALWAYS_END >> 1), [0, 1, 2]),
        ((FIELD("time") == 3) | (FIELD("time") == 8), (3, 8), [0, 1, 2]),
        (~(FIELD("time") < 100) & (FIELD("cpu") != 1), (100, ALWAYS_END >> 1), [0, 2]),
        ((FIELD("time") < 9) & (FIELD("comm") == 'a"b) and (time > 2'), (-(1 << 63), 8), [0, 1, 2]),
        (FIELD("cpu").isin([1, 2]) & FIELD("time").is_valid(), None, [1, 2]),
    ],
)
def test_the_bounds_of_a_filter_are_those_of_the_values_for_which_it_is_true(
    expression: object, span: tuple[int, int] | None, cpus: list[int]
) -> None:
    chosen = Chosen(schema_of(of_all_events()), expression)
    assert span is None or chosen.span("time") == span
    assert chosen.among("cpu", [0, 1, 2]) == cpus


def test_the_window_of_a_query_includes_both_of_its_ends(trace: OpenedTrace) -> None:
    times = [row["time"] for row in rows_of(trace, "SELECT time FROM events")]
    begin, end = times[100], times[200]
    within = [time for time in times if begin <= time <= end]
    assert trace.sql("SELECT count(*) FROM events", begin, end).fetchall() == [(len(within),)]
    query = f"SELECT count(*) FROM events WHERE time BETWEEN {begin} AND {end}"
    assert trace.sql(query).fetchall() == [(len(within),)]
    on_one = trace.sql("SELECT DISTINCT cpu FROM events", cpus=[1]).fetchall()
    assert on_one == [(1,)]


def test_a_view_may_occur_several_times_in_a_query(trace: OpenedTrace) -> None:
    query = (
        "SELECT count(*) FROM sched.sched_switch a JOIN sched_switch b USING (time, cpu)"
        ' JOIN "sched.sched_switch" c USING (time, cpu)'
    )
    ((joined,),) = trace.sql(query).fetchall()
    assert joined == sum(len(batch) for batch in trace.window(events=["sched_switch"]))


def test_losses_are_a_view_and_a_line_beside_the_rows(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0), subbuffer(1, missed=7)], trailing_loss=5)
    made.finish()
    status, out, err = run(capfdbinary, "sql", made.trace, "SELECT count(*) FROM events")
    assert (status, out) == (0, b"count_star()\n           6\n")
    assert err.splitlines()[-1] == (
        "lttv: lost among the events that were read: 12 events, in 2 places on CPU 0;"
        " see view losses"
    )
    rows = lttd.open(made.trace).sql("SELECT lost, unit, reason FROM losses ORDER BY time")
    assert rows.fetchall() == [(7, "events", "overwritten"), (5, "events", "dropped")]
    before = run(capfdbinary, "sql", made.trace, "SELECT count(*) FROM events", "--end", "1us")
    assert "lost" not in before[2]


REFUSED = [
    "COPY (SELECT 1) TO '/tmp/never'",
    "ATTACH '/tmp/never'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 1",
    "PRAGMA version",
    "SELECT 1; SELECT 2",
    "CREATE TABLE t AS SELECT 1",
    "",
    "SELECT * FROM read_text('/etc/hostname')",
    "SELECT * FROM '/etc/hostname'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM read_csv('https://example.com/a.csv')",
    "SELECT * FROM REFUSED",
]


@pytest.mark.parametrize("query", REFUSED)
def test_a_query_reaches_nothing_but_the_views(trace: OpenedTrace, query: str) -> None:
    with pytest.raises(UsageError) as raised:
        trace.sql(query).fetchall()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (
            "SELECT * FROM sched_swich",
            r"sched_swich: the trace has no such view; near: sched_switch",
        ),
        ("SELECT nothing FROM sched_switch", r'sql: Referenced column "nothing" not found'),
        ("SELEC 1", r"sql: syntax error at or near"),
        ("SELECT comm::INT FROM events", r"sql: Could not convert"),
        ("SELECT * FROM block_requests", r"block_requests: the trace has none .* record block:"),
    ],
)
def test_a_wrong_query_is_one_line_with_status_2(
    trace: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes], query: str, told: str
) -> None:
    status, out, err = run(capfdbinary, "sql", trace.path, query)
    assert (status, out) == (2, b"")
    (line,) = err.splitlines()
    assert re.search(told, line)


def test_a_name_of_several_systems_needs_its_system(tmp_path: Path) -> None:
    made = made_of(tmp_path, [every_type(b"", [], 0, b"")])
    events = made.segments[0].paths.directory / "tracefs/events"
    text = (events / "made/every_type/format").read_text().replace("ID: 300", "ID: 302")
    (events / "other/every_type").mkdir(parents=True)
    (events / "other/every_type/format").write_text(text)
    opened = lttd.open(made.path)
    with pytest.raises(UsageError, match=r'write "made.every_type" or "other.every_type"'):
        opened.sql("SELECT * FROM every_type")
    for name, count in (
        ("made.every_type", 1),
        ('"other.every_type"', 0),
        ('"made:every_type"', 1),
    ):
        assert opened.sql(f"SELECT count(*) FROM {name}").fetchall() == [(count,)]


def test_all_formats_have_the_same_rows(
    trace: OpenedTrace, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    columns = "time, comm, sum(pid) AS s, [cpu] AS l"
    query = f"SELECT {columns} FROM events GROUP BY ALL ORDER BY ALL LIMIT 50"
    expected = trace.sql(query).fetchall()
    for name in ("o.csv", "o.json", "o.parquet"):
        assert run(capfdbinary, "sql", trace.path, query, "-o", tmp_path / name)[:2] == (0, b"")
    lines = (tmp_path / "o.json").read_text().splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == expected
    head, *rows = (tmp_path / "o.csv").read_text().splitlines()
    assert head == '"time","comm","s","l"'
    assert rows[0] == '{},"{}",{},"[{}]"'.format(*expected[0][:3], *expected[0][3])
    table = pq.read_table(tmp_path / "o.parquet")
    assert table["time"].to_pylist() == [row[0] for row in expected]
    assert list(map(int, table["s"].to_pylist())) == [row[2] for row in expected]
    status, out, _ = run(capfdbinary, "sql", trace.path, query)
    assert status == 0
    first = out.decode().splitlines()[1].split()
    assert first[0].replace(".", "") == str(expected[0][0])
    assert run(capfdbinary, "sql", trace.path, query, "-o", tmp_path / "o.csv")[0] == 2
    assert run(capfdbinary, "sql", trace.path, query, "--format", "parquet")[0] == 2


def test_a_query_that_fails_leaves_no_file(
    trace: OpenedTrace, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    query = "SELECT comm::INT FROM events"
    assert run(capfdbinary, "sql", trace.path, query, "-o", tmp_path / "o.csv")[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_the_views_of_intervals_are_those_of_the_table() -> None:
    assert tuple(KINDS) == KIND_NAMES


def test_the_views_are_listed_with_their_columns(
    trace: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    status, out, _ = run(capfdbinary, "sql", trace.path)
    assert status == 0
    lines = dict(line.split(maxsplit=1) for line in out.decode().splitlines())
    assert lines["sched_waking"] == "comm, pid, prio, target_cpu"
    assert {"events", "losses", "syscalls", "sched_switch"} <= lines.keys()
    assert run(capfdbinary, "sql", trace.path, "SELECT 1", "--tables")[1] == out


def test_without_duckdb_one_line_says_what_to_install(
    trace: OpenedTrace,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    for module in ("engine", "result"):
        monkeypatch.delitem(sys.modules, f"lttd.view.sql.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    status, out, err = run(capfdbinary, "sql", trace.path, "SELECT 1")
    assert (status, out, err) == (2, b"", "lttv: sql needs duckdb: pip install 'lttd[sql]'\n")


def _rows(trace: Trace, jobs: int) -> list[tuple[Any, ...]]:
    return ask(trace, EVERYTHING, None, "SELECT * FROM events", jobs).fetchall()


def test_several_processes_make_the_rows_of_one_in_the_same_order(
    trace: OpenedTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 1 << 12)
    monkeypatch.setattr(window, "STREAM_BYTES", 1 << 12)
    monkeypatch.setattr(reading, "jobs_worth", lambda group: 3)
    here: list[int] = []
    make = RowMaker.rows
    monkeypatch.setattr(RowMaker, "rows", lambda self, one: here.append(1) or make(self, one))
    expected = _rows(trace, 1)
    alone = len(here)
    assert alone > 1
    assert _rows(trace, 3) == expected
    assert len(here) - alone < alone


def test_the_caller_makes_what_a_process_that_fails_owes(
    trace: OpenedTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 1 << 12)
    monkeypatch.setattr(window, "STREAM_BYTES", 1 << 12)
    monkeypatch.setattr(reading, "jobs_worth", lambda group: 2)
    expected = _rows(trace, 1)
    parent, make = os.getpid(), RowMaker.rows

    def rows(self: RowMaker, batch: EventBatch) -> object:
        assert os.getpid() == parent
        return make(self, batch)

    monkeypatch.setattr(RowMaker, "rows", rows)
    assert _rows(trace, 2) == expected


def test_a_result_that_is_closed_early_leaves_no_process(
    trace: OpenedTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE_BYTES", 1 << 12)
    monkeypatch.setattr(window, "STREAM_BYTES", 1 << 12)
    monkeypatch.setattr(reading, "jobs_worth", lambda group: 3)
    make, pids = RowMaker.rows, tmp_path / "pids"

    def rows(self: RowMaker, batch: EventBatch) -> object:
        with pids.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return make(self, batch)

    monkeypatch.setattr(RowMaker, "rows", rows)
    with ask(trace, EVERYTHING, None, "SELECT * FROM events", 3) as result:
        next(result.batches())
    jobs = set(map(int, pids.read_text().split())) - {os.getpid()}
    assert jobs
    assert [pid for pid in jobs if Path(f"/proc/{pid}").exists()] == []


def test_an_error_while_events_are_read_is_that_of_the_trace(
    trace: OpenedTrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise LttdError("the disk is gone")

    monkeypatch.setattr(ClockGroup, "batch", fail)
    with pytest.raises(LttdError, match=r"^the disk is gone$"):
        trace.sql("SELECT * FROM events").fetchall()


def test_a_result_that_is_closed_early_leaves_no_thread(trace: OpenedTrace) -> None:
    result = trace.sql("SELECT a.time FROM events a, events b, events c")
    assert next(result.batches()).num_rows
    result.close()
    assert result._thread is None


@pytest.mark.slow
@pytest.mark.parametrize(("end", "status"), [("interrupt", 130), ("close", 141)])
def test_an_endless_answer_ends_with_its_reader_or_by_ctrl_c(
    trace: OpenedTrace, end: str, status: int
) -> None:
    query = "SELECT a.time, b.comm, c.pid FROM events a, events b, events c"
    words = [sys.executable, "-m", "lttd.view", "sql", str(trace.path), query, "--format", "csv"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b'"time"')
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
            process.stdout.read()
        else:
            process.stdout.close()
        assert process.wait(timeout=60) == status
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_parquet_answer_is_read_by_others(trace: OpenedTrace, tmp_path: Path) -> None:
    from lttd.view.commands.sql import Query, sql  # noqa: PLC0415

    sql(trace, EVERYTHING, Query("SELECT * FROM sched_switch", out=tmp_path / "s.parquet"))
    found = ds.dataset(tmp_path / "s.parquet").to_table()
    assert found.num_rows == sum(len(b) for b in trace.window(events=["sched_switch"]))
