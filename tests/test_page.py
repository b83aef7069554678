"""The status page shows the state of a run, nothing but that, and every name as harmless text."""

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from lttd import page
from lttd.endpoint import Address, Endpoint, open_listeners
from lttd.health import Trouble
from lttd.page import make_pages
from tests.browser import CHROMIUM, Browser, Tab, browsing
from tests.running import until
from tests.test_endpoint import BODY, GET, Rendering, exchange, healthy, parsed

WEB = Path(page.__file__).with_name("web")
MINUTE_NS = 60_000_000_000
AT_NS = 1_795_000_000_000_000_000
# Names that would run a script, close a tag, load something, or write from right to left.
HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="window.owned=1">',
    "</td></table><style>body{display:none}</style>",
    "evil\u202egnp.exe\x1b[31m\x00",
    "${alert(1)}{{7*7}}'`",
    "\ud800 \U000e0041",
    "__proto__",
)

in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")


def stream(name: str = "sched_0", **values: object) -> dict[str, Any]:
    return {
        "name": name,
        "cpu": 0,
        "subbuffers": 70_000,
        "payload_bytes": 287_000_000,
        "padding_bytes": 4096,
        "events_lost": 0,
        "lost": {},
        "gaps_unknown": 0,
        "subbuffers_per_second": 300.0,
        "bytes_per_second": 1_230_000.0,
        "ring_fill_ratio": 0.12,
        "lag_seconds": 0.034,
        "foreign_read_events": 0,
    } | values


def trigger(number: int = 1, reason: str = "LttdEventsLost", **labels: str) -> dict[str, Any]:
    return {
        "number": number,
        "reason": reason,
        "labels": labels,
        "by": "http",
        "at_ns": AT_NS,
        "before_ns": 5 * MINUTE_NS,
        "after_ns": 10_000_000_000,
        "begin_ns": AT_NS - 5 * MINUTE_NS,
        "end_ns": AT_NS + 10_000_000_000,
        "complete": True,
        "note": "",
    }


def segment(number: int = 1, **values: object) -> dict[str, Any]:
    return {
        "number": number,
        "source": "ftrace",
        "made_ns": AT_NS - MINUTE_NS // 2,
        "bytes": 20 << 20,
        "open": False,
        "kept": False,
        "compressed": False,
    } | values


def state(*streams: dict[str, Any], **values: object) -> dict[str, Any]:
    return {
        "version": "0.9",
        "kernel": "6.18.0",
        "host": "db1",
        "pid": 7,
        "trace_dir": "/var/lib/lttd/trace",
        "doing": "recording",
        "now_ns": AT_NS + MINUTE_NS,
        "began_ns": AT_NS - 600 * MINUTE_NS,
        "uptime_seconds": 36_000.0,
        "healthy": True,
        "conditions": [],
        "backlog": {"bytes": 0, "limit_bytes": 64 << 20, "high_water_bytes": 3 << 20},
        "write_errors": {},
        "segments": 12,
        "sources": [
            {
                "source": "ftrace",
                "settings": {"filter": "secret"},
                "controls": [["filter", "sched_switch: prev_pid == 42"]],
                "segment": "0000000012-ftrace",
                "streams": list(streams or [stream()]),
            }
        ],
        "config": {"command": ["mysql", "--password=secret"]},
    } | values


def hostile_state() -> dict[str, Any]:
    """Return a state in which others chose every name."""
    streams = [stream(name, lost={name: 3}, gaps_unknown=1, events_lost=3) for name in HOSTILE]
    sources = [
        {"source": name, "controls": [[name, name]], "segment": name, "streams": [stream(name)]}
        for name in HOSTILE[:2]
    ]
    return state(
        trace_dir="/" + HOSTILE[0],
        host=HOSTILE[3],
        healthy=False,
        conditions=[
            {"trouble": Trouble.FILE_LOST, "where": name, "words": name} for name in HOSTILE
        ],
        write_errors={HOSTILE[1]: 2},
        sources=[{"source": "ftrace", "segment": "x", "streams": streams}, *sources],
        windows=[trigger(n, name, **{name: name}) for n, name in enumerate(HOSTILE, 1)],
        newest_segments=[segment(n, source=name) for n, name in enumerate(HOSTILE, 1)],
    )


async def asked(path: str, now: dict[str, Any], method: str = "GET") -> tuple[int, str, bytes]:
    server = Endpoint(Rendering(), healthy, pages=make_pages(lambda: now))
    request = GET.replace(b"/metrics", path.encode()).replace(b"GET", method.encode())
    status, headers, body = parsed(await exchange(server, request), method)
    return status, headers["content-type"], body


