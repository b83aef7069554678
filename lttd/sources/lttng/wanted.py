"""Read a SPEC of ``lttng``: channels with their sizes, events and contexts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from lttd.errors import NothingToRecordError, UsageError
from lttd.parsers import nearest, shown
from lttd.sources.lttng.abi import CONTEXTS, SYSCALL_EVENT, TRACEPOINT

DEFAULT_EVENTS: Final = ("sched_*",)
DEFAULT_CHANNEL: Final = "channel0"
_SUBBUFFER_BYTES: Final = 256 << 10
_BUFFER_BYTES: Final = 4 << 20
_READ_TIMER_S: Final = 0.05
_MOST_TIMER_S: Final = 4294.0
"""The kernel takes microseconds in 32 bits."""
_LEAST_BYTES: Final = 4096
_MOST_BYTES: Final = 1 << 30
_NAME: Final = re.compile(r"[A-Za-z0-9._+-]{1,200}")
_KPROBE: Final = re.compile(
    r"(?P<name>[A-Za-z_]\w{0,200})=(?:(?P<address>0x[0-9a-fA-F]{1,16})|"
    r"(?P<symbol>[A-Za-z_.][\w.]{0,254})(?:\+(?P<offset>0x[0-9a-fA-F]{1,8}|\d{1,9}))?)"
)


class Asked(NamedTuple):
    """Events by a name or a glob."""

    kind: int
    """``abi.TRACEPOINT`` or ``abi.SYSCALL_EVENT``."""
    glob: str


class Kprobe(NamedTuple):
    """A probe of an instruction."""

    name: str
    """Of its event."""
    symbol: str
    """Empty: *offset* is an address."""
    offset: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """The settings of one channel, as a SPEC or a table of TOML has them."""

    events: Sequence[str] = ()
    """Names and globs of tracepoints."""
    syscalls: Sequence[str] = ()
    """Names and globs of system calls; their entries and exits are recorded."""
    kprobe: Sequence[str] = ()
    context: Sequence[str] = ()
    buffer_bytes: int | None = None
    """Per CPU."""
    subbuffer_bytes: int | None = None
    subbuffers: int | None = None
    overwrite: bool = False
    switch_timer: float = 0.0
    """In s; 0: the kernel closes no sub-buffer by time."""
    read_timer: float = _READ_TIMER_S
    """In s: how often the kernel looks whether it has to wake lttd."""

    @property
    def asked(self) -> frozenset[Asked]:
        """Its tracepoints and system calls."""
        tracepoints = [Asked(TRACEPOINT, glob) for glob in self.events]
        return frozenset(tracepoints + [Asked(SYSCALL_EVENT, glob) for glob in self.syscalls])

    @property
    def kprobes(self) -> list[Kprobe]:
        """The probes.

        Raises:
            UsageError: one cannot be read.
        """
        return [_kprobe(text) for text in self.kprobe]

    @property
    def geometry(self) -> tuple[int, int]:
        """The bytes of a sub-buffer, and the number of sub-buffers of a CPU.

        Raises:
            UsageError: the kernel does not take them.
        """
        return _geometry(self)


def channels_of(options: Mapping[str, Any]) -> dict[str, Wanted]:
    """Return the channels of a SPEC: its tables, or the one that its keys describe.

    Other keys of a SPEC with tables are defaults of its channels.

    Raises:
        UsageError: the settings contradict each other, or no kernel takes them.
    """
    options = dict(options)
    tables: dict[str, dict[str, Any]] = {
        name: {_keyword(key): value for key, value in table.items()}
        for name, table in options.pop("channel", {}).items()
    }
    chosen = {"events", "syscalls", "kprobe"}
    if not tables:
        if not chosen & options.keys():
            options["events"] = DEFAULT_EVENTS
        tables = {DEFAULT_CHANNEL: {}}
    elif both := chosen & options.keys():
        key = min(both)
        raise UsageError(f"lttng: {key} beside channels: write it in the channel that records it")
    wanted = {name: Wanted(**options | table) for name, table in tables.items()}
    for name, each in wanted.items():
        _refuse_impossible(name, each)
    return wanted


def _keyword(key: str) -> str:
    name = f"{key.removesuffix('-size')}-bytes" if key.endswith("-size") else key
    return name.replace("-", "_")


def refuse_session_name(name: str) -> None:
    """Raise UsageError if *name* cannot be that of a session."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"lttng: session {shown(name)}: write letters, digits and any of . _ + -, 200 at most"
        )


