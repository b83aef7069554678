"""What the doctor finds: a topic, a mark, words, and a remedy where there is one.

    ok     as lttd needs it
    note   recording works; what the words name does not, or costs more
    bad    a start of lttd would fail with these words

Rule: only ``bad`` decides the exit status, and only what fails a real start is bad.
"""

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lttd.errors import LttdError, NothingToRecordError


class Mark(enum.StrEnum):
    """See the head of this file."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


class Finding(NamedTuple):
    """One line of the report."""

    topic: str
    mark: Mark
    words: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of all checks, by group."""

    groups: Mapping[str, Sequence[Finding]]

    @property
    def works(self) -> bool:
        """Whether a recording with these options would work."""
        return all(found.mark is not Mark.BAD for group in self.groups.values() for found in group)


Findings = Iterator[Finding]
Check = Callable[[], Findings]


def refused(topic: str, error: LttdError, mark: Mark = Mark.BAD) -> Finding:
    """Return the finding for an error that a start would end with."""
    if isinstance(error, NothingToRecordError):
        return Finding(topic, mark, error.reason, error.remedy)
    words, _, remedy = str(error).partition("; ")
    return Finding(topic, mark, words, remedy)


def either(topic: str, works: object, words: str, otherwise: str, remedy: str = "") -> Finding:
    """Return ``ok`` with *words* if *works*, else a note with *otherwise* and the remedy."""
    if works:
        return Finding(topic, Mark.OK, words)
    return Finding(topic, Mark.NOTE, otherwise, remedy)
