"""A real Prometheus and a real Alertmanager on the loopback address, with the shipped rules."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.running import free_port, get, until
from tests.scrapes import RULES

PROMETHEUS = shutil.which("prometheus")
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")

needs_both = pytest.mark.skipif(
    not (PROMETHEUS and ALERTMANAGER),
    reason="apt-get install prometheus prometheus-alertmanager",
)


@contextmanager
def monitored(directory: Path, target: str, hook: str, token_file: Path) -> Iterator[int]:
    """Scrape *target* every second, and post what fires to *hook*; yield Prometheus's port."""
    ports = free_port(), free_port()
    authorization = {"type": "Bearer", "credentials_file": str(token_file)}
    receiver = {
        "name": "lttd",
        "webhook_configs": [{"url": hook, "http_config": {"authorization": authorization}}],
    }
    # It posts what it groups at once, and again after a second.
    route = {
        "receiver": "lttd",
        "group_wait": "0s",
        "group_interval": "1s",
        "repeat_interval": "1m",
    }
    (directory / "alertmanager.yml").write_text(
        json.dumps({"route": route, "receivers": [receiver]})
    )
    (directory / "prometheus.yml").write_text(
        json.dumps(
            {
                "global": {
                    "scrape_interval": "1s",
                    "scrape_timeout": "1s",
                    "evaluation_interval": "1s",
                },
                "rule_files": [str(RULES)],
                "scrape_configs": [{"job_name": "lttd", "static_configs": [{"targets": [target]}]}],
                "alerting": {
                    "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports[1]}"]}]}]
                },
            }
        )
    )
    assert PROMETHEUS
    assert ALERTMANAGER
    prometheus = [
        *(PROMETHEUS, f"--config.file={directory / 'prometheus.yml'}"),
        *(
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{ports[0]}",
        ),
    ]
    alertmanager = [
        *(ALERTMANAGER, f"--config.file={directory / 'alertmanager.yml'}"),
        *(f"--storage.path={directory / 'silences'}", f"--web.listen-address=127.0.0.1:{ports[1]}"),
        "--cluster.listen-address=",  # without peers
    ]
    with (
        running(directory / "alertmanager.log", alertmanager),
        running(directory / "prometheus.log", prometheus),
    ):
        for port in ports:
            until(lambda port=port: get(port, "/-/ready")[0] == 200, "Prometheus")
        yield ports[0]


@contextmanager
def running(log: Path, words: Sequence[str]) -> Iterator[None]:
    """Run a server until the end of the block; its output goes to *log*."""
    without_proxy = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=without_proxy)
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()
