"""Open a path: a trace of lttd, or one that another program recorded."""

import os
from pathlib import Path
from typing import TypeVar

from lttd.errors import NotATraceError
from lttd.view.trace import Trace

TraceT = TypeVar("TraceT", bound=Trace)


def open_any(path: str | os.PathLike[str], kind: type[TraceT]) -> TraceT:
    """Open a trace of lttd, or of another program, as an object of *kind*.

    Raises:
        NotATraceError: *path* holds no trace.
        TraceDamagedError: what describes it cannot be read.
    """
    try:
        return kind(path)
    except NotATraceError:
        from lttd.view.foreign import open_foreign  # noqa: PLC0415  (few traces are foreign)

        opened = open_foreign(Path(path))
        if opened is None:
            raise
    return kind.foreign(path, opened.segments, opened.notes)
