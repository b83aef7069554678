"""A scrape shows every loss once, from 0 on, as docs/METRICS.md describes it."""

import gc
import re
import time
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from prometheus_client import CollectorRegistry, generate_latest

from lttd.catalogue import StoreState
from lttd.health import Trouble
from lttd.metrics import LOSS_REASONS, WRITE_ERRNOS, make_render
from lttd.retention import Limits
from lttd.service_metrics import SERVICE_FAMILIES, Parts
from lttd.stats import Fill, StreamStats, summarize
from lttd.subbuffer import ROW_DTYPE, Gap, Reason, Rows, StreamId, Unit
from tests.scrapes import (
    Numbers,
    Samples,
    busy_numbers,
    busy_stream,
    collector,
    recovering,
    scraped,
    shown,
    torn_samples,
    torn_trace,
)
from tests.segment_builder import Made, subbuffer


def some_rows(count: int, payload_bytes: int) -> Rows:
    """Return *count* rows with *payload_bytes* in all."""
    rows = np.zeros(count, ROW_DTYPE)
    rows["payload_bytes"][0] = payload_bytes
    return rows


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


def test_the_metrics_show_store_rolls_and_triggers() -> None:
    samples = shown(busy_numbers())
    for name, value in (
        ("lttd_store_bytes", 190 << 20),
        ("lttd_store_limit_bytes", 200 << 20),
        ("lttd_store_reach_seconds", 8123.5),
        ("lttd_kept_segments", 3),
        ("lttd_kept_bytes", 60 << 20),
        ("lttd_compression_backlog_segments", 2),
        ("lttd_triggers_completed_total", 5),
        ("lttd_triggers_waiting", 1),
    ):
        assert value_of(samples, name) == value
    deleted = by_reason(samples, "lttd_segments_deleted_total")
    assert deleted == {"age": 0, "size": 44, "kept_size": 1, "free": 0, "full": 0}
    assert by_reason(samples, "lttd_rolls_total") == {"asked": 3, "bytes": 40, "age": 0}
    refused = by_reason(samples, "lttd_triggers_refused_total")
    assert refused == {"not_now": 0, "too_many": 7, "out_of_reach": 0, "too_large": 0}
    assert value_of(samples, "lttd_triggers_total", by="http") == 5
    assert value_of(samples, "lttd_triggers_total", by="signal") == 0


def test_a_part_that_has_not_begun_and_a_limit_that_is_not_set_have_no_sample() -> None:
    service = {family.name for family in SERVICE_FAMILIES}
    assert not service & {name for name, _ in shown(Numbers())}
    numbers = busy_numbers()
    empty = StoreState(0, 0, 0, 0, {}, None, 0)
    numbers.parts = Parts(store=lambda: empty, limits=Limits)
    found = service & {name for name, _ in shown(numbers)}
    assert found == {
        *("lttd_store_bytes", "lttd_kept_segments", "lttd_kept_bytes"),
        *("lttd_segments_deleted_total", "lttd_compression_backlog_segments"),
    }


def test_a_scrape_of_256_streams_blocks_the_loop_for_milliseconds_only() -> None:
    render = make_render(busy_numbers(cpus=256), version="0.1.0")
    spent_s = []
    gc.disable()  # it goes through the objects of all other tests
    try:
        for _ in range(5):
            before_s = time.thread_time()
            render()
            spent_s.append(time.thread_time() - before_s)
    finally:
        gc.enable()
    assert min(spent_s) < 0.03  # it takes 10 ms on a small machine
