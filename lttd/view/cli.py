"""The program ``lttv``: parse the command line and run a command.

Exit status: 0 done (check: whole); 1 failed (check: damaged; follow: the recorder was killed), or
stdout did not take the output; 2 usage, or no trace there; 130 interrupted; 141 the reader of the
output ended first.
"""

import argparse
import errno
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from lttd.errors import LttdError, UsageError
from lttd.terminal import PIPE_CLOSED, Level, fill_standard_descriptors, put_line, say
from lttd.usage import shortened
from lttd.view.arguments import parse_arguments

if TYPE_CHECKING:
    from lttd.view.commands.text import Show
    from lttd.view.times import Window
    from lttd.view.trace import Trace

INTERRUPTED = 128 + 2
FEW_STREAMS = 100
"""This number can be open at once, whatever the limit of the shell is."""
MOST_LINES = 8
"""About segments that cannot be read."""
SYSCALLS = "syscalls"
MOST_NEW_OBJECTS = 100_000
"""Python's collector runs after this number; the modules of one command have 50,000."""

# Python drops a KeyboardInterrupt in a __del__ or in a callback; so long after that it comes again.
_AGAIN_S: Final = 0.01

_Made = TypeVar("_Made")


def program() -> int:
    """Run ``lttv`` as the only task of this process; return its exit status.

    Most objects are parts of modules and stay.  The collector would go through them while modules
    are loaded, and again while the process ends: 28 ms of 180 ms to the first line.
    """
    gc.set_threshold(MOST_NEW_OBJECTS)
    sys.meta_path.insert(0, _WithoutPandas())
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = _repeat_interrupt
    try:
        return main()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.freeze()


class _WithoutPandas:
    """Hides pandas from pyarrow, which loads it where it is installed: 0.35 s that nobody needs."""

    def find_spec(self, fullname: str, *_: object) -> None:
        """Refuse pandas, as if it were not installed."""
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname, name=fullname)


def _repeat_interrupt(dropped: "sys.UnraisableHookArgs") -> None:
    """Let Ctrl-C end the command although it came while a file was closed, say."""
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
        sys.__unraisablehook__(dropped)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``lttv``; return its exit status."""
    fill_standard_descriptors()
    # numpy's OpenBLAS would start a thread a CPU; nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        return COMMANDS[options.command](options)
    except LttdError as error:
        _say(shortened(str(error)), Level.ERROR)
        return error.exit_status
    except BrokenPipeError:
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError:  # to load what finds better words for it takes memory, too
        _say("memory is used up: allow lttv more (ulimit -v, ulimit -d)", Level.ERROR)
        if arguments is None:
            os._exit(1)  # an interpreter that ends without memory writes lines of its own
        return 1
    except Exception as error:  # noqa: BLE001  (no traceback reaches a user)
        _say(shortened(_unforeseen(error)), Level.ERROR)
        return 2 if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG else 1


def _unforeseen(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    from lttd.start import unforeseen  # noqa: PLC0415  (needed only here)

    return unforeseen(error)


def _say(text: str, level: Level) -> None:
    say(text, level, "lttv")


# Each command imports numpy and its own modules when it runs, so that --help is fast.


def _opened(path: Path) -> "Trace":
    """Open a trace, and print a line for each segment that cannot be read."""
    from lttd.view.opening import open_any  # noqa: PLC0415
    from lttd.view.trace import Trace  # noqa: PLC0415

    trace = open_any(path, Trace)
    if sum(len(segment.streams) for segment in trace.segments) > FEW_STREAMS:
        from lttd.start import raise_file_limit  # noqa: PLC0415  (a file for each index and data)

        raise_file_limit()
    for note in (*trace.vanished, *trace.notes)[:MOST_LINES]:
        _say(note, Level.NOTICE)
    for error in trace.unreadable[:MOST_LINES]:
        _say(f"{error}; its segment is left out", Level.WARNING)
    if len(trace.unreadable) > MOST_LINES:
        more = len(trace.unreadable) - MOST_LINES
        _say(f"{path}: {more} more segments are left out", Level.WARNING)
    return trace


def _with_what_stays(trace: "Trace", make: Callable[[], _Made]) -> _Made:
    """Make an output that appears as a whole; again, if segments are deleted meanwhile."""
    from lttd.errors import TraceDamagedError  # noqa: PLC0415
    from lttd.view.output import unwound_by_signals  # noqa: PLC0415

    while True:
        try:
            with unwound_by_signals():
                return make()
        except TraceDamagedError:
            notes = trace.leave_out_vanished()
            if not notes or not trace.segments:
                raise
            for note in notes:
                _say(note, Level.NOTICE)


def _chosen(path: Path, options: argparse.Namespace) -> "Trace":
    """Open a trace, without lttd's own threads if the user wants it so."""
    trace = _opened(path)
    return trace.without_own_threads() if options.hide_self else trace


