"""System calls of a program, as lttv prints them and as strace does, on the same run."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from lttd.view.ftrace.syscall_table import values_of
from tests.running import Launcher, needs_kernel
from tests.viewer import run

pytestmark = [
    *needs_kernel(),
    pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here"),
]
PROGRAM = """
import mmap, os, socket, threading
os.close(os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC))
try:
    os.open("/none", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECTORY)
except OSError:
    pass
mmap.mmap(-1, 8192).close()
for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM):
    each.close()
os.kill(os.getpid(), 0)
thread = threading.Thread(target=os.getppid)
thread.start()
thread.join()
os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
"""
CALL = r"(?P<call>\w+)\((?P<args>[^)]*)\)? +(?:= (?P<result>.*)|<(?:unfinished|events).*)"
STRACE = re.compile(rf"(?P<pid>\d+) +[\d.]+ {CALL}")
LTTV = re.compile(rf" *.*-(?P<pid>\d+) +\[\d+\] \S+ +[\d.]+: {CALL}")
Called = tuple[str, list[int], str]


def number(text: str, machine: str = "x86_64") -> int:
    """Return the value of an argument: a number, or names that are joined by |."""
    if text == "NULL":
        return 0
    if re.fullmatch(r"-?(0x[0-9a-f]+|[1-9]\d*|0)", text):
        return int(text, 0)
    if re.fullmatch(r"0[0-7]+", text):
        return int(text, 8)
    named = {
        name: value
        for table in values_of(machine).values()
        for value, name in (*table.named.items(), *table.flags)
    }
    value = 0
    for word in text.split("|"):
        value |= named[word] if word in named else int(word, 0)
    return value


def calls(lines: list[str], form: re.Pattern[str]) -> dict[int, list[Called]]:
    """Return the calls of each task: name, arguments in 32 bits, result."""
    found: dict[int, list[Called]] = {}
    for line in lines:
        if matched := form.match(line):
            words = [word.rpartition(": ")[2] for word in matched["args"].split(", ") if word]
            values = [number(word) & 0xFFFF_FFFF for word in words]
            result = (matched["result"] or "?").partition(" <")[0]
            errno = re.match(r"(-1 \w+|\? E\w+)", result)
            told = errno[0] if errno else str(int(result, 0)) if result[0] != "?" else "?"
            found.setdefault(int(matched["pid"]), []).append((matched["call"], values, told))
    return found


def test_a_program_makes_the_same_calls_as_strace_says(
    lttd: Launcher, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    log = tmp_path / "strace"
    strace = ["strace", "-f", "-ttt", "-qq", "-e", "raw=all", "-o", str(log)]
    program = [*strace, sys.executable, "-c", PROGRAM]
    events = ("--events", "raw_syscalls:*", "--buffer-size", "16M")
    recording = lttd.run("-t", tmp_path / "t", *events, "--", *program)
    assert recording.process.returncode == 0
    theirs = calls(log.read_text().splitlines(), STRACE)
    _, out, err = run(capfdbinary, "text", tmp_path / "t", "--syscalls")
    assert err == ""
    every = calls(out.decode(errors="replace").splitlines(), LTTV)
    assert len(theirs) == 3
    compared = 0
    for pid, expected in theirs.items():
        ours = every[pid]
        begin = next(at for at in range(len(ours)) if ours[at][0] == expected[0][0])
        ours = ours[begin : begin + len(expected)]
        for mine, their in zip(ours, expected, strict=True):
            if "?" not in (mine[2], their[2]):  # strace does not see how execve and exit end
                assert mine == their
                compared += 1
            assert mine[:2] == their[:2]
    assert compared > 500
