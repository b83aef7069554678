"""Numbers of ``lttv stats`` on a recording of this kernel, beside those of other programs."""

import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from lttd.view.cli import main
from lttd.view.export import export
from lttd.view.times import EVERYTHING
from lttd.view.trace import Trace
from tests.running import Launcher, needs_kernel
from tests.tools import needs_tool, output_of

pytestmark = needs_kernel()
pandas = pytest.importorskip("pandas")

EVENTS = "sched:sched_switch,sched:sched_waking,sched:sched_wakeup,sched:sched_wakeup_new,"
EVENTS += "raw_syscalls:*"
LOAD = "for i in 1 2 3 4 5 6 7 8 9 10; do ls -R /etc | wc -l; sleep 0.01; done"
# The form of trace-cmd report -R -t: fields as numbers, times in ns.
LINE = re.compile(r"\s*(\S.*)-(\d+)\s+\[(\d+)\]\s+(?:\S+\s+)?(\d+)\.(\d{9}):\s+(\w+):\s+(.*)")
FIELD = re.compile(r"(\w+)=(\S*)")
ASLEEP = 0xFF


def asked(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:  # noqa: ANN401  (JSON)
    capsys.readouterr()
    assert main(["stats", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def events_of(trace: Path) -> Any:  # noqa: ANN401  (a DataFrame)
    """Return the events that trace-cmd prints, in the order of time."""
    export(Trace(trace), EVERYTHING, "trace.dat", trace.parent / "t.dat")
    rows = []
    for line in output_of("trace-cmd", "report", "-R", "-t", trace.parent / "t.dat").splitlines():
        if found := LINE.fullmatch(line):
            fields = dict(FIELD.findall(found[7]))
            time = int(found[4] + found[5])
            rows.append({"task": int(found[2]), "cpu": int(found[3]), "time": time,
                         "event": found[6], **fields})  # fmt: skip
    return pandas.DataFrame(rows)


def number(text: str) -> int:
    return int(text, 16) if text.startswith("0x") else int(text)


def numbers_of(group: dict[str, Any], measure: str) -> tuple[int, int, int]:
    one = group[measure]
    return one["count"], one["total_ns"], one["max_ns"]


@needs_tool("trace-cmd")
def test_numbers_are_those_of_pandas_on_the_text_of_trace_cmd(
    lttd: Launcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "t"
    run = lttd.run("--trace-dir", trace, "--events", EVENTS, "--buffer-size", "16M", "--summary",
                   "none", "--", "sh", "-c", LOAD)  # fmt: skip
    assert run.process.returncode == 0, run.err_path.read_text()
    events = events_of(trace)
    assert len(events) > 5000
    ran, waits = runs_of(events), waits_of(events)
    doubtful = unrecorded(events)
    tasks = asked(capsys, trace, "sched")["groups"]
    groups = {pid: one for one in tasks if (pid := int(one["task"].rpartition("-")[2]))}
    compared = groups.keys() - doubtful
    assert len(compared) > 10
    for pid in compared:
        for name, theirs in (("running", ran), ("waiting", waits)):
            some = theirs.get(pid, [])
            told = len(some), sum(some), max(some, default=0)
            assert numbers_of(groups[pid], name) == told, (pid, name)
    theirs = calls_of(events)
    ours = asked(capsys, trace, "syscalls", "--by", "number")["groups"]
    assert {int(one["number"]): numbers_of(one, "duration") for one in ours} == theirs


def runs_of(events: Any) -> dict[int, list[int]]:  # noqa: ANN401
    """Return how long each task ran: from a switch of a CPU to its next one, if they agree."""
    found: dict[int, list[int]] = defaultdict(list)
    for _, some in events[events.event == "sched_switch"].groupby("cpu"):
        after = some.shift(-1)
        whole = some[(some.next_pid == after.prev_pid) & (some.next_pid != "0")]
        ends = after.time[whole.index]
        for pid, begin, end in zip(whole.next_pid, whole.time, ends, strict=True):
            found[number(pid)].append(int(end) - begin)
    return found


def unrecorded(events: Any) -> set[int]:  # noqa: ANN401
    """Return the tasks of switches that follow on no other: the kernel left out one between."""
    found: set[str] = set()
    for _, some in events[events.event == "sched_switch"].groupby("cpu"):
        after = some.shift(-1)
        broken = some.next_pid.ne(after.prev_pid) & after.prev_pid.notna()
        found |= {*some.next_pid[broken], *after.prev_pid[broken]}
    return {number(one) for one in found}


def waits_of(events: Any) -> dict[int, list[int]]:  # noqa: ANN401, C901  (a plain machine)
    """Return how long each task waited for a CPU."""
    since: dict[int, int | None] = {}
    asleep: dict[int, int] = {}
    on_cpu: set[int] = set()
    waking: set[int] = set()
    found: dict[int, list[int]] = defaultdict(list)
    for one in events.itertuples():
        if one.event == "sched_switch":
            prev, following = number(one.prev_pid), number(one.next_pid)
            on_cpu.discard(prev)
            sleeps = bool(number(one.prev_state) & ASLEEP)
            # It was woken on its way to sleep if the last event of it was sched_waking.
            since[prev] = one.time if not sleeps else None
            asleep.pop(prev, None)
            if sleeps:
                asleep[prev] = one.time if prev in waking else 0
            waking.discard(prev)
            begin = since.pop(following, None)
            if begin is None and asleep.get(following):
                begin = asleep[following]
            asleep.pop(following, None)
            if begin is not None and following and following not in on_cpu:
                found[following].append(one.time - begin)
            on_cpu.add(following)
            waking.discard(following)
        elif one.event.startswith("sched_wak"):
            pid = number(one.pid)
            waking.discard(pid)
            if one.event == "sched_waking":
                if pid in on_cpu:
                    waking.add(pid)
                elif since.get(pid) is None:
                    since[pid] = one.time
                    asleep.pop(pid, None)
            elif one.event == "sched_wakeup_new":
                since[pid] = one.time
    return found


def calls_of(events: Any) -> dict[int, tuple[int, int, int]]:  # noqa: ANN401
    """Return for each system call how often, and how long in all and at most, it ran."""
    calls = events[events.event.isin(["sys_enter", "sys_exit"])].copy()
    calls["number"] = calls.id.map(number)
    calls = calls.sort_values(["task", "time"], kind="stable")
    after = calls.groupby("task").shift(-1)
    whole = (calls.event == "sys_enter") & (after.event == "sys_exit")
    spans = calls[whole].assign(ns=(after.time - calls.time)[whole].astype("int64"))
    told = spans.groupby("number").ns.agg(times="count", total="sum", most="max")
    return {one.Index: (one.times, one.total, one.most) for one in told.itertuples()}


@needs_tool("strace")
def test_calls_of_one_process_are_those_that_strace_counts(
    lttd: Launcher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load, trace, out = tmp_path / "lttd-strace", tmp_path / "t", tmp_path / "strace.txt"
    shutil.copy("/bin/ls", load)
    run = lttd.run("--trace-dir", trace, "--events", "raw_syscalls:*,sched:sched_process_exec",
                   "--buffer-size", "16M", "--summary", "none", "--",
                   "strace", "-c", "-o", out, load, "-R", "/etc")  # fmt: skip
    assert run.process.returncode == 0, run.err_path.read_text()
    theirs: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for line in out.read_text().splitlines()[2:]:
        words = line.split()
        if words[0][0].isdigit() and words[-1] != "total":
            theirs[words[-1]] = int(words[3])
            failed[words[-1]] = int(words[4]) if len(words) == 6 else 0
    capsys.readouterr()
    assert main(["text", str(trace), "--where", '"lttd-strace" in filename', "--json"]) == 0
    begun = json.loads(capsys.readouterr().out.splitlines()[0])
    words = ("--task", str(begun["pid"]), "--begin", f"{begun['time'] / 1e9:.9f}")
    ours = asked(capsys, trace, "syscalls", *words)["groups"]
    assert sum(theirs.values()) > 100
    known = {one["name"]: (one["duration"]["count"], one["failed"]) for one in ours}
    for name in theirs.keys() - {"execve"}:  # it began before the program did
        assert known[name] == (theirs[name], failed[name]), name
