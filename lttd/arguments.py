"""Declare the options of ``lttd`` and their help."""

import argparse
from typing import Any, Final

from lttd.parsers import nearest
from lttd.sources.table import SOURCES
from lttd.subcommand_help import HELP, help_lines
from lttd.usage import Parser, ShowVersion

_EPILOG: Final = """\
SPEC is KIND[:TARGET][,key=value]...
{sources}

Commands, each with --help of its own; all but doctor and presets speak to a running lttd:
{commands}

Sizes: 4096, 64K, 4M.  Durations: 100ms, 1s, 5m.
Exit status: 0 recorded; 1 recording failed, part way or at the start (another lttd records into
this trace, say), and what is stored is whole and readable; 2 usage; 77 nothing to record from on
this machine."""


_UNKNOWN: Final = "unrecognized arguments: "


class _Parser(Parser):
    def error(self, message: str) -> Any:  # noqa: ANN401  (argparse declares NoReturn)
        if message.startswith(_UNKNOWN):
            message += self._advice(message.removeprefix(_UNKNOWN))
        super().error(message)

    def _advice(self, unknown: str) -> str:
        """Return what the user meant: a subcommand, an option, or a program to run."""
        first = unknown.partition(" ")[0].partition("=")[0]
        options = [name for name in self._option_string_actions if name.startswith("--")]
        near = nearest(first, [*HELP, *options])
        if near:
            return f"; did you mean {f'lttd {near}' if near in HELP else near}?"
        return "" if " -" in f" {unknown}" else "; write COMMAND after '--'"


def _sources() -> str:
    """Return the forms of a SPEC, a line each."""
    forms = [form for row in SOURCES.values() for form in row.help.items()]
    width = max(len(form) for form, _ in forms)
    return "\n".join(f"  {form:{width}}   {text}" for form, text in forms)


