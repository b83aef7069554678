"""lttv opens trace.dat files of trace-cmd, of any machine, as they are."""

import re
import struct
from pathlib import Path

import pytest

import lttd
from lttd.view.trace import Trace
from tests.tools import needs_tool, output_of
from tests.tracedat_builder import File, Machine
from tests.viewer import run

MACHINES = [
    Machine("<", 8),
    Machine("<", 4),
    Machine(">", 8),
    Machine(">", 4),
    Machine("<", 8, 16384),
]
FORMS = [(6, "none"), (7, "none"), (7, "zstd"), (7, "zlib")]
_OURS = re.compile(r" *(.*)-(\d+) +\[(\d+)\] \S{5} +(\d+\.\d+): (\S+): ?(.*)")
_THEIRS = re.compile(r" *(.*)-(\d+) +\[(\d+)\] +(\d+\.\d+): (\S+): +(.*)")


def pages(machine: Machine, cpu: int, count: int = 5) -> list[bytes]:
    """Return pages of three events each; the third page tells of 5 lost ones."""
    return [
        machine.page(
            1_000_000_000 + 10_000 * number + cpu,
            b"".join(
                machine.record(
                    100, machine.event(number * 3 + at, b"name", b"text %d" % at, 7 + cpu)
                )
                for at in range(3)
            ),
            missed=5 if number == 2 else None,
        )
        for number in range(count)
    ]


def built(machine: Machine = MACHINES[0], version: int = 6, compression: str = "none") -> File:
    rings = {"": {cpu: pages(machine, cpu) for cpu in (0, 2)}}
    return File(machine, version, rings, compression=compression)


def printed(capfdbinary: pytest.CaptureFixture[bytes], *words: object) -> list[tuple[str, ...]]:
    status, out, err = run(capfdbinary, "text", "--ns", *words)
    assert (status, err) == (0, "")
    lines = [line for line in out.decode().splitlines() if "LOST" not in line]
    found = [_OURS.fullmatch(line) for line in lines]
    assert None not in found
    return [one.groups() for one in found if one]


@pytest.mark.parametrize(("version", "compression"), FORMS)
@pytest.mark.parametrize(
    "machine", MACHINES, ids=lambda m: f"{m.byteorder}{m.long_bytes}-{m.page_bytes}"
)
def test_events_of_any_machine_have_their_times_names_and_fields(
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    machine: Machine,
    version: int,
    compression: str,
) -> None:
    path = built(machine, version, compression).write(tmp_path / "t.dat")
    told = printed(capfdbinary, path)
    assert len(told) == 30
    assert told[0] == (
        "worker",
        "7",
        "000",
        "1.000000100",
        "thing",
        "value=0 name=name text=text 0",
    )
    assert {one[2] for one in told} == {"000", "002"}
    assert told[1][5] == "value=0 name=name text=text 0"
    assert told[-1][5] == "value=14 name=name text=text 2"


@needs_tool("trace-cmd")
@pytest.mark.parametrize(("version", "compression"), FORMS[:3])
@pytest.mark.parametrize(
    "machine", MACHINES, ids=lambda m: f"{m.byteorder}{m.long_bytes}-{m.page_bytes}"
)
def test_trace_cmd_prints_the_same_of_each_machine(
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    machine: Machine,
    version: int,
    compression: str,
) -> None:
    path = built(machine, version, compression).write(tmp_path / "t.dat")
    theirs = output_of("trace-cmd", "report", "-N", "-t", path).splitlines()
    found = [one.groups() for line in theirs if (one := _THEIRS.fullmatch(line))]
    assert printed(capfdbinary, path) == found


def test_losses_are_where_the_pages_state_them(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = built(version=7, compression="zstd").write(tmp_path / "t.dat")
    _, out, _ = run(capfdbinary, "text", path)
    lines = out.decode().splitlines()
    lost = [at for at, line in enumerate(lines) if "[LOST 5 EVENTS]" in line]
    assert [lines[at] for at in lost] == ["CPU:0 [LOST 5 EVENTS]", "CPU:2 [LOST 5 EVENTS]"]
    assert "value=6 " in lines[lost[1] + 1]
    _, out, _ = run(capfdbinary, "info", path)
    assert re.search(r"all +10 .* 10 events", out.decode())


@pytest.mark.parametrize("version", [6, 7])
def test_each_ring_of_a_file_is_a_segment_under_its_name(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], version: int
) -> None:
    file = built(version=version)
    file.rings["other"] = {1: pages(file.machine, 1)}
    trace = lttd.open(file.write(tmp_path / "t.dat"))
    channels = [
        {s.info.id.channel for s in segment.streams if s.pages} for segment in trace.segments
    ]
    assert channels == [{"ftrace"}, {"other"}]
    assert len(printed(capfdbinary, tmp_path / "t.dat")) == 45


