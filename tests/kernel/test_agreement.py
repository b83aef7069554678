"""lttv, trace-cmd and the kernel itself print the same events of a capture."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lttd.terminal import printable_bytes
from lttd.view.cli import main
from lttd.view.commands.formats import formats_of, share_text
from lttd.view.ftrace.render import why_inexpressible
from lttd.view.notes import Notes

TRACEFS = Path("/sys/kernel/tracing")
LINE = re.compile(
    rb" *(?P<comm>.*)-(?P<pid>\d+) +\[(?P<cpu>\d+)\] (?:(?P<flags>\S{5}) )? *"
    rb"(?P<time>\d+\.\d+): +(?P<event>\S+): *(?P<fields>.*?) *"
)
NIGHTLY = os.environ.get("LTTD_NIGHTLY") == "1"
# trace-cmd 3.1.6 prints flags=D|P|I for every timer, the kernel the real flags; and mode=0x0 where
# the kernel, and lttv by the kernel's type information, have mode=ABS.
DIFFERS_IN_TRACE_CMD = {b"timer_start", b"hrtimer_init", b"hrtimer_setup", b"hrtimer_start"}

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or not (TRACEFS / "instances").is_dir(), reason="needs root and tracefs"
    ),
]


def lines_of(text: bytes) -> list[re.Match[bytes]]:
    """Match the lines of a text, after escaping them as lttv does."""
    escaped = map(printable_bytes, text.split(b"\n"))
    return [found for line in escaped if (found := LINE.fullmatch(line))]


def shown(trace: Path, *options: str) -> bytes:
    words = [sys.executable, "-m", "lttd.view", "text", str(trace), *options]
    return subprocess.run(words, check=True, capture_output=True).stdout


def record(trace: Path, *options: str) -> None:
    words = [sys.executable, "-m", "lttd", "-t", str(trace), *options]
    subprocess.run(words, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("trace-cmd") is None, reason="no trace-cmd here")
def test_trace_cmd_reads_the_same_events_from_a_live_capture(tmp_path: Path) -> None:
    seconds = 12 if NIGHTLY else 1
    busy = [sys.executable, "-c", "import os\nwhile True: os.getppid(); os.stat('/tmp')"]
    loads = [subprocess.Popen(busy) for _ in range(2)]
    try:
        record(
            tmp_path / "t", "--duration", f"{seconds}s", "--buffer-size", "16M",
            "--events", "sched:*,irq:*,timer:*,syscalls:*",
        )  # fmt: skip
    finally:
        for load in loads:
            load.kill()
            load.wait()
    out = tmp_path / "trace.dat"
    assert main(["export", str(tmp_path / "t"), "--to", "trace.dat", "-o", str(out)]) == 0
    report = subprocess.run(["trace-cmd", "report", "-N", out], capture_output=True, check=True)
    theirs, ours = lines_of(report.stdout), lines_of(shown(tmp_path / "t"))
    assert len(ours) == len(theirs) > (1_000_000 if NIGHTLY else 10_000)
    differing: Counter[bytes] = Counter()
    names: dict[bytes, set[bytes]] = {}
    for mine, other in zip(ours, theirs, strict=True):
        for part in ("pid", "cpu", "time", "event"):
            assert mine[part] == other[part]
        names.setdefault(mine["pid"], set()).add(mine["comm"])
        if bare(mine["fields"]) != bare(other["fields"]):
            differing[mine["event"]] += 1
    assert set(differing) <= DIFFERS_IN_TRACE_CMD
    assert share_as_printed(tmp_path / "t", ours) > 0.99
    # trace-cmd has one name per pid; pids with one name must agree.
    for mine, other in zip(ours, theirs, strict=True):
        if len(names[mine["pid"]]) == 1 and other["comm"] != b"<...>":
            assert mine["comm"] == other["comm"][:15]


def bare(fields: bytes) -> bytes:
    """Return fields without the 0x that trace-cmd writes before pointers."""
    return re.sub(rb"\b0x(?=[0-9a-f])", b"", fields)


def share_as_printed(trace: Path, lines: list[re.Match[bytes]]) -> float:
    """Return and print the share of lines whose print fmt is fully supported (lttv formats)."""
    fallen_back = {
        one.name.encode() for one in formats_of(trace, Notes()) if why_inexpressible(one)
    }
    share = sum(line["event"] not in fallen_back for line in lines) / len(lines)
    print(f"{share:.2%} of {len(lines)} events, {share_text(trace).splitlines()[-1]}")
    return share


def test_lttv_prints_the_same_text_as_the_kernel(tmp_path: Path) -> None:
    instance = TRACEFS / "instances" / f"lttdtest-{os.getpid()}-agree"
    instance.mkdir()
    try:
        (instance / "trace_clock").write_text("mono")
        # Room for the events of a busy machine until the ring is drained.
        (instance / "buffer_size_kb").write_text("16384")
        for system in ("sched", "irq", "timer"):
            (instance / "events" / system / "enable").write_text("1")
        time.sleep(0.3)
        (instance / "tracing_on").write_text("0")
        told = lines_of((instance / "trace").read_bytes())
        record(tmp_path / "t", "--source", f"ftrace:{instance.name}", "--duration", "200ms")
    finally:
        instance.rmdir()
    ours = {
        (found["cpu"], found["time"], found["event"], found["flags"], found["pid"], plain(found))
        for found in lines_of(shown(tmp_path / "t"))
    }
    assert len(told) > 100
    missing = [
        found[0]
        for found in told
        if (found["cpu"], found["time"], found["event"], found["flags"], found["pid"], plain(found))
        not in ours
    ]
    assert not missing


def plain(found: re.Match[bytes]) -> bytes:
    """Return the fields without values that only the kernel knows: hashed pointers, functions."""
    return re.sub(rb"(timer|function|mode|hrtimer|callsite)=\S+", b"", found["fields"])


def test_lttv_names_constants_of_enums_as_the_kernel_does(tmp_path: Path) -> None:
    instance = TRACEFS / "instances" / f"lttdtest-{os.getpid()}-enums"
    instance.mkdir()
    try:
        (instance / "trace_clock").write_text("mono")
        (instance / "events/writeback/writeback_mark_inode_dirty/enable").write_text("1")
        (instance / "events/writeback/writeback_dirty_inode/enable").write_text("1")
        for name in map(str, range(50)):
            (tmp_path / name).write_text(name)
        (instance / "tracing_on").write_text("0")
        told = lines_of((instance / "trace").read_bytes())
        record(tmp_path / "t", "--source", f"ftrace:{instance.name}", "--duration", "200ms")
    finally:
        instance.rmdir()
    ours = {(one["time"], one["fields"]) for one in lines_of(shown(tmp_path / "t"))}
    named = [one for one in told if b"state=I_DIRTY" in one["fields"]]
    assert len(named) > 20
    assert [one[0] for one in told if (one["time"], one["fields"]) not in ours] == []
