"""Records of the function tracers are printed as the kernel's trace file prints them."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lttd
from lttd import occurrence_maker
from lttd.view import window
from lttd.view.addresses import Symbols
from lttd.view.cli import main
from lttd.view.commands import text
from lttd.view.ftrace.graph_text import durations
from lttd.view.ftrace.lines import Texter
from lttd.view.notes import Notes
from lttd.view.task_names import Names
from tests.ftraced import Traced, common, format_text, pages_of, tick
from tests.print_fmts import lines_of

ENTRY, EXIT, FUNCTION = 11, 10, 21
FUNC = ("unsigned long func;8;8;0", "int depth;16;4;1")
TIMES = ("unsigned int overrun;20;4;0", *(f"unsigned long long {n};{at};8;0" for n, at in
         (("calltime", 24), ("rettime", 32))))  # fmt: skip
FORMATS_6_1 = {
    "ftrace/funcgraph_entry": format_text("funcgraph_entry", ENTRY, FUNC, '"--> %ps (%d)"'),
    "ftrace/funcgraph_exit": format_text("funcgraph_exit", EXIT, [*FUNC, *TIMES], '"<-- %ps (%d)"'),
}
READ, OPEN, SCHED, LONE = 0xFFFFFFFF81000000, 0xFFFFFFFF81001000, 0xFFFFFFFF81002000, 5
KALLSYMS = (
    "ffffffff81000000 T vfs_read\nffffffff81001000 T do_filp_open\n"
    "ffffffff81002000 t ext4_map\t[ext4]\nffffffff81003000 T end\n"
)


def entry(function: int, depth: int = 0, pid: int = 7) -> bytes:
    return common(ENTRY, pid) + struct.pack("<Qi", function, depth)


def exit_(
    function: int, depth: int = 0, ns: int = 3916, pid: int = 7, *, stale: bytes = b""
) -> bytes:
    body = struct.pack("<QiIQQ", function, depth, 0, 1000, 1000 + ns)
    return common(EXIT, pid) + body + stale


def traced(path: Path, formats: dict[str, bytes] = FORMATS_6_1, cpus: int = 1) -> Traced:
    made = Traced(path / "t", cpus=cpus)
    for name, told in formats.items():
        made.add_format(name, told)
    (made.tracefs / "kallsyms").write_text(KALLSYMS)
    return made


def printed(made: Traced, capfd: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """Return what follows the time of each line."""
    made.finish()
    assert main(["text", str(made.trace), *options]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return [line[line.index(": ") + 2 :] for line in out.splitlines()]


def test_calls_are_indented_and_a_leaf_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = traced(tmp_path)
    made.append([pages_of(1000, [
        entry(OPEN), entry(READ, 1), exit_(READ, 1), tick(1), entry(SCHED, 1), tick(2),
        exit_(SCHED, 1, 65147), exit_(OPEN, 0, 1_739_811),
    ])])  # fmt: skip
    assert printed(made, capfd) == [
        "funcgraph_entry:               |  do_filp_open() {",
        "funcgraph_entry:   3.916 us    |    vfs_read();",
        "tick: count=1 flags=",
        "funcgraph_entry:               |    ext4_map [ext4]() {",
        "tick: count=2 flags=",
        "funcgraph_exit:  + 65.147 us   |    }",
        "funcgraph_exit:  # 1739.811 us |  }",
    ]


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (0, "  0.000 us    "),
        (3916, "  3.916 us    "),
        (10_000, "  10.000 us   "),
        (10_001, "+ 10.001 us   "),
        (100_001, "! 100.001 us  "),
        (1_739_811, "# 1739.811 us "),
        (12_345_678, "* 12345.67 us "),
        (100_000_001, "@ 100000.0 us "),
        (1_234_567_890, "$ 1234567 us  "),
        (12_345_678_901, "$ 12345678 us "),
        (123_456_789_012_345, "$ 123456789012 us "),
        ((1 << 64) - 1, "$ 18446744073709551 us "),
    ],
)
def test_a_duration_has_the_marks_and_the_width_of_the_kernel(ns: int, shown: str) -> None:
    assert lines_of([durations(np.array([ns], np.uint64))], 1) == [shown]


def as_kernel(ns: int) -> str:
    """Print as trace_print_graph_duration() does."""
    limits = ((10**9, "$"), (10**8, "@"), (10**7, "*"), (10**6, "#"), (10**5, "!"), (10**4, "+"))
    mark = next((mark for limit, mark in limits if ns > limit), " ")
    told = str(ns // 1000)
    if len(told) < 7:
        told += "." + f"{ns % 1000:03}"[: min(5, 8 - len(told)) - 1]
    return f"{mark} {told} us " + " " * (8 - len(told))


@given(st.lists(st.integers(0, (1 << 64) - 1) | st.integers(0, 10**8), min_size=1))
def test_durations_of_all_sizes_together_are_as_the_kernel_prints_each(ns: list[int]) -> None:
    assert lines_of([durations(np.array(ns, np.uint64))], len(ns)) == list(map(as_kernel, ns))


def test_an_exit_without_its_entry_names_the_function(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = traced(tmp_path)
    made.append([pages_of(1000, [
        exit_(READ, 1), exit_(OPEN, 0, 12), entry(OPEN, 2), tick(0), exit_(READ, 2),
    ])])  # fmt: skip
    assert printed(made, capfd) == [
        "funcgraph_exit:    3.916 us    |    } /* vfs_read */",
        "funcgraph_exit:    0.012 us    |  } /* do_filp_open */",
        "funcgraph_entry:               |      do_filp_open() {",
        "tick: count=0 flags=",
        "funcgraph_exit:    3.916 us    |      } /* vfs_read */",
    ]


def test_an_exit_of_another_task_or_cpu_makes_no_leaf(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = traced(tmp_path, cpus=2)
    made.append([pages_of(1000, [entry(READ, pid=7), exit_(READ, pid=8)])])
    made.append([pages_of(1005, [exit_(READ, pid=7)])], cpu=1)
    assert printed(made, capfd) == [
        "funcgraph_entry:               |  vfs_read() {",
        "funcgraph_exit:    3.916 us    |  } /* vfs_read */",
        "funcgraph_exit:    3.916 us    |  }",
    ]


def test_stale_bytes_after_an_exit_are_not_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = traced(tmp_path)
    made.append([pages_of(1000, [entry(READ), exit_(READ, stale=b"\xff" * 16)])])
    assert printed(made, capfd) == ["funcgraph_entry:   3.916 us    |  vfs_read();"]


def test_an_unknown_function_is_printed_by_its_address(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = traced(tmp_path)
    made.append([pages_of(1000, [entry(LONE), exit_(LONE), entry(1 << 63)])])
    assert printed(made, capfd) == [
        "funcgraph_entry:   3.916 us    |  0x5();",
        "funcgraph_entry:               |  0x8000000000000000() {",
    ]


def test_the_duration_of_a_leaf_stays_when_exits_are_filtered_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = traced(tmp_path)
    made.append([pages_of(1000, [entry(OPEN), entry(READ, 1), exit_(READ, 1), exit_(OPEN)])])
    assert printed(made, capfd, "--event", "funcgraph_entry") == [
        "funcgraph_entry:               |  do_filp_open() {",
        "funcgraph_entry:   3.916 us    |    vfs_read();",
    ]


def test_both_records_of_a_leaf_are_there_for_programs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = traced(tmp_path)
    made.append([pages_of(1000, [entry(READ), exit_(READ)])])
    made.finish()
    assert main(["text", str(made.trace), "--json"]) == 0
    events = [json.loads(line)["event"] for line in capfd.readouterr().out.splitlines()]
    assert events == ["funcgraph_entry", "funcgraph_exit"]


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("layout", ["packed", "sparse"])
def test_pieces_and_jobs_change_no_line(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    jobs: str,
) -> None:
    made = Traced(tmp_path / "t", layout=layout, cpus=2)
    for name, told in FORMATS_6_1.items():
        made.add_format(name, told)
    # Every leaf is divided between two sub-buffers.
    for cpu in range(2):
        made.append([
            pages_of(1000 * n + cpu, [exit_(READ, pid=cpu), tick(n), entry(READ, pid=cpu)])
            for n in range(1, 200)
        ], cpu=cpu)  # fmt: skip
    whole = printed(made, capfd, "--jobs", "1")
    assert len(whole) == 2 * (200 + 199)  # of each CPU: the first exit, the last entry, the leaves
    monkeypatch.setattr(text, "PIECE_BYTES", 300)
    monkeypatch.setattr(window, "STREAM_BYTES", 100)
    assert main(["text", str(made.trace), "--jobs", jobs]) == 0
    again = capfd.readouterr().out.splitlines()
    assert [line[line.index(": ") + 2 :] for line in again] == whole


def test_an_occurrence_table_changes_no_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(occurrence_maker, "LEAST_RATIO", 0)
    monkeypatch.setattr(text, "PIECE_BYTES", 300)
    monkeypatch.setattr(window, "STREAM_BYTES", 100)
    made = traced(tmp_path)
    made.append([
        pages_of(1000 * n, [tick(n)] * 3 if n % 3 else [exit_(READ), tick(n), entry(READ)])
        for n in range(1, 300)
    ] + [pages_of(1000 * n, [exit_(READ), entry(READ)]) for n in range(300, 400)])  # fmt: skip
    without = printed(made, capfd, "--event", "funcgraph_entry")
    assert sum("();" in line for line in without) == 99
    assert main(["index", str(made.trace)]) == 0
    capfd.readouterr()
    assert main(["text", str(made.trace), "--event", "funcgraph_entry"]) == 0
    again = capfd.readouterr().out.splitlines()
    assert [line[line.index(": ") + 2 :] for line in again] == without


def model(records: list[tuple[str, int, int, int]]) -> list[str]:
    """Print as trace_functions_graph.c does, record by record of one CPU."""
    lines, entered, at = [], dict[int, int](), 0
    names = {READ: "vfs_read", OPEN: "do_filp_open"}
    while at < len(records):
        kind, function, depth, pid = records[at]
        indent, name = "  " * depth, names[function]
        at += 1
        if kind == "tick":
            lines.append("tick: count=0 flags=")
        elif kind == "exit":
            tail = "" if entered.pop(depth, None) == function else f" /* {name} */"
            lines.append(f"funcgraph_exit:    3.916 us    |  {indent}}}{tail}")
        elif at < len(records) and (records[at][0], records[at][1], records[at][3]) == (
            *("exit", function, pid),
        ):
            entered.pop(depth, None)
            at += 1
            lines.append(f"funcgraph_entry:   3.916 us    |  {indent}{name}();")
        else:
            entered[depth] = function
            lines.append(f"funcgraph_entry:               |  {indent}{name}() {{")
    return lines


RECORDS = st.tuples(
    st.sampled_from(["entry", "exit", "exit", "entry", "tick"]),
    st.sampled_from([READ, OPEN]), st.integers(0, 2), st.sampled_from([7, 8]),
)  # fmt: skip


@given(st.lists(st.lists(RECORDS, max_size=6), min_size=1, max_size=12))
def test_any_records_in_any_sub_buffers_are_printed_as_by_the_kernels_code(
    tmp_path_factory: pytest.TempPathFactory,
    pages: list[list[tuple[str, int, int, int]]],
) -> None:
    made = traced(tmp_path_factory.mktemp("model"))
    make = {"entry": entry, "exit": lambda f, d, pid: exit_(f, d, pid=pid)}
    filled = [page for page in pages if page] or [[("tick", READ, 0, 7)]]
    made.append([
        pages_of(1000 * number, [
            tick(0) if kind == "tick" else make[kind](function, depth, pid)
            for kind, function, depth, pid in page
        ])
        for number, page in enumerate(filled, 1)
    ])  # fmt: skip
    made.finish()
    texter = Texter(Names((), Notes()), Symbols(made.tracefs))
    out = "".join(
        bytes(block).decode()
        for batch in lttd.open(made.trace).window(piece_bytes=1)
        for block in texter.lines(batch)
    )
    found = [line[line.index(": ") + 2 :] for line in out.splitlines()]
    assert found == model([record for page in filled for record in page])


NEWER = {
    "ftrace/funcgraph_entry": format_text(
        "funcgraph_entry", ENTRY, [*FUNC, "unsigned long args[];24;0;0"], '"--> %ps (%d)"'
    ),
    "ftrace/fgraph_retaddr_entry": format_text(
        "fgraph_retaddr_entry", 12, [*FUNC, "unsigned long retaddr;24;8;0"], '"--> %ps"'
    ),
    "ftrace/funcgraph_exit": format_text(
        "funcgraph_exit",
        EXIT,
        [*FUNC, "unsigned long retval;24;8;0", "unsigned int overrun;20;4;0",
         "unsigned long long calltime;32;8;0", "unsigned long long rettime;40;8;0"],
        '"<-- %ps (%d)"',
    ),
}  # fmt: skip


def returning(function: int, depth: int, value: int) -> bytes:
    return common(EXIT, 7) + struct.pack("<QiIQQQ", function, depth, 0, value, 1000, 4916)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0x0"),
        (0xFFFF888000001000, "0xffff888000001000"),
        ((1 << 64) - 2, "-2"),
        (0xFFFFFFEA, "-22"),
        (0x80000000, "0x80000000"),
    ],
)
def test_returned_values_are_printed_where_the_format_has_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], value: int, shown: str
) -> None:
    made = traced(tmp_path, NEWER)
    whole = [entry(fn, depth) + bytes(4) for fn, depth in ((OPEN, 0), (READ, 1))]
    made.append([pages_of(1000, [*whole, returning(READ, 1, value), returning(OPEN, 0, value)])])
    assert printed(made, capfd) == [
        "funcgraph_entry:               |  do_filp_open() {",
        f"funcgraph_entry:   3.916 us    |    vfs_read(); /* ret={shown} */",
        f"funcgraph_exit:    3.916 us    |  }} /* do_filp_open ret={shown} */",
    ]


def test_arguments_and_callers_are_printed_where_records_have_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = traced(tmp_path, NEWER)
    with_arguments = entry(READ) + bytes(4) + struct.pack("<3Q", 1, 0xFF, 1 << 63)
    called = common(12, 7) + struct.pack("<QixxxxQ", READ, 1, OPEN + 0x10)
    made.append([pages_of(1000, [with_arguments, called, returning(READ, 1, 0), called])])
    assert printed(made, capfd) == [
        "funcgraph_entry:               |  vfs_read(0x1, 0xff, 0x8000000000000000) {",
        "fgraph_retaddr_entry:   3.916 us    |    vfs_read(); "
        "/* <-do_filp_open+0x10/0x1000 ret=0x0 */",
        "fgraph_retaddr_entry:               |    vfs_read() { /* <-do_filp_open+0x10/0x1000 */",
    ]


def test_the_function_tracer_prints_a_function_and_its_caller(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fields = ["unsigned long ip;8;8;0", "unsigned long parent_ip;16;8;0"]
    formats = {"ftrace/function": format_text("function", FUNCTION, fields, '" %ps <-- %ps"')}
    made = traced(tmp_path, formats)
    made.append([pages_of(1000, [common(FUNCTION, 7) + struct.pack("<QQ", READ, OPEN + 5)])])
    assert printed(made, capfd) == ["function: vfs_read <-do_filp_open"]


def test_records_with_other_fields_than_the_known_ones_are_printed_by_their_print_fmt(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fields = ["char func[8];8;8;0", "int depth;16;4;1"]
    odd = format_text("funcgraph_entry", ENTRY, fields, '"%s at %d", REC->func, REC->depth')
    made = traced(tmp_path, {"ftrace/funcgraph_entry": odd})
    made.append([pages_of(1000, [common(ENTRY, 7) + struct.pack("<8si", b"abc", 3)])])
    assert printed(made, capfd) == ["funcgraph_entry: abc at 3"]


def test_an_exit_whose_entry_is_before_the_window_has_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = traced(tmp_path)
    made.append([pages_of(1000, [entry(READ), exit_(READ), entry(OPEN), exit_(OPEN)])])
    assert printed(made, capfd, "--begin", "+0.000000015s") == [
        "funcgraph_exit:    3.916 us    |  } /* vfs_read */",
        "funcgraph_entry:   3.916 us    |  do_filp_open();",
    ]
