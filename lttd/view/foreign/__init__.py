"""FOREIGN: traces of other programs that lttv opens as they are; a module for each format.

A module has ``OPEN``, a function that is called with the path and returns an ``Opened``: segments
whose streams read the foreign file, and lines about what cannot be read.  Commands then treat it
as a trace of lttd.

Rule: opening reads what describes the trace, and no events; nothing is written.
"""

import stat
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from lttd.foreign import head_of

if TYPE_CHECKING:
    from lttd.view.foreign.segment import Opened

_HEAD_BYTES: Final = 4096


class Form(NamedTuple):
    """One format."""

    module: str
    help: str
    """What it is, for people."""
    begins: tuple[bytes, ...] = ()
    """What its files begin with; empty: it is a directory, and the module has ``is_there()``."""


FOREIGN: Final = {
    "trace.dat": Form(
        "lttd.view.foreign.tracedat", "trace.dat of trace-cmd", (b"\x17\x08\x44tracing",)
    ),
    "pages": Form(
        "lttd.view.foreign.raw", "directory of pages of trace_pipe_raw with their header_page"
    ),
}


class _Module(Protocol):
    OPEN: Callable[[Path], "Opened"]


class _DirectoryModule(_Module, Protocol):
    def is_there(self, directory: Path) -> bool: ...


def open_foreign(path: Path) -> "Opened | None":
    """Open a trace of another program; None: it is not of a known format.

    Raises:
        TraceDamagedError: it is, and cannot be read.
    """
    name = form_of(path)
    if name is None:
        return None
    return cast("_Module", import_module(FOREIGN[name].module)).OPEN(path)


def form_of(path: Path) -> str | None:
    """Return the name of a path's format; None: it has none of FOREIGN."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return next((name for name, form in FOREIGN.items() if _is_there(form, path)), None)
        if not stat.S_ISREG(mode):
            return None
    except OSError:
        return None
    head = head_of(path, _HEAD_BYTES)
    files = ((name, form) for name, form in FOREIGN.items() if form.begins)
    return next((name for name, form in files if head.startswith(form.begins)), None)


def _is_there(form: Form, directory: Path) -> bool:
    if form.begins:
        return False
    return cast("_DirectoryModule", import_module(form.module)).is_there(directory)
