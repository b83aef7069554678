"""From TOML and command line to one frozen Config.

Rule: defaults < TOML < command line; a repeated list replaces.  Every long option is a TOML key of
the same name; SPECs are ``KIND[:TARGET][,key=value]...`` or ``[[source]]`` tables.
"""

import argparse
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lttd.errors import UsageError

_SIZE: Final = re.compile(r"(\d+)\s*([KMGT]?)(i?B)?", re.IGNORECASE)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ns|us|ms|s|m|h|d)?")
_SECONDS: Final = {
    "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0,
}  # fmt: skip
_KIND: Final = re.compile(r"([a-z]+)(?:$|[:,])")
# A comma that begins a key, unless it is escaped.
_KEY: Final = re.compile(r"(?<!\\),(?=[a-z-]+=)")

KINDS: Final = ("ftrace", "blktrace", "relay", "replay", "ltt")
# Keys of a SPEC that are also options of the command line, for the one source.
SOURCE_KEYS: Final[tuple[str, ...]] = (
    "events", "buffer-size", "subbuffer-size", "clock", "overwrite", "trace-self", "kallsyms",
)  # fmt: skip


def parse_bytes(value: object) -> int:
    """Read ``4096``, ``64K``, ``4M``, ``1GiB``."""
    found = _SIZE.fullmatch(str(value).strip())
    if not found:
        raise UsageError(f"{value!r} is no size: write 4096, 64K, 4M or 1G")
    return int(found[1]) << (" KMGT".index(found[2].upper() or " ") * 10)


def parse_duration_s(value: object) -> float:
    """Read ``100ms``, ``1s``, ``2m``, ``1h``; a bare number is seconds."""
    found = _DURATION.fullmatch(str(value).strip())
    if not found:
        raise UsageError(f"{value!r} is no duration: write 100ms, 1s, 5m or 2h")
    return float(found[1]) * _SECONDS[found[2]]


