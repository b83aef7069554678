"""The entry points of ``lttd`` and ``lttv``, which handle Ctrl-C while modules are loaded.

Rule: until lttd has its handlers, Ctrl-C ends the process by the signal's default, like SIGTERM:
nothing has been made yet, and a user must not see a traceback.
"""

import signal
from typing import Any


def lttd() -> int:
    """Run lttd; return its exit status."""
    _end_at_once()
    from lttd.cli import main  # noqa: PLC0415  (this import takes the time)

    return main()


def lttv() -> int:
    """Run lttv; return its exit status."""
    before = _end_at_once()
    from lttd.view.cli import main  # noqa: PLC0415  (this import takes the time)

    signal.signal(signal.SIGINT, before)
    try:
        return main()
    finally:
        _end_at_once()


def _end_at_once() -> Any:  # noqa: ANN401  (as signal.getsignal() has it)
    """Let SIGINT end the process, unless it is ignored; return the handler before."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return before
