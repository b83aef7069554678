"""Parse TOML and command line into one frozen Config.

Rule: defaults < TOML < command line.  A list option that is repeated on the command line adds up,
and replaces the file's list.  Every long option is a TOML key of the same name; SPECs are
``KIND[:TARGET][,key=value]...`` or ``[[source]]`` tables.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from lttd.arguments import argument_parser
from lttd.disk_policy import DiskPolicy, OnFailure
from lttd.errors import UsageError
from lttd.hosts import parse_host_names
from lttd.option_file import read_options
from lttd.parsers import (
    parse_bool,
    parse_bytes,
    parse_count,
    parse_duration_s,
    parse_named,
    parse_path,
    shown,
)
from lttd.retention import Limits, default_rolls, refuse_contradictions
from lttd.roll import RollLimits
from lttd.sources.table import CHANNEL_ROOT, DEFAULT, SOURCES, is_list, keeps_commas
from lttd.token_file import token_path

CONTINUOUS: Final = "continuous"
FLIGHT: Final = "flight"
_KIND: Final = re.compile(r"([a-z]+)(?:\Z|[:,])")
# A comma before a key, unless it is escaped.
_KEY: Final = re.compile(r"(?<!\\),(?=[a-z-]+=)")
# A comma that parse_spec() would not read as a part of the value.
_READ_OTHERWISE: Final = re.compile(r",(?=[a-z-]+=)|(?<=\\),")

# Keys of a SPEC that are also options of the command line, if there is one source.
SOURCE_KEYS: Final = tuple(SOURCES[DEFAULT].keys)


class NoTraceNamedError(UsageError):
    """Neither the command line nor the TOML file names a trace directory."""


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """One SPEC: a source and its options."""

    kind: str
    target: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Values as written, by keys of SOURCE_KEYS or of the kind."""

    def __str__(self) -> str:
        target = f":{_escaped(self.target)}" if self.target else ""
        return self.kind + target + "".join(self._pairs())

    def _pairs(self) -> Iterator[str]:
        for key, value in self.options.items():
            values = list(value) if isinstance(value, list | tuple | Mapping) else [value]
            if not keeps_commas(self.kind, key):
                values = [",".join(map(str, values))]
            for each in values:
                yield f",{key}={_escaped(str(each))}"


def _escaped(value: str) -> str:
    return _READ_OTHERWISE.sub(r"\\,", value)


def parse_spec(text: str) -> SourceSpec:
    """Parse ``KIND[:TARGET][,key=value]...``; ``\\,`` is a comma that does not begin a key.

    A key of a list can be repeated.
    """
    found = _KIND.match(text)
    if not found or found[1] not in SOURCES:
        kinds = ", ".join(SOURCES)
        raise UsageError(f"source {shown(text)}: the part before ':' must be one of {kinds}")
    kind = found[1]
    head, *pairs = [part.replace("\\,", ",") for part in _KEY.split(text)]
    if len(head) > len(kind) and head[len(kind)] != ":":
        raise UsageError(f"source {shown(text)}: after {kind!r} comes ':TARGET' or ',key=value'")
    options: dict[str, Any] = {}
    for key, _, value in (pair.partition("=") for pair in pairs):
        if keeps_commas(kind, key):
            options[key] = [*options.get(key, ()), value]
            continue
        adds_up = key in options and is_list(kind, key)
        options[key] = f"{options[key]},{value}" if adds_up else value
    return SourceSpec(kind, _target(kind, head[len(kind) + 1 :]), options)


def _target(kind: str, written: str | None) -> str | None:
    if not written:
        return None
    target: str = parse_named(f"source {kind}:", SOURCES[kind].parse_target, written)
    return target


