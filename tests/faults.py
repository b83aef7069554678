"""``python -m tests.faults``: fails every system call of a recording, one at a time.

A case fails the 1st, 10th or 100th call of one name on the files of one place (tests/fault_shim.c).
The events are known by number, so that what is missing is known without asking lttd.  A replay of
120 small files needs no kernel; what only a ring has is recorded live.

Rule: a case has a problem where lttd hangs, prints a traceback, ends with a status that is not
documented or without a line that says why, leaves an instance, a trace that is not whole (or not
after a repair), or loses an event that no gap and no count tells of.
"""

import argparse
import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from lttd.errors import LttdError
from lttd.files import Disk
from lttd.index import read_gaps
from lttd.manifest import Manifest
from lttd.recover import recover
from lttd.subbuffer import Reason
from lttd.tracedir import SegmentPaths, segments_below
from lttd.view.verify import Report, check
from tests.fakes import event, page
from tests.instances import on_cpu_0
from tests.marks import numbers_by_row
from tests.running import QUIET, Launcher, launching, why_no_kernel

SHIM: Final = Path(__file__).with_name("fault_shim.c")
DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "FAULTS.md"
PATIENCE_S: Final = 60.0
NTHS: Final = (1, 10, 100)
FAULTS: Final = ("EIO", "ENOSPC", "EINTR", "short")
STREAMS, PAGES, EVENTS = 120, 8, 3
STATUSES: Final = frozenset({0, 1, 2, 77})

# What ``strace -f -y`` shows of a recording, by where the file is.
PLACES: Final = {
    "trace": "openat openat2 mkdir newfstatat fstat getdents64 flock pwritev2 pwritev fallocate"
    " ftruncate lseek fdatasync fsync rename unlink rmdir close fcntl mmap",
    "live trace": "openat openat2 pwritev2 pwritev fdatasync fsync rename ftruncate close",
    "replayed file": "openat openat2 newfstatat fstat getdents64 preadv close",
    "ring": "openat read readv pread64 splice write lseek ioctl epoll_wait fcntl mkdir rmdir"
    " newfstatat fstat getdents64 inotify_add_watch flock close pipe2",
}
LIVE: Final = frozenset({"live trace", "ring"})
MOVING: Final = frozenset({"read", "readv", "pread64", "preadv", "write", "pwritev", "pwritev2"})
MOVING |= {"splice"}


@dataclass(frozen=True, order=True)
class Case:
    """One call that fails."""

    place: str
    call: str
    fault: str
    nth: int
    on_write_error: str = "stop"

    @property
    def number(self) -> str:
        return "short" if self.fault == "short" else str(getattr(errno, self.fault))

    def __str__(self) -> str:
        return f"{self.place}: {self.call} {self.fault}, {self.nth}., {self.on_write_error}"


@dataclass
class Outcome:
    """What became of a case."""

    case: Case
    hit: str = ""
    """The file that the call was on; empty where there was no such call."""
    status: int = 0
    lines: list[str] = field(default_factory=list)
    made: int = 0
    stored: int = 0
    told: str = ""
    """What the trace and the summary tell of the rest."""
    state: str = ""
    problems: list[str] = field(default_factory=list)


def cases() -> Iterator[Case]:
    """Yield the whole matrix."""
    for place, calls in PLACES.items():
        for call, fault in itertools.product(calls.split(), FAULTS):
            if fault == "short" and call not in MOVING:
                continue
            # epoll_wait(2) knows no other; a loop that is broken ends lttd as a kill does.
            if call == "epoll_wait" and fault != "EINTR":
                continue
            for mode in ("stop", "continue") if place.endswith("trace") else ("stop",):
                yield from (Case(place, call, fault, nth, mode) for nth in NTHS)


