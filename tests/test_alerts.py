"""What Alertmanager and others post becomes triggers; everything else is one short line."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd import trigger
from lttd.alerts import (
    MOST_ALERTS,
    Around,
    UnusableError,
    parse_body,
    parse_query,
    parse_rfc3339_ns,
)

NOW_NS = 1_795_807_520_000_000_000  # 2026-11-27T19:25:20Z

# Captured from Alertmanager 0.25.0 of Debian 12, webhook_configs; its second alert is completed.
CAPTURED = (
    b'{"receiver":"lttd","status":"firing","alerts":[{"status":"firing","labels":{"alertname":'
    b'"LttdLoss","cpu":"1","instance":"h1:9100","severity":"warning"},"annotations":{"summary":'
    b'"events lost"},"startsAt":"2026-11-27T19:25:11.123Z","endsAt":"0001-01-01T00:00:00Z",'
    b'"generatorURL":"http://prom/graph","fingerprint":"35021adbaa110fb5"},{"status":"resolved",'
    b'"labels":{"alertname":"LttdLoss","cpu":"0","instance":"h1:9100","severity":"warning"},'
    b'"annotations":{"summary":"events lost"},"startsAt":"2026-11-27T19:25:11.2276474Z",'
    b'"endsAt":"2026-11-27T19:25:12Z","generatorURL":"http://prom/graph","fingerprint":'
    b'"45021adbaa110fb5"}],"groupLabels":{"alertname":"LttdLoss"},"commonLabels":{"alertname":'
    b'"LttdLoss"},"commonAnnotations":{},"externalURL":"http://vm:19998","version":"4",'
    b'"groupKey":"{}:{alertname=\\"LttdLoss\\"}","truncatedAlerts":0}\n'
)


def alert(**fields: object) -> dict[str, Any]:
    whole = {
        "status": "firing",
        "labels": {"alertname": "Slow"},
        "startsAt": "2026-11-27T19:25:11Z",
        "fingerprint": "f1",
    }
    return whole | fields


def body_of(*alerts: object) -> bytes:
    return json.dumps({"version": "4", "alerts": alerts}).encode()


def test_a_firing_alert_gives_reason_labels_and_time() -> None:
    asked = parse_body(CAPTURED, Around(300_000_000_000, 10_000_000_000), NOW_NS)
    (one,) = asked.triggers
    assert one.reason == "LttdLoss"
    assert one.labels == {
        "alertname": "LttdLoss", "cpu": "1", "instance": "h1:9100", "severity": "warning",
    }  # fmt: skip
    assert one.at_ns == 1_795_807_511_123_000_000
    assert (one.before_ns, one.after_ns) == (300_000_000_000, 10_000_000_000)
    assert one.alert == ("35021adbaa110fb5", "2026-11-27T19:25:11.123Z")
    assert (one.by, one.number, one.complete) == ("http", 0, False)


def test_a_resolved_alert_in_a_firing_group_is_no_trigger() -> None:
    assert parse_body(CAPTURED, Around(), NOW_NS).resolved == 1
    assert parse_body(body_of(), Around(), NOW_NS).triggers == []


def test_a_small_object_gives_a_trigger_of_now() -> None:
    body = b'{"reason": "deploy", "labels": {"by": "ci"}, "before": "1m"}'
    (one,) = parse_body(body, Around(1, 2), NOW_NS).triggers
    assert (one.reason, one.labels, one.at_ns) == ("deploy", {"by": "ci"}, NOW_NS)
    assert (one.before_ns, one.after_ns) == (60_000_000_000, 2)
    assert one.alert is None


def test_a_time_in_the_future_or_of_no_alert_becomes_now() -> None:
    later = alert(startsAt="2026-11-27T19:25:21Z")
    never = alert(startsAt="0001-01-01T00:00:00Z")
    triggers = parse_body(body_of(later, never), Around(), NOW_NS).triggers
    assert [each.at_ns for each in triggers] == [NOW_NS, NOW_NS]
    assert triggers[0].starts_at == "2026-11-27T19:25:21Z"


def test_an_alert_without_a_name_still_gets_a_reason() -> None:
    assert parse_body(body_of(alert(labels={})), Around(), NOW_NS).triggers[0].reason == "alert"


def test_a_long_label_is_cut_and_does_not_cost_the_window() -> None:
    long = alert(labels={"alertname": "x" * 5000} | {f"l{n}": "y" * 5000 for n in range(100)})
    (one,) = parse_body(body_of(long), Around(), NOW_NS).triggers
    assert len(one.reason) == trigger.MOST_REASON
    assert len(one.labels) == trigger.MOST_LABELS


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-27T19:25:11.123Z", 1_795_807_511_123_000_000),
        ("2026-11-27T19:25:11.2276474Z", 1_795_807_511_227_647_400),
        ("2026-11-27T20:25:11.123456789+01:00", 1_795_807_511_123_456_789),
        ("1969-12-31T23:59:59.5Z", -500_000_000),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000_000),
        *[(bad, None) for bad in ("", "now", "2026-11-27", "2026-11-27T19:25:11", "2026-13-01")],
        *[(f"2026-11-27T19:25:11{bad}", None) for bad in (".Z", ".1234567890Z", "Z\n", "+99:00")],
        ("2026-02-30T00:00:00Z", None),
        ("9999-12-31T23:59:59-23:00", 253_402_383_599_000_000_000),
        ("\uff12026-11-27T19:25:11Z", None),  # a digit, but not of ASCII
    ],
)
def test_times_of_rfc_3339_are_read_to_the_nanosecond(text: str, ns: int | None) -> None:
    assert parse_rfc3339_ns(text) == ns


@pytest.mark.parametrize(
    ("query", "around"),
    [
        (b"", Around()),
        (b"before=5m&after=10s", Around(300_000_000_000, 10_000_000_000)),
        (b"after=0", Around(after_ns=0)),
        (b"before=24h&after=1h", Around(trigger.MOST_BEFORE_NS, trigger.MOST_AFTER_NS)),
    ],
)
def test_the_query_gives_the_window(query: bytes, around: Around) -> None:
    assert parse_query(query) == around


@pytest.mark.parametrize(
    "query",
    [
        *(b"before=25h", b"after=61m", b"before=-5m", b"before=", b"before=5y", b"after=1e9"),
        *(b"before", b"befor=5m", b"before=1s&before=2s", b"&", b"before=%ff", b"\xff=1"),
        *(b"&".join([b"before=1s"] * 9), b"before=" + b"9" * 5000),
    ],
)
def test_a_bad_query_is_refused_in_one_short_line(query: bytes) -> None:
    with pytest.raises(UnusableError) as raised:
        parse_query(query)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff", b"[]", b"7", b'"x"', b"null", b"NaN", b"[" * 100_000, b"{}"),
        *(b'{"reason": 7}', b'{"reason": "x", "at": 1}', b'{"reason": "x", "labels": []}'),
        *(b'{"reason": "x", "labels": {"a": 1}}', b'{"reason": "x", "before": "25h"}'),
        *(b'{"reason": "x", "before": {}}', b'{"reason": "x", "after": true}'),
        *(b'{"alerts": {}}', b'{"alerts": [7]}', b'{"alerts": null}'),
        body_of(*[alert()] * (MOST_ALERTS + 1)),
        body_of(alert(labels=[])),
        body_of(alert(labels={"a": None})),
        body_of(alert(startsAt=7)),
        body_of(alert(startsAt="yesterday")),
        body_of(alert(fingerprint="")),
        body_of(alert(fingerprint=None)),
        b"1" * 10_000,
    ],
)
def test_a_bad_body_is_refused_in_one_short_line(body: bytes) -> None:
    with pytest.raises(UnusableError) as raised:
        parse_body(body, Around(), NOW_NS)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


def test_a_body_that_is_not_json_is_refused_in_our_words() -> None:
    with pytest.raises(UnusableError) as raised:
        parse_body(b'{"reason": }', Around(), NOW_NS)
    assert str(raised.value) == (
        "the body is not JSON: the error is at line 1, column 12;"
        ' send what Alertmanager posts, or {"reason": "..."}'
    )


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
hostile_alerts = st.lists(
    st.fixed_dictionaries(
        {"status": st.just("firing")},
        optional={"labels": any_json, "startsAt": any_json, "fingerprint": any_json},
    ),
    max_size=3,
)


@given(
    st.binary()
    | any_json.map(lambda value: json.dumps(value).encode())
    | hostile_alerts.map(lambda alerts: json.dumps({"alerts": alerts}).encode())
)
def test_any_body_gives_triggers_within_limits_or_one_line(body: bytes) -> None:
    with suppress(UnusableError):
        for one in parse_body(body, Around(), NOW_NS).triggers:
            assert one == one.within_limits()


@given(st.text())
def test_any_text_is_a_time_or_none(text: str) -> None:
    found = parse_rfc3339_ns(text)
    assert found is None or isinstance(found, int)
