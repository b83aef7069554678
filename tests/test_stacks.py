"""``lttv stacks`` counts the stacks of events, names their functions, and draws them."""

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest

import lttd.view.stacks.flame as flame
from lttd.abi.elf import Elf
from lttd.view.stacks.folded import Frame, fold, lines_of
from lttd.view.stacks.samples import Stack
from tests.ftraced import FORMATS, Traced, common, format_text, pages_of, switch, tick
from tests.viewer import run

KERNEL, USER, SLEPT = 4, 13, 30
CALLERS = "unsigned long caller[8];16;64;0"
STACKS = {
    "ftrace/kernel_stack": format_text("kernel_stack", KERNEL, ["int size;8;4;1", CALLERS], '""'),
    "ftrace/user_stack": format_text(
        "user_stack", USER, ["unsigned int tgid;8;4;0", CALLERS], '""'
    ),
    "clock/slept": format_text("slept", SLEPT, ["u64 bytes;8;8;0"], '"%llu", REC->bytes'),
}
SWITCHED = FORMATS["sched/sched_switch"].replace(
    b"\nprint fmt", b"\tfield:long prev_state;\toffset:48;\tsize:8;\tsigned:1;\n\nprint fmt"
)
KALLSYMS = b"""ffffffff81000000 T entry
ffffffff81001000 T do_work
ffffffff81002000 T schedule;now
ffffffff81003000 T last
"""
ENTRY, WORK, SCHEDULE = (0xFFFF_FFFF_8100_0010 + 0x1000 * at for at in range(3))
HARDIRQ = 0x08


def kernel(*callers: int, pid: int = 7, flags: int = 0) -> bytes:
    return common(KERNEL, pid, flags) + struct.pack(f"<i4x{len(callers)}Q", len(callers), *callers)


def user(process: int, *callers: int, pid: int = 7) -> bytes:
    eight = [*callers, *[0] * 8][:8]
    return common(USER, pid) + struct.pack("<I4x8Q", process, *eight)


def slept(count: int, pid: int = 7) -> bytes:
    return common(SLEPT, pid) + struct.pack("<Q", count)


def switched(prev: int, following: int, state: int) -> bytes:
    return switch(("p", prev), ("n", following)) + struct.pack("<q", state)


