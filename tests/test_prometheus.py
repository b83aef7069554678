"""Prometheus scrapes lttd, and accepts its metrics, alerts and documented queries."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from lttd.endpoint import Address, Endpoint, open_listeners
from lttd.metrics import FAMILIES, make_render
from tests.running import PATIENCE_S, free_port
from tests.scrapes import (
    DOCS,
    RULES,
    busy_numbers,
    torn_samples,
    torn_trace,
)

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here: apt-get install prometheus"
)


def promtool(*arguments: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["promtool", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_the_metrics() -> None:
    render = make_render(busy_numbers(), version="0.1.0")
    assert promtool("check", "metrics", stdin=render().decode()) == ""


@needs_promtool
def test_promtool_accepts_the_alerts_and_the_documents_queries(tmp_path: Path) -> None:
    promtool("check", "rules", str(RULES))
    queries = re.findall(r"```promql\n(.*?)```", (DOCS / "METRICS.md").read_text(), re.S)
    assert len(queries) >= 4
    rules = [{"record": f"x:q{n}", "expr": query} for n, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool("check", "rules", str(path))


STREAM = 'instance="a",source="ftrace",channel="sched",cpu="0"'
# alert -> series that must raise this alert, and no other, within ten minutes
RAISED_BY = {
    "LttdDown": {'up{job="lttd",instance="a"}': "1 1 0x8"},
    "LttdEventsLost": {f'lttd_events_lost_total{{{STREAM},reason="dropped"}}': "0x7 1x4"},
    "LttdLossOfUnknownSize": {f'lttd_gaps_unknown_total{{{STREAM},reason="filtered"}}': "0x7 1x4"},
    "LttdSubbuffersLost": {f'lttd_subbuffers_lost_total{{{STREAM},reason="refused"}}': "0x7 1x4"},
    "LttdBytesNeverGiven": {f'lttd_bytes_lost_total{{{STREAM},reason="refused"}}': "0x7 4096x4"},
    "LttdDamaged": {f'lttd_bytes_lost_total{{{STREAM},reason="damaged"}}': "0x7 4096x4"},
    "LttdWriteErrors": {'lttd_write_errors_total{instance="a",errno="ENOSPC"}': "0x7 1x4"},
    "LttdUnhealthy": {'lttd_unhealthy{instance="a",reason="file_lost"}': "0x6 1x4"},
    "LttdBacklogFull": {'lttd_unhealthy{instance="a",reason="backlog_full"}': "0x7 1 0x2"},
    "LttdInterference": {'lttd_unhealthy{instance="a",reason="ring_emptied"}': "0x7 1 0x2"},
    "LttdReadingStandsStill": {'lttd_read_turns_total{instance="a"}': "10 20 20x9"},
    "LttdBacklogFilling": {
        'lttd_backlog_bytes{instance="a"}': "0x6 40x4",
        'lttd_backlog_limit_bytes{instance="a"}': "64x10",
    },
    "LttdRingFilling": {f"lttd_buffer_fill_ratio{{{STREAM}}}": "0.1x6 0.9x4"},
    "LttdStoreReachesTooShort": {
        'lttd_store_reach_seconds{instance="a"}': "7200 1800x9",
        'lttd_segments_deleted_total{instance="a",reason="size"}': "0+1x10",
    },
    "LttdDiskShortOfRoom": {'lttd_segments_deleted_total{instance="a",reason="free"}': "0x7 1x4"},
    "LttdKeptSegmentsDeleted": {
        'lttd_segments_deleted_total{instance="a",reason="kept_size"}': "0x7 1x4"
    },
    "LttdCompressionFallsBehind": {
        'lttd_compression_backlog_segments{instance="a"}': "3+1x10",
    },
    "LttdTriggersRefused": {
        'lttd_triggers_refused_total{instance="a",reason="too_many"}': "0x7 900x4"
    },
    "LttdForeignReader": {f"lttd_foreign_read_events_total{{{STREAM}}}": "0x7 9x4"},
}
QUIET = {
    'up{job="lttd",instance="a"}': "1x10",
    f'lttd_events_lost_total{{{STREAM},reason="dropped"}}': "5x10",
    f'lttd_gaps_unknown_total{{{STREAM},reason="overwritten"}}': "5x10",
    f'lttd_subbuffers_lost_total{{{STREAM},reason="refused"}}': "5x10",
    f'lttd_bytes_lost_total{{{STREAM},reason="refused"}}': "5x10",
    f'lttd_bytes_lost_total{{{STREAM},reason="damaged"}}': "5x10",
    f'lttd_bytes_lost_total{{{STREAM},reason="torn"}}': "5x10",
    'process_start_time_seconds{job="lttd",instance="a"}': "-86400x10",
    'lttd_write_errors_total{instance="a",errno="ENOSPC"}': "5x10",
    'lttd_unhealthy{instance="a",reason="backlog_full"}': "0x10",
    'lttd_read_turns_total{instance="a"}': "0+10x10",
    'lttd_backlog_bytes{instance="a"}': "1x10",
    'lttd_backlog_limit_bytes{instance="a"}': "64x10",
    f"lttd_buffer_fill_ratio{{{STREAM}}}": "0.3x10",
    f"lttd_foreign_read_events_total{{{STREAM}}}": "5x10",
    # Short, but young: nothing was deleted.
    'lttd_store_reach_seconds{instance="a"}': "60+60x10",
    'lttd_segments_deleted_total{instance="a",reason="free"}': "3x10",
    'lttd_segments_deleted_total{instance="a",reason="kept_size"}': "3x10",
    # Four wait, and their number falls.
    'lttd_compression_backlog_segments{instance="a"}': "14-1x10",
    'lttd_triggers_refused_total{instance="a",reason="too_many"}': "5x10",
}


@needs_promtool
def test_each_alert_fires_for_its_trouble_only(tmp_path: Path) -> None:
    ((labels, torn_bytes),) = torn_samples(torn_trace(tmp_path / "t")).items()
    recovered = {
        f'lttd_bytes_lost_total{{{STREAM},reason="torn"}}': "0x10",
        f'lttd_bytes_lost_total{{instance="a",{labels}}}': f"_x6 {torn_bytes:.0f}x4",
        'process_start_time_seconds{job="lttd",instance="a"}': "_x6 360x4",
    }
    raised_by = RAISED_BY | {"LttdRecoveredFromCrash": recovered}
    assert raised_by.keys() == set(re.findall(r"alert: (\w+)", RULES.read_text()))
    cases: list[tuple[dict[str, str], list[str]]] = [(QUIET, [])]
    cases += [(QUIET | series, [alert]) for alert, series in raised_by.items()]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in series.items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "10m",
                    "exp_samples": [
                        {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts
                    ],
                }
            ],
        }
        for series, alerts in cases
    ]
    path = tmp_path / "test.yml"
    path.write_text(json.dumps({"rule_files": [str(RULES)], "tests": tests}))
    promtool("test", "rules", str(path))


def ask(port: int, path: str, **parameters: str) -> dict[str, Any] | None:
    """Query the API of Prometheus; return None until it is up."""
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError), opener.open(url, timeout=5) as answer:
        data: dict[str, Any] = json.load(answer)["data"]
        return data
    return None


async def ask_until(port: int, path: str, **parameters: str) -> dict[str, Any]:
    while True:
        data = await trio.to_thread.run_sync(lambda: ask(port, path, **parameters))
        if data and data.get("result", True):
            return data
        await trio.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="no prometheus here: apt-get install prometheus"
)
async def test_a_real_prometheus_scrapes_the_endpoint(tmp_path: Path) -> None:
    numbers = busy_numbers(cpus=256)
    health = True, "ok"
    server = Endpoint(make_render(numbers, version="0.1.0"), lambda: health)
    listeners = await open_listeners(Address("127.0.0.1", 0))
    target = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    config = tmp_path / "prometheus.yml"
    scrape = {"job_name": "lttd", "static_configs": [{"targets": [target]}]}
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
                "rule_files": [str(RULES)],
                "scrape_configs": [scrape],
            }
        )
    )
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners)
            await nursery.start(trio.run_process, command)
            up = await ask_until(port, "query", query='up{job="lttd"} == 1')
            assert up["result"][0]["metric"]["instance"] == target
            for query, value in (
                ("sum(lttd_events_lost_total)", "6144"),
                ('sum(lttd_events_lost_total{reason="dropped"})', "3328"),
                ("count(lttd_stored_bytes_total == 123456789012)", "256"),
                ("count(lttd_reader_lag_seconds == 0.0125)", "256"),
                ('count(process_open_fds{job="lttd"})', "1"),
            ):
                data = await ask_until(port, "query", query=query)
                assert data["result"][0]["value"][1] == value, query
            # A busy machine may have been too slow for the last scrape.
            while True:
                (found,) = (await ask_until(port, "targets"))["activeTargets"]
                if (found["health"], found["lastError"]) == ("up", ""):
                    break
                await trio.sleep(0.2)
            metadata = await ask_until(port, "metadata")
            for family in FAMILIES:
                assert metadata[family.name][0]["type"] == family.type
            nursery.cancel_scope.cancel()
