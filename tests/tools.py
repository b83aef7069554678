"""Other tools that read the exports of lttv: trace-cmd and babeltrace2."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lttd.abi.ftrace import layout_of
from lttd.abi.ftrace_events import walk
from lttd.view.ftrace.saved import SavedFiles
from lttd.view.trace import Trace
from tests.data import FTRACE


def replayed(trace: Path, *options: str, directory: Path = FTRACE) -> Trace:
    words = [sys.executable, "-m", "lttd", "-t", trace, "--source", f"replay:{directory}"]
    subprocess.run([*words, *options], check=True, capture_output=True)
    return Trace(trace)


def needs_tool(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"no {name} here")


def output_of(*words: str | Path) -> str:
    run = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
    assert not run.stderr, run.stderr
    return run.stdout


class Told(NamedTuple):
    """The events and losses that trace-cmd reads in a trace.dat."""

    events: dict[tuple[str, int], list[tuple[int, str]]]
    """Times in ns and names, in order, by buffer and CPU."""
    lost: list[str]


_EVENT = re.compile(
    r"(?:(?P<buffer>\S+):\s)?\s*(?P<task>.+)-(?P<pid>\d+)\s+\[(?P<cpu>\d+)\]"
    r"\s+(?P<s>\d+)\.(?P<ns>\d{9}):\s+(?P<name>\w+):"
)


def trace_cmd_report(path: Path) -> Told:
    events: dict[tuple[str, int], list[tuple[int, str]]] = {}
    lost = []
    after = ""
    for line in output_of("trace-cmd", "report", "-t", path).splitlines():
        found = _EVENT.match(line)
        if found:
            key = (found["buffer"] or after, int(found["cpu"]))
            events.setdefault(key, []).append((int(found["s"] + found["ns"]), found["name"]))
            after = ""
        elif "DROPPED" in line:
            lost.append(line.strip())
            # trace-cmd prints the name of the buffer here, and omits it before the next event.
            after = line.partition(": ")[0] if ": " in line else ""
        else:
            assert line.startswith("cpus="), line
    return Told(events, lost)


def event_names(trace: Trace) -> dict[int, str]:
    names = {}
    for segment in trace.segments:
        for (_, name), text in SavedFiles(segment).formats().items():
            number = re.search(rb"^ID: (\d+)", text, re.MULTILINE)
            assert number
            names[int(number[1])] = name
    return names


def decoded(trace: Trace, segments: Sequence[int] = (0,)) -> dict[int, list[tuple[int, str]]]:
    """Return times and names of all events by CPU, in the order of the streams."""
    names = event_names(trace)
    events: dict[int, list[tuple[int, str]]] = {}
    for number in segments:
        for stream in trace.segments[number].streams:
            layout = layout_of(stream.info, stream.byteorder)
            found = stream.headers(stream.index.entries())
            ends = found.offset_bytes + found.content_bytes
            into = events.setdefault(stream.info.id.cpu, [])
            data = np.frombuffer(stream.read(), np.uint8)
            for some in walk(stream.read(), found.offset_bytes, ends, layout):
                ids = data[some.payload_at].astype(int) | data[some.payload_at + 1].astype(int) << 8
                into += zip(some.time.tolist(), map(names.get, ids.tolist()), strict=True)
    return events


_CTF_EVENT = re.compile(
    r"\[(?P<time>\d+)\] (?:\S+ )?(?P<name>\w+): \{ cpu_id = (?P<cpu>\d+) \}, "
    r"\{ (?P<common>.*?) \}, \{ (?P<fields>.*) \}$"
)


class CtfEvent(NamedTuple):
    time: int
    name: str
    cpu: int
    common: str
    fields: str


def babeltrace(path: Path) -> tuple[list[CtfEvent], list[str]]:
    """Return the events that babeltrace2 reads, in its order, and its warnings."""
    run = subprocess.run(
        ["babeltrace2", "--clock-cycles", "--no-delta", path],
        capture_output=True, check=True, encoding="utf-8", errors="replace",
    )  # fmt: skip
    found = []
    for line in run.stdout.splitlines():
        one = _CTF_EVENT.match(line)
        assert one, line
        found.append(
            CtfEvent(int(one["time"]), one["name"], int(one["cpu"]), one["common"], one["fields"])
        )
    return found, run.stderr.splitlines()