@dataclass(frozen=True, slots=True)
class Config:
    """All options of a run of lttd."""

    trace_dir: Path
    sources: tuple[SourceSpec, ...]
    mode: str = CONTINUOUS
    """``continuous``, or ``flight``: write what the rings hold only when a trigger comes."""
    layout: str = "packed"
    append: bool = False
    flush_interval_s: float = 1.0
    duration_s: float | None = None
    segment_bytes: int | None = None
    """How large a segment may become; None: as the limits of the trace say, see roll_limits."""
    segment_s: float | None = None
    """How old a segment may become; None: the same."""
    max_bytes: int | None = None
    """How much disk the trace may take, without kept segments; None: without limit."""
    max_kept_bytes: int | None = None
    """How much disk kept segments may take; None: as much again."""
    max_age_s: float | None = None
    """How old a closed segment may become; None: without limit."""
    min_free_bytes: int | None = None
    """How much of the file system stays free; None: not asked."""
    compress_level: int | None = None
    """The level at which closed segments are compressed; None: not at all."""
    backlog_bytes: int = 64 << 20
    summary: str = "table"
    """``table``, ``json``, ``json:FILE`` or ``none``."""
    on_write_error: str | None = None
    """``stop``, or ``continue``: count data that cannot be written as lost; see DiskPolicy."""
    on_full: str | None = None
    """``stop``, ``wait`` or ``drop-oldest``."""
    max_rate_bytes: int | None = None
    """The most that is written in a second; the rest is counted as lost."""
    priority: int | None = None
    """SCHED_FIFO for lttd's threads; None leaves them as they are."""
    metrics: str | None = None
    web_allow_hosts: frozenset[str] = frozenset()
    """Further host names that ``metrics`` answers to."""
    web_enable_trigger: bool = False
    """Whether ``metrics`` takes POST /-/trigger."""
    web_token_file: str | None = None
    """The file with the token for that."""
    daemon: bool = False
    verbose: int = 0
    notes: tuple[str, ...] = ()
    """Lines to print before anything starts."""
    command: tuple[str, ...] = ()
    config_file: str | None = None
    """The TOML file that the command line names."""
    arguments: tuple[str, ...] = field(default=(), compare=False)
    """The command line as it was given; a reload parses it again, and that file."""

    @property
    def disk_policy(self) -> DiskPolicy:
        """The reaction to a failed write."""
        return DiskPolicy.of_options(self.on_full, self.on_write_error, has_limit=any(self.limits))

    @property
    def roll_limits(self) -> RollLimits:
        """The limits at which segments are rolled, those that the limits of the trace need too."""
        age_ns = None if self.segment_s is None else int(self.segment_s * 1e9)
        given = RollLimits(self.segment_bytes, age_ns)
        return default_rolls(self.limits, len(self.sources), given)

    @property
    def limits(self) -> Limits:
        """The limits of the trace."""
        age_ns = None if self.max_age_s is None else int(self.max_age_s * 1e9)
        return Limits(self.max_bytes, self.max_kept_bytes, age_ns, self.min_free_bytes)


class _Option(NamedTuple):
    parse: Callable[[Any], Any]
    field: str


