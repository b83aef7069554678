"""Source ``replay:DIR``: files of sub-buffers that were recorded before, of the ABI that they show.

    NAME.blktrace.CPU                            blktrace
    CHANNEL_CPU with LTTng 0.x's magic           ltt
    per_cpu/cpuN/trace_pipe_raw, cpuN.*, CHANNEL_CPU   ftrace
    metadata, a text or packets of CTF           ctf

Rule: lttd does not guess: it refuses a directory that could be of two ABIs, and ``abi=`` decides.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from lttd.errors import UsageError
from lttd.sources.base import Request
from lttd.sources.replay.files import FileSource, Replay


class _Module(Protocol):
    REPLAY: Replay


def _replay_of(module: str) -> Replay:
    return cast("_Module", import_module(module)).REPLAY


def open_source(request: Request) -> FileSource[Any]:
    """Open the files of the directory; if none shows the ABI, as those of the first one.

    Raises:
        UsageError: there is no such directory or ABI, or it has no such option.
        NothingToRecordError: the directory holds no such file.
        SourceError: a file cannot be read.
    """
    directory, replays = Path(request.target), request.replays
    asked, size_bytes = request.options.get("abi"), request.options.get("subbuffer_bytes")
    if asked not in (None, *replays):
        raise UsageError(f"abi {asked!r}: a replay reads {', '.join(replays)}")
    detected = None if asked else detect(directory, replays)
    abi = asked or (detected.abi if detected else next(iter(replays)))
    replay = _replay_of(replays[abi])
    if size_bytes is not None and replay.states_sizes:
        raise UsageError(f"{directory}: sub-buffers of {abi} files state their size themselves")
    trace = request.options.get("trace")
    if trace is None:
        source = replay.open(directory, request.pool, size_bytes)
    elif replay.open_one is None:
        raise UsageError(f"{directory}: trace=: files of {abi} are of one trace")
    else:
        source = replay.open_one(directory, request.pool, trace)
    if detected is not None:
        source.note(str(detected))
    return source


class Detected(NamedTuple):
    """The ABI of a directory, and the evidence."""

    abi: str
    by: Path
    """The file that shows it."""

    def __str__(self) -> str:
        """Return it as one line for the user."""
        return f"{self.by}: replayed as abi={self.abi}, by its name or first bytes"


def detect(directory: Path, replays: Mapping[str, str]) -> Detected | None:
    """Detect the ABI of *directory*; return None if no file shows it.

    Raises:
        UsageError: it holds two kinds, or is not a directory.
        NothingToRecordError: it has packets of CTF, and no metadata.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    by = {abi: _replay_of(module).find(directory) for abi, module in replays.items()}
    found = [Detected(abi, path) for abi, path in by.items() if path is not None]
    if len(found) > 1:
        abis = " and ".join(f"{one.abi} ({one.by.name})" for one in sorted(found))
        raise UsageError(f"{directory} holds {abis}: say which with replay:DIR,abi=")
    return found[0] if found else None