def parse_bool(value: object) -> bool:
    """Read ``yes``, ``true``, ``on``, ``1`` and their opposites."""
    known = {"yes": True, "true": True, "on": True, "1": True}
    known |= {"no": False, "false": False, "off": False, "0": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise UsageError(f"{value!r} is neither yes nor no") from None


def parse_named(name: str, parse: Callable[[Any], Any], value: object) -> Any:  # noqa: ANN401
    """Parse the value of the option or key called *name*.

    Raises:
        UsageError: it cannot be; the line begins with *name*.
    """
    try:
        return parse(value)
    except UsageError as error:
        raise UsageError(f"{name} {error}") from None


def parse_list(value: object) -> tuple[str, ...]:
    """Read ``a,b,c`` or a TOML list."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return tuple(text for part in parts if (text := str(part).strip()))


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """One SPEC: what to consume, and how."""

    kind: str
    target: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keys of SOURCE_KEYS, or of the kind's own; values as written."""

    def __str__(self) -> str:
        target = f":{self.target}" if self.target else ""
        options = "".join(f",{key}={_as_text(value)}" for key, value in self.options.items())
        return self.kind + target + options


def _as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def parse_spec(text: str) -> SourceSpec:
    """Read ``KIND[:TARGET][,key=value]...``; ``\\,`` is a comma that begins no key."""
    found = _KIND.match(text)
    if not found or found[1] not in KINDS:
        kinds = ", ".join(KINDS)
        raise UsageError(f"source {text!r}: the part before ':' must be one of {kinds}")
    kind = found[1]
    head, *pairs = [part.replace("\\,", ",") for part in _KEY.split(text)]
    target = head[len(kind) + 1 :] or None
    if len(head) > len(kind) and head[len(kind)] != ":":
        raise UsageError(f"source {text!r}: after {kind!r} comes ':TARGET' or ',key=value'")
    return SourceSpec(kind, target, dict(pair.split("=", 1) for pair in pairs))


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a run of lttd was asked for."""

    trace_dir: Path
    sources: tuple[SourceSpec, ...]
    layout: str = "packed"
    append: bool = False
    flush_interval_s: float = 1.0
    duration_s: float | None = None
    backlog_bytes: int = 64 << 20
    summary: str = "table"
    """``table``, ``json``, ``json:FILE`` or ``none``."""
    on_write_error: str = "stop"
    """``stop``, or ``continue``: what cannot be written is counted as lost."""
    priority: int | None = None
    """SCHED_FIFO for lttd's threads; None leaves them as they are."""
    metrics: str | None = None
    daemon: bool = False
    verbose: int = 0
    notes: tuple[str, ...] = ()
    """Lines to tell the user before anything starts."""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Option:
    parse: Callable[[Any], Any]
    field: str


def _layout(value: object) -> str:
    if value not in ("packed", "sparse"):
        raise UsageError(f"{value!r}: write packed or sparse")
    return str(value)


def _summary(value: object) -> str:
    text = str(value)
    if text not in ("table", "json", "none") and not text.startswith("json:"):
        raise UsageError(f"{text!r}: write table, json, json:FILE or none")
    path = Path(text.removeprefix("json:"))
    if not path.parent.is_dir():
        raise UsageError(f"{text!r}: there is no directory {path.parent}")
    if text.startswith("json:") and path.is_dir():
        raise UsageError(f"{text!r}: that is a directory; name a file")
    return text


def _on_write_error(value: object) -> str:
    if value not in ("stop", "continue"):
        raise UsageError(f"{value!r}: write stop or continue")
    return str(value)


def _priority(value: object) -> int:
    text = str(value)
    if not (text.isdigit() and 1 <= int(text) <= 99):
        raise UsageError(f"{text!r}: from 1 to 99")
    return int(text)


def _flush_interval_s(value: object) -> float:
    interval_s = parse_duration_s(value)
    if not 0.001 <= interval_s <= 3600:
        raise UsageError(f"{value!r}: from 1ms to 1h")
    return interval_s


def _backlog_bytes(value: object) -> int:
    size = parse_bytes(value)
    if size < 1 << 20:
        raise UsageError(f"{value!r}: at least 1M")
    return size


def _verbose(value: object) -> int:
    text = str(value)
    if not text.isdigit():
        raise UsageError(f"{text!r}: write 0 or 1")
    return int(text)


def _trace_dir(value: object) -> Path:
    if not value or not isinstance(value, str):
        raise UsageError(f"{value!r}: write the path of a directory")
    return Path(value)


_OPTIONS: Final[dict[str, _Option]] = {
    "trace-dir": _Option(_trace_dir, "trace_dir"),
    "layout": _Option(_layout, "layout"),
    "append": _Option(parse_bool, "append"),
    "flush-interval": _Option(_flush_interval_s, "flush_interval_s"),
    "duration": _Option(parse_duration_s, "duration_s"),
    "backlog": _Option(_backlog_bytes, "backlog_bytes"),
    "summary": _Option(_summary, "summary"),
    "on-write-error": _Option(_on_write_error, "on_write_error"),
    "priority": _Option(_priority, "priority"),
    "metrics": _Option(str, "metrics"),
    "daemon": _Option(parse_bool, "daemon"),
    "verbose": _Option(_verbose, "verbose"),
}

_EPILOG: Final = """\
SPEC is KIND[:TARGET][,key=value]...
  ftrace            an own tracefs instance, created and removed by lttd (the default)
  ftrace:INSTANCE   an instance that exists; ftrace:/ is the top-level buffer
  blktrace:/dev/X   the block layer's trace of a device (docs/BLKTRACE.md tells its keys)
  relay:DIR         every relay channel below DIR (docs/RELAY.md tells its keys)
  replay:DIR        files of whole sub-buffers with their padding: fixtures, old traces
  ltt:DIR           the channels of an LTTng 0.x trace: DEBUGFS/ltt/NAME

Sizes: 4096, 64K, 4M.  Durations: 100ms, 1s, 5m.
Exit status: 0 recorded; 1 recording failed part way (what was written is whole and readable);
2 usage; 77 nothing here to record from."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:  # noqa: ANN401  (argparse declares NoReturn)
        if message.startswith("unrecognized arguments: ") and " -" not in message:
            message += "; a COMMAND goes behind '--'"
        raise UsageError(f"{message} (lttd --help tells more)")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of lttd's command line; nothing has a default in it."""
    parser = _Parser(
        prog="lttd",
        usage="lttd --trace-dir DIR [--source SPEC]... [options] [-- COMMAND...]",
        description="Record the kernel's per-CPU trace buffers, without padding or silent loss.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-t", "--trace-dir", metavar="DIR", help="where the trace goes: new, empty, or --append")
    add("--source", metavar="SPEC", action="append", help="what to record; may be repeated")
    add("--config", metavar="FILE", help="TOML file with options by their long names")
    add("-a", "--append", action="store_true", help="add a segment to the trace that is there")
    add("--duration", metavar="T", help="stop after this time")
    add("--summary", metavar="HOW", help="table (default), json, json:FILE or none")
    add("-d", "--daemon", action="store_true", help="go to the background once recording runs")
    add("-v", "--verbose", action="count", help="tell what is done, on stderr")
    add("--version", action="version", version=_version())
    what = parser.add_argument_group("what to record (for the one source; else in its SPEC)")
    add = what.add_argument
    add("--events", metavar="GLOBS", help="such as 'sched:*,irq:*' (default sched:*)")
    add("--buffer-size", metavar="SIZE", help="ring per CPU (default 4M)")
    add("--subbuffer-size", metavar="SIZE", help="where the kernel offers it (default 4K)")
    add("--clock", metavar="NAME", help="trace clock (default mono)")
    add("--overwrite", dest="overwrite", action="store_const", const="yes",
        help="a full ring loses its oldest events (default)")  # fmt: skip
    add("--no-overwrite", dest="overwrite", action="store_const", const="no",
        help="a full ring refuses new events")  # fmt: skip
    add("--trace-self", action="store_const", const="yes", help="record lttd's own threads, too")
    add("--kallsyms", action="store_const", const="yes", help="keep /proc/kallsyms in the trace")
    how = parser.add_argument_group("how to write it")
    add = how.add_argument
    add("--layout", metavar="HOW", help="packed (default), or sparse: padding is a hole")
    add("--flush-interval", metavar="T", help="an event is on disk after at most this (default 1s)")
    add("--backlog", metavar="SIZE", help="memory between reading and the disk (default 64M)")
    add("--on-write-error", metavar="HOW", help="stop (default), or continue and count the loss")
    add(
        "--priority", metavar="N", help="real-time priority (1-99) against CPU hogs; off by default"
    )
    add("--metrics", metavar="ADDR:PORT", help="serve /metrics and /healthz, off by default")
    legacy = parser.add_argument_group("legacy lttd's letters")
    add = legacy.add_argument
    add("-c", "--channel-root", metavar="DIR", help="--source ltt:DIR")
    either = legacy.add_mutually_exclusive_group()
    either.add_argument("-f", dest="ltt_channels", action="store_const", const="flight",
        help="only flight-recorder channels: ltt:DIR,channels=flight")  # fmt: skip
    either.add_argument("-n", dest="ltt_channels", action="store_const", const="normal",
        help="only the other channels: ltt:DIR,channels=normal")  # fmt: skip
    add("-N", dest="threads", metavar="N", help="accepted, without effect")
    return parser


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415  (slow, and rarely asked for)

    return f"lttd {version('lttd')}"


def parse_command_line(arguments: Sequence[str]) -> Config:
    """Return what the command line and the TOML file it names ask for.

    Raises:
        UsageError: they ask for what cannot be.
    """
    options, command = list(arguments), []
    if "--" in options:
        at = options.index("--")
        options, command = options[:at], options[at + 1 :]
        if not command:
            raise UsageError("no COMMAND after '--'")
    given = vars(argument_parser().parse_args(options))
    given = {key.replace("_", "-"): value for key, value in given.items()}
    from_file = read_toml(Path(given.pop("config"))) if "config" in given else {}
    return _assemble(from_file | given, from_file, tuple(command))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of options.

    Raises:
        UsageError: it cannot be read, is not TOML, or has a key that is no option.
    """
    import tomllib  # noqa: PLC0415  (only with --config)

    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    known = {*_OPTIONS, *SOURCE_KEYS, "source", "channel-root"}
    for key in values:
        if key not in known:
            raise UsageError(f"{path}: {key!r} is no option of lttd")
    return values


def _assemble(
    values: dict[str, Any], from_file: Mapping[str, Any], command: tuple[str, ...]
) -> Config:
    notes = ["-N has no effect: writer threads are few and fixed"] if "threads" in values else []
    values.pop("threads", None)
    sources = _sources(values, from_file)
    fields = {
        option.field: parse_named(name, option.parse, values[name])
        for name, option in _OPTIONS.items()
        if name in values
    }
    if "trace_dir" not in fields:
        raise UsageError("where should the trace go? Name it: --trace-dir DIR")
    if command and fields.get("summary") == "json":
        raise UsageError("with COMMAND, stdout is COMMAND's: write --summary json:FILE")
    if command and not shutil.which(command[0]):
        raise UsageError(f"{command[0]}: no such program, or not executable")
    return Config(sources=sources, command=command, notes=tuple(notes), **fields)


def _sources(values: dict[str, Any], from_file: Mapping[str, Any]) -> tuple[SourceSpec, ...]:
    written = values.get("source", [])
    specs = [_from_table(item) if isinstance(item, dict) else parse_spec(str(item))
             for item in (written if isinstance(written, list) else [written])]  # fmt: skip
    if "channel-root" in values:
        specs.append(SourceSpec("ltt", str(values["channel-root"])))
    if "ltt-channels" in values:
        specs = [_with(spec, {"channels": values["ltt-channels"]}) for spec in specs]
    common = {key: values[key] for key in SOURCE_KEYS if key in values}
    if not specs:
        specs = [SourceSpec("ftrace")]
    elif len(specs) > 1 and common:
        example = next(iter(common))
        raise UsageError(f"with several sources, {example} belongs into its SPEC: ,{example}=...")
    # Options of the command line win over the SPEC's; those of the file do not.
    above = {key: value for key, value in common.items() if values[key] is not from_file.get(key)}
    return tuple(
        SourceSpec(spec.kind, spec.target, {**common, **spec.options, **above}) for spec in specs
    )


def _with(spec: SourceSpec, options: Mapping[str, Any]) -> SourceSpec:
    return SourceSpec(spec.kind, spec.target, {**spec.options, **options})


def _from_table(table: dict[str, Any]) -> SourceSpec:
    options = dict(table)
    kind, target = options.pop("kind", None), options.pop("target", None)
    if kind not in KINDS:
        raise UsageError(f"[[source]]: kind must be one of {', '.join(KINDS)}, not {kind!r}")
    return SourceSpec(kind, target, options)