def _window(trace: "Trace", options: argparse.Namespace) -> "Window":
    """Return the window that the command line asks for."""
    if options.trigger is None:
        from lttd.view.times import window_of  # noqa: PLC0415

        return window_of(trace, options.begin, options.end)
    from lttd.view.triggers import window_of_trigger  # noqa: PLC0415  (only few ask for one)

    if options.begin is not None or options.end is not None:
        raise UsageError("--trigger has its own begin and end; leave --begin and --end out")
    return window_of_trigger(trace, options.trigger)


def _info(options: argparse.Namespace) -> int:
    from lttd.view.commands.info import dump, info_json, info_text  # noqa: PLC0415

    trace = _opened(options.trace)
    put_line(dump(info_json(trace)) if options.json else info_text(trace))
    return 0


def _text(options: argparse.Namespace) -> int:
    from lttd.view.commands.text import show_text  # noqa: PLC0415

    show = _show_of(options)
    traces = [_chosen(path, options) for path in (options.trace, *options.more)]
    return show_text(traces, _window(traces[0], options), show)


def _sql(options: argparse.Namespace) -> int:
    from lttd.view.commands.sql import Query, sql  # noqa: PLC0415

    text = None if options.tables else options.query
    query = Query(text, options.cpu, options.format, options.output)
    trace = _chosen(options.trace, options)
    window = _window(trace, options)
    if query.out is not None:
        _with_what_stays(trace, lambda: sql(trace, window, query))
        return 0
    from lttd.view.output import unwound_by_signals  # noqa: PLC0415  (temporary files go, too)

    with unwound_by_signals():
        sql(trace, window, query)
    return 0


def _follow(options: argparse.Namespace) -> int:
    from lttd.view.commands.follow import follow  # noqa: PLC0415

    return follow(
        options.trace,
        _show_of(options),
        from_begin=options.from_begin,
        until_closed=options.until_closed,
    )


def _show_of(options: argparse.Namespace) -> "Show":
    from lttd.view.commands.text import SYSCALL_EVENTS, Show  # noqa: PLC0415
    from lttd.view.filters import Filter  # noqa: PLC0415

    style = options.style or ""
    if options.syscalls:
        if style:
            raise UsageError(f"--style {style} is without --syscalls: leave one out")
        style = SYSCALLS
        options.event = options.event or [SYSCALL_EVENTS]
        options.jobs = 1  # a call may begin in one part of the trace and end in another
    for option in ("fields", "json", "reverse"):
        if options.syscalls and getattr(options, option, False):
            raise UsageError(f"--syscalls is without --{option}: leave one out")
    if options.json and options.names:
        raise UsageError("--json has the numbers of enums: leave --names out")
    if options.style:
        for name in ("fields", "json", "ns", "reverse"):
            if getattr(options, name, False):
                raise UsageError(f"--style {options.style} is without --{name}: leave one out")
    return Show(
        Filter(options.cpu, options.event, options.where, options.comm),
        nanoseconds=options.ns,
        fields=tuple(options.fields.split(",")) if options.fields else None,
        json=options.json,
        style=style,
        enum_names=options.names,
        most=getattr(options, "n", None),
        jobs=getattr(options, "jobs", None),
        backwards=getattr(options, "reverse", False),
        hide_self=options.hide_self,
    )


def _formats(options: argparse.Namespace) -> int:
    from lttd.view.commands.formats import share_text  # noqa: PLC0415

    put_line(share_text(options.trace))
    return 0


def _check(options: argparse.Namespace) -> int:
    from lttd.tracedir import segments  # noqa: PLC0415
    from lttd.view.commands.check import check_all, report_json, report_text  # noqa: PLC0415
    from lttd.view.commands.info import dump  # noqa: PLC0415

    found = segments(options.trace)
    reports, repaired = check_all(found, events=options.events, repairing=options.repair)
    if options.json:
        put_line(dump(report_json(reports, repaired)))
    else:
        put_line(report_text(reports, repaired))
    return 0 if all(report.whole for report in reports) else 1


