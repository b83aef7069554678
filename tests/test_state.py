"""The state of a run is plain JSON, its rates are right, and people can read it."""

import argparse
import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lttd.clients.base import ask
from lttd.config import parse_command_line
from lttd.control_socket import socket_name
from lttd.retaining import MOST_SEGMENTS
from lttd.state import SAMPLES, config_json
from lttd.status_table import duration_text, status_table
from tests.running import PATIENCE_S, Launcher, assert_whole, needs_kernel, until

STREAM = {
    "name": "ftrace_0", "cpu": 0, "subbuffers": 1234, "payload_bytes": 1 << 21,
    "padding_bytes": 0, "events_lost": 7, "lost": {"overwritten": 7}, "gaps_unknown": 0,
    "subbuffers_per_second": 2.0, "bytes_per_second": 2048.0, "ring_fill_ratio": 0.25,
    "lag_seconds": 0.5, "foreign_read_events": 0,
}  # fmt: skip
STATE: Mapping[str, Any] = {
    "version": "1", "pid": 7, "trace_dir": "/t\x1b[2J", "doing": "recording",
    "uptime_seconds": 3700.0, "healthy": False, "segments": 1, "write_errors": {"ENOSPC": 2},
    "conditions": [{"trouble": "backlog_full", "where": "x\n", "words": "full"}],
    "backlog": {"bytes": 0, "limit_bytes": 1 << 20, "high_water_bytes": 0},
    "sources": [{
        "source": "ftrace", "clock": "mono", "settings": {"events": ["sched:*"]},
        "segment": "s", "streams": [STREAM],
    }],
    "store": {
        "segments": 1, "allocated_bytes": 1 << 20, "kept_segments": 1, "kept_bytes": 1 << 10,
        "deletions": {"size": 3, "age": 0}, "reach_seconds": 90.0, "limit_bytes": 1 << 21,
    },
    "windows": [{"number": 3, "at_ns": 10**18, "reason": "\u202eslow", "complete": False}],
}  # fmt: skip


def test_the_table_shows_each_part_and_escapes_every_text() -> None:
    assert status_table(STATE).splitlines() == [
        "lttd 1 (pid 7): recording to /t\\x1b[2J for 1 h 1 min",
        "not healthy: x\\x0a: full",
        "backlog 0 B of 1.0 MiB, 1 segment",
        "store 1.0 MiB of 2.0 MiB, complete for the last 1 min 30 s, 1 segment kept (1.0 KiB)",
        "deleted segments by reason: size 3",
        "trigger 3 at 2001-09-09 01:46:40 UTC: \\u202eslow (not complete yet)",
        "ENOSPC failed writes: 2",
        "",
        "ftrace, clock mono, sched:*, segment s",
        "stream    sub-buffers  payload  per second  ring     lag  lost",
        "ftrace_0        1,234  2.0 MiB   2.0 KiB/s   25%  0.50 s  7 events overwritten",
    ]


def test_the_table_leaves_out_what_a_recorder_lacks() -> None:
    bare = {key: value for key, value in STATE.items() if key not in ("store", "windows")}
    assert "store" not in status_table(bare)
    flight = {"waiting": True, "overwritten_events": 1234}
    assert status_table({**bare, "flight": flight}).splitlines()[3] == (
        "flight: nothing is written until a trigger;"
        " the rings overwrote 1,234 events that no trigger wanted"
    )
    uncounted = {**flight, "overwritten_events": None}
    assert status_table({**bare, "flight": uncounted}).splitlines()[3] == (
        "flight: nothing is written until a trigger"
    )
    empty = {**STREAM, "ring_fill_ratio": None, "lag_seconds": None}
    sources = [{**STATE["sources"][0], "streams": [empty], "settings": {}}]
    assert "ftrace_0        1,234" in status_table({**bare, "sources": sources})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (7384, "2 h 3 min"), (90000, "1 d 1 h")],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_configuration_is_plain_json() -> None:
    words = ["-t", "/t", "--source", "ftrace:x,events=a:b", "--web-allow-host", "h", "--", "true"]
    value = config_json(parse_command_line(words))
    assert json.loads(json.dumps(value)) == value
    assert value["sources"] == ["ftrace:x,events=a:b"]
    assert value["trace_dir"] == "/t"