def test_a_window_is_found_without_reading_the_other_pages(tmp_path: Path) -> None:
    machine = MACHINES[0]
    many = pages(machine, 0, 3000)
    path = File(machine, rings={"": {0: many}}).write(tmp_path / "t.dat")
    trace = lttd.open(path)
    stream = trace.segments[0].streams[0]
    read: list[int] = []
    whole = stream.heads
    stream.heads = lambda first, behind: read.append(behind - first) or whole(first, behind)
    begin = 1_000_000_000 + 10_000 * 2000
    events = [event["value"] for event in trace.events(begin, begin + 10_000)]
    assert events == [6000, 6001, 6002]
    assert sum(read) < 2200  # the bisection's, and those that a piece looks ahead


@pytest.mark.parametrize("where", ["begin", "middle", "end"])
def test_pages_of_zeros_are_passed_over_with_a_line(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], where: str
) -> None:
    machine = MACHINES[0]
    some = pages(machine, 0)
    at = {"begin": 0, "middle": 2, "end": 5}[where]
    some[at:at] = [bytes(4096)] * 3
    path = File(machine, rings={"": {0: some}}).write(tmp_path / "t.dat")
    status, out, err = run(capfdbinary, "text", path)
    assert status == 0
    assert out.count(b" thing: ") == 15
    assert err.count("no sub-buffer begins here") == 3
    begin, end = lttd.open(path).begin, lttd.open(path).end
    assert (begin, end) == (1_000_000_000, 1_000_040_300)


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ([(7, b"-500\0")], "0.999999600"),
        ([(1, b"0x5f5e100\0")], "101.000000100"),
        ([(14, struct.pack("<IIQ", 3 << 20, 20, 77))], "3.000000300"),
        ([(14, struct.pack("<IIQ", 1 << 30, 32, 0)), (7, b"1\0")], "0.250000026"),
    ],
    ids=["offset", "date", "tsc", "tsc and offset"],
)
@needs_tool("trace-cmd")
def test_times_are_scaled_and_shifted_as_the_options_say(
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    options: list[tuple[int, bytes]],
    first: str,
) -> None:
    file = built()
    file.options = options
    path = file.write(tmp_path / "t.dat")
    told = printed(capfdbinary, path)
    assert told[0][3] == first
    theirs = output_of("trace-cmd", "report", "-N", "-t", path).splitlines()
    assert told == [one.groups() for line in theirs if (one := _THEIRS.fullmatch(line))]
    again = tmp_path / "again.dat"
    status, _, _ = run(capfdbinary, "export", "--to", "trace.dat", path, "-o", again)
    assert status == 0
    assert printed(capfdbinary, again) == told


def test_an_imported_trace_is_packed_and_whole_and_reads_the_same(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    file = built(version=7, compression="zstd")
    file.options = [(7, b"1000\0")]
    path = file.write(tmp_path / "t.dat")
    told = printed(capfdbinary, path)
    status, out, err = run(capfdbinary, "import", path, "-o", tmp_path / "t")
    assert (status, err) == (0, "")
    assert b"packed" in out
    assert printed(capfdbinary, tmp_path / "t") == told
    status, out, _ = run(capfdbinary, "check", "--events", tmp_path / "t")
    assert status == 0, out
    stream = Trace(tmp_path / "t").segments[0].streams[0]
    assert stream.data_bytes < 5 * 300
    assert [gap.count for gap in stream.gaps] == [5]
    status, _, err = run(capfdbinary, "import", tmp_path / "t", "-o", tmp_path / "again")
    assert status == 2
    assert "is a trace of lttd already" in err


def test_an_import_of_damaged_pages_states_what_is_missing(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    machine = MACHINES[0]
    some = pages(machine, 0)
    some[1:1] = [bytes(4096)]
    path = File(machine, rings={"": {0: some}}).write(tmp_path / "t.dat")
    run(capfdbinary, "import", path, "-o", tmp_path / "t")
    gaps = Trace(tmp_path / "t").segments[0].streams[0].gaps
    assert [(gap.row, gap.count, gap.reason.name) for gap in gaps] == [
        (1, 4096, "DAMAGED"),
        (2, 5, "OVERWRITTEN"),
    ]
    status, out, _ = run(capfdbinary, "check", "--events", tmp_path / "t")
    assert status == 0, out


@needs_tool("trace-cmd")
@pytest.mark.parametrize("words", [["cut"], ["export", "--to", "trace.dat"]])
def test_a_window_of_a_file_becomes_a_trace_or_a_file(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], words: list[str]
) -> None:
    path = built(version=7, compression="zlib").write(tmp_path / "t.dat")
    window = ["--begin", "1.000020003", "--end", "1.0000251"]
    status, _, _ = run(capfdbinary, *words, path, *window, "-o", tmp_path / "out")
    assert status == 0
    times = [one[3] for one in printed(capfdbinary, tmp_path / "out")]
    every = [one[3] for one in printed(capfdbinary, path)]
    assert times == [one for one in every if "1.00002" <= one < "1.00003"]


def test_a_file_that_is_cut_short_is_read_as_far_as_it_goes(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = built().write(tmp_path / "t.dat")
    path.write_bytes(path.read_bytes()[:-6000])
    status, out, err = run(capfdbinary, "text", path)
    assert status == 0
    assert out.count(b" thing: ") == 24
    assert err == f"lttv: {path}: CPU 2: the file is cut short: 6,000 bytes are missing\n"
