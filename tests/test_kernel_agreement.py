"""lttv prints every event as the kernel's own ``trace`` file prints it.

A ring is printed twice: by the kernel (``cat trace`` with ``options/hash-ptr`` 0), and by lttv from
the data that lttd then takes. In parallel lttd records everything live. At night, a second ring
leaves out the frequent types, which soon fill the first one: so every type that occurs is compared.

Rule: each difference has a row in REASONS with the reason, which reduces both sides to their common
part. Any other difference fails.
"""

import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from lttd import open as opened
from lttd.sources.mounts import find_tracefs
from tests.conftest import NIGHTLY
from tests.running import Launcher, info, needs_kernel

pytestmark = needs_kernel(alone=True)

SECONDS: Final = 10 if NIGHTLY else 2
# By day, compare only a part of the millions of lines of a live recording.
LIVE_WINDOW: Final = () if NIGHTLY else ("--end", "+300ms")
RING_KIB: Final = 32 << 10 if NIGHTLY else 3 << 10
PROBED_SECONDS: Final = 2
AGAIN: Final = 3
"""So often the load is repeated for types that no ring had room for."""
ROOM_EVENTS: Final = 100_000
"""The second ring holds five times as many, since a load differs from the one before."""
# Only the rings have stacks and marks; the watches are events of lttd itself.
ONLY_IN_THE_RINGS: Final = {
    "kernel_stack",
    "user_stack",
    "tracing_mark_write",
    "sys_enter_inotify_add_watch",
    "sys_exit_inotify_add_watch",
}
LOAD: Final = r"""
while :; do
    find /etc /usr/lib/python3 -type f 2>/dev/null | head -500 | xargs cat | md5sum
    dd if=/dev/zero of="$1/file" bs=64k count=40 conv=fsync; rm "$1/file"
    "$2" -c 'import mmap, os, socket
a, b = socket.socketpair(); a.send(bytes(100)); b.recv(100)
memory = mmap.mmap(-1, 1 << 20); memory[0] = 1
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b"x", ("127.0.0.1", 9))
os.fork() or os._exit(0); os.wait()'
done
"""


class Reason(NamedTuple):
    """The reason why some events differ, and a function that returns the common part."""

    events: str
    why: str
    pattern: str
    common: str


_NUMBERS = (
    "the kernel prints a call, NAME(argument: value); lttv the event's name and its print fmt"
)
_ADDRESS = "page= is computed with an address that the format does not tell (vmemmap_base)"
_CONSTANT = "the format names constants whose values it does not tell: lttv prints their bits"
_TEXT = "a pointer to a text that the kernel does not list in printk_formats"
_JIFFIES = "age= is computed with the time at which the kernel prints"
REASONS: Final = (
    Reason("sys_enter_*", _NUMBERS, r"\b(?:0x)?0*([0-9a-f]+)(?=,|$)", r"\1"),
    Reason("sys_exit_*", _NUMBERS, r"0x0*([0-9a-f])", r"\1"),
    Reason("mm_page_*", _ADDRESS, r"^page=\S+ ", ""),
    Reason("mm_filemap_*", _ADDRESS, r"\bpage=\S+ ", ""),
    Reason("mm_vmscan_write_folio", _ADDRESS, r"^page=\S+ ", ""),
    Reason("writeback_*", _CONSTANT, r"\b(flags|state)[= ]\S*", r"\1"),
    Reason("sb_*_inode_writeback", _CONSTANT, r"\bstate \S*", "state"),
    Reason("writeback_*", _JIFFIES, r" age=\d+", ""),
    Reason("block_*", _CONSTANT, r"(?:none|rt|be|idle|0x[0-3]),(?=\d+,\d+ \[)", ""),
    Reason("hrtimer_*", _CONSTANT, r"mode=\S+", ""),
    Reason("tcp_send_reset", _CONSTANT, r"state=\S+", ""),
    Reason("ma_*", _TEXT, r"^\S+", ""),
    Reason("devres_log", _TEXT, r"^(\S+) +\S+", r"\1"),
)


class Line(NamedTuple):
    """A line without the command, which the kernel knows only for some pids."""

    head: tuple[str, str, str, str]
    """pid, CPU, flags, time."""
    event: str
    body: str


_HEAD: Final = re.compile(r" *.*?-(\d+) +\[(\d+)\] (\S{5}) +(\d+\.\d+): (.*)", re.DOTALL)
_CALL: Final = re.compile(r"sys_(\w+)\((.*)\)", re.DOTALL)
_RETURN: Final = re.compile(r"sys_(\w+) -> (.*)", re.DOTALL)
_STACK: Final = re.compile(r"<(user )?stack trace>")
# lttv escapes control characters, the kernel does not.
_CONTROL: Final = re.compile(r"\\x[0-9a-f]{2}|\\[0-7]{3}|[\0-\x08\x0b-\x1f\x7f-\x9f]|�")


