"""Read presets: named groups of events.  ``presets.toml`` beside this file has those of lttd.

Rule: a preset of the user's file replaces lttd's of the same name, as a whole.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from lttd.errors import UsageError
from lttd.option_file import read_toml
from lttd.parsers import nearest, shown

SHIPPED: Final = str(Path(__file__).with_name("presets.toml"))
OF_USER: Final = "/etc/lttd/presets.toml"
"""The file of the user's own presets; it may be absent."""
_TEXTS: Final = ("what", "cost")


class Preset(NamedTuple):
    """A named group of events."""

    name: str
    events: tuple[str, ...]
    """Globs, as those of ``events``."""
    what: str
    """The question that it answers, for people; may be empty."""
    cost: str
    """How many events a second to expect, in one sentence; may be empty."""
    file: str


def read_presets(of_user: str = OF_USER) -> dict[str, Preset]:
    """Return all presets by name: lttd's, then the user's.

    Raises:
        UsageError: a file is not valid; the line names it.
    """
    found = _read(SHIPPED)
    if Path(of_user).exists():
        found |= _read(of_user)
    return found


def chosen(names: Iterable[str], of_user: str = OF_USER) -> list[Preset]:
    """Return the presets with these names, each once.

    Raises:
        UsageError: there is none of a name; the line has the nearest name.
    """
    names = list(dict.fromkeys(names))
    known = read_presets(of_user) if names else {}
    for name in names:
        if name not in known:
            near = nearest(name, known)
            advice = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
            raise UsageError(f"preset {shown(name)} is not known: {advice}")
    return [known[name] for name in names]


def _read(path: str) -> dict[str, Preset]:
    return {name: _preset(path, name, value) for name, value in read_toml(path).items()}


def _preset(path: str, name: str, value: object) -> Preset:
    where = f"{path}: preset {shown(name)}"
    if not isinstance(value, Mapping):
        raise UsageError(f'{where}: write a table [NAME] with events = ["sched:*"]')
    table: Mapping[str, Any] = value
    for key in table:
        if key not in ("events", *_TEXTS):
            raise UsageError(f"{where}: {shown(key)} is not a key; there are events, what, cost")
    events = table.get("events")
    if not (isinstance(events, list) and events and all(map(_is_text, events))):
        raise UsageError(f'{where}: events must be a list of globs, such as ["sched:*", "irq:*"]')
    for key in _TEXTS:
        if not isinstance(table.get(key, ""), str):
            raise UsageError(f"{where}: {key} must be a text in quotes")
    return Preset(name, tuple(events), table.get("what", ""), table.get("cost", ""), path)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""
