"""``lttv text`` and ``lttv follow`` print lines as the kernel prints them."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lttd
from lttd.abi.ftrace_format import parse_format
from lttd.subbuffer import Reason, Unit
from lttd.view import progress
from lttd.view.addresses import Symbols
from lttd.view.cli import main
from lttd.view.columns import EventBatch
from lttd.view.commands import text as show
from lttd.view.formats import EventName, EventType
from lttd.view.ftrace.lines import Texter
from lttd.view.ftrace.render import why_inexpressible
from lttd.view.lines import latency_flags, preempt_digits
from lttd.view.losses import Loss
from lttd.view.opened import OpenedTrace
from lttd.view.task_names import Names
from tests.ftraced import Traced, opened, pages_of, switch, tick
from tests.print_fmts import event, rows_of
from tests.tools import needs_tool, replayed
from tests.viewer import run

LINE = re.compile(r" *(?P<comm>.*)-(?P<pid>\d+) +\[(?P<cpu>\d+)\] (?:\S{5} )? *"
                  r"(?P<time>\d+\.\d+): +(?P<event>\S+): *(?P<fields>.*?) *")  # fmt: skip


@pytest.fixture(scope="module")
def fixture(tmp_path_factory: pytest.TempPathFactory) -> OpenedTrace:
    path = tmp_path_factory.mktemp("text") / "t"
    replayed(path)
    return lttd.open(path)


def text(trace: OpenedTrace, *, piece_bytes: int = 1 << 20, **window: object) -> str:
    told = []
    for group in trace.window(piece_bytes=piece_bytes, **window).clocks():  # type: ignore[arg-type]
        files = [segment.paths.directory / "tracefs/commands" for segment in group.segments]
        texter = Texter(Names(files), Symbols())
        told += [b"".join(texter.lines(group.batch(piece))) for piece in group.pieces()]
    return b"".join(told).decode()


def made_lines(made: Traced) -> list[str]:
    made.finish()
    return text(lttd.open(made.trace)).splitlines()


def test_a_line_has_the_shape_that_the_kernel_prints(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.commands((0, 7, "bash"), (0, 123456, "a-name-too-long-for-it"))
    events = [
        tick(-3, flags=5, preempt=0x12),
        tick(4, pid=123456, flags=0),
        tick(5, pid=0),
        tick(6, pid=99),
    ]
    events[0] = events[0][:2] + b"\x11" + events[0][3:]
    made.append([pages_of(1_234_567_890_000, events, delta=400)])
    assert made_lines(made) == [
        "            bash-7       [000] d.s21  1234.567890: tick: count=-3 flags=A|0x4",
        " a-name-too-long-123456  [000] .....  1234.567891: tick: count=4 flags=",
        "          <idle>-0       [000] .....  1234.567891: tick: count=5 flags=",
        "           <...>-99      [000] .....  1234.567892: tick: count=6 flags=",
    ]


@pytest.mark.parametrize(
    ("flags", "count", "told"),
    [(0, 0, "....."), (0x01, 1, "d..1."), (0x81, 0, "D...."), (0x80, 0x20, "b...2"),
     (0x24, 0, ".N..."), (0x04, 0, ".n..."), (0x06, 0, ".b..."), (0x08, 0, "..h.."),
     (0x18, 0, "..H.."), (0x10, 0, "..s.."), (0x48, 0, "..Z.."), (0x40, 15, "..zf.")],
)  # fmt: skip
def test_the_five_flag_letters_equal_those_of_the_kernel(flags: int, count: int, told: str) -> None:
    assert latency_flags(flags) + preempt_digits(count) == told


def test_losses_are_shown_where_they_happened(fixture: OpenedTrace) -> None:
    lines = text(fixture).splitlines()
    lost = [at for at, line in enumerate(lines) if "LOST" in line]
    assert [lines[at] for at in lost] == ["CPU:0 [LOST 3192 EVENTS]", "CPU:1 [LOST 3192 EVENTS]"]
    for at in lost:
        cpu = lines[at][4]
        before = [line for line in lines[:at] if f"[00{cpu}]" in line][-1]
        after = next(line for line in lines[at:] if f"[00{cpu}]" in line)
        gap_s = float(after.split()[3][:-1]) - float(before.split()[3][:-1])
        assert gap_s > 0.0005  # the fixture lost thousands of events there


def test_wide_lines_are_printed_among_narrow_ones(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    events = [opened("/" + "x" * 900, 1) if at == 40 else tick(at) for at in range(100)]
    events[70] = opened("/" + "y" * 500 + "\nz", 2)
    made.append([pages_of(1000, events)])
    made.finish()
    told = text(lttd.open(tmp_path / "t"))
    assert "/" + "x" * 900 + " ret=1\n" in told
    assert "y\\x0az ret=2\n" in told
    assert [int(n) for n in re.findall(r"count=(\d+) ", told)] == [
        at for at in range(100) if at not in (40, 70)
    ]


def test_a_task_name_changes_at_the_event_that_says_so(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.commands((0, 7, "old"), (1_000_000, 8, "noted"))
    events = [
        tick(1), switch(("sh", 7), ("noted", 8)), tick(2, pid=8), tick(3),
        switch(("ls", 7), ("x", 9)), tick(4), tick(5, pid=9),
    ]  # fmt: skip
    made.append([pages_of(1000, events)])
    lines = made_lines(made)
    assert [line.split("-")[0].strip() for line in lines] == [
        "sh", "sh", "noted", "sh", "ls", "ls", "x",
    ]  # fmt: skip


def test_the_size_of_pieces_does_not_change_the_lines(fixture: OpenedTrace) -> None:
    whole = text(fixture).splitlines()
    parts = text(fixture, piece_bytes=1).splitlines()
    assert [line[17:] for line in parts] == [line[17:] for line in whole]


def test_several_jobs_write_the_same_lines_as_one(
    fixture: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "PIECE_BYTES", 4096)
    monkeypatch.setattr("lttd.view.window.STREAM_BYTES", 1)
    alone = run(capfdbinary, "text", fixture.path, "--jobs", 1)
    assert alone[0] == 0
    assert alone[1].count(b"\n") == 2250
    for count in (2, 3):
        assert run(capfdbinary, "text", fixture.path, "--jobs", count) == alone


def test_options_select_and_format_lines(
    fixture: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = fixture.path
    _, out, _ = run(capfdbinary, "text", path, "-n", 5, "--ns", "--cpu", 1, "--event", "sys_*")
    assert len(out.splitlines()) == 5
    assert all(re.search(rb"\[001\] \S{5} +\d+\.\d{9}: sys_", line) for line in out.splitlines())
    _, out, _ = run(capfdbinary, "text", path, "--where", "id == 110", "--fields", "id")
    assert out.count(b"sys_exit: id=110\n") > 100
    _, out, _ = run(capfdbinary, "text", path, "--json", "--begin", "+0.001s", "--end", "+30ms")
    told = [json.loads(line) for line in out.splitlines()]
    assert {"time", "cpu", "comm", "pid", "event", "fields"} <= told[0].keys()
    assert told[0]["time"] >= (fixture.begin or 0) + 1_000_000
    for where, told in (("id ==", "invalid syntax at its end"), ("id = 1", "; equal is ==")):
        status, _, err = run(capfdbinary, "text", path, "--where", where)
        assert (status, told in err) == (2, True)
    assert run(capfdbinary, "text", path, "--begin", "never")[0] == 2


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_an_error_that_several_jobs_meet_is_one_line(
    fixture: OpenedTrace,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    jobs: int,
) -> None:
    monkeypatch.setattr(show, "PIECE_BYTES", 4096)
    monkeypatch.setattr("lttd.view.window.STREAM_BYTES", 1)
    words = ("--where", "prev_comm == 1 or common_pid == 'x'")
    status, _, err = run(capfdbinary, "text", fixture.path, "--jobs", jobs, *words)
    assert status == 2
    assert err.count("a string is compared with a number") == 1
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--cpu", 77], "--cpu: no such CPU in the trace; it has 0, 1"),
        (
            ["--event", "sys_exti"],
            "--event sys_exti: no event of the trace matches; near: sys_exit",
        ),
        (["--event", "raw_syscalls:sys_*", "--event", "nosuch*"], "--event nosuch*: no event"),
        (["--where", "idd == 1"], "--where: no such event has a field idd"),
        (["--where", "prev_comm == bash"], "a string is quoted: 'bash'"),
        (
            ["--event", "sys_exit", "--fields", "id,rett"],
            "--fields: no such event has a field rett",
        ),
        (["--begin", "+100s"], "nothing was recorded within these times; there is "),
    ],
)
def test_an_unknown_event_name_is_reported_for_any_number_of_jobs(
    fixture: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes], words: list[object], told: str
) -> None:
    for jobs in (1, 2):
        status, _, err = run(capfdbinary, "text", fixture.path, "--jobs", jobs, *words)
        assert status == 0
        assert told in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("most", [1, 2])
def test_an_unknown_field_is_reported_even_after_some_lines(
    fixture: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes], most: int
) -> None:
    status, out, err = run(capfdbinary, "text", fixture.path, "--fields", "nope", "-n", most)
    assert (status, len(out.splitlines())) == (0, most)
    assert err == "lttv: --fields: no such event has a field nope\n"


@pytest.mark.parametrize("where", ["pid == 99999", "common_pid == 1 and event == 'sys_exit'"])
def test_an_event_that_did_not_occur_gives_no_note(
    fixture: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes], where: str
) -> None:
    status, out, err = run(capfdbinary, "text", fixture.path, "--where", where)
    assert (status, err) == (0, "")
    assert all(b" [LOST " in line for line in out.splitlines())


@pytest.mark.parametrize(
    "words",
    [("-n", -1), ("--jobs", 0), ("--cpu", "x"), ("-n", "9" * 5000), ("--cpu", "9" * 5000),
     ("--jobs", 10**6), ("--jobs", "9" * 5000), ("-n", "\u0669"), ("--begin", "9" * 5000),
     ("--end", "+" + "9" * 5000 + "s"), ("--begin", "1." + "9" * 5000), ("--begin", "x" * 100_000),
     ("--begin", "99:" * 3000), ("--end", "2026-11-23T" + "1:" * 3000), ("--where", "9" * 5000),
     ("--where", "(" * 5000), ("--where", "x" * 100_000 + "="), ("--where", "not " * 5000 + "1"),
     ("--where", "-" * 5000 + "1"), ("--no-such-option", "x"), ("--bad\n\x1b[31m", ""),
     ("--begin", "1\n2"), ("--where", "a\x1b[31m =")],
    ids=lambda words: f"{words[0]} {words[1]!s:.9}",
)  # fmt: skip
def test_an_invalid_argument_of_text_is_a_usage_error_in_one_line(
    fixture: OpenedTrace, capfd: pytest.CaptureFixture[str], words: tuple[object, ...]
) -> None:
    assert main(["text", str(fixture.path), *map(str, words)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("lttv: ")
    assert len(err) < 800
    assert err[:-1].isprintable()
    assert err[-1] == "\n"


def test_json_lines_include_losses(
    fixture: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    _, out, _ = run(capfdbinary, "text", fixture.path, "--json")
    told = [json.loads(line) for line in out.splitlines()]
    assert [one["lost"] for one in told if "lost" in one] == [3192, 3192]
    assert len(told) == 2250
    assert sorted(one["time"] for one in told) == [one["time"] for one in told]


def test_a_trace_that_cannot_be_shown_gives_one_line_on_stderr(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000 * at, [tick(at)]) for at in range(1, 6)])
    made.finish()
    shutil.rmtree(made.tracefs / "events/clock")
    status, out, err = run(capfdbinary, "text", tmp_path / "t")
    assert status == 0
    assert out.count(b"unknown-1: bytes=") == 5
    assert len(err.splitlines()) == 1
    assert "event id 1" in err


def test_lttv_text_ends_quietly_if_its_pipe_is_closed(fixture: OpenedTrace) -> None:
    words = [sys.executable, "-m", "lttd.view", "text", str(fixture.path), "--jobs", "2"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.close(os.dup(process.stdout.fileno()))
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_terminal_shows_progress_and_clears_it_at_the_end(
    fixture: OpenedTrace, tmp_path: Path, jobs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0)
    monkeypatch.setattr(show, "PIECE_BYTES", 4096)
    monkeypatch.setattr("lttd.view.window.STREAM_BYTES", 1)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal, (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["text", str(fixture.path), "--jobs", jobs]) == 0
        told = ""
        # The kernel passes the bytes of a terminal on with a delay.
        while not told.endswith("%\r    \r"):
            told += os.read(ours, 1 << 16).decode()
    os.close(ours)
    shares = [int(share) for share in re.findall(r"(\d+)%\r", told)]
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert told.endswith("%\r    \r")
    assert (tmp_path / "out").read_text().count("\n") == 2250


def test_several_traces_of_one_boot_are_merged_by_time(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for number, name in enumerate(("a", "b", "c")):
        made = Traced(tmp_path / name)
        made.append([pages_of(3000 * at + 1000 * number, [tick(at)] * 3) for at in range(1, 5)])
        made.finish()
    paths = [tmp_path / name for name in "abc"]
    status, out, err = run(capfdbinary, "text", *paths, "--ns", "--begin", "6.01us")
    assert status == 2  # "6.01us" is not a valid time
    assert "is not a valid time" in err
    status, out, err = run(capfdbinary, "text", *paths, "--ns", "--begin", "0.00000601")
    times = [line.split()[3] for line in out.decode().splitlines()]
    assert (status, err, len(times)) == (0, "", 27)
    assert times == sorted(times)
    assert out.count(b"count=2") == 9


def test_a_segment_removed_meanwhile_is_reported_and_others_are_shown(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for number in (1, 2, 3, 4, 5):
        made = Traced(tmp_path / "t", number=number)
        made.append([pages_of(1000 * number, [tick(number)])])
        made.finish()
        if number in (2, 3):
            shutil.rmtree(made.paths.directory)
    status, out, err = run(capfdbinary, "text", tmp_path / "t")
    assert status == 0
    assert re.findall(rb"count=(\d)", out) == [b"1", b"4", b"5"]
    assert err == f"lttv: {tmp_path / 't'}: segments 2 and 3 are not there\n"


def test_events_are_shown_as_bytes_without_any_saved_file(
    fixture: OpenedTrace, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    shutil.copytree(fixture.path, tmp_path / "t")
    for tracefs in (tmp_path / "t").glob("*/tracefs"):
        shutil.rmtree(tracefs)
    status, out, err = run(capfdbinary, "text", tmp_path / "t")
    assert status == 0
    assert out.count(b": bytes=") == 2248
    assert out.count(b"LOST 3192 EVENTS") == 2
    (line,) = err.splitlines()
    assert "no format of any event: all shown as bytes" in line


@needs_tool("trace-cmd")
def test_the_lines_of_the_fixture_equal_those_of_trace_cmd(
    fixture: OpenedTrace, tmp_path: Path
) -> None:
    out = tmp_path / "trace.dat"
    assert main(["export", str(fixture.path), "--to", "trace.dat", "-o", str(out)]) == 0
    report = subprocess.run(
        ["trace-cmd", "report", "-N", out], capture_output=True, text=True, check=True
    ).stdout
    theirs = [found for line in report.splitlines() if (found := LINE.fullmatch(line))]
    ours = [found for line in text(fixture).splitlines() if (found := LINE.fullmatch(line))]
    assert len(ours) == len(theirs) == 2248
    for mine, other in zip(ours, theirs, strict=True):
        for part in ("pid", "cpu", "time", "event", "fields"):
            assert mine[part] == other[part]
        # trace-cmd has no name for tasks that ended before recording; lttv takes that of the event.
        assert mine["comm"] == other["comm"] or other["comm"] == "<...>"


@pytest.mark.kernel
@pytest.mark.skipif(not Path("/sys/kernel/tracing/events/sched").is_dir(), reason="no tracefs")
@pytest.mark.slow
def test_nearly_all_print_fmts_of_this_kernel_are_supported() -> None:
    whys = [
        why_inexpressible(parse_format(path.read_bytes(), path.parts[-3]))
        for path in Path("/sys/kernel/tracing/events").glob("*/*/format")
    ]
    assert sum(why is None for why in whys) >= 0.98 * len(whys)


def test_a_batch_without_events_shows_its_losses(tmp_path: Path) -> None:
    empty = np.empty(0)
    batch = EventBatch(
        memoryview(b""), [], *(empty.astype(d) for d in ("u8", "u2", "i4", "i4", "u1", "u1", "i8")),
        empty.astype("u4"),
    )  # fmt: skip
    batch = replace(batch, losses=[Loss(5, 0, 3, Unit.EVENTS, Reason.OVERWRITTEN)])
    assert b"".join(Texter(Names([tmp_path]), Symbols()).lines(batch)) == b"CPU:0 [LOST 3 EVENTS]\n"


@pytest.mark.parametrize(("apart_ns", "every"), [(1, 2), (70_000_000, 2), (1, 100)])
def test_lines_of_any_lengths_follow_one_another(apart_ns: int, every: int) -> None:
    """Some lines of a second type are long: half of all events, or so few that slots are narrow.

    Pids and seconds have several lengths, too, so that prefixes have.
    """
    count = 10_000
    texts = [b"x" * (at * 7 % 40 if at % 500 else at % 8000) for at in range(count)]
    made = [event(i=at % 3 - 1, q=at**3, text=text) for at, text in enumerate(texts)]
    batch = rows_of('"%d %llx %s", REC->i, REC->q, __get_str(s)', made).batch
    other = EventType(1, EventName("s", "other_name"), 9, "")
    other.format = batch.types[0].format
    number = np.arange(count)
    batch = replace(
        batch,
        types=[*batch.types, other],
        type=(number % every == 0).astype(np.int32),
        pid=np.where(number % 1000, 7, 123_456_789).astype(np.int32),
        time=(number * apart_ns).astype(np.uint64),
    )
    found = b"".join(Texter(Names([]), Symbols(), nanoseconds=True).lines(batch)).decode()
    expected = []
    for at, told in enumerate(texts):
        pid = 7 if at % 1000 else 123_456_789
        second, ns = divmod(at * apart_ns, 1_000_000_000)
        name = "made" if at % every else "other_name"
        head = f"{'<...>':>16}-{pid:<7} [000] ..... {second:5}.{ns:09}: {name}: "
        expected.append(f"{head}{at % 3 - 1} {at**3:x} {told.decode()}\n")
    assert found == "".join(expected)
