"""Compare the lines of block traces with those of blkparse, for real and made-up records."""

import gzip
import io
import json
import struct
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lttd
from lttd.terminal import printable_bytes
from lttd.view.blktrace.lines import dump
from lttd.view.cli import main as view_main
from tests.blk import c, message, process, record, timestamp
from tests.blkparse import needs_blkparse, needs_data, parsed, replayed, shown, written
from tests.data import SHARED_BLKTRACE


@needs_data
def test_the_lines_of_a_real_trace_equal_those_of_blkparse(tmp_path: Path) -> None:
    golden = gzip.decompress((SHARED_BLKTRACE / "cap.blkparse.txt.gz").read_bytes()).decode()
    golden = golden[: golden.index("CPU0 (cap):")]
    replayed(SHARED_BLKTRACE, tmp_path / "trace")
    lines = shown(tmp_path / "trace")
    assert len(lines) == 3312
    assert lines == golden.splitlines()


@needs_data
@needs_blkparse
def test_blkparse_reads_the_streams_of_a_segment_in_place(tmp_path: Path) -> None:
    streams = replayed(SHARED_BLKTRACE, tmp_path / "trace")
    assert parsed(streams, "cap") == shown(tmp_path / "trace")


@needs_data
def test_a_window_has_the_same_times_and_names_as_the_whole_trace(tmp_path: Path) -> None:
    replayed(SHARED_BLKTRACE, tmp_path / "trace")
    everything = shown(tmp_path / "trace")
    window = shown(tmp_path / "trace", "--begin", "+870ms", "--end", "+880ms")
    assert 0 < len(window) < len(everything)
    first = everything.index(window[0])
    assert window == everything[first : first + len(window)]
    alone = shown(tmp_path / "trace", "--cpu", "0")
    assert alone == [line for line in everything if line.split()[1] == "0"]


def test_times_count_from_the_first_event_of_all_cpus_whichever_are_printed(tmp_path: Path) -> None:
    cpus = record(1_000_000_000), record(3_000_000_000, cpu=1)
    replayed(written(tmp_path / "raw", *cpus), tmp_path / "trace")
    lines = shown(tmp_path / "trace", "--cpu", "1")
    assert [line.split()[3] for line in lines] == ["2.000000000"]


def test_the_time_note_gives_wall_clock_times(tmp_path: Path) -> None:
    second = 1_000_000_000
    data = timestamp(5 * second, 1_700_000_000) + record(6 * second) + record(8 * second)
    replayed(written(tmp_path / "raw", data), tmp_path / "trace")
    assert len(shown(tmp_path / "trace")) == 2
    late = shown(tmp_path / "trace", "--begin", "2023-11-14T22:13:22Z")
    assert [line.split()[3] for line in late] == ["2.000000000"]


def test_every_action_prints_the_line_that_blkparse_prints(tmp_path: Path) -> None:
    fs, wide = c["fs"] | c["queue"], struct.pack
    remap = wide(">IIQ", 8 << 20 | 2, 7 << 20 | 3, 55)
    data = [
        timestamp(900, 1_700_000_000),
        process(1000, 10, "task one"),
        record(2000, 1 | fs | c["write"] | c["sync"]),
        record(3000, 1 | fs | c["flush"] | c["write"], size=0),
        record(4000, 11 | fs, wide(">Q", 2), size=0),
        record(5000, 13 | fs | c["discard"], wide(">Q", 77), sequence=9),
        record(6000, 15 | fs | c["meta"], remap, size=8192),
        record(7000, 7 | c["pc"], b"\x12\x01\0\0", size=36, pid=7),
        record(8000, 8 | c["pc"], error=5),
        record(9000, 8 | fs, error=65531, size=511),
        message(10_000, b"hello\0there"),
        record(11_000, 17 | fs | c["drv_data"], b"driver"),
        record(12_000, 16 | fs),
        record(13_000, 2 | 1 << 8 | fs, bytes(8)),
    ]
    replayed(written(tmp_path / "raw", b"".join(data)), tmp_path / "trace")
    assert shown(tmp_path / "trace") == [
        "  8,1    0        1     0.000000000    10  Q  WS 100 + 8 [task one]",
        "  8,1    0        1     0.000001000    10  Q  FW [task one]",
        "  8,1    0        1     0.000002000    10 UT   N [task one] 2",
        "  8,1    0        9     0.000003000    10  X   D 100 / 77 [task one]",
        "  7,3    0        1     0.000004000    10  A  RM 100 + 16 <- (8,2) 55",
        "  8,1    0        1     0.000005000     7  D   R 36 (12 01 00 ..) [(null)]",
        "  8,1    0        1     0.000006000    10  C   R [5]",
        "  8,1    0        1     0.000007000    10  C   R 100 [65531]",
        "  8,1    0        0     0.000008000     0  m   N hello",
        "  8,1    0        1     0.000010000    10 16   R 100 + 8 [task one]",
        "  8,1    0        1     0.000011000    10  M   R 100 + 8 [task one]",
    ]


