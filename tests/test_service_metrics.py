"""The metrics of a recorder that rolls and deletes are those of its trace directory."""

import json
from pathlib import Path
from typing import Any

from lttd.tracedir import segments
from tests.running import (
    Launcher,
    build_load,
    free_port,
    get,
    loaded,
    needs_kernel,
    scraped,
    until,
)
from tests.scrapes import Samples
from tests.scrapes import scraped as samples_of

pytestmark = needs_kernel()


def by_label(samples: Samples, name: str) -> dict[str, float]:
    return {
        value: found
        for (one, labels), found in samples.items()
        if one == name
        for _, value in labels
    }


def test_rolls_deletions_and_the_store_are_counted_as_they_happen(
    lttd: Launcher, tmp_path: Path
) -> None:
    trace, port = tmp_path / "t", free_port()
    options = ["--events", "syscalls:*getppid", "--flush-interval", "50ms"]
    options += ["--segment-size", "1M", "--max-size", "8M", "--metrics", f"127.0.0.1:{port}"]
    run = lttd.start("-t", trace, *options).recording()
    until(lambda: "lttd_store_bytes" in scraped(port), "the endpoint")
    first = samples_of(scraped(port))
    assert by_label(first, "lttd_segments_deleted_total")["size"] == 0
    with loaded(build_load(tmp_path)):
        until(lambda: 'lttd_segments_deleted_total{reason="size"} 0' not in scraped(port), "more")

    def agree() -> bool:
        # Data is written after the load has ended, too, so that rolls and deletions follow.
        nonlocal samples, store
        samples = samples_of(scraped(port))
        store = json.loads(get(port, "/status.json")[1])["store"]
        deleted = by_label(samples, "lttd_segments_deleted_total")
        there = len(segments(trace))
        return deleted == store["deletions"] and samples["lttd_segments", frozenset()] == there

    samples, store = first, dict[str, Any]()
    until(agree, "the scrape, the page and the directory agree")
    deleted = by_label(samples, "lttd_segments_deleted_total")
    rolled = by_label(samples, "lttd_rolls_total")
    assert sum(rolled.values()) == rolled["bytes"] >= deleted["size"] > 0
    assert sum(deleted.values()) == deleted["size"]
    assert samples["lttd_store_limit_bytes", frozenset()] == 8 << 20
    assert 0 < samples["lttd_store_bytes", frozenset()] < 16 << 20
    assert 0 < samples["lttd_store_reach_seconds", frozenset()] < 60
    assert store["limit_bytes"] == 8 << 20
    assert run.end() == 0
