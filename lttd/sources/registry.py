"""From a SPEC to the source it names."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lttd.config import SourceSpec
from lttd.errors import NothingToRecordError, UsageError
from lttd.parsers import parse_bool, parse_bytes, parse_count, parse_list, parse_named, shown
from lttd.runtime import known_notes
from lttd.sources.base import NO_OWNER, Owner, Source
from lttd.subbuffer import BufferPool

if TYPE_CHECKING:
    from lttd.sources.replay.files import FileSource


def open_source(spec: SourceSpec, pool: BufferPool, owner: Owner = NO_OWNER) -> Source:
    """Set up what *spec* names, to be recorded into *owner*; nothing is left if that fails.

    Raises:
        UsageError: the SPEC asks for what cannot be.
        NothingToRecordError: this machine does not have it.
        LockedError: somebody else reads it.
    """
    if spec.kind == "ftrace":
        return _ftrace(spec, pool, owner)
    return _OPENERS[spec.kind](spec, pool)


def open_previous_runs(
    specs: Sequence[SourceSpec], pool: BufferPool, owner: Owner
) -> tuple[Sequence[Source], Sequence[str]]:
    """Return what killed lttds left in the kernel of the trace *owner*, and lines for the user.

    Other traces' leftovers, and settings that were not put back, are dealt with by the way.
    """
    targets = [spec.target for spec in specs if spec.kind == "ftrace"]
    records_ftrace = bool(targets)
    if not records_ftrace and not any(name.startswith("ftrace-") for name in known_notes()):
        return (), ()
    from lttd.sources.ftrace.source import open_left_by_kill  # noqa: PLC0415

    try:
        # Who may record one instance may have no right to make others.
        instance = None if None in targets else next(iter(targets), None)
        return open_left_by_kill(pool, owner, instance, report_unknown=records_ftrace)
    except NothingToRecordError as error:
        if records_ftrace:
            raise
        return (), (f"what a killed lttd changed in tracefs stays: {error}",)


def _convert(spec: SourceSpec, parsers: dict[str, Callable[[Any], Any]]) -> dict[str, Any]:
    """Return the SPEC's options, parsed, by their names as keywords."""
    for key in spec.options:
        if key not in parsers:
            known = ", ".join(parsers)
            raise UsageError(
                f"source {spec}: {key!r} is not a key of {spec.kind}; its keys are {known}"
            )
    return {
        key.replace("-", "_"): parse_named(key, parsers[key], value)
        for key, value in spec.options.items()
    }


def _events(value: object) -> tuple[str, ...]:
    globs = parse_list(value)
    if not globs:
        written = ",".join(map(str, value)) if isinstance(value, list) else value
        raise UsageError(f"{shown(written)} names no event; write globs such as 'sched:*,irq:*'")
    return globs


def _sizes_in_bytes(options: dict[str, Any]) -> None:
    for name in ("buffer_size", "subbuffer_size"):
        if name in options:
            options[name.replace("_size", "_bytes")] = options.pop(name)


def _ftrace(spec: SourceSpec, pool: BufferPool, owner: Owner) -> Source:
    from lttd.sources.ftrace.source import FtraceSettings, open_ftrace  # noqa: PLC0415

    options = _convert(
        spec,
        {
            "events": _events,
            "buffer-size": parse_bytes,
            "subbuffer-size": parse_bytes,
            "clock": str,
            "overwrite": parse_bool,
            "trace-self": parse_bool,
            "kallsyms": parse_bool,
        },
    )
    _sizes_in_bytes(options)
    return open_ftrace(FtraceSettings(instance=spec.target, **options), pool, owner)


def _replay(spec: SourceSpec, pool: BufferPool) -> Source:
    from lttd.sources.replay.detect import detect  # noqa: PLC0415

    if spec.target is None:
        raise UsageError("source replay: name the directory: replay:DIR")
    options = _convert(spec, {"abi": str, "subbuffer-size": parse_bytes})
    subbuffer_bytes = options.pop("subbuffer_size", None)
    directory, abi = Path(spec.target), options.pop("abi", None)
    detected = None if abi else detect(directory)
    source = _open_replay(
        spec, directory, detected.abi if detected else abi or "ftrace", subbuffer_bytes, pool
    )
    if detected is not None:
        source.note(str(detected))
    return source


def _open_replay(
    spec: SourceSpec, directory: Path, abi: str, subbuffer_bytes: int | None, pool: BufferPool
) -> "FileSource[Any]":
    from lttd.sources.replay.blktrace import open_blktrace_replay  # noqa: PLC0415
    from lttd.sources.replay.ltt import open_ltt_replay  # noqa: PLC0415
    from lttd.sources.replay.source import open_replay  # noqa: PLC0415

    if abi not in ("ltt", "blktrace"):
        return open_replay(directory, pool, abi=abi, subbuffer_bytes=subbuffer_bytes)
    if subbuffer_bytes is not None:
        raise UsageError(f"source {spec}: sub-buffers of {abi} files state their size themselves")
    return (open_ltt_replay if abi == "ltt" else open_blktrace_replay)(directory, pool)


def _relay(spec: SourceSpec, pool: BufferPool) -> Source:
    from lttd.sources.relay.source import RelaySettings, open_relay  # noqa: PLC0415

    if spec.target is None:
        raise UsageError("source relay: name the directory: relay:DIR")
    parsers: dict[str, Callable[[Any], Any]] = {
        "framing": str,
        "pattern": str,
        "time": parse_count,
        "sequence": parse_count,
        "overwrite": parse_bool,
        "unfinished": parse_bool,
    }
    return open_relay(RelaySettings(spec.target, **_convert(spec, parsers)), pool)


def _blktrace(spec: SourceSpec, pool: BufferPool) -> Source:
    from lttd.sources.blktrace.device import parse_sectors  # noqa: PLC0415
    from lttd.sources.blktrace.source import BlktraceSettings, open_blktrace  # noqa: PLC0415

    if spec.target is None:
        raise UsageError("source blktrace: name the device: blktrace:/dev/X")
    options = _convert(
        spec,
        {
            "actions": parse_list,
            "buffer-size": parse_bytes,
            "subbuffer-size": parse_bytes,
            "sectors": parse_sectors,
            "pid": parse_count,
        },
    )
    _sizes_in_bytes(options)
    return open_blktrace(BlktraceSettings(spec.target, **options), pool)


def _ltt(spec: SourceSpec, pool: BufferPool) -> Source:
    from lttd.sources.ltt.source import open_ltt  # noqa: PLC0415

    if spec.target is None:
        raise UsageError("source ltt: name the directory of a trace: ltt:DEBUGFS/ltt/NAME")
    return open_ltt(Path(spec.target), pool, **_convert(spec, {"channels": str}))


_OPENERS: Final[dict[str, Callable[[SourceSpec, BufferPool], Source]]] = {
    "blktrace": _blktrace,
    "relay": _relay,
    "replay": _replay,
    "ltt": _ltt,
}
