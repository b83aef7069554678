"""A scrape shows every loss once, from 0 on, as docs/METRICS.md describes it."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import trio
from hypothesis import given
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lttd.endpoint import Address, Endpoint, open_listeners
from lttd.files import Disk
from lttd.health import Health, Trouble
from lttd.metrics import FAMILIES, LOSS_REASONS, WRITE_ERRNOS, RecorderCollector, make_render
from lttd.reader import Reader
from lttd.recorder import Recorder
from lttd.recording import recover_open_segments
from lttd.stats import DaemonGauges, Fill, StreamStats, summarize
from lttd.status import Observer
from lttd.subbuffer import ROW_DTYPE, Gap, Reason, Rows, StreamId, Unit
from tests.running import PATIENCE_S, free_port
from tests.segment_builder import Made, subbuffer

DOCS = Path(__file__).parents[1] / "docs"
ALERTS = DOCS / "alerts.yml"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool here: apt-get install prometheus"
)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Numbers:
    """The state of a daemon, with numbers that the test sets."""

    def __init__(self, *streams: StreamStats, **gauges: object) -> None:
        self.all = list(streams)
        self.values: dict[str, Any] = {
            "backlog_bytes": 5 << 20,
            "backlog_limit_bytes": 64 << 20,
            "backlog_high_water_bytes": 9 << 20,
            "segments": 3,
            "turns_total": 1000,
            "last_turn_ns": 7_000_000_000,
        } | gauges

    def streams(self) -> Sequence[StreamStats]:
        return self.all

    def gauges(self) -> DaemonGauges:
        return DaemonGauges(**self.values)


def busy_stream(channel: str = "sched", cpu: int = 0, source: str = "ftrace") -> StreamStats:
    stats = StreamStats(StreamId(channel, cpu), source, subbuffers=70)
    stats.gaps_unknown[Reason.OVERWRITTEN] = 2
    stats.stored_bytes, stats.padding_bytes = 123_456_789_012, 4096
    for reason, unit, count in (
        (Reason.OVERWRITTEN, Unit.EVENTS, 11),
        (Reason.DROPPED, Unit.EVENTS, 13),
        (Reason.REFUSED, Unit.SUBBUFFERS, 1),
        (Reason.DAMAGED, Unit.BYTES, 4096),
    ):
        stats.lost(Gap(0, reason, unit, count, 0, 0))
    return stats


def some_rows(count: int, payload_bytes: int) -> Rows:
    """Return *count* rows with *payload_bytes* in all."""
    rows = np.zeros(count, ROW_DTYPE)
    rows["payload_bytes"][0] = payload_bytes
    return rows


def busy_numbers(cpus: int = 2) -> Numbers:
    streams = [busy_stream(cpu=cpu) for cpu in range(cpus)]
    return Numbers(
        *streams,
        write_errors={"ENOSPC": 2, "ENOENT": 1},
        fill={stats.key: Fill(0.25, 0.0125) for stats in streams},
        foreign_read_events={stats.key: 0 for stats in streams},
    )


def collector(numbers: Numbers) -> RecorderCollector:
    return RecorderCollector(numbers, version="0.1.0", kernel="6.18.0")


TORN_BYTES = 21
"""The bytes that torn_trace() leaves of its last sub-buffer."""


def torn_trace(trace: Path) -> Path:
    """Make an open segment as a killed lttd leaves it: its last sub-buffer is cut in the middle."""
    made = Made(trace)
    made.append([subbuffer(0), subbuffer(1)])
    made.leave()
    data = made.paths.stream(made.records[0].name).data
    last = int(made.stream().index.entries()["offset_bytes"][-1])
    os.truncate(data, last + TORN_BYTES)
    return trace


def recovering(trace: Path) -> Observer:
    """Return the state of a run that has recovered *trace* and not recorded yet."""
    recorder, health = Recorder(), Health()
    observer = Observer(recorder, Reader(recorder, 1.0), health, [], 1.0)
    for recovered in recover_open_segments(Disk(), trace):
        observer.also(recovered.streams)
    return observer


def torn_samples(trace: Path) -> dict[str, float]:
    """Return the torn bytes of a scrape of that run, by labels."""
    text = RecorderCollector(recovering(trace), version="0.1.0", kernel="6.18.0").text()
    found = re.findall(r'^lttd_bytes_lost_total\{(.*,reason="torn")\} (\S+)$', text, re.M)
    return {labels: float(value) for labels, value in found}


def scraped(text: str) -> Samples:
    """Parse an exposition; fail on a repeated sample."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"twice: {key}"
            samples[key] = sample.value
    return samples


