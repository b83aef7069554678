"""A real Prometheus and a real Alertmanager turn a loss into a kept window of the trace."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.monitoring import monitored, needs_both
from tests.running import (
    Launcher,
    build_load,
    free_port,
    get,
    info,
    loaded,
    lttv,
    needs_kernel,
    until,
)

pytestmark = [*needs_kernel(), pytest.mark.nightly, needs_both]


def of_alert(triggers: list[dict[str, Any]], alert: str) -> list[dict[str, Any]]:
    return [trigger for trigger in triggers if trigger["reason"] == alert]


def complete(port: int, alert: str) -> list[dict[str, Any]]:
    """Return the complete windows of an alert that the status page shows."""
    windows = json.loads(get(port, "/status.json")[1])["windows"]
    return [window for window in of_alert(windows, alert) if window["complete"]]


def test_a_loss_fires_an_alert_whose_webhook_keeps_the_window(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace, port, token = tmp_path / "t", free_port(), tmp_path / "token"
    token.write_text("a-long-secret\n")
    token.chmod(0o600)
    options = ["--events", "syscalls:*getppid", "--buffer-size", "1M", "--flush-interval", "100ms"]
    options += ["--segment-size", "4M", "--max-size", "64M", "--metrics", f"127.0.0.1:{port}"]
    options += ["--web-enable-trigger", "--web-token-file", str(token)]
    run = lttd.start("-t", trace, *options).recording()
    hook = f"http://127.0.0.1:{port}/-/trigger?before=1m&after=1s"
    program = build_load(tmp_path)
    with monitored(tmp_path, f"127.0.0.1:{port}", hook, token) as prometheus:
        up = "/api/v1/query?query=lttd_events_lost_total"
        until(lambda: '"overwritten"' in get(prometheus, up)[1], "a scrape before the loss")
        # While lttd sleeps, the ring overwrites itself.
        run.signal(signal.SIGSTOP)
        with loaded(program):
            until(lambda: any(stats["overrun"] for stats in run.stats().values()), "a loss")
        (run.instance / "trace_marker").write_text("the moment of the loss")
        run.signal(signal.SIGCONT)
        until(lambda: complete(port, "LttdEventsLost"), "the window")
    (window,) = complete(port, "LttdEventsLost")
    assert window["by"] == "http"
    assert window["labels"]["reason"] == "overwritten"
    assert run.end() == 0
    # Alertmanager repeats an alert; that makes no other trigger.
    (trigger,) = of_alert(info(trace)["triggers"], "LttdEventsLost")
    assert trigger == window
    shown = lttv("text", trace, "--trigger", str(trigger["number"]))
    assert shown.returncode == 0, shown.stderr
    assert "the moment of the loss" in shown.stdout
    assert "LOST" in shown.stdout.upper()
