"""The names of tasks, files and events can neither control a terminal nor forge a line."""

import json
import re
from pathlib import Path

import pytest

from lttd.cli import main as record
from lttd.manifest import Manifest
from lttd.terminal import printable
from lttd.view.cli import main
from tests import blk
from tests.ftraced import PRINT, Traced, common, format_text, marker, opened, pages_of, switch, tick

# A newline with a forged line, a colour, C1, DEL, a right-to-left override, a line separator.
NASTY = "a\n\x1b[31m\x9b\x7f\u202e\u2028"
SHOWN = "a\\x0a\\x1b[31m\\u009b\\x7f\\u202e\\u2028"


def ran(capfd: pytest.CaptureFixture[str], *words: str | Path, status: int = 0) -> tuple[str, str]:
    """Run lttv; return stdout and stderr, and assert that nothing in them needs escaping."""
    assert main([str(word) for word in words]) == status
    out, err = capfd.readouterr()
    for line in (out + err).split("\n"):
        assert printable(line) == line
    return out, err


@pytest.fixture
def made(tmp_path: Path) -> Traced:
    made = Traced(tmp_path / "t")
    fields = ["unsigned long ip;8;8;0", "char buf[];16;0;0"]
    made.add_format("ftrace/print", format_text("print", PRINT, fields, '"%s", REC->buf'))
    return made


def lines_of(made: Traced, capfd: pytest.CaptureFixture[str], *options: str) -> list[str]:
    made.finish()
    return ran(capfd, "text", made.trace, *options)[0].splitlines()


def test_a_hostile_task_name_stays_on_its_line(
    made: Traced, capfd: pytest.CaptureFixture[str]
) -> None:
    (made.tracefs / "commands").write_bytes(b"0\t7\t7\t" + b"\x1b[31m\\n# x\xff\n")
    made.append([pages_of(1000, [tick(1), switch(("b\r\x9b", 8), ("c\td", 9)), tick(2, pid=9)])])
    assert lines_of(made, capfd) == [
        "\\x1b[31m\\x0a# x\\xff-7       [000] .....     0.000001: tick: count=1 flags=",
        "     b\\x0d\\u009b-8       [000] .....     0.000001: sched_switch: "
        "b\\x0d\\u009b:8 ==> c\td:9",
        "             c\td-9       [000] .....     0.000001: tick: count=2 flags=",
    ]


@pytest.mark.parametrize(
    "options", [[], ["--fields", "buf,path"], ["--jobs", "2"], ["-n", "3"]], ids=str
)
def test_values_are_escaped_and_the_final_newline_of_a_marker_is_dropped(
    made: Traced, capfd: pytest.CaptureFixture[str], options: list[str]
) -> None:
    made.append(
        [pages_of(1000, [marker(NASTY.encode()), marker(b"ends\n"), opened(f"/{NASTY}é", 1)])]
    )
    lines = lines_of(made, capfd, *options)
    ends = [re.sub(r".*(print|opened): (buf=|path=)?", "", line) for line in lines]
    assert [end.removesuffix(" ret=1") for end in ends] == [SHOWN, "ends", f"/{SHOWN}é"]


def test_json_keeps_the_bytes_and_one_object_per_line(
    made: Traced, capfd: pytest.CaptureFixture[str]
) -> None:
    made.append([pages_of(1000, [marker(NASTY.encode()), opened(NASTY, 1)])])
    told = [json.loads(line) for line in lines_of(made, capfd, "--json")]
    assert [list(one["fields"].values())[0 if "path" in one["fields"] else 1] for one in told] == [
        NASTY,
        NASTY,
    ]


def test_names_and_literals_of_format_files_are_escaped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = Traced(tmp_path / "t")
    text = format_text("x", 20, ["int n;8;4;1"], '"n=%d\\n# forged\\r and %c\\n", REC->n, REC->n')
    made.add_format("evil/ti\nck\x1b", text)
    made.append([pages_of(1000, [common(20, 7) + (27).to_bytes(4, "little")])])
    (line,) = lines_of(made, capfd)
    assert line.endswith(": ti\\x0ack\\x1b: n=27\\x0a# forged\\x0d and \\x1b")