def shown(numbers: Numbers) -> Samples:
    return scraped(collector(numbers).text())


def by_reason(samples: Samples, name: str) -> dict[str, float]:
    """Sum a metric over all labels except its reason."""
    sums: dict[str, float] = {}
    for (sample, labels), value in samples.items():
        if sample == name:
            reason = dict(labels)["reason"]
            sums[reason] = sums.get(reason, 0) + value
    return sums


def value_of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


# -- the numbers


def test_the_text_equals_that_of_the_prometheus_library() -> None:
    numbers = busy_numbers()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector(numbers))
    text, reference = collector(numbers).text(), generate_latest(registry).decode()
    assert scraped(text) == scraped(reference)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments == [line for line in reference.splitlines() if line.startswith("#")]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_channel_name_is_escaped_as_the_library_escapes_it(channel: str) -> None:
    numbers = Numbers(busy_stream(channel))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector(numbers))

    def labels(text: str) -> set[str]:
        return set(re.findall(r"^lttd_stored_bytes_total\{(.*?)\} [0-9.e+]+$", text, re.M | re.S))

    assert labels(collector(numbers).text()) == labels(generate_latest(registry).decode())


def test_every_loss_metric_is_0_at_the_first_scrape() -> None:
    samples = shown(Numbers(StreamStats(StreamId("sched", 0))))
    for family, reasons in LOSS_REASONS.items():
        found = by_reason(samples, family.name)
        assert found == {reason.name.lower(): 0 for reason in reasons}
    errnos = {dict(k[1])["errno"]: v for k, v in samples.items() if k[0].startswith("lttd_write")}
    assert errnos == dict.fromkeys(WRITE_ERRNOS, 0)


def test_events_lost_equals_the_counts_of_the_kernel() -> None:
    stats = busy_stream()
    stats.events_lost[Reason.TORN] = 1000
    found = by_reason(shown(Numbers(stats)), "lttd_events_lost_total")
    assert found == {
        "overwritten": 11,
        "dropped": 13,
        "commit_overrun": 0,
        "discarded": 0,
        "abandoned": 0,
        "killed": 0,
        "foreign_read": 0,
    }


def test_a_loss_of_a_new_kind_is_shown_once_it_occurs() -> None:
    stats = busy_stream()
    stats.subbuffers_lost[Reason.DISCARDED] = 4
    assert by_reason(shown(Numbers(stats)), "lttd_subbuffers_lost_total")["discarded"] == 4


@pytest.mark.parametrize("reason", [Reason.BACKLOG, Reason.STORAGE])
def test_unwritten_data_are_counted_at_once_under_their_reason(reason: Reason) -> None:
    stats = busy_stream()
    stats.unwritten(some_rows(6, 700), reason)
    samples = shown(Numbers(stats))
    subbuffers = by_reason(samples, "lttd_subbuffers_lost_total")
    assert subbuffers == dict.fromkeys(subbuffers, 0) | {"refused": 1, reason.name.lower(): 6}
    in_bytes = by_reason(samples, "lttd_bytes_lost_total")
    assert in_bytes == dict.fromkeys(in_bytes, 0) | {"damaged": 4096, reason.name.lower(): 700}
    assert summarize(stats).lost[f"{reason.name.lower()}_subbuffers"] == 6


def test_a_failed_sync_counts_as_a_loss_of_unknown_size() -> None:
    stats = busy_stream()
    stats.unsynced += 1
    unknown = by_reason(shown(Numbers(stats)), "lttd_gaps_unknown_total")
    assert unknown == dict.fromkeys(unknown, 0) | {"overwritten": 2, "unsynced": 1}
    assert summarize(stats).gaps_unknown == 3


def test_a_loss_of_unknown_size_says_why() -> None:
    stats = StreamStats(StreamId("sched", 0))
    for reason in (Reason.EMPTIED, Reason.EMPTIED, Reason.FILTERED):
        stats.lost(Gap(0, reason, Unit.EVENTS, None, 0, 0))
    unknown = by_reason(shown(Numbers(stats, stats)), "lttd_gaps_unknown_total")
    assert unknown == dict.fromkeys(unknown, 0) | {"emptied": 4, "filtered": 2}


