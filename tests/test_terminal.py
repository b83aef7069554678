"""Escape the output to a terminal, and count the lines that no reader takes."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.terminal import printable, printable_bytes

RUN = [sys.executable, "-c"]
SAY = "from lttd.terminal import Level, say; say('one', Level.INFO); say('two', Level.INFO)"
PUT = "from lttd.terminal import put; put(b'x' * 300_000)"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain text, with \\ and é and 漢字 and 🐧", None),
        ("a\ttab stays", None),
        ("line\nbreak\r", "line\\x0abreak\\x0d"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x00\x07\x7f", "\\x00\\x07\\x7f"),
        ("C1: \x9b31m \x85 \x80 \x9f", "C1: \\u009b31m \\u0085 \\u0080 \\u009f"),
        ("\xa0 is a space", None),
        ("\u202egnp.exe\u2066\u2069", "\\u202egnp.exe\\u2066\\u2069"),
        ("\u061c\u200e\u200f", "\\u061c\\u200e\\u200f"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("\ud800 \udfff", "\\ud800 \\udfff"),
        ("path \udcff\udc80", "path \\xff\\x80"),
    ],
)
def test_control_characters_are_escaped_and_other_text_is_kept(raw: str, shown: str | None) -> None:
    assert printable(raw) == (raw if shown is None else shown)


def test_bytes_that_are_not_utf8_are_escaped_one_by_one() -> None:
    assert printable_bytes(b"ok \xc3\xa9 \xff \xc2 \xed\xa0\x80") == (
        b"ok \xc3\xa9 \\xff \\xc2 \\xed\\xa0\\x80"
    )


def test_bytes_of_a_c1_control_are_escaped_together() -> None:
    assert printable_bytes(b"\xc2\x9b \x9b") == b"\\u009b \\x9b"


@given(st.text(st.characters()))
def test_escaped_text_is_one_line_and_is_not_escaped_again(text: str) -> None:
    once = printable(text)
    assert len(once.splitlines()) <= 1
    once.encode()
    assert printable(once) == once


@given(st.binary())
def test_any_bytes_become_utf8_without_control_bytes(raw: bytes) -> None:
    shown = printable_bytes(raw)
    shown.decode()
    assert not [byte for byte in shown if (byte < 32 and byte != 9) or byte == 127]


def ended(code: str, redirection: str) -> subprocess.CompletedProcess[str]:
    script = f"{shlex.join([*RUN, code])} {redirection}"
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "2</dev/null", ">&- 2>&-"])
def test_a_line_that_stderr_refuses_does_not_change_the_status(where: str) -> None:
    assert ended(SAY, where).returncode == 0


JOURNAL = """
import os, sys
from lttd.health import Health, Trouble
from lttd.terminal import Level, say, say_lines
log = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{log.st_dev}:{log.st_ino + int(sys.argv[1])}"
for level in Level:
    say(f"<0>a line of {level.name}", level)
say_lines("a table\\n<2>of two lines", Level.INFO)
health = Health(say)
health.begins(Trouble.BACKLOG_FULL, "full")
health.ends(Trouble.BACKLOG_FULL, "empty")
health.happened(Trouble.RING_EMPTIED, "emptied", "x_0")
"""
LINES = [
    ("<3>", "lttd: <0>a line of ERROR"),
    ("<4>", "lttd: <0>a line of WARNING"),
    ("<5>", "lttd: <0>a line of NOTICE"),
    ("<6>", "lttd: <0>a line of INFO"),
    ("<6>", "a table"),
    ("<6>", "<2>of two lines"),
    ("<4>", "lttd: full"),
    ("<5>", "lttd: empty"),
    ("<4>", "lttd: x_0: emptied"),
]


@pytest.mark.parametrize("is_journal", [True, False])
def test_every_line_has_a_priority_where_stderr_is_the_journal_and_nowhere_else(
    tmp_path: Path, is_journal: bool
) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        subprocess.run([*RUN, JOURNAL, "0" if is_journal else "1"], stderr=stderr, check=True)
    expected = [(priority if is_journal else "") + line for priority, line in LINES]
    assert log.read_text().splitlines() == expected


@pytest.mark.parametrize("stream", ["", ":", "x", "1:2:3"])
def test_a_journal_stream_that_names_no_file_sets_no_priority(stream: str) -> None:
    done = ended(f"import os; os.environ['JOURNAL_STREAM'] = {stream!r}; {SAY}", "")
    assert done.stderr == "lttd: one\nlttd: two\n"
    assert ended(f"import os; os.environ['JOURNAL_STREAM'] = '1:2'; {SAY}", "2>&-").returncode == 0


def with_pipe(code: str, before: Callable[[int, int], None]) -> tuple[subprocess.Popen[bytes], int]:
    """Start Python with a pipe as stdout and stderr; return the process and the read end."""
    reading, writing = os.pipe()
    before(reading, writing)
    process = subprocess.Popen([*RUN, code], stdout=writing, stderr=writing)
    os.close(writing)
    return process, reading


def test_a_line_to_a_pipe_without_a_reader_does_not_change_the_status() -> None:
    process, _ = with_pipe(SAY, lambda reading, _: os.close(reading))
    assert process.wait(30) == 0


def test_a_slow_reader_blocks_nobody_and_its_missed_lines_are_counted() -> None:
    code = (
        "import os, sys; from lttd.terminal import Level, say\n"
        "for n in range(2000): say('x' * 100, Level.INFO)\n"
        "os.write(1, b'.')\n"
        "os.read(0, 1)\n"
        "say('later', Level.INFO)"
    )
    reading, writing = os.pipe()
    with (
        open(reading, "rb", buffering=0) as pipe,
        subprocess.Popen(
            [*RUN, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=writing
        ) as process,
    ):
        os.close(writing)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(1) == b"."  # it has written all lines, and none has been read
        os.set_blocking(reading, False)
        read = b"".join(iter(lambda: pipe.read(4096) or b"", b""))
        os.set_blocking(reading, True)
        process.stdin.write(b".")
        process.stdin.close()
        read += b"".join(iter(lambda: pipe.read(4096) or b"", b""))
    assert process.returncode == 0
    lines = read.decode().splitlines()
    full = lines.count(f"lttd: {'x' * 100}")
    assert lines[-2:] == [
        f"lttd: {2000 - full} lines before this one were not written",
        "lttd: later",
    ]


def test_output_to_a_full_disk_fails_in_one_line() -> None:
    code = f"from lttd.errors import *\ntry:\n {PUT}\nexcept OutputError as e: exit(str(e))"
    for where, reason in (
        (">/dev/full", ": No space left on device"),
        (">&-", " is closed"),
        ("1</dev/null", " is closed"),
    ):
        run = ended(code, where)
        assert (run.returncode, run.stderr) == (
            1,
            f"standard output{reason}; the output is incomplete\n",
        )


def test_output_to_a_nonblocking_pipe_arrives_completely() -> None:
    process, reading = with_pipe(PUT, lambda _, writing: os.set_blocking(writing, False))
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"x" * 300_000
    assert process.wait(30) == 0


def test_closed_descriptors_are_filled_so_that_no_file_gets_their_number() -> None:
    code = (
        "import os; from lttd.terminal import fill_standard_descriptors as fill\n"
        "fill()\n"
        "fd = os.open('/etc/passwd', os.O_RDONLY)\n"
        "names = {os.readlink(f'/proc/self/fd/{number}') for number in range(3)}\n"
        "exit(0 if fd > 2 and names == {'/dev/null'} else 1)"
    )
    assert ended(code, "<&- >&- 2>&-").returncode == 0