def named(text: str) -> tuple[str, str]:
    """Split a line into event and fields, in each form that the kernel uses."""
    if found := _CALL.fullmatch(text):
        return f"sys_enter_{found[1]}", found[2]
    if found := _RETURN.fullmatch(text):
        return f"sys_exit_{found[1]}", found[2]
    if found := _STACK.match(text):
        return "user_stack" if found[1] else "kernel_stack", text
    if text.startswith("# "):
        return "raw_data", text
    name, _, fields = text.partition(":")
    if name == "print":  # lttv writes the name of the event before that of the function
        name, _, fields = fields.strip().partition(":")
    return name.strip(), fields.strip()


def lines_of(text: str) -> dict[str, list[Line]]:
    """Return the lines by CPU; a line without a head continues the previous one."""
    found: dict[str, list[Line]] = defaultdict(list)
    whole: list[str] = []
    for line in text.split("\n"):
        if line.startswith(("#", "CPU:")):
            continue
        if _HEAD.fullmatch(line) or not whole:
            whole.append(line)
        else:
            whole[-1] += f"\n{line}"
    for line in whole:
        if match := _HEAD.fullmatch(_CONTROL.sub("", line)):
            found[match[2]].append(Line(match.groups()[:4], *named(match[5].rstrip())))
    return found


def common(line: Line) -> tuple[str, set[str]]:
    """Return the common part of a line, and the reason for the rest."""
    body, why = line.body, set()
    for reason in REASONS:
        if fnmatchcase(line.event, reason.events):
            body, count = re.subn(reason.pattern, reason.common, body)
            why |= {reason.why} if count else set()
    return body.strip(), why


@contextmanager
def instance(name: str) -> Iterator[Path]:
    """Make an instance that stores every event until it is full, and does not record yet."""
    path = find_tracefs() / f"instances/lttdtest-{name}-{os.getpid()}"
    path.mkdir()
    try:
        for file, value in (
            ("tracing_on", "0"), ("trace_clock", "mono"), ("options/hash-ptr", "0"),
            ("options/overwrite", "0"), ("buffer_size_kb", str(RING_KIB)), ("events/enable", "1"),
        ):  # fmt: skip
            (path / file).write_text(value)
        yield path
    finally:
        (path / "tracing_on").write_text("0")
        (path / "events/enable").write_text("0")
        path.rmdir()


@pytest.fixture
def ring() -> Iterator[Path]:
    with instance("agree") as path:
        yield path


@pytest.fixture
def rare() -> Iterator[Path | None]:
    """A ring for the types that are not frequent; by day None."""
    if not NIGHTLY:
        yield None
        return
    with instance("rare") as path:
        yield path


