"""The program ``lttv``: parse the command line and run a command.

Exit status: 0 done (check: whole); 1 failed (check: damaged; follow: the recorder was killed), or
stdout did not take the output; 2 usage, or no trace there; 130 interrupted; 141 the reader of the
output ended first.
"""

import argparse
import errno
import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lttd.errors import LttdError
from lttd.terminal import PIPE_CLOSED, Level, fill_standard_descriptors, put_line, say
from lttd.usage import Parser, ShowVersion, shortened

if TYPE_CHECKING:
    from lttd.view.commands.text import Show
    from lttd.view.trace import Trace

INTERRUPTED = 128 + 2
MOST_DIGITS = 18
MOST_JOBS = 256
MOST_LEVEL = 19
FEW_STREAMS = 100
"""This number can be open at once, whatever the limit of the shell is."""
MOST_LINES = 8
"""About segments that cannot be read."""
MOST_NEW_OBJECTS = 100_000
"""Python's collector runs after this number; the modules of one command have 50,000."""

_EPILOG = """Exit status: 0 done; 1 failed or damaged; 2 usage, or no trace there; 130 interrupted;
141 the reader of the output ended."""


def program() -> int:
    """Run ``lttv`` as the only task of this process; return its exit status.

    Most objects are parts of modules and stay.  The collector would go through them while modules
    are loaded, and again while the process ends: 28 ms of 180 ms to the first line.
    """
    gc.set_threshold(MOST_NEW_OBJECTS)
    try:
        return main()
    finally:
        gc.freeze()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``lttv``; return its exit status."""
    fill_standard_descriptors()
    # numpy's OpenBLAS would start a thread a CPU; nothing here multiplies matrices.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        options = _parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
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


def _joined(arguments: Sequence[str]) -> list[str]:
    """Join ``--begin -1.5s`` to ``--begin=-1.5s``, because argparse takes -1.5s for an option."""
    joined: list[str] = []
    for argument in arguments:
        after_time = bool(joined) and joined[-1] in ("--begin", "--end")
        if after_time and argument[:1] == "-" and argument[1:2].isdigit():
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = Parser(
        prog="lttv", description="Show, cut and export traces that lttd recorded.", epilog=_EPILOG
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="show it and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in _COMMANDS:
        add(commands)
    return parser


_Commands = argparse._SubParsersAction  # noqa: SLF001  (argparse gives the type no public name)


def _add(
    commands: "_Commands[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EPILOG
    )
    command.add_argument(
        "trace", metavar="TRACE", type=Path, help="directory of a trace, or of one segment"
    )
    command.set_defaults(run=run)
    return command


def _add_info(commands: "_Commands[argparse.ArgumentParser]") -> None:
    text = "print source, times, size and losses of a trace"
    command = _add(commands, "info", _info, text)
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_check(commands: "_Commands[argparse.ArgumentParser]") -> None:
    text = "verify every file against the others; status 0: whole, 1: damaged"
    command = _add(commands, "check", _check, text)
    command.add_argument(
        "--repair", action="store_true", help="rebuild indexes, cut torn tails, close the trace"
    )
    command.add_argument(
        "--events",
        action="store_true",
        help="decode every event, compare with the kernel's own count",
    )
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_cut(commands: "_Commands[argparse.ArgumentParser]") -> None:
    text = "copy a window to a new trace, in whole sub-buffers, without decoding"
    command = _add(commands, "cut", _cut, text)
    _add_window(command)
    _add_output(command, "directory of the new trace; must not exist")


def _add_export(commands: "_Commands[argparse.ArgumentParser]") -> None:
    from lttd.view.export import FORMATS  # noqa: PLC0415

    command = _add(commands, "export", _export, "convert a trace for other tools")
    formats = ", ".join(f"{name} ({each.help})" for name, each in FORMATS.items())
    command.add_argument(
        "--to", metavar="FORMAT", choices=FORMATS, required=True, help=f"one of: {formats}"
    )
    _add_window(command)
    text = "file or directory to make; must not exist; for parquet also a URL that fsspec can write"
    command.add_argument("-o", "--output", metavar="OUT", required=True, help=text)


def _add_compress(commands: "_Commands[argparse.ArgumentParser]") -> None:
    text = "compress the closed segments of a trace by zstd; lttv reads them as before"
    command = _add(commands, "compress", _compress, text)
    command.add_argument(
        "--level", metavar="N", type=_level, default=1, help="1 (default, fastest) to 19 (smallest)"
    )


def _add_decompress(commands: "_Commands[argparse.ArgumentParser]") -> None:
    text = "undo compress: other tools need the plain files of a trace"
    _add(commands, "decompress", _decompress, text)


def _add_plot(commands: "_Commands[argparse.ArgumentParser]") -> None:
    command = _add(
        commands, "plot", _plot, "draw a picture: rates by CPU, losses, the busiest events"
    )
    _add_window(command)
    _add_which(command)
    _add_output(command, "picture to make, .svg, .html or .png; must not exist")


def _add_text(commands: "_Commands[argparse.ArgumentParser]") -> None:
    command = _add(commands, "text", _text, "print events as lines, merged over CPUs by time")
    command.add_argument(
        "more", metavar="MORE", type=Path, nargs="*", help="other traces, merged by time"
    )
    _add_window(command)
    _add_choice(command)
    command.add_argument("-n", metavar="N", type=_number, help="stop after this many lines")
    command.add_argument(
        "--jobs", metavar="N", type=_jobs, help="number of processes (default: by size and CPUs)"
    )


def _add_follow(commands: "_Commands[argparse.ArgumentParser]") -> None:
    command = _add(commands, "follow", _follow, "print new events as lines, while lttd writes")
    command.add_argument(
        "--from-begin", action="store_true", help="print the recorded events first"
    )
    command.add_argument(
        "--until-closed",
        action="store_true",
        help="end with the recording; status 1 if its recorder was killed",
    )
    _add_choice(command)


def _add_formats(commands: "_Commands[argparse.ArgumentParser]") -> None:
    text = "list the event types that do not print as their print fmt says; TRACE may be a tracefs"
    _add(commands, "formats", _formats, text)


def _jobs(text: str) -> int:
    number = _number(text)
    if not 1 <= number <= MOST_JOBS:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {MOST_JOBS}")
    return number


def _level(text: str) -> int:
    number = _number(text)
    if not 1 <= number <= MOST_LEVEL:
        raise argparse.ArgumentTypeError(f"{text} is not a level from 1 to {MOST_LEVEL}")
    return number


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of up to {MOST_DIGITS} digits")
    return int(text)


def _add_which(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cpu",
        metavar="N",
        type=_number,
        action="append",
        help="only events of this CPU; may be repeated",
    )
    command.add_argument(
        "--event",
        metavar="GLOB",
        action="append",
        help="only events of this NAME or SYSTEM:NAME; may be repeated",
    )
    command.add_argument(
        "--where",
        metavar="EXPR",
        help="only events for which this is true, over their fields and event, system, time (ns),"
        " cpu, pid: 'prev_pid == 42 and next_comm == \"sshd\"'",
    )


def _add_choice(command: argparse.ArgumentParser) -> None:
    _add_which(command)
    command.add_argument("--fields", metavar="A,B", help="print these fields only, as name=value")
    command.add_argument("--json", action="store_true", help="one JSON object per line")
    command.add_argument("--ns", action="store_true", help="time stamps to the nanosecond")


def _add_window(command: argparse.ArgumentParser) -> None:
    text = (
        "{}: seconds on the trace clock, HH:MM:SS.frac or YYYY-MM-DDTHH:MM:SS.frac (UTC),"
        " +1.5s from the trace's begin, -1.5s from its end"
    )
    command.add_argument("--begin", metavar="T", help=text.format("from this time on"))
    command.add_argument("--end", metavar="T", help="until this time; written like --begin")
    command.add_argument(
        "--trigger", metavar="N", type=_number, help="the window of trigger N, as info lists it"
    )


def _add_output(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help=text)


_Made = TypeVar("_Made")
_COMMANDS = (
    _add_info, _add_text, _add_follow, _add_formats, _add_check, _add_cut, _add_export, _add_plot,
    _add_compress, _add_decompress,
)  # fmt: skip


# Each command imports numpy and its own modules when it runs, so that --help is fast.


def _opened(path: Path) -> "Trace":
    """Open a trace, and print a line for each segment that cannot be read."""
    from lttd.view.trace import Trace  # noqa: PLC0415

    trace = Trace(path)
    if sum(len(segment.streams) for segment in trace.segments) > FEW_STREAMS:
        from lttd.start import raise_file_limit  # noqa: PLC0415  (a file for each index and data)

        raise_file_limit()
    for note in trace.vanished[:MOST_LINES]:
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


def _info(options: argparse.Namespace) -> int:
    from lttd.view.commands.info import dump, info_json, info_text  # noqa: PLC0415

    trace = _opened(options.trace)
    put_line(dump(info_json(trace)) if options.json else info_text(trace))
    return 0


def _text(options: argparse.Namespace) -> int:
    from lttd.view.commands.text import show_text  # noqa: PLC0415
    from lttd.view.triggers import window_of_options  # noqa: PLC0415

    traces = [_opened(path) for path in (options.trace, *options.more)]
    window = window_of_options(traces[0], options.begin, options.end, options.trigger)
    return show_text(traces, window, _show_of(options))


def _follow(options: argparse.Namespace) -> int:
    from lttd.view.commands.follow import follow  # noqa: PLC0415

    return follow(
        options.trace,
        _show_of(options),
        from_begin=options.from_begin,
        until_closed=options.until_closed,
    )


def _show_of(options: argparse.Namespace) -> "Show":
    from lttd.view.commands.text import Show  # noqa: PLC0415
    from lttd.view.filters import Filter  # noqa: PLC0415

    return Show(
        Filter(options.cpu, options.event, options.where),
        nanoseconds=options.ns,
        fields=tuple(options.fields.split(",")) if options.fields else None,
        json=options.json,
        most=getattr(options, "n", None),
        jobs=getattr(options, "jobs", None),
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


def _cut(options: argparse.Namespace) -> int:
    from lttd.view.commands.cut import cut  # noqa: PLC0415
    from lttd.view.commands.info import info_text  # noqa: PLC0415
    from lttd.view.triggers import window_of_options  # noqa: PLC0415

    trace = _opened(options.trace)
    window = window_of_options(trace, options.begin, options.end, options.trigger)
    made = _with_what_stays(trace, lambda: cut(trace, window, options.output))
    put_line(info_text(made))
    return 0


def _export(options: argparse.Namespace) -> int:
    from lttd.view.export import export  # noqa: PLC0415
    from lttd.view.triggers import window_of_options  # noqa: PLC0415

    trace = _opened(options.trace)
    window = window_of_options(trace, options.begin, options.end, options.trigger)
    lines = _with_what_stays(trace, lambda: export(trace, window, options.to, options.output))
    for line in lines:
        _say(line, Level.NOTICE)
    return 0


def _plot(options: argparse.Namespace) -> int:
    from lttd.view.commands.plot import plot  # noqa: PLC0415
    from lttd.view.filters import Filter  # noqa: PLC0415
    from lttd.view.triggers import window_of_options  # noqa: PLC0415

    trace = _opened(options.trace)
    window = window_of_options(trace, options.begin, options.end, options.trigger)
    chosen = Filter(options.cpu, options.event, options.where)
    lines = _with_what_stays(trace, lambda: plot(trace, window, chosen, options.output))
    for line in lines:
        _say(line, Level.NOTICE)
    return 0


if __name__ == "__main__":
    sys.exit(program())