def test_the_scraped_counters_balance(tmp_path: Path) -> None:
    stats = busy_stream(source="ltt:/a")
    stats.unwritten(some_rows(6, 700), Reason.STORAGE)
    stats.delivered_bytes = stats.stored_bytes + stats.padding_bytes + stats.refused_bytes
    # The data of an earlier run of the same stream do not count as delivered in this one.
    (torn,) = recovering(torn_trace(tmp_path / "t")).streams()
    torn.source, torn.stream = stats.source, stats.stream
    samples = shown(Numbers(stats, torn))
    lost = by_reason(samples, "lttd_bytes_lost_total")
    stream = {"source": "ltt:/a", "channel": "sched", "cpu": "0"}
    assert stats.delivered_bytes == (
        value_of(samples, "lttd_stored_bytes_total", **stream)
        + value_of(samples, "lttd_padding_bytes_total", **stream)
        + sum(lost[reason] for reason in ("damaged", "backlog", "storage"))
    )


def test_a_scrape_of_the_recovering_run_counts_the_torn_bytes(
    tmp_path: Path,
) -> None:
    cut_bytes = Made(tmp_path / "x").rings[0].batch([subbuffer(1)]).payload_bytes
    labels = 'channel="fake",cpu="0",source="fake",reason="torn"'
    assert torn_samples(torn_trace(tmp_path / "t")) == {labels: cut_bytes}
    assert torn_samples(tmp_path / "t") == {}, "it is whole: the next run has nothing to tell"


def test_the_counters_of_a_stream_add_up_over_segments() -> None:
    once, thrice = Numbers(busy_stream()), Numbers(*[busy_stream() for _ in range(3)])
    of_once, of_thrice = shown(once), shown(thrice)
    assert of_once.keys() == of_thrice.keys()
    for (name, labels), value in of_once.items():
        times = 3 if "channel" in dict(labels) else 1
        assert of_thrice[name, labels] == times * value
    assert thrice.all[0] == busy_stream()  # keep the original columns


def test_streams_of_the_same_name_stay_separate_by_source() -> None:
    one, two = busy_stream(source="ltt:/a"), busy_stream(source='ltt:/"b"')
    samples = shown(Numbers(one, two))
    for source in ("ltt:/a", 'ltt:/"b"'):
        stream = {"source": source, "channel": "sched", "cpu": "0"}
        assert value_of(samples, "lttd_subbuffers_read_total", **stream) == 70


def test_a_counter_that_the_kernel_lacks_is_not_shown_as_0() -> None:
    told, untold = ("ftrace", StreamId("sched", 0)), ("relay:/d", StreamId("sched", 0))
    numbers = Numbers(
        *(StreamStats(stream, source) for source, stream in (told, untold)),
        fill={told: Fill(0.5, 1e-07)},
        foreign_read_events={told: 8},
    )
    samples = shown(numbers)
    stream = {"source": "ftrace", "channel": "sched", "cpu": "0"}
    for name, value in (
        ("lttd_buffer_fill_ratio", 0.5),
        ("lttd_reader_lag_seconds", 1e-07),
        ("lttd_foreign_read_events_total", 8),
    ):
        assert value_of(samples, name, **stream) == value
        assert sum(key[0] == name for key in samples) == 1


def test_the_metrics_show_the_state_of_lttd() -> None:
    samples = shown(busy_numbers())
    assert value_of(samples, "lttd_backlog_bytes") == 5 << 20
    assert value_of(samples, "lttd_backlog_high_water_bytes") == 9 << 20
    assert value_of(samples, "lttd_backlog_limit_bytes") == 64 << 20
    assert value_of(samples, "lttd_segments") == 3
    assert value_of(samples, "lttd_read_turns_total") == 1000
    assert value_of(samples, "lttd_write_errors_total", errno="ENOSPC") == 2
    assert value_of(samples, "lttd_write_errors_total", errno="ENOENT") == 1
    assert value_of(samples, "lttd_build_info", version="0.1.0", kernel="6.18.0") == 1


def test_every_trouble_is_shown_and_only_lasting_ones_are_1() -> None:
    assert by_reason(shown(Numbers()), "lttd_unhealthy") == dict.fromkeys(Trouble, 0)
    sick = Numbers(troubles=frozenset({Trouble.BACKLOG_FULL}))
    found = by_reason(shown(sick), "lttd_unhealthy")
    assert found == dict.fromkeys(Trouble, 0) | {Trouble.BACKLOG_FULL: 1}