# The acts that blkparse prints: of requests with a SCSI command, and of all others.
_PC_ACTS = st.sampled_from([1, 4, 5, 6, 7, 8, 12])
_FS_ACTS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
_RW = st.sets(
    st.sampled_from(["read", "write", "flush", "sync", "ahead", "meta", "discard", "fua"])
).map(lambda names: sum(c[name] for name in names))


@st.composite
def _made(draw: st.DrawFn, time: int, cpu: int) -> bytes:
    if draw(st.integers(0, 9)) == 0:
        return message(time, draw(st.binary(min_size=1, max_size=20)).replace(b"\n", b" "), cpu)
    commanded = draw(st.booleans())
    act = draw(_PC_ACTS if commanded else _FS_ACTS)
    pdu = {10: 8, 11: 8, 13: 8, 15: 16}.get(act, 0)
    behind = draw(st.binary(min_size=pdu, max_size=pdu))
    if commanded and act in (7, 8, 12):
        behind = draw(st.binary(max_size=20))
    return record(
        time,
        act | c["pc" if commanded else "fs"] | draw(_RW),
        behind,
        sequence=draw(st.integers(0, (1 << 32) - 1)),
        sector=draw(st.integers(0, (1 << 64) - 1)),
        size=draw(st.sampled_from([0, 1, 511, 512, 4096, (1 << 32) - 1])),
        pid=draw(st.sampled_from([0, 1, 10, 123456])),
        device=draw(st.integers(0, (1 << 32) - 1)),
        error=draw(st.integers(0, 65535)),
        cpu=cpu,
    )


@st.composite
def _traces(draw: st.DrawFn) -> list[bytes]:
    files = [process(1, 10, "ten", 0) + process(2, 1, "a b\tc", 0), process(1, 0, "swapper/1", 1)]
    time = 100
    for _ in range(draw(st.integers(1, 25))):
        cpu = draw(st.integers(0, 1))
        time += draw(st.sampled_from([1, 999, 10**9, 10**14]))
        files[cpu] += draw(_made(time, cpu))
    return files


