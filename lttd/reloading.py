"""Take over a changed configuration without a restart: ``lttd reload``, and SIGHUP in a service.

The command line is parsed again as it was given at the start, with the file that it names; so the
command line still wins.

Rule: everything is checked before anything changes.  A value that is not valid is one line and
status 2, and the recording goes on as before.
Rule: what reads files, tracefs or the trace does so in the helper thread; no reload delays reading.
Rule: systemd hears RELOADING before the first step and READY after the last, whatever happens.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import trio

from lttd.config import Config, parse_command_line
from lttd.control_protocol import Peer
from lttd.errors import LttdError, UsageError, refusal
from lttd.housekeeping import Housekeeping
from lttd.notify import READY, Notifier
from lttd.recording import Recording
from lttd.reload_plan import Plan, plan_reload
from lttd.sources.base import Change, Reloadable, When
from lttd.sources.registry import parsed_options
from lttd.sources.table import SOURCES
from lttd.terminal import Level, say

_T = TypeVar("_T")


def _nothing(_: Config) -> None:
    return None


class Taker(NamedTuple):
    """A part of the run that takes over fields of the configuration, on the loop."""

    apply: Callable[[Config], None]
    """Take over the fields; it cannot fail."""
    check: Callable[[Config], None] = _nothing
    """Raise UsageError if the fields are not possible now."""


class _Changed(NamedTuple):
    """A source whose records are to change."""

    number: int
    recording: Recording
    change: Change


class Reloading:
    """Reloads the configuration of a run, one reload at a time."""

    def __init__(
        self,
        config: Config,
        recordings: Sequence[Recording],
        house: Housekeeping,
        notifier: Notifier,
        on_config: Callable[[Config], None],
    ) -> None:
        """*on_config* is called with each new configuration in force."""
        self.takers: dict[str, Taker] = {}
        """By the field of Config; several fields may share a taker."""
        self._config = config
        self._recordings = recordings
        self._house = house
        self._notifier = notifier
        self._on_config = on_config
        self._one_at_a_time = trio.Lock()
        self._asked = trio.Event()
        self._ended = False

    def ask(self) -> None:
        """Ask for a reload by a signal; several at once become one."""
        self._asked.set()

    async def run(self) -> None:
        """Reload whenever a signal asks for it, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            with suppress(LttdError):  # reload() has said it
                await self.reload()

    async def finish(self) -> None:
        """Wait for a reload that is under way, and begin no other."""
        async with self._one_at_a_time:
            self._ended = True

    async def answer(self, _request: Mapping[str, Any], _peer: Peer) -> dict[str, Any]:
        """Reload for a client of the control socket."""
        plan = await self.reload()
        words = words_for(plan.reloaded, plan.restart)
        return {"reloaded": list(plan.reloaded), "restart": list(plan.restart), "words": words}

    async def reload(self) -> Plan:
        """Take over what has changed; say and return what it was.

        Raises:
            UsageError: the configuration is not valid; nothing has changed.
            LttdError: there is no file of it, so nothing can have changed.
            LttdError: the kernel refuses, or the disk; what was recorded before still is.
        """
        async with self._one_at_a_time:
            if self._ended:
                raise LttdError("the recording is ending")
            self._notifier.reloading()
            try:
                plan = await self._reload()
            except LttdError as error:
                say(f"not reloaded: {error}", Level.ERROR)
                error.said = True
                raise
            finally:
                self._notifier.send(READY)
        say(words_for(plan.reloaded, plan.restart), Level.NOTICE)
        return plan

    async def _reload(self) -> Plan:
        plan, changes = await self._in_thread(self._decide)
        names = _changed(self._config, plan.config) & self.takers.keys()
        takers = dict.fromkeys(self.takers[name] for name in sorted(names))
        for taker in takers:
            taker.check(plan.config)
        if changes:
            await self._in_thread(lambda: self._make(changes))
        for taker in takers:
            taker.apply(plan.config)
        self._config = plan.config
        self._on_config(plan.config)
        return plan

    async def _in_thread(self, do: Callable[[], _T]) -> _T:
        """Return the result of *do*, which runs in the helper thread; raise its error.

        No segment is being rolled meanwhile.
        """
        results: list[_T] = []
        errors: list[LttdError] = []

        def guarded() -> None:
            try:
                results.append(do())
            except LttdError as error:  # otherwise it would end the recording
                errors.append(error)
            except (OSError, MemoryError) as error:
                errors.append(refusal(error) or LttdError(str(error)))

        async with self._house.one_at_a_time, self._house.changing:
            await self._house.work(guarded)
        if errors:
            raise errors[0]
        return results[0]

    def _decide(self) -> tuple[Plan, list[_Changed]]:
        """Read and check everything; this changes nothing."""
        if self._config.config_file is None:
            raise LttdError("this recorder has no file to read again; start it with --config FILE")
        new = parse_command_line(self._config.arguments)
        options = [parsed_options(spec) for spec in new.sources]
        plan = plan_reload(self._config, new, self.takers.keys())
        changes = []
        for number in plan.sources:
            recording = self._recordings[number]
            change = _reloadable(recording).changed(options[number])
            changes.append(_Changed(number, recording, change))
        return plan, changes

    def _make(self, changes: Sequence[_Changed]) -> None:
        """Change what the sources record; if one cannot, none does."""
        for at, changed in enumerate(changes):
            try:
                _make(changed)
            except LttdError:
                for made in changes[:at]:
                    before = parsed_options(self._config.sources[made.number])
                    change = _reloadable(made.recording).changed(before)
                    _make(made._replace(change=change))
                raise


def _make(changed: _Changed) -> None:
    """Store the formats of what comes, make the change, and note it in the manifest."""
    recording = changed.recording
    changed.change.announce()
    try:
        recording.attach(When.RELOAD)
        changed.change.make()
    except LttdError:
        changed.change.withdraw()
        raise
    try:
        recording.note_reload(SOURCES[recording.source.info.kind].reloads)
    except LttdError as error:
        say(f"the change is made, and the manifest lacks it: {error}", Level.WARNING)


def _reloadable(recording: Recording) -> Reloadable:
    source = recording.source
    if not isinstance(source, Reloadable):
        raise UsageError(f"source {source.info.spec}: it cannot be reloaded")
    return source


def _changed(old: Config, new: Config) -> set[str]:
    return {name for name in old.__slots__ if getattr(old, name) != getattr(new, name)}


def words_for(reloaded: Sequence[str], restart: Sequence[str]) -> str:
    """Return the line on the result of a reload."""
    words = f"reloaded: {', '.join(reloaded)}" if reloaded else "reloaded: nothing has changed"
    if not reloaded and restart:
        words = "reloaded: nothing"
    return words + (f"; needs a restart: {', '.join(restart)}" if restart else "")