class Recorded:
    """A made-up trace with stacks."""

    def __init__(self, path: Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self.made = Traced(path / "t", cpus=2)
        self._capture = capture
        for name, text in STACKS.items():
            self.made.add_format(name, text)
        (self.made.tracefs / "events/sched/sched_switch/format").write_bytes(SWITCHED)
        (self.made.tracefs / "kallsyms").write_bytes(KALLSYMS)
        self.made.commands((0, 7, "cat"), (0, 8, "ls"))

    def add(self, begin: int, events: Sequence[bytes], cpu: int = 0, loss: int = 0) -> None:
        self.made.append([pages_of(begin, events)], cpu=cpu, trailing_loss=loss)

    def folded(self, *options: str) -> list[str]:
        if self.made.manifest.state != "closed":
            self.made.finish()
        status, out, self.err = run(self._capture, "stacks", self.made.trace, *options)
        assert status == 0, self.err
        return out.decode().splitlines()


@pytest.fixture
def recorded(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Recorded:
    return Recorded(tmp_path, capfdbinary)


def test_equal_stacks_are_one_line_outermost_function_first(recorded: Recorded) -> None:
    recorded.add(0, [tick(1), kernel(WORK, ENTRY), tick(2), kernel(WORK, ENTRY), tick(3)])
    recorded.add(1000, [tick(4, pid=8), kernel(SCHEDULE, ENTRY, pid=8)], cpu=1)
    assert recorded.folded() == ["cat;entry;do_work 2", "ls;entry;schedule:now 1"]
    assert recorded.err == ""
    assert recorded.folded("--comm", "l*") == ["ls;entry;schedule:now 1"]


def test_an_interrupt_between_an_event_and_its_stack_has_its_own_stack(recorded: Recorded) -> None:
    inside = [slept(1), tick(9, flags=0)]
    inside[0] = inside[0][:2] + bytes([HARDIRQ]) + inside[0][3:]
    recorded.add(0, [tick(1), inside[0], kernel(SCHEDULE, flags=HARDIRQ), kernel(WORK)])
    assert recorded.folded("--by", "event") == ["slept;schedule:now 1", "tick;do_work 1"]


def test_stacks_of_programs_are_below_those_of_the_kernel(recorded: Recorded) -> None:
    recorded.add(0, [tick(1), kernel(WORK, ENTRY), user(7, 0x1008, 0x1004), tick(2), user(7, 0x9)])
    assert recorded.folded() == ["cat;0x1004;0x1008;entry;do_work 1", "cat;0x9 1"]
    assert "no names of programs' functions: record with --user-stack" in recorded.err


def test_only_stacks_of_chosen_events_count_and_by_their_field(recorded: Recorded) -> None:
    recorded.add(0, [tick(1), kernel(WORK), slept(500), kernel(WORK), slept(7), kernel(ENTRY)])
    assert recorded.folded("--event", "slept") == ["cat;do_work 1", "cat;entry 1"]
    assert recorded.folded("--where", "bytes > 9") == ["cat;do_work 1"]
    assert recorded.folded("--weight", "bytes") == ["cat;do_work 500", "cat;entry 7"]
    assert "1 stacks are left out: their events have no field bytes" in recorded.err
    assert recorded.folded("--by", "event,pid") == [
        "slept;7;do_work 1", "slept;7;entry 1", "tick;7;do_work 1",
    ]  # fmt: skip
    recorded.folded()
    assert "stacks of slept, tick are counted together; --event or --by" in recorded.err


def test_off_cpu_time_is_that_from_a_blocked_switch_to_the_next_run(recorded: Recorded) -> None:
    out = [switched(7, 0, 1), kernel(SCHEDULE, WORK)]
    back = [switched(0, 7, 0), kernel(ENTRY, pid=0)]
    preempted = [switched(7, 8, 0x100), kernel(SCHEDULE, ENTRY), switched(8, 7, 0)]
    recorded.add(0, [*out, *back, *preempted])
    assert recorded.folded("--off-cpu") == ["p;do_work;schedule:now 20"]


def test_off_cpu_time_with_a_loss_inside_is_unknown(recorded: Recorded) -> None:
    recorded.add(0, [switched(7, 0, 1), kernel(SCHEDULE)], loss=1)
    recorded.add(1000, [switched(0, 7, 0)])
    assert recorded.folded("--off-cpu") == []
    assert "1 off-CPU times are unknown, because events were lost" in recorded.err


def test_a_trace_without_stacks_says_how_to_record_them(
    recorded: Recorded, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    recorded.add(0, [tick(1)])
    recorded.made.finish()
    status, out, err = run(capfdbinary, "stacks", recorded.made.trace)
    assert (status, out) == (1, b"")
    assert "no stacks are in it; record with --stack" in err


def test_a_graph_has_a_box_for_each_function_and_no_way_out_of_its_text(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>\0\x1b[31m]]>&\"'"
    frames = {
        (Frame("cat", "by"), Frame(bad, "user"), Frame("entry", "kernel")): 3,
        (Frame("cat", "by"), Frame("main", "user")): 1,
        (Frame("cat", "by"), Frame("tiny", "user")): 0,
    }
    head = flame.Head(f"t{bad}", bad, "samples")
    root = ET.fromstring(flame.svg(frames, head))
    space = {"s": "http://www.w3.org/2000/svg"}
    titles = [one.text or "" for one in root.findall(".//s:g[@class='b']/s:title", space)]
    assert titles[0] == "all (4 samples, 100.00%)"
    assert sorted(one.split(" (")[-1] for one in titles) == [
        "1 samples, 25.00%)", "3 samples, 75.00%)", "3 samples, 75.00%)", "4 samples, 100.00%)",
        "4 samples, 100.00%)",
    ]  # fmt: skip
    assert len(root.findall(".//s:script", space)) == 1
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", flame.svg(frames, head))


def test_a_deep_stack_is_drawn_and_a_narrow_box_is_not() -> None:
    deep = tuple(Frame(f"f{at}", "kernel") for at in range(5000))
    text = flame.svg({deep: 1_000_000, (Frame("narrow", "user"),): 1}, flame.Head("", "", "ns"))
    assert text.count('<g class="b"') == flame.MOST_DEPTH + 1
    assert "narrow" not in text
    assert "no stacks here" in flame.svg({}, flame.Head("", "", "ns"))


def test_names_that_become_equal_are_one_stack() -> None:
    stacks = {Stack(("a;b",), 1, (5, 6), (1, 2)): 2, Stack(("a;b",), 1, (5, 7), (1, 2)): 3}
    folded = fold(stacks, lambda at: b"k%d" % at, lambda process, at, returns: b"u")
    assert lines_of(folded) == ["a:b;u;u;k2;k1 5"]


def test_functions_of_a_program_are_named_by_its_saved_code(recorded: Recorded) -> None:
    with open("/proc/self/exe", "rb") as file:
        content = file.read()
    elf = Elf(lambda at, size: content[at : at + size])
    functions = elf.functions()
    if functions is None or not elf.build_id():
        pytest.skip("this Python has neither symbols nor a build-id")
    address = int(functions.begin[len(functions.begin) // 2])
    place = next(one for one in elf.segments() if 0 <= address - one.address < one.size_bytes)
    path = Path("/proc/self/exe").resolve()
    base = 0x5500_0000_0000
    code = f"{base:x}-{base + place.size_bytes:x}\t{place.offset:x}"
    maps = f"1\t7\t{code}\t{elf.build_id()}\t{path}\n1\t8\t{code}\t00ff\t{path}\n"
    (recorded.made.tracefs / "maps").write_text(maps)
    at = base + address - place.address
    recorded.add(0, [tick(1), user(7, at), tick(2, pid=8), user(8, at, pid=8)])
    offset = address - place.address + place.offset
    assert recorded.folded() == [
        f"cat;{functions.name(address).decode()} 1",
        f"ls;{path.name}+{offset:#x} 1",
    ]


@pytest.mark.parametrize("end", [0, 3, 40, 64, 100, 1000])
def test_a_cut_program_names_nothing(end: int) -> None:
    content = Path("/proc/self/exe").read_bytes()[:end]
    try:
        elf = Elf(lambda at, size: content[at : at + size])
    except ValueError:
        return
    assert elf.functions() is None