def load(tmp_path: Path, ring: Path, seconds: int) -> None:
    """Cause many kinds of events for a while, some of them with stacks and markers."""
    (ring / "options/stacktrace").write_text("1")
    (ring / "options/userstacktrace").write_text("1")
    (ring / "tracing_on").write_text("1")
    with (ring / "trace_marker").open("wb", buffering=0) as marker, suppress(OSError):
        # EBADF: on a busy machine events with stacks have filled the ring, which refuses the rest.
        for number in range(100):
            marker.write(b"marker %d\n" % number)
    (ring / "options/stacktrace").write_text("0")
    (ring / "options/userstacktrace").write_text("0")
    subprocess.run(
        ["timeout", str(seconds), "sh", "-c", LOAD, "load", tmp_path, sys.executable],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    (ring / "tracing_on").write_text("0")


def leave_out_frequent(rare: Path, tmp_path: Path) -> None:
    """Record the load for a short time, then turn off as many types as would fill the ring."""
    load(tmp_path, rare, PROBED_SECONDS)
    kernel = lines_of((rare / "trace").read_text(errors="replace"))
    counts = Counter(line.event for lines in kernel.values() for line in lines)
    room = ROOM_EVENTS * PROBED_SECONDS // SECONDS
    for event, count in sorted(counts.items(), key=itemgetter(1)):
        room -= count
        if room < 0:
            for path in rare.glob(f"events/*/{event}/enable"):
                path.write_text("0")
    (rare / "trace").write_text("")


def record_again(rare: Path, events: Iterable[str], tmp_path: Path) -> None:
    """Record the load once more, and of it only some types, which came when no ring had room."""
    (rare / "trace").write_text("")
    for event in events:
        for path in rare.glob(f"events/*/{event}/enable"):
            path.write_text("1")
    load(tmp_path, rare, SECONDS)
    (rare / "events/enable").write_text("0")


class Compared:
    """The lines of one or more rings as the kernel and lttv print them."""

    def __init__(self) -> None:
        self.types: Counter[str] = Counter()
        self.excused: dict[str, Counter[str]] = defaultdict(Counter)
        self.wrong: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def add(self, kernel: dict[str, list[Line]], ours: dict[str, list[Line]]) -> None:
        for cpu, theirs in kernel.items():
            assert len(ours[cpu]) == len(theirs)
            for one, other in zip(theirs, ours[cpu], strict=True):
                assert (one.head, one.event) == (other.head, other.event), (one, other)
                self.types[one.event] += 1
                if one.body != other.body:
                    self._add_pair(one, other)

    def _add_pair(self, one: Line, other: Line) -> None:
        (theirs, why), (mine, more) = common(one), common(other)
        if theirs != mine:
            self.wrong[one.event].append((one.body, other.body))
        for each in why | more:
            self.excused[each][one.event] += 1


def shown(trace: Path, *options: str) -> tuple[Path, str]:
    """Return the file with the text of lttv, and its notes."""
    out = trace.with_suffix(".txt")
    with out.open("wb") as file:
        words = [sys.executable, "-m", "lttd.view", "text", str(trace), *options]
        run = subprocess.run(words, stdout=file, stderr=subprocess.PIPE, check=False)
    told = run.stderr.decode()
    assert run.returncode == 0, told
    assert "Traceback" not in told
    return out, told


def compare(ring: Path, out: Path, lttd: Launcher, compared: Compared) -> str:
    """Print a ring by the kernel, then take it and print it by lttv; return lttv's notes."""
    kernel = lines_of((ring / "trace").read_text(errors="replace"))
    taken = lttd.start("-t", out, "--source", f"ftrace:{ring.name},kallsyms=yes", "--", "true")
    assert taken.wait() == 0, taken.stderr
    text, notes = shown(out)
    compared.add(kernel, lines_of(text.read_text(errors="replace")))
    return notes


def types_in(trace: Path) -> set[str]:
    found: set[str] = set()
    for batch in opened(trace).window():
        found |= {rows.event_type.name for rows in batch.by_type()}
    return found


def test_every_event_is_printed_as_the_kernel_prints_it(
    tmp_path: Path, lttd: Launcher, ring: Path, rare: Path | None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rings = [ring, rare] if rare else [ring]
    if rare:
        leave_out_frequent(rare, tmp_path)
        # It also covers the begin and the end of the live recording.
        (rare / "tracing_on").write_text("1")
    words = ("-t", tmp_path / "live", "--events", "*:*", "--buffer-size", "2M", "--no-overwrite")
    live = lttd.start(*words).recording()
    load(tmp_path, ring, SECONDS)
    # First, because turning off the events of the other recordings takes long.
    assert live.end() == 0, live.stderr
    for each in rings:
        (each / "tracing_on").write_text("0")
        (each / "events/enable").write_text("0")
    compared = Compared()
    notes = [compare(ring, tmp_path / ring.name, lttd, compared)]
    often = {event for event, count in compared.types.items() if count > 100}
    if rare:  # it also has what the live recording leaves out: the acts of its own lttd
        notes.append(compare(rare, tmp_path / rare.name, lttd, compared))
    live_text, live_notes = shown(tmp_path / "live", *LIVE_WINDOW)
    with live_text.open("rb") as file:
        live_lines = sum(1 for _ in file)
    live_types, types = types_in(tmp_path / "live"), compared.types
    for number in range(AGAIN):
        if rare and (missing := live_types - types.keys()):
            record_again(rare, missing, tmp_path)
            notes.append(compare(rare, tmp_path / f"again{number}", lttd, compared))
    with capsys.disabled():
        print(f"\n{len(types)} types, {types.total():,} lines as the kernel prints them;")
        print(f"live: {len(live_types)} types, {live_lines:,} lines; otherwise:")
        for why, events in sorted(compared.excused.items()):
            print(f"  {why}: {events.total():,} lines of {', '.join(sorted(events))}")
        print(f"not compared: {', '.join(sorted(live_types - types.keys())) or 'none'}")
    assert {event: pairs[:2] for event, pairs in compared.wrong.items()} == {}
    assert {"kernel_stack", "user_stack", "tracing_mark_write", "sched_switch"} <= set(types)
    assert not any("shown as bytes" in note for note in (*notes, live_notes))
    if not info(tmp_path / "live")["events_lost"]:  # the lost events may include some types
        assert often - live_types <= ONLY_IN_THE_RINGS
    if rare:
        assert live_types <= types.keys()