def _compress(options: argparse.Namespace) -> int:
    from lttd.view.commands.compress import compress_all  # noqa: PLC0415

    return compress_all(options.trace, options.level)


def _decompress(options: argparse.Namespace) -> int:
    from lttd.view.commands.compress import decompress_all  # noqa: PLC0415

    return decompress_all(options.trace)


def _index(options: argparse.Namespace) -> int:
    from lttd.view.commands.index import index_all  # noqa: PLC0415

    return index_all(options.trace)


def _cut(options: argparse.Namespace) -> int:
    from lttd.view.commands.cut import cut  # noqa: PLC0415
    from lttd.view.commands.info import info_text  # noqa: PLC0415

    trace = _opened(options.trace)
    window = _window(trace, options)
    made = _with_what_stays(trace, lambda: cut(trace, window, options.output))
    put_line(info_text(made))
    return 0


def _import(options: argparse.Namespace) -> int:
    if not _opened(options.trace).is_foreign:
        raise UsageError(f"{options.trace}: is a trace of lttd already; lttv cut copies it")
    return _cut(options)


def _export(options: argparse.Namespace) -> int:
    from lttd.view.export import export  # noqa: PLC0415

    trace = _chosen(options.trace, options)
    window = _window(trace, options)
    lines = _with_what_stays(trace, lambda: export(trace, window, options.to, options.output))
    for line in lines:
        _say(line, Level.NOTICE)
    return 0


def _ui(options: argparse.Namespace) -> int:
    from lttd.view.commands.ui import show  # noqa: PLC0415

    trace = _chosen(options.trace, options)
    window = _window(trace, options)
    return _with_what_stays(trace, lambda: show(trace, window, local=options.local))


def _plot(options: argparse.Namespace) -> int:
    from lttd.view.commands.plot import plot  # noqa: PLC0415
    from lttd.view.filters import Filter  # noqa: PLC0415

    trace = _chosen(options.trace, options)
    window = _window(trace, options)
    chosen = Filter(options.cpu, options.event, options.where, options.comm)
    lines = _with_what_stays(trace, lambda: plot(trace, window, chosen, options.output))
    for line in lines:
        _say(line, Level.NOTICE)
    return 0


def _stacks(options: argparse.Namespace) -> int:
    from lttd.view.commands.stacks import show_stacks  # noqa: PLC0415
    from lttd.view.filters import Filter  # noqa: PLC0415
    from lttd.view.stacks.samples import BY, Wanted  # noqa: PLC0415

    by = tuple(options.by.split(","))
    for word in by:
        if word not in BY:
            raise UsageError(f"--by {options.by}: {word!r} is not one of {', '.join(BY)}")
    if options.off_cpu and options.weight:
        raise UsageError("--off-cpu counts time, so it is without --weight: leave one out")
    chosen = Filter(None, options.event, options.where, options.comm)
    wanted = Wanted(chosen, by, options.weight or "", off_cpu=options.off_cpu)
    trace = _chosen(options.trace, options)
    window = _window(trace, options)

    def make() -> list[str]:
        return show_stacks(trace, window, options.cpu, wanted, options.output)

    for line in _with_what_stays(trace, make):
        _say(line, Level.NOTICE)
    return 0


def _stats(options: argparse.Namespace) -> int:
    from lttd.view.commands.stats import Asked, stats  # noqa: PLC0415

    trace = _opened(options.trace)
    asked = Asked(
        options.what,
        options.pair,
        tuple(options.by.split(",")) if options.by else (),
        frozenset(options.cpu or ()),
        options.task or "",
        options.where,
        options.hide_self,
        options.measure,
        options.worst,
        options.histogram,
        options.output,
        "json" if options.json else "csv" if options.csv else "table",
        options.n,
    )
    for line in stats(trace, _window(trace, options), asked):
        _say(line, Level.NOTICE)
    return 0


COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "info": _info,
    "text": _text,
    "sql": _sql,
    "follow": _follow,
    "formats": _formats,
    "check": _check,
    "cut": _cut,
    "import": _import,
    "export": _export,
    "ui": _ui,
    "plot": _plot,
    "stacks": _stacks,
    "stats": _stats,
    "compress": _compress,
    "decompress": _decompress,
    "index": _index,
}
