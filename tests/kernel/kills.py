"""Kill lttd in each configuration, in the guest, and tell what the next starts leave.

    python -m tests.kernel.kills own|named|top DIR [CONFIGURATION...] > report.json

In instances, one lttd records a source for each configuration; at the top level, one lttd after
another records one of them.  Meanwhile numbered marks are written, some of them after the kill.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lttd.tracedir import segments
from tests import running
from tests.instances import mark
from tests.killed_runs import BRIEF, data_in, gaps_in, records
from tests.running import QUIET, Launcher, Run, launching
from tests.tracefs_settings import differences, settings_of

TRACING = Path("/sys/kernel/tracing")
SLEEPER = "lttdsleeper"
PROBES = (
    "p:{}k do_sys_openat2 file=+0($arg2):ustring",
    "r:{}r vfs_fsync ret=$retval:s64",
    "p:{}u /bin/cat:0x4000",
    "e:{}e sched.sched_process_exec pid=$pid:s32",
    "s:{}s u64 lat; pid_t pid",
)
FPROBES = ("f:{}f vfs_fsync", "t:{}t sched_process_exit")
TRIGGERS = [
    "sched_process_exec: enable_event:sched:sched_kthread_stop if pid != 0",
    "sched_process_fork: stacktrace:3 if child_pid == 0",
]
# Of each configuration, the keys that it asks for, and files that differ while it is recorded.
CONFIGURATIONS: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "ring": (
        {"clock": "boot", "overwrite": False, "buffer-size": "256K", "trace-self": False},
        ("trace_clock", "options/overwrite", "set_event_notrace_pid"),
    ),
    "filter": (
        {"filter": ["sched_process_e*: common_pid != 0"]},
        ("events/sched/sched_process_exec/filter", "events/sched/sched_process_exit/filter"),
    ),
    "pid": ({"pid": [1], "follow-fork": True}, ("set_event_pid", "options/event-fork")),
    "comm": ({"comm": [f"{SLEEPER}*"]}, ("set_event_pid",)),
    # The kernel takes COMMAND off its list when it ends.
    "only-command": ({"only-command": True}, ("options/event-fork",)),
    "trigger": (
        {"event-trigger": TRIGGERS},
        ("events/sched/sched_process_exec/trigger", "events/sched/sched_process_fork/trigger"),
    ),
    "stack": ({"stack": True, "user-stack": True}, ("options/userstacktrace",)),
    "option": ({"option": ["noirq-info"]}, ("options/irq-info",)),
    "probe": ({"probe": [one.format("alone") for one in PROBES]}, ("dynamic_events",)),
    "fprobe": ({"probe": [one.format("alone") for one in FPROBES]}, ("dynamic_events",)),
    "function": (
        {"tracer": "function", "function": ["vfs_f*"], "notrace": ["vfs_fadvise"]},
        ("current_tracer", "set_ftrace_filter", "set_ftrace_notrace"),
    ),
    "graph": (
        {"tracer": "function_graph", "function": ["vfs_f*"], "graph-depth": 3},
        ("current_tracer", "max_graph_depth"),
    ),
    "markers": ({"markers": True}, ("options/trace_printk_dest",)),
}
# These are of the top level, whichever instance is recorded.
OF_TOP = ("dynamic_events", "max_graph_depth", "options/trace_printk_dest")
# One task list and one tracer is what an instance can have.
APART = ("comm", "only-command", "function")
EVENTS = ["sched:sched_process_*"]


def configurations(where: str) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    """Return those that this kernel can do there, and all of them together."""
    found = dict(CONFIGURATIONS)
    place = TRACING / "instances/probing"
    place.mkdir()
    tracers = ((TRACING if where == "top" else place) / "available_tracers").read_text().split()
    has_dest = (place / "options/trace_printk_dest").exists()
    place.rmdir()
    if "function_graph" not in tracers:
        found.pop("graph", None)
    if "<func-name>[%return]" not in (TRACING / "README").read_text():
        found.pop("fprobe", None)
    if where == "top" or not has_dest:
        found.pop("markers", None)
    together: dict[str, Any] = {}
    changes: tuple[str, ...] = ()
    for name, (keys, files) in found.items():
        if name not in APART or (name == "function" and "graph" not in found):
            together |= keys
            changes += files
    # Linux 6.12 takes one probe of a tracepoint.
    kinds = [*PROBES, *(one.replace("exit", "fork") for one in FPROBES if "fprobe" in found)]
    together["probe"] = [one.format("together") for one in kinds]
    # One instance has trace_printk.  Where tasks are listed, lttd's are not left out.
    together.pop("markers", None)
    changes = tuple(each for each in changes if "printk" not in each and "notrace_pid" not in each)
    found["together"] = together, changes
    return found


@dataclass
class Killed:
    """What a kill left of one configuration, or of all that were recorded at once."""

    unchanged: list[str] = field(default_factory=list)
    """Files that the recording should have changed, and did not."""
    left: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The settings that are not as they were before, after all."""
    written: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    """Marks that are not in the trace, by configuration."""
    counted: dict[str, int] = field(default_factory=dict)
    """Events in the gaps of these: lost by the kill, or overwritten before the next start."""
    twice: int = 0
    records: list[str] = field(default_factory=list)
    statuses: list[int | None] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """The lines of the next starts."""