def _add_controls(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what of it (also keys of a SPEC)").add_argument
    add("--exclude", metavar="GLOBS", action="append",
        help="events that --events names and that are not recorded; may be repeated")  # fmt: skip
    add("--filter", metavar="TEXT", action="append",
        help="'EVENT: EXPRESSION', such as 'irq_*: irq == 42'; may be repeated")  # fmt: skip
    add("--event-trigger", metavar="TEXT", action="append",
        help="'EVENT: traceoff', or others of docs/CONTROL.md; may be repeated")  # fmt: skip
    add("--stack", action="store_const", const="yes",
        help="store the kernel's stack with every event")  # fmt: skip
    add("--user-stack", dest="user_stack", action="store_const", const="yes",
        help="store the program's stack with every event")  # fmt: skip
    add("--tracer", metavar="NAME", help="tracer, such as function or function_graph")
    add("--function", metavar="GLOBS", action="append",
        help="functions that it records (default all); repeatable")  # fmt: skip
    add("--notrace", metavar="GLOBS", action="append",
        help="functions that it leaves out; repeatable")  # fmt: skip
    add("--graph-depth", metavar="N",
        help="how deep function_graph follows calls, on the whole machine")  # fmt: skip
    add("--option", metavar="NAMES", action="append",
        help="options of tracefs, NAME or NAME=VALUE; may be repeated")  # fmt: skip
    add("--probe", metavar="TEXT", action="append",
        help="'p:NAME SYMBOL [ARGS]': make and record lttd:NAME; may be repeated")  # fmt: skip


def _add_tasks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("whom to record (also keys of a SPEC)")
    add = group.add_argument
    add("--pid", metavar="IDS", action="append",
        help="only these processes (all threads), or single threads")  # fmt: skip
    add("--comm", metavar="GLOBS", action="append",
        help="only tasks that have such names now")  # fmt: skip
    add("--follow-fork", action="store_const", const="yes",
        help="also their descendants, and threads and children that they start later")  # fmt: skip
    add("--only-command", action="store_const", const="yes",
        help="only COMMAND and its descendants, from its exec on")  # fmt: skip
    add("--markers", action="store_const", const="yes",
        help="also marks that programs write at the top level, and trace_printk")  # fmt: skip


def _add_writing(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how to write it")
    add = how.add_argument
    add("--mode", metavar="HOW", help="continuous (default), or flight: the rings overwrite"
        " themselves, and nothing is written until a trigger comes")  # fmt: skip
    add("--layout", metavar="HOW", help="packed (default), or sparse: padding is a hole")
    add("--flush-interval", metavar="T", help="longest time until an event is on disk (default 1s)")
    add("--segment-size", metavar="SIZE", help="go on in a new segment at this size")
    add("--segment-duration", metavar="T", help="go on in a new segment at this age")
    add(
        "--max-size", metavar="SIZE", help="delete the oldest segments above this size of the trace"
    )
    add(
        "--max-kept-size",
        metavar="SIZE",
        help="the same for kept segments (default: as --max-size)",
    )
    add("--max-age", metavar="T", help="delete segments that ended so long ago")
    add("--min-free", metavar="SIZE", help="delete old segments while less of the disk is free")
    add("--compress", metavar="HOW", help="compress closed segments: zstd, or zstd:LEVEL (1-19)")
    add("--backlog", metavar="SIZE", help="memory for data that waits for the disk (default 64M)")
    add("--on-full", metavar="HOW", help="of a full disk: stop (default), wait, or drop-oldest"
        " segments (default with one of the limits above)")  # fmt: skip
    add("--on-write-error", metavar="HOW", help="stop (default), or continue and count the loss")
    add("--max-rate", metavar="SIZE", help="write at most this much a second; count the rest")
    add("--priority", metavar="N", help="real-time priority (1-99), for busy CPUs; off by default")


def _add_web(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how to serve it").add_argument
    add("--metrics", metavar="ADDR:PORT", help="serve /metrics, /healthz and a status page")
    add("--web-allow-host", metavar="NAME", action="append",
        help="a further host name that --metrics answers to; may be repeated")  # fmt: skip
    add("--web-enable-trigger", action="store_true",
        help="take triggers by POST /-/trigger on the port of --metrics")  # fmt: skip
    add("--web-token-file", metavar="FILE", help="file with the token of --web-enable-trigger")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of lttd's command line; it has no defaults, because TOML comes first."""
    parser = _Parser(
        prog="lttd",
        usage="lttd --trace-dir DIR [--source SPEC]... [options] [-- COMMAND...]",
        description="Record the kernel's per-CPU trace buffers, without padding or silent loss.",
        epilog=_EPILOG.format(sources=_sources(), commands=help_lines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "-t",
        "--trace-dir",
        metavar="DIR",
        help="directory of the trace: new or empty, unless --append",
    )
    add(
        "--source",
        metavar="SPEC",
        action="append",
        help="what to record, see below; may be repeated",
    )
    add("--config", metavar="FILE", help="TOML file with options by their long names")
    add("-a", "--append", action="store_true", help="add a segment to the trace in DIR")
    add("--duration", metavar="T", help="stop after this time")
    add("--summary", metavar="HOW", help="table (default), json, json:FILE or none")
    add("-d", "--daemon", action="store_true", help="go to the background once recording runs")
    add("-v", "--verbose", action="count", help="print more to stderr")
    add("--version", action=ShowVersion, nargs=0, help="show it and exit")
    what = parser.add_argument_group("what to record (with several sources: keys of each SPEC)")
    add = what.add_argument
    add("--events", metavar="GLOBS", action="append",
        help="such as 'sched:*,irq:*'; sched:* if you ask for nothing; repeatable")  # fmt: skip
    add("--preset", metavar="NAMES", action="append",
        help="groups of events, such as block,irq: see lttd presets; repeatable")  # fmt: skip
    add("--buffer-size", metavar="SIZE", help="ring per CPU (default 4M)")
    add(
        "--subbuffer-size",
        metavar="SIZE",
        help="unit of the ring, if the kernel can set it (default 4K)",
    )
    add("--clock", metavar="NAME", help="trace clock (default mono)")
    add("--overwrite", dest="overwrite", action="store_const", const="yes",
        help="a full ring loses its oldest events (default)")  # fmt: skip
    add("--no-overwrite", dest="overwrite", action="store_const", const="no",
        help="a full ring refuses new events")  # fmt: skip
    add("--trace-self", dest="trace_self", action="store_const", const="yes",
        help="record lttd's own threads, too (default; lttv has --hide-self)")  # fmt: skip
    add("--no-trace-self", dest="trace_self", action="store_const", const="no",
        help="have the kernel leave them out: all events then cost some 10 %% more")  # fmt: skip
    add("--kallsyms", action="store_const", const="yes", help="keep /proc/kallsyms in the trace")
    _add_controls(parser)
    _add_tasks(parser)
    _add_writing(parser)
    _add_web(parser)
    legacy = parser.add_argument_group("options of the legacy lttd (LTTng 0.x)")
    add = legacy.add_argument
    add("-c", "--channel-root", metavar="DIR", action="append",
        help="same as --source ltt:DIR; may be repeated")  # fmt: skip
    either = legacy.add_mutually_exclusive_group()
    either.add_argument("-f", dest="ltt_channels", action="store_const", const="flight",
        help="only flight-recorder channels: ltt:DIR,channels=flight")  # fmt: skip
    either.add_argument("-n", dest="ltt_channels", action="store_const", const="normal",
        help="only the other channels: ltt:DIR,channels=normal")  # fmt: skip
    add("-N", dest="threads", metavar="N", help="accepted for compatibility, without effect")
    return parser