# What ``make test`` tries of it.  Each of these calls is made so often.
SAMPLE: Final = (
    Case("trace", "openat", "EIO", 1),
    Case("trace", "mkdir", "EINTR", 1),
    Case("trace", "getdents64", "EIO", 1),
    Case("trace", "flock", "EINTR", 1),
    Case("trace", "pwritev2", "ENOSPC", 1),
    Case("trace", "pwritev2", "EIO", 10, "continue"),
    Case("trace", "pwritev2", "EINTR", 100),
    Case("trace", "pwritev2", "short", 10),
    Case("trace", "pwritev", "ENOSPC", 100),
    Case("trace", "pwritev", "EIO", 100, "continue"),
    Case("trace", "pwritev", "short", 10),
    Case("trace", "fallocate", "ENOSPC", 1),
    Case("trace", "fdatasync", "EIO", 10),
    Case("trace", "fdatasync", "EIO", 100, "continue"),
    Case("trace", "fsync", "EIO", 1),
    Case("trace", "rename", "EIO", 1),
    Case("trace", "unlink", "EIO", 1),
    Case("trace", "close", "EIO", 10),
    Case("trace", "close", "EINTR", 100),
    Case("replayed file", "openat2", "EIO", 10),
    Case("replayed file", "preadv", "short", 10),
    Case("replayed file", "preadv", "EIO", 10),
    Case("replayed file", "close", "EIO", 100),
)
LIVE_SAMPLE: Final = (
    Case("ring", "splice", "EIO", 10),
    Case("ring", "readv", "short", 10),
    Case("live trace", "pwritev2", "ENOSPC", 10, "continue"),
    Case("live trace", "fdatasync", "EIO", 10, "continue"),
)


def why_no_compiler() -> str:
    """Say why the shim cannot be made here; empty if it can."""
    return "" if shutil.which("gcc") else "no gcc for the calls that fail: apt-get install gcc"


def build_shim(directory: Path) -> Path:
    """Compile the library that fails calls."""
    shim = directory / "fault_shim.so"
    subprocess.run(["gcc", "-O1", "-Wall", "-shared", "-fPIC", "-o", shim, SHIM], check=True)
    return shim