async def test_the_page_is_served_beside_the_metrics() -> None:
    assert (await asked("/", state()))[:2] == (200, "text/html; charset=utf-8")
    assert (await asked("/page.css", state()))[:2] == (200, "text/css; charset=utf-8")
    assert (await asked("/page.js", state()))[:2] == (200, "text/javascript; charset=utf-8")
    assert (await asked("/metrics", state()))[::2] == (200, BODY)


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/status.json"])
async def test_head_gets_the_headers_only(path: str) -> None:
    assert await asked(path, state(), "HEAD") == (*(await asked(path, state()))[:2], b"")


@pytest.mark.parametrize("path", ["/web/index.html", "/page.py", "/../lttd/page.py", "//", "/%2e"])
async def test_no_other_file_is_served(path: str) -> None:
    assert (await asked(path, state()))[0] == 404


async def test_the_state_is_served_without_configuration_and_settings() -> None:
    now = state(store={"segments": 3}, triggers={}, windows=[], newest_segments=[], flight={})
    status, content_type, body = await asked("/status.json", now)
    assert (status, content_type) == (200, "application/json")
    assert b"secret" not in body
    found = json.loads(body)
    assert found["sources"][0]["streams"] == [stream()]
    assert found["sources"][0]["controls"] == [["filter", "sched_switch: prev_pid == 42"]]
    assert found.keys() == {*page.SHOWN, "sources"}


async def test_names_that_are_no_unicode_are_valid_json() -> None:
    _, _, body = await asked("/status.json", hostile_state())
    body.decode("ascii")
    assert json.loads(body) == {
        key: value for key, value in hostile_state().items() if key in {*page.SHOWN, "sources"}
    }


def test_the_page_takes_no_time_from_the_clock_of_the_browser() -> None:
    script = (WEB / "page.js").read_text()
    assert not re.search(r"Date\.now|new Date\(\)|performance\.now", script)


def test_the_page_loads_and_runs_nothing_from_elsewhere() -> None:
    markup = (WEB / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="(.*?)"', markup)) == {
        *("data:,", "page.css", "page.js", "metrics", "healthz", "status.json")
    }
    assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", markup)
    script = (WEB / "page.js").read_text()
    makes_html = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\("
    assert not re.search(makes_html, script)
    for name in ("page.js", "page.css"):
        text = (WEB / name).read_text()
        assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)


@asynccontextmanager
async def serving(now: dict[str, Any]) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """Serve the page of a state; yield its address, and a function that ends the server."""
    server = Endpoint(Rendering(), healthy, pages=make_pages(lambda: now))
    listeners = await open_listeners(Address("127.0.0.1", 0))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        yield f"http://127.0.0.1:{port}/", nursery.cancel_scope.cancel


def opened(browser: Browser, url: str, width: int = 1280, scheme: str = "light") -> Tab:
    """Open the page as a screen of this width shows it, and wait until it has an answer."""
    tab = browser.open()
    for domain in ("Log", "Runtime", "Page"):
        tab.call(f"{domain}.enable")
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    tab.call("Emulation.setDeviceMetricsOverride", **screen)
    preferred = [{"name": "prefers-color-scheme", "value": scheme}]
    tab.call("Emulation.setEmulatedMedia", features=preferred)
    tab.call("Page.navigate", url=url)
    until(lambda: tab.value("document.getElementById('asked')?.textContent"), "the page")
    return tab


def complaints(browser: Browser) -> list[object]:
    """Return what the browser wrote to its console: refused resources, scripts that failed."""
    methods = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    return [event for event in browser.events if event.get("method") in methods]


async def look_at(
    now: dict[str, Any], tmp_path: Path, look: Callable[[Browser, str, Callable[[], None]], None]
) -> None:
    """Call *look* in a thread, with a browser, the page's address, and a function that ends it."""

    def browse(url: str, end: Callable[[], None]) -> None:
        with browsing(tmp_path / "profile") as browser:
            look(browser, url, lambda: trio.from_thread.run_sync(end))

    async with trio.open_nursery() as nursery, serving(now) as (url, end):
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(browse, url, end)
        nursery.cancel_scope.cancel()