def is_own(target: str) -> bool:
    """Tell whether a target is an instance of lttd's own."""
    return target.startswith("own ")


def toml_of(targets: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a configuration with a source for each target."""
    lines = []
    for target, keys in targets.items():
        of_target = {} if is_own(target) else {"target": target}
        lines.append("[[source]]")
        pairs = {"kind": "ftrace", "events": EVENTS, **of_target, **keys}
        lines += [f"{key} = {json.dumps(value)}" for key, value in pairs.items()]
    return "\n".join(lines) + "\n"


class Numbers:
    """Marks with numbers, and how many the kernel took, by the name of a configuration."""

    def __init__(self) -> None:
        self.written: Counter[str] = Counter()

    def write(self, places: Mapping[str, Path], count: int) -> None:
        """Write *count* marks into each place, in turns on the CPUs.

        Exits of function_graph end in 16 bytes of what the ring held before (Linux 6.12): a mark is
        longer.
        """
        for turn in range(count):
            os.sched_setaffinity(0, {sorted(CPUS)[turn % len(CPUS)]})
            for name, place in places.items():
                with (place / "trace_marker").open("wb", buffering=0) as marker:
                    try:
                        marker.write(f"numbered mark of {name} {self.written[name]};".encode())
                        self.written[name] += 1
                    except OSError:  # EBADF: the ring is full, and does not overwrite
                        continue
        os.sched_setaffinity(0, CPUS)

    def compare(self, trace: Path, report: Killed) -> None:
        found, counted = Counter[tuple[str, int]](), Counter[str]()
        names: dict[str, set[str]] = {}
        for segment in segments(trace):
            marks = re.findall(rb"numbered mark of ([\w /-]+) (\d+);", data_in(segment))
            found.update((name.decode(), int(number)) for name, number in marks)
            # The ring of the killed lttd may have no mark any more.
            source = json.loads((segment.directory / "trace.json").read_text())["source"]
            own = {name.decode() for name, _ in marks} or names.get(source["continues"], set())
            if len(self.written) == 1:
                own = set(self.written)
            names[segment.directory.name] = own
            for name in own:
                counted[name] += sum(gap.count or 0 for gap in gaps_in(segment))
        expected = {(name, n) for name, count in self.written.items() for n in range(count)}
        missing = Counter(name for name, _ in expected - found.keys())
        report.written = len(expected)
        report.lost = dict(missing)
        report.counted = {name: counted[name] for name in missing}
        report.twice = sum(count - 1 for count in found.values())


CPUS = os.sched_getaffinity(0)


def begun(lttd: Launcher, trace: Path, config: Path, sleeper: Path) -> Run:
    """Start lttd with COMMAND, and wait until it records all sources."""
    address = f"{lttd.prefix}notify{len(lttd.runs)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{address}")
        manager.settimeout(1)
        run = lttd.start(
            *("-t", trace, "--summary", "none", "--config", config, "--", sleeper, "1000"),
            environment={"NOTIFY_SOCKET": f"@{address}"},
        )
        for _ in range(int(running.PATIENCE_S)):
            with suppress(TimeoutError):
                if manager.recv(4096) == b"READY=1":
                    return run
            assert run.process.poll() is None, run.stderr
    raise AssertionError(run.state())


def places_of(lttd: Launcher, targets: Iterable[str]) -> dict[str, Path]:
    """Return the place of each target in tracefs."""
    instances = TRACING / "instances"
    made = [each for each in instances.iterdir() if each.name.startswith(lttd.prefix)]
    made.sort(key=lambda each: int(each.name.removeprefix(lttd.prefix)))
    if made:
        return dict(zip(targets, made, strict=True))
    return {target: TRACING if target == "/" else instances / target for target in targets}


def kill(run: Run) -> None:
    """Kill an lttd; then end COMMAND, which goes on."""
    pid = run.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    run.signal(signal.SIGKILL).wait()
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def killed(
    lttd: Launcher, work: Path, targets: Mapping[str, Mapping[str, Any]], files: Sequence[str],
    before: Mapping[str, str],
) -> Killed:  # fmt: skip
    """Kill an lttd that records *targets*, start one for another trace and one for the same."""
    report, numbers, trace = Killed(), Numbers(), work / "t"
    config = work / "lttd.toml"
    config.write_text(toml_of(targets))
    run = begun(lttd, trace, config, work / SLEEPER)
    places = places_of(lttd, targets)
    numbers.write(places, 100)
    time.sleep(0.5)
    numbers.write(places, 50)
    kill(run)
    numbers.write(places, 50)
    changed = differences(before, settings_of(TRACING))
    report.unchanged = [file for file in files if file not in changed]
    other = lttd.run("-t", work / "other", *BRIEF)
    options: tuple[str | Path, ...] = BRIEF
    if not any(map(is_own, targets)):
        config.write_text(toml_of({target: {"events": [QUIET[1]]} for target in targets}))
        options = ("--duration", "300ms", "--summary", "none", "--config", config)
    again = lttd.run("-t", trace, "--append", *options)
    numbers.compare(trace, report)
    report.left = differences(before, settings_of(TRACING))
    report.records = records(lttd)
    report.statuses = [other.process.returncode, again.process.returncode]
    report.told = [*other.lines, "--", *again.lines]
    return report


def prepared(place: Path) -> None:
    """Have settings of somebody else there."""
    (place / "events/sched/sched_process_exit/filter").write_text("pid != 4194303")
    (place / "events/sched/sched_process_wait/trigger").write_text("stacktrace if pid == 4194303")
    (place / "events/sched/sched_process_hang/enable").write_text("1")


def cleared(place: Path) -> None:
    (place / "events/sched/sched_process_hang/enable").write_text("0")
    (place / "events/sched/sched_process_wait/trigger").write_text("!stacktrace")
    (place / "events/sched/sched_process_exit/filter").write_text("0")


def in_instances(lttd: Launcher, work: Path, where: str) -> dict[str, Killed]:
    """Kill one lttd that records every configuration in an instance of its own, or of others."""
    found = configurations(where)
    targets = {
        (f"own {name}" if where == "own" else name): keys for name, (keys, _) in found.items()
    }
    files = []
    for name, (_, changes) in found.items():
        for file in changes:
            top = file in OF_TOP
            if top or where == "named":
                files.append(file if top else f"instances/{name}/{file}")
    try:
        if where == "named":
            for name in targets:
                place = TRACING / "instances" / name
                place.mkdir()
                prepared(place)
        return {where: killed(lttd, work, targets, files, settings_of(TRACING))}
    finally:
        for name in targets if where == "named" else ():
            (TRACING / "instances" / name).rmdir()


def at_the_top(lttd: Launcher, work: Path, names: Sequence[str]) -> dict[str, Killed]:
    """Kill one lttd after another; of *names*, those that this kernel can do."""
    found = configurations("top")
    prepared(TRACING)
    reports = {}
    before = settings_of(TRACING)
    try:
        for name in filter(found.__contains__, names or found):
            keys, changes = found[name]
            (work / name).mkdir()
            shutil.copy(work / SLEEPER, work / name)
            begin_s = time.monotonic()
            reports[name] = killed(lttd, work / name, {"/": keys}, changes, before)
            told = {key: each for key, each in asdict(reports[name]).items() if key != "told"}
            line = f"{name}, {time.monotonic() - begin_s:.0f} s: {told}"
            print(line, file=sys.stderr, flush=True)
    finally:
        cleared(TRACING)
    return reports


def main() -> None:
    running.PATIENCE_S = 1000.0  # a guest is slow, and one lttd has many sources here
    where, work, names = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    work.mkdir()
    shutil.copy("/bin/sleep", work / SLEEPER)
    with launching(work) as lttd, subprocess.Popen([work / SLEEPER, "1000"]) as sleeper:
        try:
            mark(TRACING, "the ring of the top level has its size", 1)
            if where == "top":
                reports = at_the_top(lttd, work, names)
            else:
                reports = in_instances(lttd, work, where)
        finally:
            sleeper.kill()
    print(json.dumps({name: asdict(each) for name, each in reports.items()}, indent=1))


if __name__ == "__main__":
    main()
