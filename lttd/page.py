"""Serve the status page on the metrics port: the three files of web/, and the state as JSON.

Rule: who reaches the port sees what SHOWN lists, and nothing else of the state: the configuration
names COMMAND with its arguments, for example.
Rule: the files are read once, at the start; a request touches no disk.
"""

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, Final

from lttd.endpoint import Answer, Route

SHOWN: Final = (
    *("version", "kernel", "host", "trace_dir", "doing", "now_ns", "began_ns", "uptime_seconds"),
    *("healthy", "conditions", "backlog", "write_errors", "segments", "store", "triggers"),
    *("windows", "newest_segments", "flight"),
)
SHOWN_OF_SOURCE: Final = ("source", "controls", "segment", "streams")

_FILES: Final = {
    b"/": ("index.html", "text/html; charset=utf-8"),
    b"/page.css": ("page.css", "text/css; charset=utf-8"),
    b"/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


def make_pages(state: Callable[[], Mapping[str, Any]]) -> dict[bytes, Route]:
    """Return the paths of the page; *state* returns that of the run as JSON values."""
    web = files("lttd") / "web"
    pages: dict[bytes, Route] = {
        path: _fixed(Answer(200, (web / name).read_bytes(), content_type))
        for path, (name, content_type) in _FILES.items()
    }
    return pages | {b"/status.json": lambda: _status(state())}


def _fixed(answer: Answer) -> Route:
    return lambda: answer


def _status(state: Mapping[str, Any]) -> Answer:
    shown = _only(SHOWN, state)
    shown["sources"] = [_only(SHOWN_OF_SOURCE, source) for source in state["sources"]]
    body = json.dumps(shown, separators=(",", ":"))
    return Answer(200, body.encode(), "application/json")


def _only(keys: tuple[str, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}