@pytest.mark.nightly
@in_chromium
async def test_hostile_names_are_only_text_in_a_browser(tmp_path: Path) -> None:
    def look(browser: Browser, url: str, _: object) -> None:
        tab = opened(browser, url, 390)
        assert tab.value("window.owned") is None
        assert tab.value("document.querySelectorAll('img, style, body script').length") == 0
        assert tab.value("document.title") == r"(!) lttd on evil\u202egnp.exe\x1b[31m\x00"
        text = tab.value("document.body.innerText")
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e\U000e0041\ud800]", text)
        for name in HOSTILE[:3]:
            assert text.count(name) >= 4  # a stream, a reason, both halves of a label
        assert r"\ud800 \U000e0041" in text
        assert tab.value("document.documentElement.scrollWidth") == 390
        assert complaints(browser) == []

    await look_at(hostile_state(), tmp_path, look)


@pytest.mark.nightly
@in_chromium
async def test_the_page_shows_each_part_of_the_state(tmp_path: Path) -> None:
    streams = [stream(f"sched_{cpu}", ring_fill_ratio=cpu / 100) for cpu in range(40)]
    streams[7] |= {"lost": {"overwritten": 12_000}, "events_lost": 12_000, "gaps_unknown": 2}
    no_ring = stream("drv_0", ring_fill_ratio=None, lag_seconds=None)
    sick = {"trouble": "tracing_off", "where": "instances/x", "words": "somebody did"}
    store = {
        "segments": 12,
        "allocated_bytes": 190 << 20,
        "limit_bytes": 200 << 20,
        "kept_segments": 3,
        "kept_bytes": 60 << 20,
        "deletions": {"size": 44, "kept_size": 1, "age": 0},
        "reach_seconds": 8123.0,
        "compression_backlog": 2,
    }
    now = state(*streams, no_ring, healthy=False, conditions=[sick], store=store)
    now |= {"triggers": {"accepted": {"http": 2}, "refused": {"too_many": 900}, "waiting": 1}}
    now |= {"windows": [trigger(3, "disk slow", instance="db1:9100")]}
    now |= {"newest_segments": [segment(12, open=True), segment(11, kept=True, compressed=True)]}

    def look(browser: Browser, url: str, _: object) -> None:
        tab = opened(browser, url)
        text = tab.value("document.body.innerText")
        for shown in (
            *("Impaired: 1 reason", "tracing_off", "instances/x: somebody did", "48.1 MiB/s"),
            *("12,000 events (overwritten), 2 gaps of unknown size", "39 %", "sched_39"),
            *(
                "130 MiB",
                "of 200 MiB, besides kept segments",
                "2 h 15 min",
                "3 kept (60.0 MiB)",
                "2 segments",
            ),
            *("filter", "sched_switch: prev_pid == 42"),
            *("44 by size, 1 by kept size", "disk slow; instance=db1:9100", "5 min before"),
            *("1 waiting, 900 refused", "1 min 30 s", "open", "kept, compressed"),
        ):
            assert shown in text
        rows = "document.querySelectorAll('#streams tbody tr').length"
        first = "document.querySelector('#streams tbody td').textContent"
        # The stream that lost comes first where not all are shown.
        assert (tab.value(rows), tab.value(first)) == (32, "sched_7")
        tab.value("document.getElementById('more').click()")
        until(lambda: (tab.value(rows), tab.value(first)) == (41, "sched_0"), "all streams")
        assert complaints(browser) == []

    await look_at(now, tmp_path, look)


@pytest.mark.nightly
@in_chromium
async def test_the_page_says_that_nothing_is_written_until_a_trigger(tmp_path: Path) -> None:
    waiting = stream(ring_fill_ratio=None, lag_seconds=None)
    now = state(waiting, flight={"waiting": True, "overwritten_events": 1234})

    def look(browser: Browser, url: str, _: object) -> None:
        text = opened(browser, url).value("document.body.innerText")
        for shown in ("Healthy, waiting for a trigger", "nothing is written until a trigger"):
            assert shown in text
        assert "1,234 events overwritten that no trigger wanted" in text
        assert "Fullest ring" not in text
        assert complaints(browser) == []

    await look_at(now, tmp_path, look)


@pytest.mark.nightly
@in_chromium
async def test_the_page_says_that_lttd_is_gone_or_fails_and_recovers(tmp_path: Path) -> None:
    now = state()

    def look(browser: Browser, url: str, end: Callable[[], None]) -> None:
        tab = opened(browser, url)

        def says(words: str) -> None:
            verdict = "document.getElementById('verdict').textContent"
            until(lambda: words in tab.value(verdict), words)

        says("Healthy, recording")
        sources = now.pop("sources")
        says("lttd answered with status 500")
        now["sources"] = sources
        says("Healthy, recording")
        end()
        says("lttd does not answer")
        assert "stale" in tab.value("document.body.className")

    await look_at(now, tmp_path, look)