def test_a_scrape_of_256_streams_blocks_the_loop_for_milliseconds_only() -> None:
    render = make_render(busy_numbers(cpus=256), version="0.1.0")
    spent_s = []
    for _ in range(5):
        before_s = time.thread_time()
        render()
        spent_s.append(time.thread_time() - before_s)
    assert min(spent_s) < 0.015  # it takes 3 ms on a small machine


# -- docs/METRICS.md


def rows_of(document: str, columns: int) -> Iterator[list[str]]:
    """Yield the cells of every table row with *columns* columns, without header lines."""
    for line in document.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == columns and cells[0].startswith("`"):
            yield cells


def documented() -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return type, unit and labels by metric."""
    metrics = {}
    for name, kind, unit, labels, meaning in rows_of((DOCS / "METRICS.md").read_text(), 5):
        assert name.strip("`") not in metrics
        assert meaning.endswith(".")
        metrics[name.strip("`")] = (kind, unit, tuple(filter(None, labels.split(", "))))
    return metrics


def test_the_document_lists_exactly_the_scraped_metrics() -> None:
    found = {}
    render = make_render(busy_numbers(), version="0.1.0")
    for family in text_string_to_metric_families(render().decode()):
        assert family.samples, f"{family.name}: without a sample in the fullest scrape"
        names = {sample.name for sample in family.samples}
        labels = {frozenset(sample.labels) for sample in family.samples}
        assert len(names) == len(labels) == 1
        found[names.pop()] = (family.type, labels.pop())
    told = {name: (kind, frozenset(labels)) for name, (kind, _, labels) in documented().items()}
    assert told == found
    assert {name for name in found if name.startswith("lttd_")} == {f.name for f in FAMILIES}


def test_the_units_of_the_document_match_the_metric_names() -> None:
    for name, (kind, unit, _) in documented().items():
        assert name.endswith("_total") == (kind == "counter")
        for in_name in ("bytes", "seconds", "ratio"):
            assert (f"_{in_name}" in name) == (unit == in_name), name


def test_the_document_lists_the_label_values_of_the_first_scrape() -> None:
    listed = {
        (name.strip("`"), value.strip("`"))
        for name, value, _ in rows_of((DOCS / "METRICS.md").read_text(), 3)
    }
    found = {
        (name, dict(labels).get("reason") or dict(labels).get("errno"))
        for name, labels in shown(Numbers(StreamStats(StreamId("sched", 0))))
        if {"reason", "errno"} & set(dict(labels))
    }
    assert listed == found


def test_the_document_explains_each_trouble_as_the_program_does() -> None:
    explained = {
        value.strip("`"): meaning
        for name, value, meaning in rows_of((DOCS / "METRICS.md").read_text(), 3)
        if name == "`lttd_unhealthy`"
    }
    assert explained == {trouble.value: trouble.meaning for trouble in Trouble}


def test_rules_and_queries_use_only_documented_metrics() -> None:
    known = documented().keys()
    for text in ((DOCS / "METRICS.md").read_text(), ALERTS.read_text()):
        used = set(re.findall(r"\b(?:lttd|process)_[a-z_]+[a-z]\b", text))
        assert used <= known


# -- the programs of Prometheus


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
    promtool("check", "rules", str(ALERTS))
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
    "LttdUnhealthy": {'lttd_unhealthy{instance="a",reason="backlog_full"}': "0x6 1x4"},
    "LttdInterference": {'lttd_unhealthy{instance="a",reason="ring_emptied"}': "0x7 1 0x2"},
    "LttdReadingStandsStill": {'lttd_read_turns_total{instance="a"}': "10 20 20x9"},
    "LttdBacklogFilling": {
        'lttd_backlog_bytes{instance="a"}': "0x6 40x4",
        'lttd_backlog_limit_bytes{instance="a"}': "64x10",
    },
    "LttdRingFilling": {f"lttd_buffer_fill_ratio{{{STREAM}}}": "0.1x6 0.9x4"},
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
    assert raised_by.keys() == set(re.findall(r"alert: (\w+)", ALERTS.read_text()))
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
    path.write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": tests}))
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
                "rule_files": [str(ALERTS)],
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
            kinds = await ask_until(port, "metadata")
            for family in FAMILIES:
                assert kinds[family.name][0]["type"] == family.kind
            nursery.cancel_scope.cancel()
