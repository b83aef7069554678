"""``lttv stats``: its numbers, its options, and its errors."""

import csv
import json
import math
import random
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.view.cli import main
from lttd.view.intervals.distribution import QUANTILE_ERROR, Distributions, bounds_of, buckets_of
from tests.data import SHARED_BLKTRACE, needs
from tests.ftraced import Traced, pages_of, tick
from tests.lttng_events import lttng_trace, switch
from tests.scheduled import Machine, Scheduled, enter, leave, recorded, subbuffer
from tests.test_sources_replay_ctf import record
from tests.tools import needs_tool, replayed

Capture = pytest.CaptureFixture[str]
durations = st.lists(st.integers(0, 1 << 56), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Machine]:
    machine = Machine(random.Random(7), cpus=3)
    machine.run(2000)
    trace = tmp_path_factory.mktemp("busy") / "t"
    recorded(trace, machine, random.Random(7), 0)
    return trace, machine


def asked(capsys: Capture, *words: str | Path) -> Any:  # noqa: ANN401  (JSON)
    capsys.readouterr()
    assert main(["stats", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def printed(capsys: Capture, *words: str | Path) -> str:
    capsys.readouterr()
    assert main(["stats", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys: Capture, *words: str | Path) -> str:
    capsys.readouterr()
    assert main(["stats", *map(str, words)]) == 2
    told = capsys.readouterr()
    assert not told.out
    (line,) = told.err.splitlines()
    return line


@given(st.lists(durations, min_size=1, max_size=4))
def test_quantiles_are_within_the_stated_error_and_other_numbers_exact(
    groups: list[list[int]],
) -> None:
    found = Distributions()
    for number, values in enumerate(groups):  # in two parts, as of two pieces
        for some in (values[::2], values[1::2]):
            found.add(np.full(len(some), number), np.array(some, np.int64))
    for number, values in enumerate(groups):
        one, ordered = found.of(number), sorted(values)
        assert (one.count, one.total_ns) == (len(values), sum(values))
        assert (one.least_ns, one.most_ns) == (ordered[0], ordered[-1])
        for share in (0.0, 0.5, 0.99, 1.0):
            exact = ordered[max(math.ceil(share * len(ordered)), 1) - 1]
            assert abs(one.quantile_ns(share) - exact) <= exact * QUANTILE_ERROR
    assert found.of_all().count == sum(map(len, groups))


@given(st.integers(0, (1 << 62) - 1))
def test_a_duration_is_within_the_bounds_of_its_bucket(value: int) -> None:
    (bucket,) = buckets_of(np.array([value])).tolist()
    low, behind = bounds_of(bucket)
    assert low <= value < behind


def test_memory_does_not_grow_with_the_number_of_durations() -> None:
    found, chance = Distributions(), np.random.default_rng(1)
    for _ in range(40):
        found.add(chance.integers(0, 50, 50_000), chance.integers(0, 1 << 30, 50_000))
    found.of(0)
    assert len(found._keys) < 50 * 128 * 31
    assert found.of_all().count == 2_000_000


def test_the_times_of_a_task_are_those_of_the_machine(
    busy: tuple[Path, Machine], capsys: Capture
) -> None:
    trace, machine = busy
    told = asked(capsys, trace, "sched")
    sums: dict[tuple[str, str], list[int]] = defaultdict(list)
    for state, pid, begin, end in machine.states:
        names = {"woken": ("latency", "waiting"), "preempted": ("waiting",)}
        for name in names.get(state, (state,)):
            sums[f"t{pid}-{pid}", name].append(end - begin)
    assert [one["task"] for one in told["groups"]] == sorted(
        (f"t{pid}-{pid}" for pid in range(1, 6)), key=lambda task: -sum(sums[task, "running"])
    )
    for one in told["groups"]:
        for name in ("running", "waiting", "latency", "sleeping", "blocked"):
            some = sums[one["task"], name]
            assert one[name]["count"] == len(some)
            assert one[name]["total_ns"] == sum(some)
            assert one[name]["max_ns"] == max(some, default=0)
            assert one["unknown"] == 0
    assert told["unknown"] == 0


def test_calls_are_grouped_and_failures_counted(
    busy: tuple[Path, Machine], capsys: Capture
) -> None:
    trace, machine = busy
    told = asked(capsys, trace, "syscalls")
    assert {one["name"]: (one["duration"]["count"], one["failed"]) for one in told["groups"]} == {
        name: (count, count if number else 0)
        for number, name in enumerate(("read", "write", "open"))
        if (count := sum(one[1] == number for one in machine.calls))
    }
    by_two = asked(capsys, trace, "syscalls", "--by", "task,name", "--task", "3")
    assert {(one["task"], one["name"]) for one in by_two["groups"]} == {
        ("<...>-3", ("read", "write", "open")[number])
        for pid, number, _, _ in machine.calls
        if pid == 3
    }


def test_conditions_select_intervals_and_the_longest_are_named(
    busy: tuple[Path, Machine], capsys: Capture
) -> None:
    trace, machine = busy
    words = (trace, "syscalls", "--where", 'duration_ns > 200 and name != "open"', "--worst", "3")
    told = asked(capsys, *words)
    some = sorted(
        (
            end - begin
            for _, number, begin, end in machine.calls
            if end - begin > 200 and number < 2
        ),
        reverse=True,
    )
    assert told["all"]["duration"]["count"] == len(some)
    assert [one["duration_ns"] for one in told["worst"]] == some[:3]
    first = told["worst"][0]
    capsys.readouterr()
    where = f'common_pid == {first["pid"]} and system == "raw_syscalls"'
    times = ("--begin", first["begin"], "--end", first["end"])
    assert main(["text", str(trace), *times, "--json", "--where", where]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["time"] for one in lines] == [first["begin_ns"], first["end_ns"]]
    text = printed(capsys, trace, "syscalls", "--worst", "1")
    assert "the first of them: lttv text" in text


def test_cpus_bound_what_is_counted(busy: tuple[Path, Machine], capsys: Capture) -> None:
    trace, machine = busy
    told = asked(capsys, trace, "irqs", "--cpu", "1", "--by", "cpu,name")
    assert {(one["cpu"], one["name"]): one["duration"]["count"] for one in told["groups"]} == {
        ("1", f"irq{number}"): sum(one[:2] == (1, number) for one in machine.interrupts)
        for number in {one[1] for one in machine.interrupts if one[0] == 1}
    }


def test_what_began_before_the_window_is_cut(busy: tuple[Path, Machine], capsys: Capture) -> None:
    trace, machine = busy
    first = machine.events[0][0]
    begin, end = (first + (machine.now - first) * third // 3 for third in (1, 2))
    words = ("--begin", f"0.{begin:09}", "--end", f"0.{end:09}")
    told = asked(capsys, trace, "irqs", *words)
    inside = [one for one in machine.interrupts if begin <= one[2] and one[3] <= end]
    assert told["all"]["duration"]["count"] == len(inside)
    across = [one for one in machine.interrupts if one[2] < begin <= one[3] <= end]
    still_open = [one for one in machine.interrupts if begin <= one[2] <= end < one[3]]
    assert told["cut"] >= len(across) + len(still_open) > 0


def test_any_pair_of_events_can_be_asked_for(busy: tuple[Path, Machine], capsys: Capture) -> None:
    trace, machine = busy
    told = asked(capsys, trace, "--pair", "irq_handler_entry,irq_handler_exit,cpu,irq")
    built_in = asked(capsys, trace, "irqs")
    assert told["all"] == built_in["all"]
    words = "sys_enter if id == 1,raw_syscalls:sys_exit if id == 1,common_pid"
    writes = asked(capsys, trace, "--pair", words, "--by", "common_pid")
    assert {int(one["common_pid"]): one["duration"]["count"] for one in writes["groups"]} == {
        pid: count
        for pid in range(1, 6)
        if (count := sum(one[:2] == (pid, 1) for one in machine.calls))
    }
    runs = asked(
        capsys, trace, "--pair",
        "sched_switch if next_pid > 0,sched_switch if prev_pid > 0,cpu,next_pid=prev_pid",
    )  # fmt: skip
    assert (
        runs["all"]["duration"]["total_ns"]
        == asked(capsys, trace, "sched")["all"]["running"]["total_ns"]
    )


@pytest.mark.parametrize(
    "text",
    ["", "a", "a,b", "a,b,", "a,b,c=d=e", "a if,b,c==", "a,b,lambda: 1", "a,b,(1"],
)
def test_a_pair_that_is_none_is_refused(
    busy: tuple[Path, Machine], capsys: Capture, text: str
) -> None:
    assert "--pair" in refused(capsys, busy[0], "--pair", text)


def test_forms_and_pictures_have_the_same_numbers(
    busy: tuple[Path, Machine], capsys: Capture, tmp_path: Path
) -> None:
    trace, machine = busy
    told = asked(capsys, trace, "syscalls")
    rows = list(csv.DictReader(printed(capsys, trace, "syscalls", "--csv").splitlines()))
    assert [(one["name"], int(one["total_ns"])) for one in rows] == [
        (one["name"], one["duration"]["total_ns"]) for one in told["groups"]
    ]
    text = printed(capsys, trace, "syscalls", "--histogram")
    bars = [line.split() for line in text.splitlines() if " .. " in line]
    assert sum(int(bar[3].replace(",", "")) for bar in bars) == len(machine.calls)
    assert main(["stats", str(trace), "syscalls", "-o", str(tmp_path / "h.svg")]) == 0
    picture = (tmp_path / "h.svg").read_text()
    assert f"{len(machine.calls):,} durations" in picture
    assert "prefers-color-scheme: dark" in picture
    assert main(["stats", str(trace), "syscalls", "-o", str(tmp_path / "h.svg")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_overview_names_what_the_events_tell(
    busy: tuple[Path, Machine], capsys: Capture
) -> None:
    trace, machine = busy
    told = asked(capsys, trace)
    assert told["intervals"].keys() == {"sched", "syscalls", "irqs"}
    assert told["intervals"]["syscalls"]["duration"]["count"] == len(machine.calls)
    assert sum(one["count"] for one in told["events"]) == len(machine.events)
    assert "syscalls duration" in printed(capsys, trace)


def test_a_trace_without_the_events_says_which_to_record(tmp_path: Path, capsys: Capture) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1), tick(2)])])
    made.finish()
    for what, option in (
        ("sched", "--preset latency"), ("syscalls", "raw_syscalls:*"), ("irqs", "--preset irq"),
        ("block", "--preset block"),
    ):  # fmt: skip
        assert option in refused(capsys, tmp_path / "t", what)
    assert "no such" in refused(capsys, tmp_path / "t", "--pair", "no such,tick,cpu")
    assert "clock:tick" in printed(capsys, tmp_path / "t")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--worst", "3"), "name what"),
        (("sched", "--pair", "a,b,c"), "leave one out"),
        (("sched", "--by", "colour"), "can be grouped by"),
        (("irqs", "--task", "x"), "has no tasks"),
        (("syscalls", "--where", "prev_pid == 1"), "has no column prev_pid"),
        (("syscalls", "--where", "name == 1"), "a string is compared with a number"),
        (("syscalls", "--measure", "speed"), "syscalls has duration"),
        (("syscalls", "-o", "x.gif"), ".svg or .png"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    busy: tuple[Path, Machine], capsys: Capture, words: tuple[str, ...], part: str
) -> None:
    assert part in refused(capsys, busy[0], *words)


def test_nothing_lies_between_two_runs(tmp_path: Path, capsys: Capture) -> None:
    for number, times in ((1, (1_000, 2_000)), (2, (900_000, 901_000))):
        made = Scheduled(tmp_path / "t", number=number)
        calls = [(times[0], 0, leave(7, 0, 0)), (times[1], 0, enter(7, 0))]
        made.append([subbuffer(calls, 0)])
        made.finish()
    told = asked(capsys, tmp_path / "t", "syscalls")
    assert told["all"]["duration"]["count"] == 0
    assert told["unknown"] == 1


def test_events_of_lttng_are_paired_too(tmp_path: Path, capsys: Capture) -> None:
    a, idle = ("a", 7), ("swapper/0", 0)
    events = [
        switch(1_000_000, idle, a),
        (1_001_000, "syscall_entry_read", {"fd": 3}),
        (1_002_000, "irq_handler_entry", {"irq": 27, "name": b"virtio0"}),
        (1_003_000, "irq_handler_exit", {"irq": 27, "ret": 1}),
        (1_006_000, "syscall_exit_read", {"ret": -2}),
        switch(1_010_000, a, idle),
    ]
    record(lttng_trace(tmp_path / "ctf", {0: [events]}), tmp_path / "t")
    (call,) = asked(capsys, tmp_path / "t", "syscalls", "--by", "task,name")["groups"]
    assert (call["task"], call["name"], call["failed"]) == ("a-7", "read", 1)
    assert call["duration"]["total_ns"] == 5_000
    (handler,) = asked(capsys, tmp_path / "t", "irqs")["groups"]
    assert (handler["name"], handler["duration"]["total_ns"]) == ("virtio0", 1_000)
    (task,) = asked(capsys, tmp_path / "t", "sched")["groups"]
    assert (task["task"], task["running"]["total_ns"]) == ("a-7", 10_000)


@needs(SHARED_BLKTRACE)
@needs_tool("btt")
def test_stages_of_requests_are_those_of_btt(tmp_path: Path, capsys: Capture) -> None:
    for path in SHARED_BLKTRACE.glob("cap.blktrace.*"):
        shutil.copy(path, tmp_path)
    for words in (["blkparse", "-i", "cap", "-d", "cap.bin", "-O"], ["btt", "-i", "cap.bin"]):
        out = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    theirs = {}
    for line in out.splitlines():
        words = line.split()
        if len(words) == 5 and words[0] in ("Q2G", "G2I", "I2D", "D2C", "Q2Cdm"):
            theirs[words[0].removesuffix("dm")] = (float(words[2]), float(words[3]), int(words[4]))
    replayed(tmp_path / "t", directory=SHARED_BLKTRACE)
    ours = {
        name: (round(one["mean_ns"] / 1e9, 9), round(one["max_ns"] / 1e9, 9), one["count"])
        for name, one in asked(capsys, tmp_path / "t", "block")["all"].items()
    }
    assert theirs.keys() == ours.keys()
    for name, one in theirs.items():
        assert ours[name] == pytest.approx(one, abs=1e-9), name
