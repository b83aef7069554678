"""``lttd trigger``: keep a window around now, and say when it is complete and on disk."""

import argparse
import datetime as dt
from collections.abc import Sequence

from lttd.clients.base import ask, client_parser, show
from lttd.errors import LttdError, UsageError
from lttd.parsers import shown
from lttd.terminal import printable
from lttd.trigger import MOST_LABEL_NAME, MOST_LABEL_VALUE, MOST_LABELS, MOST_REASON, Trigger

_SECOND_NS = 1_000_000_000


def run(words: Sequence[str]) -> int:
    """Keep a window; return the exit status."""
    parser = client_parser("trigger", "Keep a window of time around now.")
    add = parser.add_argument
    add("--reason", metavar="TEXT", default="", help="why; lttv info shows it")
    add("--before", metavar="T", help="begin so long before now (default 10s)")
    add("--after", metavar="T", help="end so long after now (default 5s)")
    add("--label", metavar="K=V", action="append", default=[], help="may be repeated")
    add("--no-wait", action="store_true", help="return when it is accepted")
    given = parser.parse_args(words)
    answer = ask(given, _request(given), None)
    try:
        trigger = Trigger.from_json(answer["trigger"])
    except (KeyError, ValueError) as error:
        raise LttdError(f"the answer of the recorder is not one: {error}") from None
    return show(given, answer, _line(trigger))


def _request(given: argparse.Namespace) -> dict[str, object]:
    if len(given.reason) > MOST_REASON:
        raise UsageError(f"--reason: write at most {MOST_REASON} characters")
    window = {"before": given.before, "after": given.after}
    return {
        "do": "trigger",
        "by": "command",
        "wait": not given.no_wait,
        "reason": given.reason,
        "labels": _labels(given.label),
    } | {key: value for key, value in window.items() if value is not None}


def _labels(written: Sequence[str]) -> dict[str, str]:
    labels = {}
    for one in written:
        name, equals, value = one.partition("=")
        if not (name and equals):
            raise UsageError(f"--label {shown(one)}: write NAME=VALUE")
        if len(name) > MOST_LABEL_NAME or len(value) > MOST_LABEL_VALUE:
            most = f"{MOST_LABEL_NAME} characters before = and {MOST_LABEL_VALUE} after it"
            raise UsageError(f"--label {shown(one)}: write at most {most}")
        labels[name] = value
    if len(labels) > MOST_LABELS:
        raise UsageError(f"--label: write at most {MOST_LABELS}")
    return labels


def _line(trigger: Trigger) -> str:
    """Return the result for people."""
    if not trigger.complete or trigger.begin_ns is None or trigger.end_ns is None:
        return f"trigger {trigger.number} is accepted"
    lasted_s = (trigger.end_ns - trigger.begin_ns) / _SECOND_NS
    bounds = f"{_utc(trigger.begin_ns)} to {_utc(trigger.end_ns)}"
    note = f"; {trigger.note}" if trigger.note else ""
    return printable(f"trigger {trigger.number}: {bounds} ({lasted_s:.3f} s) is kept{note}")


def _utc(realtime_ns: int) -> str:
    whole_s, rest_ns = divmod(realtime_ns, _SECOND_NS)
    moment = dt.datetime.fromtimestamp(whole_s, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"