def _one_of(*known: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in known:
            raise UsageError(f"{shown(value)}: write {' or '.join(known)}")
        return str(value)

    return parse


def _summary(value: object) -> str:
    text = str(value)
    if text in ("table", "json", "none"):
        return text
    if not text.startswith("json:"):
        raise UsageError(f"{shown(text)}: write table, json, json:FILE or none")
    path = Path(parse_path(text.removeprefix("json:")))
    if _is_directory(path):
        raise UsageError(f"{shown(text)}: that is a directory; name a file")
    if not _is_directory(path.parent):
        raise UsageError(f"{shown(text)}: there is no directory {path.parent}")
    return f"json:{path}"


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the name is too long, or this user may not look
        return False


def _compress_level(value: object) -> int:
    method, colon, level = str(value).partition(":")
    number = int(level) if level.isascii() and level.isdecimal() and len(level) <= 2 else 0
    if method != "zstd" or (colon and not 1 <= number <= MOST_LEVEL):
        raise UsageError(f"{shown(value)}: write zstd, or zstd:LEVEL with a level from 1 to 19")
    return number if colon else 1


def _priority(value: object) -> int:
    priority = parse_count(value)
    if not 1 <= priority <= 99:
        raise UsageError(f"{shown(value)}: write a priority from 1 to 99")
    return priority


def _flush_interval_s(value: object) -> float:
    interval_s = parse_duration_s(value)
    if not 0.001 <= interval_s <= 3600:
        raise UsageError(f"{shown(value)}: write from 1ms to 1h")
    return interval_s


def _max_rate_bytes(value: object) -> int:
    size_bytes = parse_bytes(str(value).removesuffix("/s"))
    if size_bytes < 64 << 10:
        raise UsageError(f"{shown(value)}: write at least 64K, the bytes of a second")
    return size_bytes


def _backlog_bytes(value: object) -> int:
    size_bytes = parse_bytes(value)
    if size_bytes < 1 << 20:
        raise UsageError(f"{shown(value)}: write at least 1M")
    return size_bytes


def _segment_bytes(value: object) -> int:
    size_bytes = parse_bytes(value)
    if size_bytes < 1 << 16:
        raise UsageError(f"{shown(value)}: write at least 64K")
    return size_bytes


def _segment_s(value: object) -> float:
    age_s = parse_duration_s(value)
    if age_s < 0.1:
        raise UsageError(f"{shown(value)}: write at least 100ms")
    return age_s


def _max_age_s(value: object) -> float:
    age_s = parse_duration_s(value)
    if age_s < 1:
        raise UsageError(f"{shown(value)}: write at least 1s")
    return age_s


def _trace_dir(value: object) -> Path:
    if not value or not isinstance(value, str):
        raise UsageError(f"{shown(value)}: write the path of a directory")
    return Path(parse_path(value))


_OPTIONS: Final[dict[str, _Option]] = {
    "trace-dir": _Option(_trace_dir, "trace_dir"),
    "mode": _Option(_one_of(CONTINUOUS, FLIGHT), "mode"),
    "layout": _Option(_one_of("packed", "sparse"), "layout"),
    "append": _Option(parse_bool, "append"),
    "flush-interval": _Option(_flush_interval_s, "flush_interval_s"),
    "duration": _Option(parse_duration_s, "duration_s"),
    "segment-size": _Option(_segment_bytes, "segment_bytes"),
    "segment-duration": _Option(_segment_s, "segment_s"),
    "max-size": _Option(_segment_bytes, "max_bytes"),
    "max-kept-size": _Option(_segment_bytes, "max_kept_bytes"),
    "max-age": _Option(_max_age_s, "max_age_s"),
    "min-free": _Option(_segment_bytes, "min_free_bytes"),
    "compress": _Option(_compress_level, "compress_level"),
    "backlog": _Option(_backlog_bytes, "backlog_bytes"),
    "summary": _Option(_summary, "summary"),
    "on-write-error": _Option(_one_of("stop", "continue"), "on_write_error"),
    "on-full": _Option(_one_of(*(each.value for each in OnFailure)), "on_full"),
    "max-rate": _Option(_max_rate_bytes, "max_rate_bytes"),
    "priority": _Option(_priority, "priority"),
    "metrics": _Option(str, "metrics"),
    "web-allow-host": _Option(parse_host_names, "web_allow_hosts"),
    "web-enable-trigger": _Option(parse_bool, "web_enable_trigger"),
    "web-token-file": _Option(token_path, "web_token_file"),
    "daemon": _Option(parse_bool, "daemon"),
    "verbose": _Option(parse_count, "verbose"),
}
MOST_LEVEL: Final = 19
# If one of these is on the command line, it replaces all of them in the file.
_SOURCES: Final = frozenset({"source", "channel-root"})
_KNOWN: Final = frozenset({*_OPTIONS, *SOURCE_KEYS, *_SOURCES})


def parse_command_line(arguments: Sequence[str]) -> Config:
    """Parse the command line and the TOML file that it names.

    Raises:
        UsageError: an option is not valid.
    """
    options, command = list(arguments), []
    if "--" in options:
        at = options.index("--")
        options, command = options[:at], options[at + 1 :]
        if not command:
            raise UsageError("no COMMAND after '--'")
    given = vars(argument_parser().parse_args(options))
    given = {key.replace("_", "-"): value for key, value in given.items()}
    from_file: dict[str, Any] = {}
    path = None
    if "config" in given:
        path = parse_named("config", parse_path, given.pop("config"))
        from_file = read_options(path, _KNOWN)
    if not given.keys().isdisjoint(_SOURCES):
        from_file = {key: value for key, value in from_file.items() if key not in _SOURCES}
    config = _assemble(from_file | given, from_file, tuple(command))
    return replace(config, config_file=path, arguments=tuple(arguments))


def option_names() -> dict[str, str]:
    """Return the name of the option of each field of Config that has one."""
    return {option.field: name for name, option in _OPTIONS.items()}


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
        raise NoTraceNamedError("no directory for the trace; name one: --trace-dir DIR")
    _refuse_half_a_webhook(fields)
    if command and fields.get("summary") == "json":
        raise UsageError("with COMMAND, stdout belongs to COMMAND: write --summary json:FILE")
    if command and not shutil.which(command[0]):
        raise UsageError(f"{command[0]}: no such program, or not executable")
    config = Config(sources=sources, command=command, **fields)
    refuse_contradictions(config.limits, len(sources), config.roll_limits)
    if config.mode == FLIGHT:
        _refuse_in_flight(sources)
    elif config.compress_level is not None and not any(config.roll_limits):
        words = "without segment-size or a limit of the trace its segment closes only at the end"
        notes.append(f"compress: {words}, and stays plain; lttv compress DIR does it then")
    return replace(config, notes=tuple(notes))


def _refuse_in_flight(sources: Sequence[SourceSpec]) -> None:
    for spec in sources:
        by_default = SOURCES[spec.kind].overwrites
        if by_default is None or (spec.kind == DEFAULT and spec.target):
            words = "records rings of lttd's own, which overwrite themselves"
            raise UsageError(f"mode flight {words}; leave out source {shown(str(spec))}")
        for where, options in _channels(spec):
            asked = options.get("overwrite", by_default)
            if not parse_named("overwrite", parse_bool, asked):
                remedy = "leave out no-overwrite" if by_default else "write overwrite=yes"
                raise UsageError(f"mode flight lets {where} overwrite itself; {remedy}")


def _channels(spec: SourceSpec) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the rings of a SPEC with their options: those of its channels, if it has any."""
    tables = spec.options.get("channel")
    if not isinstance(tables, Mapping):
        return [("the ring", spec.options)]
    return [
        (f"the ring of channel {name}", {**spec.options, **table})
        for name, table in tables.items()
        if isinstance(table, Mapping)  # else the source refuses it
    ]


def _refuse_half_a_webhook(fields: Mapping[str, Any]) -> None:
    enabled = fields.get("web_enable_trigger", False)
    if enabled and "web_token_file" not in fields:
        raise UsageError("web-enable-trigger needs a token: --web-token-file FILE")
    if "web_token_file" in fields and not enabled:
        raise UsageError("web-token-file is used by --web-enable-trigger only; add that")


def _sources(values: dict[str, Any], from_file: Mapping[str, Any]) -> tuple[SourceSpec, ...]:
    specs = [
        _from_table(item) if isinstance(item, dict) else parse_spec(str(item))
        for item in _listed(values.get("source", []))
    ]
    roots = _listed(values.get("channel-root", []))
    specs += [SourceSpec(CHANNEL_ROOT, _target(CHANNEL_ROOT, str(root))) for root in roots]
    if "ltt-channels" in values:
        specs = [_with(spec, {"channels": values["ltt-channels"]}) for spec in specs]
    common = {key: values[key] for key in SOURCE_KEYS if key in values}
    if not specs:
        specs = [SourceSpec(DEFAULT)]
    elif len(specs) > 1 and common:
        example = next(iter(common))
        raise UsageError(f"with several sources, write {example} in each SPEC: ,{example}=...")
    # Options of the command line win over the SPEC's; those of the file do not.
    above = {key: value for key, value in common.items() if values[key] is not from_file.get(key)}
    return tuple(
        SourceSpec(spec.kind, spec.target, {**common, **spec.options, **above}) for spec in specs
    )


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _with(spec: SourceSpec, options: Mapping[str, Any]) -> SourceSpec:
    return SourceSpec(spec.kind, spec.target, {**spec.options, **options})


def _from_table(table: dict[str, Any]) -> SourceSpec:
    options = dict(table)
    kind, target = options.pop("kind", None), options.pop("target", None)
    if not isinstance(kind, str) or kind not in SOURCES:
        raise UsageError(f"[[source]]: kind must be one of {', '.join(SOURCES)}, not {shown(kind)}")
    if not isinstance(target, str | None):
        raise UsageError(f"[[source]]: target {shown(target)}: write a string")
    return SourceSpec(kind, _target(kind, target), options)
