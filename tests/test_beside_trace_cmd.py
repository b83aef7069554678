"""With the equivalent options, trace-cmd records the same events at the same time as lttd."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from bench.recorders import in_mount_namespace, refused_files
from lttd.sources.mounts import find_tracefs
from tests.running import Launcher, lttv, needs_kernel

pytestmark = [
    *needs_kernel(),
    pytest.mark.nightly,
    pytest.mark.skipif(shutil.which("trace-cmd") is None, reason="no trace-cmd here"),
]

EVENT = re.compile(r"\s*(?:\w+:)?\s*(\S.*)-(\d+)\s+\[\d+\]\s+(?:\S+\s+)?\d+\.\d+: (\w+):\s+(.*)")
# trace-cmd prints a switch in its own form, and states by an older table.
SWITCHED = re.compile(r"(.+):(\d+) \[(\d+)\] \S+ ==> (.+):(\d+) \[(\d+)\]")
FORM = r"prev_comm=\1 prev_pid=\2 prev_prio=\3 ==> next_comm=\4 next_pid=\5 next_prio=\6"
SWITCH = 'prev_comm == "lttd-load" || next_comm == "lttd-load"'
LAST = 'traceoff:1 if comm == "lttd-last"'
LOAD = "cd $0; for i in 1 2 3 4 5 6 7 8; do ./lttd-load; done; ./lttd-last; ./lttd-load"


def events_of_load(lines: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return the pid, the event and its text; a stack has its symbols, without their addresses."""
    found: list[tuple[str, str, str]] = []
    for line in lines:
        if match := EVENT.fullmatch(line):
            text = " ".join(match[4].split()).replace("<stack trace >", "<stack trace>")
            text = SWITCHED.sub(FORM, re.sub(r" prev_state=\S+", "", text))
            found.append((match[2], match[3], text))
        elif line.strip().startswith("=>"):
            pid, event, text = found[-1]
            found[-1] = (pid, event, f"{text}\n{line.strip().partition(' (')[0]}")
    load = {pid for pid, event, text in found if event == "sched_process_exec" and "lttd-" in text}
    return [each for each in found if each[0] in load]


def test_filters_stacks_and_a_traceoff_record_what_trace_cmd_records(
    lttd: Launcher, tmp_path: Path
) -> None:
    for name in ("lttd-load", "lttd-last"):
        shutil.copy("/bin/true", tmp_path / name)
    instance = f"lttdtest{os.getpid()}tc"
    theirs = ["trace-cmd", "record", "-k", "-B", instance, "-C", "mono", "-T"]
    theirs += ["-e", "sched:sched_switch", "-f", SWITCH]
    theirs += ["-e", "sched:sched_process_exit", "-f", "common_pid > 1", "-R", LAST]
    theirs += ["-e", "sched:sched_process_exec", "-f", "common_pid > 1"]
    theirs += ["-o", str(tmp_path / "t.dat"), "sh", "-c", LOAD, str(tmp_path)]
    ours = ["--events", "sched:sched_switch,sched:sched_process_exit,sched:sched_process_exec"]
    ours += ["--filter", f"sched_switch: {SWITCH}", "--filter", "sched_process_e*: common_pid > 1"]
    ours += ["--event-trigger", f"sched_process_exit: {LAST}", "--stack", "--summary", "none"]
    words = [*in_mount_namespace(refused_files()), *theirs]
    try:
        run = lttd.run("-t", tmp_path / "t", *ours, "--", *words)
    finally:
        (find_tracefs() / "instances" / instance).rmdir()
    assert run.process.returncode == 0, run.stderr
    report = ["trace-cmd", "report", str(tmp_path / "t.dat")]
    told = subprocess.run(report, capture_output=True, text=True, check=True)
    expected = events_of_load(told.stdout.splitlines())
    assert {event for _, event, _ in expected} >= {"kernel_stack", "sched_switch"}
    assert events_of_load(lttv("text", tmp_path / "t").stdout.splitlines()) == expected
