"""The doors of ``lttd`` and ``lttv``: what happens while their modules are being loaded.

Rule: until somebody is there who handles it, Ctrl-C ends the process as SIGTERM does, by the
signal's default: nothing has been made yet, and a traceback is not for the user.
"""

import signal
from typing import Any


def lttd() -> int:
    """Run lttd; return its exit status."""
    _end_at_once()
    from lttd.cli import main  # noqa: PLC0415  (this is what takes its time)

    return main()


def lttv() -> int:
    """Run lttv; return its exit status."""
    before = _end_at_once()
    from lttd.view.cli import main  # noqa: PLC0415  (this is what takes its time)

    signal.signal(signal.SIGINT, before)
    try:
        return main()
    finally:
        _end_at_once()


def _end_at_once() -> Any:  # noqa: ANN401  (as signal.getsignal() has it)
    """Have SIGINT end the process, unless it is ignored; return what it did before."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return before