def test_escaping_leaves_the_spaces_of_a_column_unchanged(
    made: Traced, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = [f"/plain{at}" if at % 50 else f"/{NASTY}{at}" for at in range(500)]
    for at in range(0, 500, 100):
        events = [opened(path, 1) for path in paths[at : at + 20]]
        made.append([pages_of(1000 * (at + 1), events)])
    shown = [re.sub(r".*path=| ret=1", "", line) for line in lines_of(made, capfd)]
    assert shown == [printable(path) for at in range(0, 500, 100) for path in paths[at : at + 20]]


def test_follow_escapes_as_text_does(made: Traced, capfd: pytest.CaptureFixture[str]) -> None:
    made.append([pages_of(1000, [marker(NASTY.encode())])])
    made.finish()
    out, _ = ran(capfd, "follow", made.trace, "--from-begin", "--until-closed")
    assert out.endswith(f"print: {SHOWN}\n")
    assert out.count("\n") == 1


def test_symbols_of_a_kallsyms_file_are_escaped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = Traced(tmp_path / "t")
    text = format_text("called", 20, ["unsigned long ip;8;8;0"], '"%ps", (void *)REC->ip')
    made.add_format("evil/called", text)
    (made.tracefs / "kallsyms").write_bytes(b"ffffffff81000000 T do\x1b[31m_\xff\n")
    address = 0xFFFFFFFF81000000
    made.append([pages_of(1000, [common(20, 7) + address.to_bytes(8, "little")])])
    (line,) = lines_of(made, capfd)
    assert line.endswith(": called: do\\x1b[31m_\\xff")


def test_info_and_check_escape_the_values_of_a_manifest(
    made: Traced, capfd: pytest.CaptureFixture[str]
) -> None:
    made.append([pages_of(1000, [tick(1)])])
    made.finish()
    manifest = Manifest.read(made.paths.manifest)
    manifest.machine |= {"host": NASTY, "kernel": NASTY}
    manifest.source |= {"spec": f"replay:{NASTY}"}
    made.paths.manifest.write_bytes(manifest.encode())
    out, _ = ran(capfd, "info", made.trace)
    assert f"{SHOWN}, Linux {SHOWN}\n" in out
    assert f"source      replay:{SHOWN}," in out
    moved = made.trace.rename(made.trace.parent / NASTY)
    out, _ = ran(capfd, "info", moved)
    assert f"/{SHOWN} (closed" in out.splitlines()[0]
    next(moved.glob("*/streams/*_0")).write_bytes(b"")
    out, _ = ran(capfd, "check", moved, status=1)
    assert SHOWN in out


@pytest.mark.parametrize("command", ["info", "text", "check", "follow", "formats"])
def test_an_error_names_a_path_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    _, err = ran(capfd, command, tmp_path / f"{NASTY}\udcff", status=2)
    assert err == f"lttv: {tmp_path}/{SHOWN}\\xff: no such directory\n"


def test_messages_and_process_names_of_a_block_trace_stay_on_their_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    data = blk.process(1, 10, "x\n\x1b") + blk.record(2, pid=10)
    data += blk.message(3, b"said\n\x1b[31m\xff\n")
    (tmp_path / "raw/made.blktrace.0").write_bytes(data)
    source = f"replay:{tmp_path}/raw,abi=blktrace"
    assert record(["-t", str(tmp_path / "t"), "--source", source]) == 0
    capfd.readouterr()
    out, _ = ran(capfd, "text", tmp_path / "t")
    assert [line.split(" N ")[-1].split(" + ")[-1] for line in out.splitlines()] == [
        "8 [x\\x0a\\x1b]",
        "said\\x0a\\x1b[31m\\xff",
    ]


def test_a_picture_shows_escaped_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = Traced(tmp_path / "t")
    (made.tracefs / "events/clock/tick").rename(made.tracefs / "events/clock/t<i>\u202e\x1bck")
    made.append([pages_of(1000, [tick(1)])])
    made.finish()
    for name in ("t.svg", "t.html"):
        ran(capfd, "plot", made.trace, "-o", tmp_path / name)
        picture = (tmp_path / name).read_text()
        assert "t&lt;i&gt;\\u202e\\x1bck" in picture
        assert "\u202e" not in picture
