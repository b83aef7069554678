"""The importer of Perfetto's UI accepts every line of the exported text."""

import re
from pathlib import Path

import pytest

import lttd
from lttd.errors import NotATraceError, UsageError
from lttd.view.cli import main
from lttd.view.export import export
from lttd.view.times import EVERYTHING, window_of
from tests.ftraced import PRINT_FORMAT, Traced, marker, opened, pages_of, switch, tick
from tests.fuzz_traces import blocks
from tests.tools import replayed

# Perfetto, src/trace_processor/importers/systrace/systrace_line_tokenizer.cc, the strictest one.
LINE = re.compile(
    r"-(\d+)\s+\(?\s*(\d+|-+)?\)?\s?\[(\d+)\]\s*[a-zA-Z0-9.]{0,4}\s+(\d+\.\d+):\s+(\S+):"
)

CALLER = 0xFFFF_FFFF_8100_0104
NAMES = {"print": "tracing_mark_write"}
"""The pattern that the importer expects."""


def exported(trace: Path, begin: str | None = None, end: str | None = None) -> list[str]:
    out = trace.parent / "systrace.txt"
    out.unlink(missing_ok=True)
    trace_ = lttd.open(trace)
    export(trace_, window_of(trace_, begin, end), "systrace", out)
    return out.read_text().splitlines()


def test_the_importer_accepts_every_line_of_the_fixture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed(tmp_path / "t")
    out = tmp_path / "t.txt"
    words = ["export", str(tmp_path / "t"), "--to", "systrace", "-o", str(out)]
    assert main(words) == 0
    assert "2248 events; 2 losses" in capsys.readouterr().err.replace("\nlttv: ", "; ")
    lines = out.read_text().splitlines()
    assert lines[0] == "# tracer: nop"
    comments = [line for line in lines if line.startswith("#")]
    assert [one for one in comments if "LOST" in one] == [
        "# CPU:0 [LOST 3192 EVENTS]", "# CPU:1 [LOST 3192 EVENTS]",
    ]  # fmt: skip
    told = [LINE.search(line) for line in lines if not line.startswith("#")]
    assert None not in told
    events = [
        (str(event.pid), f"{event.cpu:03}", NAMES.get(event.name, event.name))
        for event in lttd.open(tmp_path / "t").events()
    ]
    assert [found.group(1, 3, 5) for found in told if found] == events


def test_lines_have_the_process_and_all_digits_of_the_time(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    (made.tracefs / "commands").write_text("0\t7\t5\tworker\n0\t8\t8\ta b-1 [x\n")
    events = [tick(1), tick(2, pid=8, preempt=3), tick(3, pid=9), switch(("worker", 7), ("y", 8))]
    made.append([pages_of(1_234_567_890_000, events)])
    made.finish()
    assert exported(tmp_path / "t")[-4:] == [
        "          worker-7       (      5) [000] ....  1234.567890010: tick: count=1 flags=",
        "               y-8       (      8) [000] ...3  1234.567890020: tick: count=2 flags=",
        "           <...>-9       (-------) [000] ....  1234.567890030: tick: count=3 flags=",
        "          worker-7       (      5) [000] ....  1234.567890040: sched_switch: "
        "worker:7 ==> y:8",
    ]


@pytest.mark.parametrize("named", [False, True])
def test_a_marker_has_the_form_that_the_importer_expects(tmp_path: Path, named: bool) -> None:
    made = Traced(tmp_path / "t")
    made.add_format("ftrace/print", PRINT_FORMAT)
    if named:
        (made.tracefs / "kallsyms").write_text(
            "ffffffff81000000 t tracing_mark_write\nffffffff81000100 t caller\n"
            "ffffffff81000200 t last\n"
        )
    events = [
        marker(b"B|7|outer\n"),
        marker(b"C|7|n|3\n"),
        marker(b"said\n", CALLER),
        marker(b"E|7\n"),
    ]
    made.append([pages_of(1000, [*events, tick(1)])])
    made.finish()
    lines = [line for line in exported(tmp_path / "t") if not line.startswith("#")]
    assert all(LINE.search(line) for line in lines)
    says = "caller" if named else "tracing_mark_write"
    assert [line.partition(": ")[2] for line in lines] == [
        "tracing_mark_write: B|7|outer",
        "tracing_mark_write: C|7|n|3",
        f"{says}: said",
        "tracing_mark_write: E|7",
        "tick: count=1 flags=",
    ]


def test_a_newline_in_a_field_does_not_break_the_line(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.commands((0, 7, "a\\n-1 [x"))
    made.append([pages_of(1000, [opened("/a\n# b\nc", 1), tick(1)])])
    made.finish()
    lines = [line for line in exported(tmp_path / "t") if not line.startswith("#")]
    assert all(LINE.search(line) for line in lines)
    assert lines[0].strip() == (
        "a\\x0a-1 [x-7       (      7) [000] ....     0.000001010: opened: "
        "path=/a\\x0a# b\\x0ac ret=1"
    )
    assert len(lines) == 2


def test_a_window_exports_exactly_its_events(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000 * at, [tick(at), tick(at)]) for at in range(1, 9)])
    made.finish()
    lines = exported(tmp_path / "t", "+1020ns", "+3us")
    assert [int(found) for found in re.findall(r"count=(\d)", "\n".join(lines))] == [2, 3, 3]
    with pytest.raises(NotATraceError):
        exported(tmp_path / "t", "+1s", "+2s")


def test_an_export_of_several_clocks_is_refused(tmp_path: Path) -> None:
    for number, boot in enumerate(("a", "b"), 1):
        made = Traced(tmp_path / "t", number=number, boot_id=boot)
        made.append([pages_of(1000, [tick(1)])])
        made.finish()
    with pytest.raises(UsageError, match="one clock"):
        export(lttd.open(tmp_path / "t"), EVERYTHING, "systrace", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_trace_without_ftrace_events_is_refused(tmp_path: Path) -> None:
    blocks(tmp_path / "t")
    with pytest.raises(
        UsageError,
        match="holds blktrace, and --to systrace takes only ctf, ftrace; formats for it: parquet",
    ):
        export(lttd.open(tmp_path / "t"), EVERYTHING, "systrace", tmp_path / "out")
