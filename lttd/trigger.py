"""A trigger: a request to keep a window of time, and its record in the segments that it keeps.

    asked for     [at - before, at + after] on the wall clock
    true bounds   [begin, end]: the part of it in which the trace has every event that it could

Rule: a sender chooses reason, labels, times and fingerprint.  within_limits() cuts them, so that
a long label never costs the window; from_json() refuses a stored record beyond them.
Rule: the values are data of strangers.  Escape them in a terminal, encode them as JSON elsewhere.
"""

import enum
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from lttd.errors import LttdError
from lttd.plausible import Test, is_count, is_text, refuse_unless

MOST_LABELS: Final = 64
MOST_LABEL_NAME: Final = 128
MOST_LABEL_VALUE: Final = 1024
MOST_REASON: Final = 1024
MOST_FINGERPRINT: Final = 128
MOST_NOTE: Final = 1024

DEFAULT_BEFORE_NS: Final = 10_000_000_000
DEFAULT_AFTER_NS: Final = 5_000_000_000
# An alert comes minutes after its cause, and a window of more than a day is a trace of its own.
MOST_BEFORE_NS: Final = 24 * 3600 * 1_000_000_000
# Nobody waits longer for an answer to the question what just happened.
MOST_AFTER_NS: Final = 3600 * 1_000_000_000

SENDERS: Final = ("command", "signal", "socket", "http")

_TIME: Final = re.compile(r"[0-9TZ:.+-]{0,64}", re.ASCII)
_ELLIPSIS: Final = "…"


class Refusal(enum.Enum):
    """Why a trigger is not accepted."""

    NOT_NOW = "lttd starts or ends; try again"
    TOO_MANY = "too many triggers in a short time"
    OUT_OF_REACH = "its window ended before the trace begins"
    TOO_LARGE = "its window is larger than kept segments may be"


class TriggerRefusedError(LttdError):
    """A trigger that is not accepted; carries the reason."""

    def __init__(self, refusal: Refusal, words: str = "") -> None:
        super().__init__(words or refusal.value)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger; its fields are the keys of its record."""

    reason: str
    labels: Mapping[str, str]
    by: str
    """One of SENDERS."""
    at_ns: int
    """CLOCK_REALTIME, as all times here."""
    before_ns: int = DEFAULT_BEFORE_NS
    after_ns: int = DEFAULT_AFTER_NS
    number: int = 0
    """From 1 over the whole trace; 0: not accepted yet."""
    fingerprint: str = ""
    """Alertmanager's identity of an alert's labels, or empty."""
    starts_at: str = ""
    """When the alert began, as Alertmanager wrote it, or empty."""
    begin_ns: int | None = None
    """The true bounds; None while the window is not complete."""
    end_ns: int | None = None
    complete: bool = False
    note: str = ""
    """Why the true bounds are narrower than the window asked for, or empty."""

    @property
    def asked_begin_ns(self) -> int:
        """The begin of the window asked for."""
        return max(self.at_ns - self.before_ns, 0)

    @property
    def asked_end_ns(self) -> int:
        """The end of the window asked for."""
        return self.at_ns + self.after_ns

    @property
    def alert(self) -> tuple[str, str] | None:
        """The identity of the alert that caused it; None if none did."""
        return (self.fingerprint, self.starts_at) if self.fingerprint else None

    def within_limits(self) -> "Trigger":
        """Return the trigger with everything that a sender chose cut to its limit."""
        labels = {
            cut(name, MOST_LABEL_NAME): cut(value, MOST_LABEL_VALUE)
            for name, value in list(self.labels.items())[:MOST_LABELS]
        }
        return replace(
            self,
            reason=cut(self.reason, MOST_REASON),
            labels=MappingProxyType(labels),
            at_ns=max(self.at_ns, 0),
            before_ns=min(max(self.before_ns, 0), MOST_BEFORE_NS),
            after_ns=min(max(self.after_ns, 0), MOST_AFTER_NS),
            fingerprint=cut(self.fingerprint, MOST_FINGERPRINT),
            starts_at=self.starts_at if _TIME.fullmatch(self.starts_at) else "",
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record of the trigger in kept.json."""
        return {key: getattr(self, key) for key in self.__slots__} | {"labels": dict(self.labels)}

    @classmethod
    def from_json(cls, value: object) -> "Trigger":
        """Read back what to_json() returned; unknown keys pass.

        Raises:
            ValueError: it has another form, or exceeds a limit; the message names the key.
        """
        try:
            told = refuse_unless(value, "trigger", _MUST, _MAY)
        except KeyError as error:
            raise ValueError(f"trigger lacks {error}") from None
        known = {key: told[key] for key in cls.__slots__ if key in told}
        return cls(**known | {"labels": MappingProxyType(dict(told["labels"]))})


Accept = Callable[[Trigger], Awaitable[Trigger | None]]
"""Accepts a trigger, and returns it with its number; None: its alert is known already.

Raises TriggerRefusedError.
"""


def cut(text: str, most: int) -> str:
    """Return at most *most* characters of *text*, and only characters that UTF-8 can encode."""
    whole = text[: most + 1].encode("utf-8", "replace").decode()
    return whole if len(whole) <= most else whole[: most - 1] + _ELLIPSIS


def _is_short(most: int) -> Test:
    return lambda value: is_text(value, 4 * most) and len(value) <= most


def _are_labels(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) <= MOST_LABELS
        and all(map(_is_short(MOST_LABEL_NAME), value))
        and all(map(_is_short(MOST_LABEL_VALUE), value.values()))
    )


def _is_bound(value: object) -> bool:
    return value is None or is_count(value)


_MUST: Final[Mapping[str, Test]] = {
    "number": lambda value: is_count(value) and value > 0,
    "reason": _is_short(MOST_REASON),
    "labels": _are_labels,
    "at_ns": is_count,
    "before_ns": is_count,
    "after_ns": is_count,
    "by": lambda value: value in SENDERS,
}
_MAY: Final[Mapping[str, Test]] = {
    "fingerprint": _is_short(MOST_FINGERPRINT),
    "starts_at": lambda value: isinstance(value, str) and bool(_TIME.fullmatch(value)),
    "begin_ns": _is_bound,
    "end_ns": _is_bound,
    "complete": lambda value: isinstance(value, bool),
    "note": _is_short(MOST_NOTE),
}
