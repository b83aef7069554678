"""CONTROLS: the settings that narrow what is recorded, or add to it; and their lines for people."""

from collections.abc import Mapping
from typing import Any, Final

CONTROLS: Final = (
    *("preset", "exclude", "filter", "pid", "comm", "follow_fork", "only_command"),
    *("event_trigger", "stack", "user_stack", "option", "markers"),
    *("probe", "tracer", "function", "notrace", "graph_depth"),
)
"""Keys of a source's settings; the source has those that were asked for."""


def controls_of(settings: object) -> dict[str, Any]:
    """Return the controls that *settings*, the attributes of a source's SPEC, ask for."""
    found = {key: getattr(settings, key, None) for key in CONTROLS}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in found.items()
        if value is not None and value != ()
    }


def control_lines(settings: object) -> list[tuple[str, str]]:
    """Return the option and the value of each control in use, a line for each of several texts.

    *settings* may be those of a manifest, whose values may be anything.
    """
    if not isinstance(settings, Mapping):
        return []
    found = ((key, settings.get(key)) for key in CONTROLS)
    return [(key.replace("_", "-"), text) for key, value in found for text in _texts(value)]


def _texts(value: object) -> list[str]:
    if value is None or isinstance(value, bool):
        return ["yes"] if value else []
    if not isinstance(value, list):
        return [str(value)]
    texts = [str(item) for item in value]
    has_words = any(" " in text or "," in text for text in texts)
    return texts if has_words or not texts else [",".join(texts)]
