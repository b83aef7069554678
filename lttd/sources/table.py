"""SOURCES: every kind of source that a SPEC can name, and the keys of its SPEC.

The help, the parsing of the command line and of TOML, and the opening of sources derive from it.
The module of a source is loaded when such a source is recorded.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from lttd.parsers import (
    parse_bool,
    parse_bytes,
    parse_count,
    parse_duration_s,
    parse_events,
    parse_list,
    parse_path,
    parse_pid,
    parse_pids,
    parse_presets,
    parse_sectors,
    parse_texts,
    tables_of,
)

Parser = Callable[[Any], Any]


class SourceRow(NamedTuple):
    """One kind of source."""

    module: str
    """Defines ``open_source(request)``, see ``lttd.sources.base.Request``."""
    help: Mapping[str, str]
    """The forms of its SPEC, with a line of help for each."""
    keys: Mapping[str, Parser]
    """The keys of its SPEC, with the parsers of their values."""
    needs: str = ""
    """The target that a SPEC must name, with an example; empty: the target is optional."""
    parse_target: Parser = parse_path
    replays: Mapping[str, str] = {}
    """Only for the source that replays files: its modules by ABI; each defines ``REPLAY``."""
    reloads: frozenset[str] = frozenset()
    """Keys that a reload takes over; the source then has ``changed()`` (base.Reloadable)."""
    overwrites: bool | None = None
    """Whether its ring overwrites itself if the SPEC has no ``overwrite``; None: mode flight, which
    needs that, cannot record it."""
    leaves_rings: bool = False
    """Whether a kill leaves rings in the kernel; the module then has ``open_left_by_kill``."""


_LTTNG_CHANNEL: Final[Mapping[str, Parser]] = {
    "events": parse_events,
    "syscalls": parse_list,
    "kprobe": parse_texts,
    "context": parse_list,
    "buffer-size": parse_bytes,
    "subbuffer-size": parse_bytes,
    "subbuffers": parse_count,
    "overwrite": parse_bool,
    "switch-timer": parse_duration_s,
    "read-timer": parse_duration_s,
}
SOURCES: Final = {
    "ftrace": SourceRow(
        "lttd.sources.ftrace.source",
        {
            "ftrace": "a tracefs instance that lttd creates and removes (the default)",
            "ftrace:INSTANCE": "an instance that exists; ftrace:/ is the top-level buffer",
        },
        {
            "events": parse_events,
            "preset": parse_presets,
            "buffer-size": parse_bytes,
            "subbuffer-size": parse_bytes,
            "clock": str,
            "overwrite": parse_bool,
            "trace-self": parse_bool,
            "kallsyms": parse_bool,
            "exclude": parse_list,
            "filter": parse_texts,
            "event-trigger": parse_texts,
            "stack": parse_bool,
            "user-stack": parse_bool,
            "option": parse_list,
            "probe": parse_texts,
            "pid": parse_pids,
            "comm": parse_list,
            "follow-fork": parse_bool,
            "only-command": parse_bool,
            "markers": parse_bool,
            "tracer": str,
            "function": parse_list,
            "notrace": parse_list,
            "graph-depth": parse_count,
        },
        parse_target=str,
        reloads=frozenset(
            {"events", "preset", "exclude", "filter", "event-trigger", "pid", "comm"}
        ),
        overwrites=True,
        leaves_rings=True,
    ),
    "blktrace": SourceRow(
        "lttd.sources.blktrace.source",
        {"blktrace:/dev/X": "the block layer's trace of a device (keys: docs/BLKTRACE.md)"},
        {
            "actions": parse_list,
            "buffer-size": parse_bytes,
            "subbuffer-size": parse_bytes,
            "sectors": parse_sectors,
            "pid": parse_pid,
        },
        needs="the device: blktrace:/dev/X",
    ),
    "relay": SourceRow(
        "lttd.sources.relay.source",
        {"relay:DIR": "every relay channel below DIR (keys: docs/RELAY.md)"},
        {
            "framing": str,
            "pattern": str,
            "time": parse_count,
            "sequence": parse_count,
            "overwrite": parse_bool,
            "unfinished": parse_bool,
            "padding": parse_count,
            "subbuffer-size": parse_bytes,
            "subbuffers": parse_count,
        },
        needs="the directory: relay:DIR",
    ),
    "replay": SourceRow(
        "lttd.sources.replay.source",
        {"replay:DIR": "files of whole sub-buffers with their padding: CTF and old traces"},
        {"abi": str, "trace": str, "subbuffer-size": parse_bytes},
        needs="the directory: replay:DIR",
        replays={
            "ftrace": "lttd.sources.replay.ftrace",
            "ltt": "lttd.sources.replay.ltt",
            "blktrace": "lttd.sources.replay.blktrace",
            "ctf": "lttd.sources.replay.ctf",
        },
    ),
    "ltt": SourceRow(
        "lttd.sources.ltt.source",
        {"ltt:DIR": "the channels of an LTTng 0.x trace: DEBUGFS/ltt/NAME"},
        {"channels": str},
        needs="the directory of a trace: ltt:DEBUGFS/ltt/NAME",
    ),
    "lttng": SourceRow(
        "lttd.sources.lttng.source",
        {"lttng[:SESSION]": "a session of lttng-modules that lttd makes (keys: docs/LTTNG.md)"},
        {**_LTTNG_CHANNEL, "channel": tables_of(_LTTNG_CHANNEL)},
        parse_target=str,
        reloads=frozenset({"events", "syscalls", "channel"}),
        overwrites=False,
    ),
}
DEFAULT: Final = "ftrace"
"""The source without a SPEC; its keys are options of the command line, too."""
CHANNEL_ROOT: Final = "ltt"
"""The source of ``--channel-root DIR``."""


def is_list(kind: str, key: str) -> bool:
    """Return whether a comma divides the key's value, and repeating the key adds to the list."""
    lists = (parse_events, parse_list, parse_pids, parse_presets)
    return SOURCES[kind].keys.get(key) in lists


def keeps_commas(kind: str, key: str) -> bool:
    """Return whether a comma is part of the key's value, so that only repeating it makes a list."""
    return SOURCES[kind].keys.get(key) is parse_texts
