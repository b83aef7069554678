"""Decide what a reload takes over, and what needs a restart.  Pure.

Rule: the configuration in force has only what was taken over.  So a second reload reports again
what still needs a restart.
"""

from collections.abc import Set
from dataclasses import fields, replace
from typing import Any, Final, NamedTuple

from lttd.config import Config, SourceSpec, option_names
from lttd.sources.table import SOURCES

# Of the command line, which is the same, or printed once at the start.
_NOT_COMPARED: Final = frozenset({"sources", "notes", "arguments"})


class Plan(NamedTuple):
    """The difference of two configurations, in the names of options and keys."""

    config: Config
    """The configuration that is in force once the plan is carried out."""
    reloaded: tuple[str, ...]
    restart: tuple[str, ...]
    """The settings that differ and take effect only at the next start."""
    sources: tuple[int, ...]
    """The numbers of the sources that change what they record."""


def plan_reload(old: Config, new: Config, takes: Set[str]) -> Plan:
    """Compare the configuration in force with a new one; *takes*: fields that can be taken over."""
    names = option_names()
    changed: dict[str, Any] = {}
    reloaded, restart = [], []
    for each in fields(Config):
        if each.name in _NOT_COMPARED or getattr(old, each.name) == getattr(new, each.name):
            continue
        name = names.get(each.name, each.name)
        if each.name in takes:
            changed[each.name] = getattr(new, each.name)
            reloaded.append(name)
        else:
            restart.append(name)
    specs = list(old.sources)
    sources = []
    if _identities(old) != _identities(new):
        restart.append("source")
    else:
        for number, (before, after) in enumerate(zip(old.sources, new.sources, strict=True)):
            keys = _changed_keys(before, after)
            taken = {key for key in keys if key in SOURCES[before.kind].reloads}
            reloaded += sorted(taken - set(reloaded))
            restart += sorted(keys - taken - set(restart))
            if taken:
                sources.append(number)
                specs[number] = _with_keys(before, after, taken)
    config = replace(old, sources=tuple(specs), **changed)
    return Plan(config, tuple(reloaded), tuple(restart), tuple(sources))


def _identities(config: Config) -> list[tuple[str, str | None]]:
    return [(spec.kind, spec.target) for spec in config.sources]


def _changed_keys(before: SourceSpec, after: SourceSpec) -> set[str]:
    keys = before.options.keys() | after.options.keys()
    return {key for key in keys if before.options.get(key) != after.options.get(key)}


def _with_keys(before: SourceSpec, after: SourceSpec, keys: Set[str]) -> SourceSpec:
    """Return *before* with the values that *after* has of *keys*."""
    kept = {key: value for key, value in before.options.items() if key not in keys}
    new = {key: value for key, value in after.options.items() if key in keys}
    return replace(before, options={**kept, **new})