class Bench:
    """Runs cases below a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shim = build_shim(directory)
        self.old = directory / "old"
        self.old.mkdir()
        for cpu in range(STREAMS):
            pages = [page(1000 * n, event(b"word") * EVENTS) for n in range(1, PAGES + 1)]
            (self.old / f"cpu{cpu}").write_bytes(b"".join(pages))
        self._numbers = itertools.count()

    def run(self, case: Case) -> Outcome:
        """Do one case."""
        where = self.directory / f"case{next(self._numbers)}"
        where.mkdir()
        try:
            return self._live(case, where) if case.place in LIVE else self._replay(case, where)
        finally:
            shutil.rmtree(where)

    def _environment(self, case: Case, where: Path, below: Sequence[str]) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self.shim),
            "LTTD_FAULT": f"{case.call}:{case.nth}:{case.number}",
            "LTTD_FAULT_BELOW": ":".join(below),
            "LTTD_FAULT_FIRED": str(where / "fired"),
        }

    def _replay(self, case: Case, where: Path) -> Outcome:
        trace = where / "trace"
        below = str(trace if case.place == "trace" else self.old)
        words = [sys.executable, "-m", "lttd", "-t", trace, "--summary", "json"]
        words += ["--source", f"replay:{self.old},abi=ftrace,subbuffer-size=4096"]
        words += ["--on-write-error", case.on_write_error]
        outcome = Outcome(case, made=STREAMS * PAGES * EVENTS)
        try:
            done = subprocess.run(
                [str(word) for word in words],
                env=os.environ | self._environment(case, where, [below]),
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            outcome.problems.append("hangs")
            return outcome
        judge(outcome, where, done.returncode, done.stdout, done.stderr)
        if outcome.hit:
            self._balance_replay(outcome, trace, done.stdout)
        return outcome

    def _balance_replay(self, outcome: Outcome, trace: Path, stdout: str) -> None:
        """What was replayed is stored or counted; what was not read is where it was."""
        lost = sum(
            gap.count or 0
            for segment in segments_below(trace)
            for path in segment.index.glob("*.gaps")
            for gap in read_gaps(path)
            if gap.reason is Reason.STORAGE
        )
        summary = json.loads(stdout) if stdout else {"streams": []}
        counted = sum(each["lost"].get("storage_subbuffers", 0) for each in summary["streams"])
        outcome.told = f"{lost} sub-buffers" if lost else ""
        missing = outcome.made - outcome.stored - lost * EVENTS
        unread = outcome.case.place == "replayed file" or not outcome.state
        if missing and not (unread and outcome.status):
            outcome.problems.append(f"{missing} events missing, nothing told")
        if summary["streams"] and counted != lost:
            outcome.problems.append(f"summary: {counted} sub-buffers lost, in the trace {lost}")

    def _live(self, case: Case, where: Path) -> Outcome:
        outcome = Outcome(case)
        with launching(where, where.name) as lttd:
            ring = [str(lttd.instances.parent), "pipe", "anon_inode"]
            below = ring if case.place == "ring" else [str(where / "trace")]
            run = lttd.start(
                *("-t", where / "trace", *QUIET, "--flush-interval", "20ms"),
                *("--buffer-size", "1M", "--summary", "json"),
                *("--on-write-error", case.on_write_error),
                environment=self._environment(case, where, below),
                sync_s=0.02,
            )
            with on_cpu_0():
                outcome.made = _mark(lttd)
            try:
                status = run.end() if run.process.poll() is None else run.process.returncode
            except AssertionError:
                outcome.problems.append("hangs")
                lttd.clean()
                return outcome
            judge(outcome, where, status, run.stdout, run.stderr)
            if lttd.left():
                told = any(name in run.stderr for name in lttd.left())
                outcome.told += "; the instance stays"
                if not told:
                    outcome.problems.append("the instance stays, and no line says so")
                lttd.clean()
        if outcome.hit:
            balance_live(outcome, where / "trace")
        return outcome


def _mark(lttd: Launcher) -> int:
    """Write numbered events for a while; return how many the ring took."""
    run, number = lttd.runs[-1], 0
    begin = time.monotonic()
    while time.monotonic() < begin + PATIENCE_S and run.process.poll() is None:
        try:
            events = (run.instance / "set_event").read_text()
            if events and (run.instance / "tracing_on").read_text() == "1\n":
                break
        except OSError:
            pass
        time.sleep(0.02)
    for _ in range(60):
        try:
            # Not held open: the instance must be removable.
            marker = os.open(run.instance / "trace_marker_raw", os.O_WRONLY)
        except OSError:
            break
        try:
            for _ in range(20):
                os.write(marker, b"\7\0\0\0numbered" + number.to_bytes(8, "little"))
                number += 1
        except OSError:
            break
        finally:
            os.close(marker)
        time.sleep(0.03)
    return number


def judge(outcome: Outcome, where: Path, status: int, stdout: str, stderr: str) -> None:
    """Judge what is the same for all: status, lines, and whether the trace is whole."""
    fired = where / "fired"
    outcome.hit = fired.read_text().replace(str(where), "") if fired.exists() else ""
    outcome.status = status
    lines = [re.sub(rf"{re.escape(str(where))}/?", "", line) for line in stderr.splitlines()]
    outcome.lines = [line for line in lines if line.startswith("lttd: ")]
    if "Traceback" in stderr:
        outcome.problems.append("traceback: " + lines[-1])
    if status not in STATUSES:
        outcome.problems.append(f"status {status}")
    if status and not outcome.lines:
        outcome.problems.append("no line says why")
    for segment in segments_below(where / "trace"):
        try:
            _judge_segment(outcome, segment)
        except LttdError as error:
            outcome.problems.append(str(error).replace(str(where), ""))
    if not status and not segments_below(where / "trace"):
        outcome.problems.append("nothing was recorded, status 0")


def _judge_segment(outcome: Outcome, segment: SegmentPaths) -> None:
    report = check(segment, events=True)
    outcome.state = report.state
    if report.state == "empty":
        outcome.problems.append("a segment without anything in it stays")
        return
    if report.state == "open":
        if not outcome.status:
            outcome.problems.append("status 0, and the segment is left open")
        recover(segment, Disk())
        report = check(segment, events=True)
        outcome.state = "open; repaired"
    outcome.problems += [str(each).replace(str(segment.directory), "") for each in report.findings]
    outcome.stored += events_of(report)


def events_of(report: Report) -> int:
    return sum(stream.events or 0 for stream in report.streams)


def balance_live(outcome: Outcome, trace: Path) -> None:
    """Every hole in the numbers has a gap in its place."""
    found = segments_below(trace)
    if not found:
        if outcome.made and not outcome.status:
            outcome.problems.append("nothing is stored")
        return
    (segment,) = found
    if not segment.manifest.exists():
        return
    names = [record.name for record in Manifest.read(segment.manifest).streams]
    if "ftrace_0" not in names:
        outcome.problems.append("no stream of CPU 0")
        return
    rows = numbers_by_row(segment, "ftrace_0")
    gaps = read_gaps(segment.stream("ftrace_0").gaps)
    rows_with_gaps = {gap.row for gap in gaps}
    outcome.told += ", ".join(f"{gap.count} {gap.unit.name} {gap.reason.name}" for gap in gaps)
    outcome.stored = sum(map(len, rows))
    seen = 0
    for at, row in enumerate([*rows, [outcome.made]]):
        for number in row:
            if number > seen and at not in rows_with_gaps:
                outcome.problems.append(f"events {seen} to {number - 1} missing before row {at}")
            seen = number + 1


def run_all(todo: Iterable[Case], workers: int, progress: bool = False) -> list[Outcome]:
    """Run cases; of a call that is not made so often, no higher number is tried."""
    groups: dict[tuple[str, str, str, str], list[Case]] = {}
    for case in todo:
        key = case.place, case.call, case.fault, case.on_write_error
        groups.setdefault(key, []).append(case)

    def work(bench: Bench, group: list[Case]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for case in sorted(group):
            if outcomes and not outcomes[-1].hit:
                outcomes.append(Outcome(case))
                continue
            outcomes.append(bench.run(case))
            if progress:
                last = outcomes[-1]
                print(case, "->", last.status, last.hit, *last.problems, file=sys.stderr)
        return outcomes

    with tempfile.TemporaryDirectory(dir="/tmp", prefix="lttd-faults-") as directory:
        bench = Bench(Path(directory))
        with ThreadPoolExecutor(workers) as pool:
            done = pool.map(partial(work, bench), groups.values())
            return [outcome for outcomes in done for outcome in outcomes]


def cell(outcome: Outcome) -> str:
    """Return what the table says of a case."""
    if not outcome.hit:
        return "-"
    if outcome.problems:
        return f"**{'; '.join(outcome.problems)}**"
    lost = outcome.made - outcome.stored
    parts = [str(outcome.status)]
    if lost and outcome.stored:
        parts.append(f"{lost} lost, counted")
    elif lost:
        parts.append("nothing recorded" if not outcome.state else "all lost, counted")
    if outcome.state.startswith("open"):
        parts.append("left open, repairable")
    return ", ".join(parts)


def table(outcomes: Iterable[Outcome]) -> str:
    """Return the table in Markdown."""
    rows: dict[tuple[str, ...], dict[int, Outcome]] = {}
    for outcome in outcomes:
        case = outcome.case
        key = case.place, case.call, case.fault, case.on_write_error
        rows.setdefault(key, {})[case.nth] = outcome
    merged: dict[tuple[str, ...], list[str]] = {}
    for (place, call, fault, mode), by_nth in rows.items():
        cells = tuple(cell(by_nth[nth]) if nth in by_nth else "" for nth in NTHS)
        if set(cells) == {"-"}:
            continue
        merged.setdefault((place, call, mode, *cells), []).append(fault)
    lines = ["| file | call | fails with | on error | 1st | 10th | 100th |", "|---" * 7 + "|"]
    for (place, call, mode, *cells), faults in merged.items():
        lines.append(f"| {place} | `{call}` | {', '.join(faults)} | {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Print the table; 0 when no case has a problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--place", action="append", choices=PLACES, help="only this; repeatable")
    parser.add_argument("--call", action="append", help="only this; repeatable")
    parser.add_argument("--sample", action="store_true", help="what make test does")
    parser.add_argument("--publish", action="store_true", help="put the table in docs/FAULTS.md")
    parser.add_argument("--verbose", action="store_true", help="a line a case, on stderr")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    if why := why_no_compiler():
        parser.error(why)
    places = arguments.place or list(PLACES)
    if (why := why_no_kernel()) and not LIVE.isdisjoint(places):
        print(f"no live cases: {why}", file=sys.stderr)
        places = [place for place in places if place not in LIVE]
    todo = [*SAMPLE, *LIVE_SAMPLE] if arguments.sample else list(cases())
    todo = [case for case in todo if case.place in places]
    if arguments.call:
        todo = [case for case in todo if case.call in arguments.call]
    outcomes = run_all(todo, arguments.workers, arguments.verbose)
    text = table(outcomes)
    print(text)
    if arguments.publish:
        publish(text)
    bad = [outcome for outcome in outcomes if outcome.problems]
    hit = sum(bool(outcome.hit) for outcome in outcomes)
    print(f"\n{hit} calls failed, {len(bad)} with a problem", file=sys.stderr)
    return int(bool(bad))


def publish(text: str) -> None:
    """Put the table between its markers."""
    marked = r"(<!-- table of python -m tests.faults -->\n).*(<!-- end of table -->)"
    old = DOCUMENT.read_text()
    new = re.sub(marked, lambda found: f"{found[1]}\n{text}\n\n{found[2]}", old, flags=re.S)
    DOCUMENT.write_text(new)


if __name__ == "__main__":
    sys.exit(main())
