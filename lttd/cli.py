"""The program ``lttd``: parse the command line, go to the background, run the daemon.

A first word that names a subcommand (``lttd status``) runs that instead.
"""

import gc
import os
import signal
import stat
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from lttd.config import Config, parse_command_line
from lttd.errors import LttdError
from lttd.malloc import share_one_arena
from lttd.notify import ADDRESSED
from lttd.priority import run_before_ordinary
from lttd.signals import Meaning, Signals
from lttd.start import (
    exit_if_threads_run,
    exit_if_without_memory,
    raise_file_limit,
    threads_that_fail_end_all,
    unforeseen,
)
from lttd.subcommands import SUBCOMMANDS, run_subcommand
from lttd.terminal import Level, fill_standard_descriptors, say

_NO_MEMORY: Final = b"lttd: memory is used up: allow lttd more (ulimit -v, ulimit -d)\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run lttd; return its exit status: 0, 1, 2 or 77, as ``lttd --help`` explains."""
    # First of all: a file that is opened now could get the number of a closed descriptor.
    fill_standard_descriptors()
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] in SUBCOMMANDS:
        return run_subcommand(words)
    signals = Signals()
    if arguments is not None:
        with signals:
            return _guarded(words, signals)
    # The work is done: signals that arrive until the process has exited must not change its status.
    signals.take_over()
    return _guarded(words, signals)


def _guarded(arguments: Sequence[str], signals: Signals) -> int:
    """Return the exit status, whatever happens."""
    threads = frozenset(thread.ident for thread in threading.enumerate() if thread.ident)
    with threads_that_fail_end_all():
        try:
            config = parse_command_line(arguments)
            if config.daemon:
                return _in_background(config, signals)
            return _run(config, signals)
        except SystemExit:
            raise  # --help, --version
        except LttdError as error:
            say(str(error), Level.ERROR)
            status = error.exit_status
            exit_if_without_memory(error, status)
        except BaseException as error:  # noqa: BLE001  (no traceback reaches a user)
            _say_unforeseen(error)
            status = 1
            exit_if_without_memory(error, status)
    exit_if_threads_run(threads, status)
    return status


def _say_unforeseen(error: BaseException) -> None:
    """Write the line of a failure; end at once if there is not even the memory for its words."""
    try:
        say(unforeseen(error), Level.ERROR)
    except MemoryError:
        os.write(2, _NO_MEMORY)
        os._exit(1)  # an interpreter that ends without memory writes lines of its own


def _run(config: Config, signals: Signals, ready_fd: int = -1) -> int:
    command = None
    if config.command:
        from lttd.command import Command  # noqa: PLC0415  (loads the event loop)

        command = Command(config.command)
        # Fork COMMAND's child before lttd changes anything that it would inherit.
        command.spawn(partial(_prepare_command, config, signals))
    raise_file_limit()
    if not config.sources or any(source.kind != "replay" for source in config.sources):
        run_before_ordinary()
    share_one_arena()
    # numpy's OpenBLAS would start a spinning thread for each CPU; lttd multiplies no matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Imported modules stay, so exclude them from garbage collection.
    gc.disable()
    from lttd.daemon import run  # noqa: PLC0415  (usage errors need no event loop)
    from lttd.sources.registry import load  # noqa: PLC0415  (the same)

    load(config.sources)
    gc.freeze()
    gc.enable()

    def tell_parent() -> None:
        if ready_fd >= 0:
            _leave_terminal()
            try:
                os.write(ready_fd, b"\0")
            except BrokenPipeError:
                words = (
                    "the process that started this daemon did not wait for it; it keeps recording"
                )
                say(words, Level.NOTICE)
            os.close(ready_fd)

    return run(config, tell_parent, signals, command)


def _prepare_command(config: Config, signals: Signals) -> None:
    signals.restore_for_exec()
    for name in ADDRESSED:
        os.environ.pop(name, None)
    if config.daemon:
        _leave_terminal()


def _leave_terminal() -> None:
    """Close the terminal and pipes, whose readers would wait for their end; keep files as logs."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd == 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
            os.dup2(nowhere, fd)
    os.close(nowhere)


def _in_background(config: Config, signals: Signals) -> int:
    """Fork before a thread, lock or event loop exists; return when the child records or fails."""
    ready_fd, child_fd = os.pipe()
    with ExitStack() as waiting:
        with signals.held_back():
            pid = os.fork()
            if pid != 0:
                # A signal to this process must end the daemon, which would otherwise go on unseen.
                waiting.enter_context(signals.delivered_to(partial(_end_daemon, signals, pid)))
        if pid == 0:
            os.close(ready_fd)
            os.setsid()
            signals.left_terminal()
            return _run(config, signals, child_fd)
        os.close(child_fd)
        if os.read(ready_fd, 1):
            return 0
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        say(f"the daemon was killed by signal {-code} before it recorded", Level.ERROR)
        return 1
    return code  # 0: the recording has ended already


def _end_daemon(signals: Signals, pid: int, number: int) -> None:
    if signals.meaning(number) is Meaning.END:
        os.kill(pid, signal.SIGTERM)