def _refuse_impossible(name: str, wanted: Wanted) -> None:
    where = f"lttng: channel {name}"
    if not _NAME.fullmatch(name) or name == "metadata" or name.startswith("."):
        raise UsageError(
            f"lttng: channel {shown(name)}: write letters, digits and any of . _ + -; 'metadata' is"
            " the name of the file with the declarations"
        )
    if not (wanted.events or wanted.syscalls or wanted.kprobe):
        raise UsageError(f"{where}: records nothing; write events, syscalls or kprobe")
    for context in wanted.context:
        if context not in CONTEXTS:
            near = nearest(context, CONTEXTS)
            advice = f"did you mean {near}?" if near else f"write {', '.join(CONTEXTS)}"
            raise UsageError(f"{where}: {shown(context)} is not a context; {advice}")
    for key, value_s in (("switch-timer", wanted.switch_timer), ("read-timer", wanted.read_timer)):
        if value_s > _MOST_TIMER_S or (value_s and value_s < 1e-3):
            raise UsageError(f"{where}: {key}: write from 1ms to 1h")
    if not wanted.read_timer:
        raise UsageError(f"{where}: read-timer 0 would let nobody wake lttd; write 50ms or so")
    _ = wanted.geometry, wanted.kprobes


def _geometry(wanted: Wanted) -> tuple[int, int]:
    buffer, size, count = wanted.buffer_bytes, wanted.subbuffer_bytes, wanted.subbuffers
    if None not in (buffer, size, count):
        raise UsageError("lttng: write two of buffer-size, subbuffer-size and subbuffers")
    if size is None:
        size = _SUBBUFFER_BYTES
        if buffer is not None:
            size = buffer // count if count else min(size, max(buffer // 4, _LEAST_BYTES))
    if count is None:
        count = (buffer or max(_BUFFER_BYTES, 4 * size)) // size
    for key, value in (("subbuffer-size", size), ("subbuffers", count)):
        if value < 1 or value & (value - 1):
            raise UsageError(
                f"lttng: {key} {value}: the kernel takes powers of two; write one, and a"
                " buffer-size that is one"
            )
    if not _LEAST_BYTES <= size <= _MOST_BYTES or size * count > _MOST_BYTES:
        sizes = f"{count} sub-buffers of {size} bytes for each CPU"
        raise UsageError(f"lttng: {sizes}: write sub-buffers of at least 4K, and at most 1G in all")
    if count < 2:
        raise UsageError("lttng: subbuffers 1: it cannot be written and read at once; write 2")
    return size, count


def _kprobe(text: str) -> Kprobe:
    found = _KPROBE.fullmatch(text)
    if found is None:
        raise UsageError(
            f"lttng: kprobe {shown(text)}: write NAME=SYMBOL, NAME=SYMBOL+OFFSET or NAME=0xADDRESS"
        )
    if found["address"]:
        return Kprobe(found["name"], "", int(found["address"], 16))
    return Kprobe(found["name"], found["symbol"], int(found["offset"] or "0", 0))


def matching(globs: Sequence[str], known: Sequence[str], kind: str, remedy: str) -> list[str]:
    """Return the names of *known* that match *globs*, each once.

    Raises:
        NothingToRecordError: a glob matches nothing; the kernel would take it without a word.
    """
    found: dict[str, None] = {}
    for glob in globs:
        names = [name for name in known if fnmatchcase(name, glob)]
        if not names:
            near = nearest(glob, known)
            advice = f"did you mean {near}?" if near else remedy
            raise NothingToRecordError(f"lttng: no {kind} matches {shown(glob)}", advice)
        found.update(dict.fromkeys(names))
    return list(found)
