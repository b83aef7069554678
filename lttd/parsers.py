"""Parse values of the command line and of TOML: sizes, durations, paths, globs.

Rule: for any input a parser returns a value or raises UsageError with one short line.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from lttd.errors import UsageError

_SIZE: Final = re.compile(r"(\d{1,18})\s*([KMGT]?)(i?B)?", re.IGNORECASE | re.ASCII)
_DURATION: Final = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*(ns|us|ms|s|m|h|d)?", re.ASCII)
_SECONDS: Final = {
    "ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0,
}  # fmt: skip
_LINE_END: Final = re.compile(r"\s*[\r\n]\s*")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# A petabyte and a century: a larger value is a mistake.
MOST_BYTES: Final = 1 << 50
MOST_S: Final = 36500 * 86400.0
# PID_MAX_LIMIT of the kernel.
MOST_PID: Final = 1 << 22
_MOST_DIGITS: Final = 18
_SHOWN_CHARACTERS: Final = 60
# As alike as statsu and status; "sleep" must not become "keep", nor "make" "mark".
_ALIKE: Final = 0.76


def shown(value: object) -> str:
    """Return the repr of a value, cut if it is too long for a line."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def nearest(name: str, known: Collection[str]) -> str:
    """Return the name of *known* that a misspelt name resembles; empty if there is none."""
    import difflib  # noqa: PLC0415  (only a misspelt name needs it)

    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)), "")


def parse_bytes(value: object) -> int:
    """Read ``4096``, ``64K``, ``4M``, ``1GiB``."""
    found = _SIZE.fullmatch(str(value).strip())
    if not found:
        raise UsageError(f"{shown(value)} is not a valid size; write 4096, 64K, 4M or 1G")
    size_bytes = int(found[1]) << (" KMGT".index(found[2].upper() or " ") * 10)
    if size_bytes > MOST_BYTES:
        raise UsageError(f"{shown(value)} is too large; write at most {MOST_BYTES >> 40}T")
    return size_bytes


def parse_duration_s(value: object) -> float:
    """Read ``100ms``, ``1s``, ``2m``, ``1h``; a bare number is seconds."""
    found = _DURATION.fullmatch(str(value).strip())
    if not found:
        raise UsageError(f"{shown(value)} is not a valid duration; write 100ms, 1s, 5m or 2h")
    duration_s = float(found[1]) * _SECONDS[found[2]]
    if duration_s > MOST_S:
        raise UsageError(f"{shown(value)} is too long; write at most {MOST_S / 86400:.0f}d")
    return duration_s


def parse_bool(value: object) -> bool:
    """Read ``yes``, ``true``, ``on``, ``1`` and their opposites."""
    known = {"yes": True, "true": True, "on": True, "1": True}
    known |= {"no": False, "false": False, "off": False, "0": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise UsageError(f"{shown(value)} is neither yes nor no") from None


def parse_count(value: object) -> int:
    """Read a number that is not negative, in decimal."""
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise UsageError(f"{shown(value)} is not a valid number; write one such as 8")
    return int(text)


def parse_list(value: object) -> tuple[str, ...]:
    """Read ``a,b,c``, a list of such, or both from a repeated option: ``a,b`` and ``c``."""
    written = value if isinstance(value, list | tuple) else [value]
    parts = (part.strip() for item in written for part in str(item).split(","))
    return tuple(part for part in parts if part)


def parse_texts(value: object) -> tuple[str, ...]:
    """Read one text, or the list of a repeated option; commas stay, and line ends become blanks."""
    written = value if isinstance(value, list | tuple) else [value]
    texts = tuple(_LINE_END.sub(" ", str(item).strip()) for item in written)
    if "" in texts:
        raise UsageError("'' is empty; write a text, or leave the option out")
    return texts


def parse_pids(value: object) -> tuple[int, ...]:
    """Read ids of processes or threads, as parse_list() does; at least one."""
    words = parse_list(value)
    pids = tuple(parse_count(word) for word in words)
    if not pids or max(pids) > MOST_PID:
        raise UsageError(f"{shown(value)}: write ids of processes such as 4711,4712")
    return pids


def parse_pid(value: object) -> int:
    """Read the id of one process, also from an option that may be repeated."""
    pids = parse_pids(value)
    if len(pids) > 1:
        raise UsageError(f"{shown(value)}: this source takes one process; write one number")
    return pids[0]


def parse_events(value: object) -> tuple[str, ...]:
    """Read globs of events, as parse_list() does; at least one."""
    globs = parse_list(value)
    if not globs:
        written = ",".join(map(str, value)) if isinstance(value, list) else value
        raise UsageError(f"{shown(written)} names no event; write globs such as 'sched:*,irq:*'")
    return globs


def parse_mark(value: object) -> str:
    """Return the text of a mark: a line, which a viewer prints as it is."""
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{shown(value)} is not the text of a mark; write a line of text")
    if _CONTROL.search(value):
        raise UsageError(
            f"{shown(value)} has a line break or another control character; leave it out"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{shown(value)} is not UTF-8") from None
    return value


def parse_presets(value: object) -> tuple[str, ...]:
    """Read names of presets, as parse_list() does; at least one."""
    names = parse_list(value)
    if not names:
        raise UsageError(f"{shown(value)} names no preset; lttd presets lists them")
    return names


def parse_sectors(value: object) -> tuple[int, int]:
    """Read ``2048-4095``: the first and the last sector."""
    found = re.fullmatch(r"(\d{1,18})-(\d{1,18})", str(value), re.ASCII)
    if found is None or int(found[1]) > int(found[2]):
        raise UsageError(f"{shown(value)}: write FIRST-LAST, as 2048-4095")
    return int(found[1]), int(found[2])


def parse_path(value: object) -> str:
    """Return a path with ``~`` and ``~user`` expanded, as a shell does at the begin of a word."""
    path = str(value)
    if not path.startswith("~"):
        return path
    expanded = os.path.expanduser(path)  # noqa: PTH111  (pathlib raises RuntimeError)
    if expanded.startswith("~"):
        home = shown(path.partition("/")[0])
        raise UsageError(
            f"{shown(path)}: {home} names no home directory; write ./~ for such a name"
        )
    return expanded


def tables_of(keys: Mapping[str, Callable[[Any], Any]]) -> Callable[[object], Any]:
    """Return a parser of a table of tables, whose values have these *keys*; only TOML has such."""

    def parse(value: object) -> dict[str, dict[str, Any]]:
        if not isinstance(value, Mapping) or not value:
            raise UsageError(f"{shown(value)}: write a table in TOML for each, with its name")
        return {str(name): parsed(str(name), table) for name, table in value.items()}

    def parsed(name: str, table: object) -> dict[str, Any]:
        if not isinstance(table, Mapping):
            raise UsageError(f"{name}: {shown(table)} is not a table")
        for key in table:
            if key not in keys:
                raise UsageError(f"{name}: {shown(key)} is not a key; write {', '.join(keys)}")
        named = f"{name}:"
        return {key: parse_named(f"{named} {key}", keys[key], each) for key, each in table.items()}

    return parse


def parse_named(name: str, parse: Callable[[Any], Any], value: object) -> Any:  # noqa: ANN401
    """Parse the value of the option or key called *name*.

    Raises:
        UsageError: it is not valid; the line begins with *name*.
    """
    try:
        return parse(value)
    except UsageError as error:
        raise UsageError(f"{name} {error}") from None
