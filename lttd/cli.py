"""``lttd``: the command line's door to the daemon."""

import gc
import os
import stat
import sys
from collections.abc import Sequence

from lttd.config import Config, parse_command_line
from lttd.errors import LttdError
from lttd.terminal import fill_standard_descriptors, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run lttd; return its exit status: 0, 1, 2 or 77, as ``lttd --help`` tells."""
    fill_standard_descriptors()
    try:
        config = parse_command_line(sys.argv[1:] if arguments is None else arguments)
        if config.daemon:
            return _in_background(config)
        return _run(config)
    except LttdError as error:
        say(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        say("interrupted before anything was recorded")
        return 1


def _run(config: Config, ready_fd: int = -1) -> int:
    # numpy's OpenBLAS would start a thread a CPU, which spin; nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What is imported stays: to look through it for garbage, now or later, is in vain.
    gc.disable()
    from lttd.daemon import run  # noqa: PLC0415  (usage errors need no event loop)

    gc.freeze()
    gc.enable()

    def tell_parent() -> None:
        if ready_fd >= 0:
            _leave_terminal()
            os.write(ready_fd, b"\0")
            os.close(ready_fd)

    return run(config, tell_parent)


def _leave_terminal() -> None:
    """Let go of the terminal, or of whoever reads a pipe to its end; files are kept as logs."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd == 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
            os.dup2(nowhere, fd)
    os.close(nowhere)


def _in_background(config: Config) -> int:
    """Fork before any thread, lock or event loop exists; exit when the child records or failed."""
    ready_fd, child_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready_fd)
        os.setsid()
        return _run(config, child_fd)
    os.close(child_fd)
    if os.read(ready_fd, 1):
        return 0
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
