"""Record other events while a session runs; lttng-modules takes no further channel or context.

Rule: new events are made while they are off; so their declarations are on disk before their data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from lttd.errors import UsageError
from lttd.sources.lttng.session import Channel
from lttd.sources.lttng.wanted import Asked, Wanted


class _Other(NamedTuple):
    """The events and system calls that a channel records from now on."""

    channel: Channel
    wanted: Wanted
    added: frozenset[Asked]
    removed: frozenset[Asked]


class LttngChange:
    """See ``lttd.sources.base.Change``."""

    def __init__(self, others: Sequence[_Other], follow: Callable[[], None]) -> None:
        """*follow* is called once the change is made."""
        self._others = others
        self._follow = follow

    def announce(self) -> None:
        """Let the tracer declare the new events; it records none yet."""
        try:
            for other in self._others:
                for asked in sorted(other.added):
                    other.channel.declare(asked)
        except BaseException:
            self.withdraw()
            raise

    def withdraw(self) -> None:
        """Forget the new events; their declarations stay, and harm nobody."""
        for other in self._others:
            other.channel.forget(other.added)

    def make(self) -> None:
        """Record the new events, and the old ones no more."""
        for other in self._others:
            other.channel.wanted = other.wanted
            other.channel.switch_events(other.added, on=True)
            other.channel.switch_events(other.removed, on=False)
            other.channel.forget(other.removed)
        self._follow()


def changed(
    channels: Sequence[Channel], wanted: Mapping[str, Wanted], follow: Callable[[], None]
) -> LttngChange:
    """Decide how *channels* record what is *wanted*.

    Raises:
        UsageError: that needs another session.
    """
    if wanted.keys() != {channel.name for channel in channels}:
        raise UsageError("lttng: the tracer takes no other channels while it records: restart lttd")
    others = []
    for channel in channels:
        before, after = channel.wanted, wanted[channel.name]
        if after != replace(before, events=after.events, syscalls=after.syscalls):
            raise UsageError(
                f"lttng: channel {channel.name}: only its events and syscalls can change while it"
                " records: restart lttd"
            )
        added, removed = after.asked - before.asked, before.asked - after.asked
        if added or removed:
            others.append(_Other(channel, after, added, removed))
    return LttngChange(others, follow)
