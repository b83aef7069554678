"""The entry points of ``lttd`` and ``lttv``, which handle Ctrl-C while modules are loaded.

Rule: until lttd has its handlers, Ctrl-C ends the process by the signal's default, like SIGTERM:
nothing has been made yet, and a user must not see a traceback.
Rule: the memory limits are checked first: OpenBLAS, which numpy loads, ends the process with a line
of its own if it gets too little.
"""

import resource
import signal
from typing import Any, Final

from lttd.spare import ADDRESSES_ALONE, IN_USE, reserve

# What trio, numpy and OpenBLAS take of each limit, measured on x86-64 in steps of 5 MB.
_ROOM: Final = (
    (resource.RLIMIT_AS, "ulimit -v", 96 << 20, ADDRESSES_ALONE),
    (resource.RLIMIT_DATA, "ulimit -d", 40 << 20, IN_USE),
)


def lttd() -> int:
    """Run lttd; return its exit status."""
    _end_at_once()
    if _lacks_room("lttd"):
        return 1
    from lttd.cli import main  # noqa: PLC0415  (this import takes the time)

    return main()


def lttv() -> int:
    """Run lttv; return its exit status."""
    before = _end_at_once()
    if _lacks_room("lttv"):
        return 1
    from lttd.view.cli import program  # noqa: PLC0415  (this import takes the time)

    signal.signal(signal.SIGINT, before)
    try:
        return program()
    finally:
        _end_at_once()


def _lacks_room(program: str) -> bool:
    """Tell whether a limit keeps this process from loading its modules; write the line if so."""
    for limit, name, room_bytes, access in _ROOM:
        if resource.getrlimit(limit)[0] == resource.RLIM_INFINITY:
            continue
        try:
            reserve(room_bytes, access).close()
        except OSError:
            from lttd.terminal import Level, say  # noqa: PLC0415  (seldom needed)

            more = f"{room_bytes >> 20} MiB more than {program} has now"
            line = f"numpy cannot be loaded: this takes {more} ({name})"
            say(line, Level.ERROR, program)
            return True
    return False


def _end_at_once() -> Any:  # noqa: ANN401  (as signal.getsignal() has it)
    """Let SIGINT end the process, unless it is ignored; return the handler before."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return before