class TestOnThisKernel:
    pytestmark = needs_kernel()

    def test_the_state_of_a_run_counts_what_is_recorded(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        words = ("--events", "sched:*", "--flush-interval", "50ms", "--summary", "json")
        run = lttd.start("-t", tmp_path / "t", *words).recording()

        def state() -> dict[str, Any]:
            value: dict[str, Any] = json.loads(client(lttd, "status", "--json")[1])
            return value

        until(lambda: client(lttd, "status")[0] == 0, "the socket is there")
        until(lambda: sum(s["bytes_per_second"] for s in state()["sources"][0]["streams"]), "data")
        found = state()
        assert (found["pid"], found["doing"]) == (run.process.pid, "recording")
        assert found["trace_dir"] == str(tmp_path / "t")
        (source,) = found["sources"]
        assert source["settings"]["events"] == ["sched:*"]
        taken = sum(stream["subbuffers"] for stream in source["streams"])
        rate = sum(stream["subbuffers_per_second"] for stream in source["streams"])
        if found["uptime_seconds"] < SAMPLES:  # else it is the rate of the latest seconds
            assert 0 < rate <= 1.5 * (taken + 100) / found["uptime_seconds"] + 100
        assert all(0 <= stream["ring_fill_ratio"] <= 1 for stream in source["streams"])
        assert run.end() == 0, run.stderr
        assert sum(each["subbuffers"] for each in json.loads(run.stdout)["streams"]) >= taken

    def test_the_newest_segments_are_listed_with_what_became_of_them(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        words = ("--events", "sched:*", "--segment-duration", "100ms", "--compress", "zstd")
        of_trace = argparse.Namespace(trace_dir=str(tmp_path / "t"))
        run = lttd.start("-t", tmp_path / "t", *words, "--summary", "none").recording()

        def newest() -> list[dict[str, Any]]:
            state = ask(of_trace, {"do": "status"}, PATIENCE_S)
            found: list[dict[str, Any]] = state["newest_segments"]
            assert all(each["made_ns"] <= state["now_ns"] for each in found)
            return found

        until(lambda: client(lttd, "status")[0] == 0, "the socket is there")
        until(lambda: len(newest()) > 2, "segments")
        first = newest()[-1]["number"]
        assert client(lttd, "keep", str(first))[0] == 0
        until(lambda: newest()[-1]["compressed"] or newest()[-1]["number"] != first, "compression")
        until(lambda: len(newest()) == MOST_SEGMENTS, "as many as there are at most")
        found = newest()
        numbers = [each["number"] for each in found]
        assert numbers == sorted(numbers, reverse=True)
        assert found[0]["open"]
        assert not found[-1]["open"]
        assert all(each["bytes"] for each in found)
        assert run.end() == 0, run.stderr

    def test_a_recording_goes_on_where_its_socket_cannot_be_made(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        trace = tmp_path / "t"
        trace.mkdir(0o755)
        status = trace.stat()
        lttd.runtime.mkdir(0o750)
        path = lttd.runtime / socket_name(status.st_dev, status.st_ino)
        path.write_text("not a socket")
        words = ("-t", trace, "--events", "sched:*", "--summary", "none")
        run = lttd.start(*words).recording()
        until(lambda: run.lines, "the line")
        assert run.lines == [
            f"lttd: no control socket: {path}: exists and is not a socket; remove it"
        ]
        assert client(lttd, "status", "-t", str(trace))[0] == 77
        assert run.end() == 0, run.stderr
        assert path.read_text() == "not a socket"
        assert_whole(trace)

    def test_a_killed_recorder_leaves_a_stale_socket_that_the_next_one_replaces(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        words = ("-t", tmp_path / "t", "--events", "sched:*", "--summary", "none")
        run = lttd.start(*words).recording()
        until(lambda: client(lttd, "status")[0] == 0, "the socket is there")
        run.process.kill()
        run.wait()
        assert client(lttd, "status")[0] == 77
        (stale,) = lttd.runtime.glob("*.socket")
        again = lttd.start(*words, "--append").recording()
        until(lambda: client(lttd, "status")[0] == 0, "the socket is there again")
        with socket.socket(socket.AF_UNIX) as hanging:  # a client that never asks delays no end
            hanging.connect(str(stale))
            assert again.end() == 0, again.stderr
        assert list(lttd.runtime.glob("*.socket")) == []


def client(lttd: Launcher, *words: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-m", "lttd", *words],
        env={"PATH": "/usr/bin:/bin", "RUNTIME_DIRECTORY": str(lttd.runtime)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return run.returncode, run.stdout
