"""Parse what POST /-/trigger carries: Alertmanager's body or a small JSON object, and the query.

    {"version": "4", "alerts": [{"status": "firing", "labels": {"alertname": "LttdLoss", ...},
      "startsAt": "2026-11-27T19:25:11.123Z", "fingerprint": "35021adbaa110fb5", ...}, ...], ...}

    {"reason": "deploy of db1", "labels": {"by": "ci"}, "before": "1m", "after": "10s"}

    /-/trigger?before=5m&after=10s

Rule: pure.  For any input, a function returns a value or raises UnusableError with one short line.
Rule: only a firing alert is a trigger.  Alertmanager repeats alerts for as long as they fire, so
(fingerprint, startsAt) identifies one.
"""

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from lttd.errors import LttdError, UsageError
from lttd.parsers import parse_duration_s, shown
from lttd.plausible import parse_json
from lttd.trigger import (
    DEFAULT_AFTER_NS,
    DEFAULT_BEFORE_NS,
    MOST_AFTER_NS,
    MOST_BEFORE_NS,
    Trigger,
)

# Alertmanager groups alerts; a group of more is a storm, of which these show enough.
MOST_ALERTS: Final = 256
_NS: Final = 1_000_000_000
# Go writes RFC 3339 with 0 to 9 digits of a second.
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", re.ASCII
)
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class UnusableError(LttdError):
    """The request cannot be understood; the message says which part of it."""


class Around(NamedTuple):
    """The window around a trigger's time."""

    before_ns: int = DEFAULT_BEFORE_NS
    after_ns: int = DEFAULT_AFTER_NS


class Asked(NamedTuple):
    """The triggers of a request, and the number of its alerts that are none."""

    triggers: Sequence[Trigger]
    resolved: int = 0


def parse_around(before: object | None, after: object | None, default: Around) -> Around:
    """Parse the durations before and after a trigger; None: as *default*.

    Raises:
        UnusableError: one of them is not a duration, or is longer than the longest.
    """
    return Around(
        _duration_ns("before", before, MOST_BEFORE_NS, default.before_ns),
        _duration_ns("after", after, MOST_AFTER_NS, default.after_ns),
    )


def _duration_ns(name: str, value: object | None, most_ns: int, default_ns: int) -> int:
    if value is None:
        return default_ns
    try:
        duration_ns = round(parse_duration_s(value) * _NS)
    except UsageError as error:
        raise UnusableError(f"{name} {error}") from None
    if duration_ns > most_ns:
        most_h = most_ns // (3600 * _NS)
        raise UnusableError(f"{name} {shown(value)} is too long; write at most {most_h}h")
    return duration_ns


def parse_query(query: bytes) -> Around:
    """Parse ``before=5m&after=10s``, both optional.

    Raises:
        UnusableError: it has another key, a key twice, or a bad duration.
    """
    try:
        pairs = parse_qsl(
            query.decode(), keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8
        )
    except ValueError:
        raise UnusableError("the query is not of the form before=5m&after=10s") from None
    given: dict[str, str] = {}
    for key, value in pairs:
        if key not in ("before", "after") or key in given:
            words = "is given twice" if key in given else "is not known"
            raise UnusableError(f"the query's {shown(key)} {words}; write before=5m&after=10s")
        given[key] = value
    return parse_around(given.get("before"), given.get("after"), Around())


def parse_body(body: bytes, around: Around, now_ns: int) -> Asked:
    """Parse the body of a request; *around* is the window of its query, *now_ns* its time.

    Raises:
        UnusableError: it is neither Alertmanager's JSON nor a small object with a reason.
    """
    try:
        value = parse_json(body)
    except ValueError as error:
        advice = 'send what Alertmanager posts, or {"reason": "..."}'
        raise UnusableError(f"the body is not JSON: {error}; {advice}") from None
    if not isinstance(value, Mapping):
        raise UnusableError("the body is not a JSON object")
    if "alerts" in value:
        return _alertmanager(value["alerts"], around, now_ns)
    return Asked([_plain(value, around, now_ns)])


def _plain(value: Mapping[str, Any], around: Around, now_ns: int) -> Trigger:
    unknown = value.keys() - {"reason", "labels", "before", "after"}
    if unknown or "reason" not in value:
        what = f"key {shown(min(unknown))}" if unknown else "no reason"
        raise UnusableError(f"the body has {what}; it may have reason, labels, before, after")
    around = parse_around(value.get("before"), value.get("after"), around)
    reason = parse_text(value["reason"], "reason")
    labels = parse_labels(value.get("labels", {}), "labels")
    return Trigger(reason, labels, "http", now_ns, *around).within_limits()


def _alertmanager(alerts: object, around: Around, now_ns: int) -> Asked:
    if not isinstance(alerts, list) or len(alerts) > MOST_ALERTS:
        raise UnusableError(f"alerts is not a list of at most {MOST_ALERTS}")
    triggers = []
    for number, alert in enumerate(alerts):
        where = f"alerts[{number}]"
        if not isinstance(alert, Mapping):
            raise UnusableError(f"{where} is not an object")
        if alert.get("status") == "firing":
            triggers.append(_alert(alert, where, around, now_ns))
    return Asked(triggers, len(alerts) - len(triggers))


def _alert(alert: Mapping[str, Any], where: str, around: Around, now_ns: int) -> Trigger:
    labels = parse_labels(alert.get("labels", {}), f"{where}.labels")
    starts_at = parse_text(alert.get("startsAt"), f"{where}.startsAt")
    fingerprint = parse_text(alert.get("fingerprint"), f"{where}.fingerprint")
    if not fingerprint:
        raise UnusableError(f"{where}.fingerprint is empty")
    at_ns = parse_rfc3339_ns(starts_at)
    if at_ns is None:
        raise UnusableError(f"{where}.startsAt is not a time of RFC 3339")
    return Trigger(
        labels.get("alertname") or "alert",
        labels,
        "http",
        # The clock of the machine that evaluates the alert may be ahead; Go's zero is the year 1.
        min(at_ns, now_ns) if at_ns > 0 else now_ns,
        *around,
        fingerprint=fingerprint,
        starts_at=starts_at,
    ).within_limits()


def parse_rfc3339_ns(text: str) -> int | None:
    """Return a time of RFC 3339 in ns since the epoch (negative before it); None if it is none."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    day, time, fraction, zone = found.groups()
    try:
        since = dt.datetime.fromisoformat(f"{day}T{time}{zone.replace('Z', '+00:00')}") - _EPOCH
    except (ValueError, OverflowError):
        return None
    return (since.days * 86_400 + since.seconds) * _NS + int((fraction or "0").ljust(9, "0"))


def parse_text(value: object, where: str) -> str:
    """Return a text of a request; *where* names it in the error.

    Raises:
        UnusableError: it is not one.
    """
    if not isinstance(value, str):
        raise UnusableError(f"{where} is not a text")
    return value


def parse_labels(value: object, where: str) -> dict[str, str]:
    """Return the labels of a request; *where* names them in the error.

    Raises:
        UnusableError: they are not texts.
    """
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value.values()):
        raise UnusableError(f"{where} is not an object of texts")
    return dict(value)
