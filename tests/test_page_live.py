"""The status page of a real recording under load, as a browser shows it."""

import signal
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Tab, browsing
from tests.running import Launcher, build_load, free_port, loaded, needs_kernel, until
from tests.test_page import complaints, opened

pytestmark = [
    *needs_kernel(),
    pytest.mark.nightly,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]
SCREENS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


def text_of(tab: Tab) -> str:
    text: str = tab.value("document.body.innerText")
    return text


def test_the_page_shows_load_losses_and_interference_while_they_happen(
    lttd: Launcher, tmp_path: Path
) -> None:
    program, port = build_load(tmp_path), free_port()
    options = ["--events", "syscalls:*getppid", "--buffer-size", "1M"]
    run = lttd.start("-t", tmp_path / "t", *options, "--metrics", f"127.0.0.1:{port}").recording()
    url = f"http://127.0.0.1:{port}/"
    with browsing(tmp_path / "profile") as browser, loaded(program):
        tab = opened(browser, url)
        assert tab.value("document.getElementById('verdict').className") == "well"
        until(lambda: "MiB/s" in text_of(tab), "a rate")
        # While lttd sleeps, the ring overwrites itself.
        run.stop()
        until(lambda: any(stats["overrun"] for stats in run.stats().values()), "a loss")
        run.signal(signal.SIGCONT)
        until(lambda: "(overwritten)" in text_of(tab), "the loss")
        (run.instance / "tracing_on").write_text("0")
        until(lambda: "tracing_off" in text_of(tab), "the reason")
        assert tab.value("document.getElementById('verdict').className") == "ill"
        (run.instance / "tracing_on").write_text("1")
        until(lambda: "tracing_off" not in text_of(tab), "health")
        (run.instance / "trace").write_text("")
        for width, scheme in SCREENS:
            tab = opened(browser, url, width, scheme)
            until(lambda page=tab: "ring_emptied" in text_of(page), "the act")
            assert tab.value("document.documentElement.scrollWidth") == width
            tab.shoot(tmp_path / f"{width}-{scheme}.png")
        assert complaints(browser) == []
    run.end()