@needs_blkparse
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files=_traces())
def test_any_made_up_trace_prints_as_blkparse_prints_it(
    tmp_path_factory: pytest.TempPathFactory, files: list[bytes]
) -> None:
    directory = tmp_path_factory.mktemp("blk")
    streams = replayed(written(directory / "raw", *files), directory / "trace")
    out = io.StringIO()
    with redirect_stdout(out):
        assert view_main(["text", str(directory / "trace")]) == 0
    run = subprocess.run(
        ["blkparse", "-q", "-i", "made"], cwd=streams, capture_output=True, check=True
    )
    expected = [
        printable_bytes(line).decode()
        for line in run.stdout.split(b"\n")
        if not line.startswith(b"Input file made.blktr")
    ]
    assert out.getvalue().split("\n") == expected


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [7, 8])
def test_every_version_and_byte_order_prints_the_same_lines(
    tmp_path: Path, version: int, order: str
) -> None:
    def made(time: int, action: int, pdu: bytes = b"", cpu: int = 0) -> bytes:
        return record(time, action, pdu, cpu=cpu, order=order, version=version)

    fs = c["fs"] | c["write"]
    odd = (
        made(1, c["notify"], b"sh".ljust(16, b"\0"))
        + made(10, 1 | fs)
        + made(20, 11 | fs, struct.pack(">Q", 3))
    )
    # The other CPU is as usual: nothing requires that both come from one machine.
    usual = record(15, 8 | fs, cpu=1, error=5)
    replayed(written(tmp_path / "raw", odd, usual), tmp_path / "trace")
    assert shown(tmp_path / "trace") == [
        "  8,1    0        1     0.000000000    10  Q   W 100 + 8 [sh]",
        "  8,1    1        1     0.000000005    10  C   W 100 + 8 [5]",
        "  8,1    0        1     0.000000010    10 UT   W [sh] 3",
    ]
    events = [json.loads(line) for line in shown(tmp_path / "trace", "--json")]
    assert [event["fields"].get("requests") for event in events] == [None, None, None, 3]
    named = shown(tmp_path / "trace", "--fields", "sector")
    assert [line.partition(": ")[2] for line in named] == [
        "note_process: sector=100",
        "queue: sector=100",
        "complete: sector=100",
        "unplug_timer: sector=100",
    ]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "index/"]), st.floats(0, 1, exclude_max=True), st.integers(1, 255)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_flipped_bits_raise_no_exception_in_text_or_export(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[str, float, int]]
) -> None:
    directory = tmp_path_factory.mktemp("blk")
    made = process(1, 10, "sh") + b"".join(
        record(at, pdu=bytes(8 * (at % 3)), sequence=at) for at in range(10, 60)
    )
    streams = replayed(written(directory / "raw", made, message(5, b"hi", 1)), directory / "trace")
    for below, where, mask in flips:
        path = streams / below / ("made.blktrace.0" + (".idx" if below else ""))
        data = bytearray(path.read_bytes())
        data[int(where * len(data))] ^= mask
        path.write_bytes(data)
    for options in ([], ["--json"], ["--fields", "sector"]):
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            assert view_main(["text", str(directory / "trace"), *options]) in (0, 1)
    out = directory / "out"
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert view_main(
            ["export", str(directory / "trace"), "--to", "blktrace", "-o", str(out)]
        ) in (0, 1, 2)


def test_events_of_equal_times_continue_with_the_cpu_before(tmp_path: Path) -> None:
    one = record(10, cpu=0) + record(20, cpu=0, sequence=2)
    other = record(15, cpu=1) + record(20, cpu=1, sequence=2)
    replayed(written(tmp_path / "raw", one, other), tmp_path / "trace")
    assert [line.split()[1] for line in shown(tmp_path / "trace")] == ["0", "1", "1", "0"]


def test_bytes_between_records_are_reported_and_later_records_are_shown(tmp_path: Path) -> None:
    data = record(1) + b"x" * 30 + record(2, sequence=2) + record(3)[:40]
    trace = tmp_path / "trace"
    replayed(written(tmp_path / "raw", data), trace)
    lines = shown(trace)
    assert [line for line in lines if "LOST" in line] == [
        "CPU:0 [LOST 30 BYTES]",
        "CPU:0 [LOST 40 BYTES]",
    ]
    assert len(lines) == 4


@needs_data
def test_where_json_and_the_library_use_the_fields_of_a_record(tmp_path: Path) -> None:
    replayed(SHARED_BLKTRACE, tmp_path / "trace")
    large = shown(tmp_path / "trace", "--where", "bytes > 32768", "--event", "issue", "--json")
    assert large
    for line in large:
        event = json.loads(line)
        assert event["event"] == "issue"
        assert event["fields"]["bytes"] > 32768
        assert event["comm"] in ("fio", "kworker/0:1H", "kworker/1:1H")
    (batch,) = lttd.open(str(tmp_path / "trace")).window()
    unplugs = batch["unplug_timer"]
    assert set(unplugs["requests"].tolist()) == {1}
    assert {event_type.system for event_type in batch.types} == {"blktrace"}
    told = shown(tmp_path / "trace", "--event", "queue", "--fields", "sector,bytes", "-n", "1")
    assert told[0].endswith("queue: sector=267160 bytes=65536")


@pytest.mark.parametrize(
    ("pdu", "text"),
    [
        (b"", b""),
        (b"\0", b"00 .."),
        (b"\x12\0\x03", b"12 00 03"),
        (b"\x12\0\0", b"12 00 .."),
    ],
)
def test_a_command_dump_ends_before_trailing_zeros(pdu: bytes, text: bytes) -> None:
    assert dump(pdu) == text
