"""Open the source that a SPEC names, by its row in SOURCES."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, Final, Protocol, cast

from lttd.config import SourceSpec
from lttd.errors import NothingToRecordError, UsageError
from lttd.parsers import parse_named
from lttd.runtime import known_notes
from lttd.sources.base import NO_OWNER, Child, Owner, Request, Source
from lttd.sources.table import SOURCES, SourceRow
from lttd.subbuffer import BufferPool

_SIZE: Final = "-size"


class _Module(Protocol):
    def open_source(self, request: Request) -> Source:
        """Set up the source; leave nothing if that fails."""
        ...

    def open_left_by_kill(
        self, pool: BufferPool, owner: Owner, instance: str | None, *, report_unknown: bool
    ) -> tuple[Sequence[Source], Sequence[str]]:
        """Open the rings that killed lttds left; only if the row says ``leaves_rings``."""
        ...

    def open_previous_boots(self, request: Request) -> Iterator[Source]:
        """Yield what earlier boots left in the ring; only if the row says ``leaves_rings``."""
        ...


def _module(row: SourceRow) -> _Module:
    return cast("_Module", import_module(row.module))


def load(specs: Sequence[SourceSpec]) -> None:
    """Import the modules of sources now, while the caller keeps the garbage collector away."""
    for spec in specs:
        _module(SOURCES[spec.kind])


def open_source(
    spec: SourceSpec, pool: BufferPool, owner: Owner = NO_OWNER, command: Child | None = None
) -> Source:
    """Set up the source of *spec*, to be recorded into *owner*; leave nothing if that fails.

    Raises:
        UsageError: the SPEC is not valid.
        NothingToRecordError: this machine does not have the SPEC's target.
        LockedError: another recorder reads the target.
    """
    row = SOURCES[spec.kind]
    request = _request(spec, row, pool, owner)
    return _module(row).open_source(replace(request, command=command))


def _request(spec: SourceSpec, row: SourceRow, pool: BufferPool, owner: Owner) -> Request:
    if row.needs and spec.target is None:
        raise UsageError(f"source {spec.kind}: name {row.needs}")
    return Request(spec.target or "", parsed_options(spec), pool, owner, replays=row.replays)


def open_previous_boots(
    specs: Sequence[SourceSpec], pool: BufferPool, owner: Owner
) -> Iterator[Source]:
    """Yield what earlier boots left in rings of *specs* that survived the reboot.

    Drain and close each source before asking for the next, and before open_source().
    """
    for spec in specs:
        row = SOURCES[spec.kind]
        if row.leaves_rings:
            yield from _module(row).open_previous_boots(_request(spec, row, pool, owner))


def parsed_options(spec: SourceSpec) -> dict[str, Any]:
    """Return the values of the SPEC's keys, by keyword name.

    Raises:
        UsageError: a key or a value is not valid.
    """
    row, options = SOURCES[spec.kind], {}
    for key, written in spec.options.items():
        if key not in row.keys:
            known = ", ".join(row.keys)
            raise UsageError(
                f"source {spec}: {key!r} is not a key of {spec.kind}; its keys are {known}"
            )
        name = f"{key.removesuffix(_SIZE)}-bytes" if key.endswith(_SIZE) else key
        options[name.replace("-", "_")] = parse_named(key, row.keys[key], written)
    return options


def open_previous_runs(
    specs: Sequence[SourceSpec], pool: BufferPool, owner: Owner
) -> tuple[Sequence[Source], Sequence[str]]:
    """Return the rings of the trace *owner* that killed lttds left, and lines for the user.

    This also deals with leftovers of other traces and with settings that were not restored.
    """
    sources: list[Source] = []
    lines: list[str] = []
    try:
        for kind, row in SOURCES.items():
            if row.leaves_rings:
                targets = [spec.target for spec in specs if spec.kind == kind]
                found, told = _previous_runs(kind, row, targets, pool, owner)
                sources += found
                lines += told
    except BaseException:
        for source in sources:
            source.close()
        raise
    return sources, lines


def _previous_runs(
    kind: str, row: SourceRow, targets: Sequence[str | None], pool: BufferPool, owner: Owner
) -> tuple[Sequence[Source], Sequence[str]]:
    """Do this for one kind of source; *targets*: the targets that are recorded now."""
    if not targets and not any(name.startswith(f"{kind}-") for name in known_notes()):
        return (), ()
    # A user with the right to record one instance may not have the right to make others.
    instance = None if None in targets else next(iter(targets), None)
    try:
        return _module(row).open_left_by_kill(pool, owner, instance, report_unknown=bool(targets))
    except NothingToRecordError as error:
        if targets:
            raise
        return (), (f"what a killed lttd changed for {kind} stays: {error}",)
