"""View traces of LTTng 0.x: a real one of 2010, and random ones."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lttd
from lttd.abi.ltt import layout_of
from lttd.config import SourceSpec
from lttd.errors import LttdError
from lttd.files import Disk
from lttd.manifest import Manifest, StreamRecord
from lttd.sources.registry import open_source
from lttd.subbuffer import Batch, BufferPool
from lttd.terminal import printable_bytes
from lttd.tracedir import create_segment, segment_name
from lttd.view.cli import main
from lttd.view.export import export
from lttd.view.ltt.lines import LttTexter
from lttd.view.ltt.markers import SegmentMarkers
from lttd.view.opened import OpenedTrace
from lttd.view.times import EVERYTHING
from lttd.view.verify import check
from lttd.writer import StreamFile
from tests.data import SHARED_LTT
from tests.logging_ltt import LoggedMarker, Program, Value, logged_marker, programs
from tests.ltt_kernel import Kernel
from tests.running import PATIENCE_S, until
from tests.segment_builder_ltt import LttBuffer, Marker, Tracer, describe, write_trace

# The tests of the Eclipse plug-in publish these values with the trace.
COUNTS = {
    "metadata": 302, "kernel": 2042, "vm_state": 9560, "fs": 1108, "fd_state": 1165,
    "syscall_state": 337, "task_state": 274, "irq_state": 270, "mm": 137, "module_state": 46,
    "rcu": 35, "softirq_state": 32, "input": 4, "netif_state": 2, "global_state": 1,
    "swap_state": 1,
}  # fmt: skip
HEADERS_ONLY = {"block", "ipc", "jbd2", "net", "pm", "userspace"}


def text(trace: OpenedTrace, *events: str, piece_bytes: int = 1 << 20) -> str:
    told = []
    for group in trace.window(events=events, piece_bytes=piece_bytes).clocks():
        texter = LttTexter(group.sources)
        told += [b"".join(texter.lines(group.batch(piece))) for piece in group.pieces()]
    return b"".join(told).decode("utf-8", "surrogateescape")


def stored(directory: Path, trace: Path, layout: str = "packed") -> OpenedTrace:
    """Replay a directory into a trace, without the daemon."""
    source = open_source(SourceSpec("replay", str(directory), {"abi": "ltt"}), BufferPool())
    trace.mkdir()
    disk = Disk()
    paths = create_segment(disk, trace, segment_name(1, "replay"))
    records = []
    for stream in source.streams:
        record = StreamRecord(stream.info)
        file = StreamFile(disk, paths.stream(record.name), record, layout)
        while isinstance(batch := stream.take(flush=False), Batch):
            file.append(batch)
        file.close()
        records.append(record)
    source.close()
    manifest = Manifest(
        source={"kind": "replay", "spec": "replay", "clock": source.info.clock},
        layout=layout,
        machine={"host": "h", "boot_id": "b", "kernel": "k", "byteorder": "little"},
        streams=records,
        clock_snapshots=[],
        state="closed",
    )
    disk.replace(paths.manifest, manifest.encode())
    return lttd.open(trace)


# -- the real trace


@pytest.fixture(scope="module", params=["packed", "sparse"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> OpenedTrace:
    if not SHARED_LTT.is_dir():
        pytest.skip("no ../shared/data/ltt-2.5")
    path = tmp_path_factory.mktemp("real") / "t"
    words = [
        sys.executable,
        "-m",
        "lttd",
        "-t",
        path,
        "--source",
        f"replay:{SHARED_LTT},abi=ltt",
    ]
    subprocess.run([*words, "--layout", request.param], check=True, capture_output=True)
    return lttd.open(path)


def test_the_real_trace_has_its_published_events(real: OpenedTrace) -> None:
    window = real.window()
    batches = list(window)
    assert not [note for batch in batches for note in batch.notes]
    assert not [loss for batch in batches for loss in batch.losses]
    counts: Counter[str] = Counter()
    for batch in batches:
        for rows in batch.by_type():
            counts[rows.event_type.system] += len(rows)
    assert counts == COUNTS
    assert sum(counts.values()) == 15_316
    names = {stream.info.id.channel for segment in real.segments for stream in segment.streams}
    assert names == COUNTS.keys() | HEADERS_ONLY
    time = np.concatenate([batch.time for batch in batches])
    assert time[:3].tolist() == [13589759412128, 13589759419903, 13589759422785]
    assert time[-1] == 13589906758692
    assert (time[1:] >= time[:-1]).all()


def test_the_real_channels_have_their_begin_and_end_times(real: OpenedTrace) -> None:
    events = [
        (event.name, event.time) for event in real.events(events=["kernel:*"], end=13589762917527)
    ]
    assert events == [
        ("printk", 13589760262237),
        ("vprintk", 13589762149621),
        ("printk", 13589762917527),
    ]
    last = [event.time for event in real.events(events=["metadata:*"])][-1]
    assert last == 13589760259756


def test_the_real_trace_prints_as_legacy_lttv_printed_it(
    real: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    directory = real.segments[0].paths.directory
    assert main(["text", str(real.path), "--event", "kernel.*", "--end", "13589.762917527"]) == 0
    out, err = capfdbinary.readouterr()
    assert not err
    assert out.decode().splitlines() == [
        f"kernel.printk: 13589.760262237 ({directory}/kernel_0) {{ ip = 0xC1421750 }}",
        f"kernel.vprintk: 13589.762149621 ({directory}/kernel_0)"
        ' { loglevel = 7, string = "LTT state dump begin", ip = 0xC158363B }',
        f"kernel.printk: 13589.762917527 ({directory}/kernel_0) {{ ip = 0xC142176D }}",
    ]


def test_the_real_trace_can_be_filtered_and_printed_as_json(
    real: OpenedTrace, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    words = ["--json", "--event", "fs.open", "--where", 'filename == "/dev/null"', "--fields", "fd"]
    assert main(["text", str(real.path), *words]) == 0
    (line, *_) = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert line["channel"] == "fs"
    assert line["event"] == "open"
    assert line["fields"] == {"fd": 5}
    assert line["cpu"] == 0


def test_the_size_of_pieces_does_not_change_the_lines_of_the_real_trace(real: OpenedTrace) -> None:
    whole = text(real)
    assert whole.count("\n") >= 15_316
    assert text(real, piece_bytes=8192) == whole


def test_check_counts_the_real_events(real: OpenedTrace) -> None:
    report = check(real.segments[0].paths, events=True)
    assert report.whole
    counts = {stream.name.removesuffix("_0"): stream.events for stream in report.streams}
    assert counts == COUNTS | dict.fromkeys(HEADERS_ONLY, 0)


# -- made traces


def put(directory: Path, program: Program) -> dict[str, LttBuffer]:
    """Write the trace of a program, with all metadata on CPU 1."""
    inside = "control/" if program.tracer.minor <= 2 else ""
    metadata, kernel = program.metadata(), program.channel()
    empty = LttBuffer(program.tracer)
    buffers = {f"{inside}metadata_0": empty, f"{inside}metadata_1": metadata, "kernel_0": kernel}
    write_trace(directory, buffers)
    return buffers


def expected(logged: LoggedMarker, values: tuple[Value, ...]) -> str:
    """Print fields as C does, for the formats of tests.logging_ltt."""
    told = []
    words = logged.marker.format.split()
    for name, declared, value in zip(words[::2], words[1::2], values, strict=True):
        if isinstance(value, bytes):
            shown = f'"{printable_bytes(value).decode()}"'
        elif "p" in declared:
            shown = f"0x{value:x}"
        elif declared.endswith("c"):
            shown = printable_bytes(bytes([value]).replace(b"\0", b"")).decode()
        else:
            shown = f"{value:X}" if declared.endswith("X") else str(value)
        told.append(f"{name} = {shown}")
    return f" {{ {', '.join(told)} }}\n" if told else "\n"


@pytest.mark.slow
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(program=programs(30), layout=st.sampled_from(["packed", "sparse"]))
def test_logged_events_are_decoded_and_printed(
    program: Program, layout: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("ltt")
    put(directory / "in", program)
    trace = stored(directory / "in", directory / "t", layout)
    ns = program.tracer.ns
    found = [(one.name, one.time, one.cpu, one.fields) for one in trace.events(events=["kernel:*"])]
    assert found == [
        (logged.marker.name, ns(tsc), 0,
         {f"f{at}": value for at, value in enumerate(values)})
        for logged, values, tsc in program.events
    ]  # fmt: skip
    place = f"({trace.segments[0].paths.directory}/kernel_0)"
    lines = "".join(
        f"kernel.{logged.marker.name}: {ns(tsc) // 10**9}.{ns(tsc) % 10**9:09} {place}"
        f"{expected(logged, values)}"
        for logged, values, tsc in program.events
    )
    assert text(trace, "kernel.*") == lines
    assert check(trace.segments[0].paths, events=True).whole
    shutil.rmtree(directory)


def counting(tracer: Tracer) -> tuple[LoggedMarker, LttBuffer]:
    logged = logged_marker(tracer, Marker("kernel", "tick", 2, "n %u"), ["%u"])
    metadata = LttBuffer(tracer)
    describe(metadata, logged.marker, tracer.start_tsc)
    return logged, metadata


def test_events_of_all_cpus_and_channels_are_ordered_by_cycles(tmp_path: Path) -> None:
    # Four cycles are one ns, so events of the same time still have an order.
    tracer = Tracer(frequency=4_000_000_000)
    logged, metadata = counting(tracer)
    buffers = {"metadata_0": metadata} | {f"kernel_{cpu}": LttBuffer(tracer) for cpu in range(3)}
    for number in range(300):
        payload = logged.payload(tracer, (number,))
        cpu = (number * 7) % 3
        assert buffers[f"kernel_{cpu}"].log(2, payload, tracer.start_tsc + 100 + number, 4)
    write_trace(tmp_path / "in", buffers)
    trace = stored(tmp_path / "in", tmp_path / "t")
    assert [one["n"] for one in trace.events(events=["tick"])] == list(range(300))


def logged_ticks(
    tracer: Tracer, logged: LoggedMarker, *, drain_every: int
) -> tuple[LttBuffer, bytes]:
    """Log 3000 events to a small buffer; return it, and the file of its sub-buffers."""
    buffer, data = LttBuffer(tracer, count=2), b""
    for number in range(3000):
        buffer.log(2, logged.payload(tracer, (number,)), tracer.start_tsc + 1000 * number, 4)
        if number % drain_every == drain_every - 1:
            data += buffer.drain()
    buffer.finalize(tracer.start_tsc + 10**7)
    return buffer, data + buffer.drain()


def test_losses_are_shown_where_the_counter_rose(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    tracer = Tracer()
    logged, metadata = counting(tracer)
    kernel, data = logged_ticks(tracer, logged, drain_every=1000)
    write_trace(tmp_path / "in", {"metadata_0": metadata})
    (tmp_path / "in/kernel_0").write_bytes(data)
    trace = stored(tmp_path / "in", tmp_path / "t")
    lines = text(trace).splitlines()
    told = "\n".join(lines)
    lost = [int(n) for n in re.findall(r"\[LOST (\d+) EVENTS\] \(kernel_0\)", told)]
    shown = [int(n) for n in re.findall(r"n = (\d+)", told)]
    assert sum(lost) == kernel.events_lost > 0
    assert shown == [int.from_bytes(one.payload, "little") for one in kernel.logged]
    before = 0
    for line in lines:
        if found := re.search(r"n = (\d+)", line):
            before = int(found[1])
        elif "LOST" in line:
            assert before > 100
    assert main(["text", str(trace.path), "--json"]) == 0
    objects = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [(one["channel"], one["lost"]) for one in objects if "lost" in one] == [
        ("kernel", count) for count in lost
    ]


def test_strings_of_every_length_are_printed_in_full(tmp_path: Path) -> None:
    tracer = Tracer()
    logged = logged_marker(tracer, Marker("kernel", "say", 2, "s %s n %u t %s"), ["%s", "%u", "%s"])
    sizes = [0, 1, 3, 90_000, 2, 70_000, 255, 256, 257]
    events = [
        (logged, (b"x" * size, size, b"end"), tracer.start_tsc + size_at)
        for size_at, size in enumerate(sizes)
    ]
    put(tmp_path / "in", Program(tracer, [logged], events, 1 << 18))
    lines = text(stored(tmp_path / "in", tmp_path / "t"), "*.say").splitlines()
    shown = [f'{{ s = "{"x" * size}", n = {size}, t = "end" }}' for size in sizes]
    assert [line.partition(") ")[2] for line in lines] == shown


def test_every_channel_without_metadata_says_what_is_missing(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    tracer = Tracer()
    logged, _ = counting(tracer)
    program = Program(tracer, [], [(logged, (1,), tracer.start_tsc)])
    put(tmp_path / "in", program)
    trace = stored(tmp_path / "in", tmp_path / "t")
    assert main(["text", str(trace.path)]) == 0
    out, err = capfdbinary.readouterr()
    assert not out
    path = trace.segments[0].paths.stream("kernel_0").data
    reason = "no marker is known for event id 2; the rest of it is left out"
    assert err.decode().splitlines() == [f"lttv: {path}: byte 68: {reason}"]
    report = check(trace.segments[0].paths, events=True)
    assert report.whole
    assert report.notes == [
        f"{path}: byte 68: {reason.partition(';')[0]}: the stream's events are not counted"
    ]
    assert [one.events for one in report.streams if one.name == "kernel_0"] == [None]


def test_a_note_of_any_window_names_the_byte_of_the_file(tmp_path: Path) -> None:
    tracer = Tracer()
    logged, _ = counting(tracer)
    _, data = logged_ticks(tracer, logged, drain_every=500)
    write_trace(tmp_path / "in", {"metadata_0": LttBuffer(tracer)})
    (tmp_path / "in/kernel_0").write_bytes(data)
    trace = stored(tmp_path / "in", tmp_path / "t")
    stream = next(one for one in trace.segments[0].streams if one.name == "kernel_0")
    entries = stream.index.entries()
    assert len(entries) > 3
    begin = int(entries["begin"][2]) + 1
    notes = [note for batch in trace.window(begin=begin) for note in batch.notes]
    offsets = [int(at) + 68 for at in entries["offset_bytes"][2:].tolist()]
    assert [int(re.findall(r"byte (\d+):", note)[0]) for note in notes] == offsets


def test_contradicting_declarations_are_reported(tmp_path: Path) -> None:
    tracer = Tracer()
    logged, metadata = counting(tracer)
    other = LttBuffer(tracer)
    describe(other, Marker("kernel", "tick", 2, "m %u"), tracer.start_tsc)
    kernel = LttBuffer(tracer)
    kernel.log(2, logged.payload(tracer, (7,)), tracer.start_tsc, 4)
    write_trace(tmp_path / "in", {"metadata_0": metadata, "metadata_1": other, "kernel_0": kernel})
    trace = stored(tmp_path / "in", tmp_path / "t")
    (batch,) = trace.window(events=["kernel.*"])
    assert list(batch.notes) == [
        f"{trace.segments[0].paths.directory}: kernel.tick: declared as 'n %u' and 'm %u';"
        " the first counts"
    ]
    assert batch["tick"]["n"].tolist() == [7]


def test_fields_of_the_same_name_are_distinguished(tmp_path: Path) -> None:
    tracer = Tracer()
    logged = logged_marker(tracer, Marker("kernel", "twice", 2, "a %u a %u"), ["%u", "%u"])
    put(tmp_path / "in", Program(tracer, [logged], [(logged, (1, 2), tracer.start_tsc)]))
    (event,) = stored(tmp_path / "in", tmp_path / "t").events(events=["twice"])
    assert event.fields == {"a": 1, "a_2": 2}


def test_an_event_type_that_did_not_occur_has_empty_columns(tmp_path: Path) -> None:
    tracer = Tracer()
    _, metadata = counting(tracer)
    write_trace(tmp_path / "in", {"metadata_0": metadata, "kernel_0": LttBuffer(tracer)})
    (batch,) = stored(tmp_path / "in", tmp_path / "t").window()
    assert batch["kernel:tick"]["n"].dtype == np.dtype("u4")
    assert len(batch["tick"]) == 0
    with pytest.raises(KeyError):
        batch["tock"]


def test_runs_of_several_tracers_in_one_file_print_with_their_own_clocks(tmp_path: Path) -> None:
    one = Tracer()
    other = Tracer(start_tsc=5_000, start_s=one.start_s + 100, frequency=2 * 10**9)
    data, metadata = b"", b""
    for tracer, number in ((one, 1), (other, 2)):
        logged, described = counting(tracer)
        kernel = LttBuffer(tracer)
        kernel.log(2, logged.payload(tracer, (number,)), tracer.start_tsc + 100, 4)
        for buffer in (kernel, described):
            buffer.finalize(tracer.start_tsc + 200)
        data += kernel.drain()
        metadata += described.drain()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/kernel_0").write_bytes(data)
    (tmp_path / "in/metadata_0").write_bytes(metadata)
    trace = stored(tmp_path / "in", tmp_path / "t")
    found = [(event["n"], event.time) for event in trace.events(events=["tick"])]
    assert found == [(1, one.ns(one.start_tsc + 100)), (2, other.ns(5_100))]


def test_parquet_partitions_are_channels_and_markers_below_the_output(tmp_path: Path) -> None:
    dataset = pytest.importorskip("pyarrow.dataset", reason="no pyarrow here")
    tracer = Tracer()
    logged = logged_marker(
        tracer, Marker("kernel", "../../x", 2, "n %u s %s p %p"), ["%u", "%s", "%p"]
    )
    events = [(logged, (at, b"s%d" % at, 1 << 63), tracer.start_tsc + at) for at in range(5)]
    put(tmp_path / "in", Program(tracer, [logged], events))
    export(stored(tmp_path / "in", tmp_path / "t"), EVERYTHING, "parquet", tmp_path / "pq")
    found = dataset.dataset(tmp_path / "pq", partitioning="hive")
    rows = found.to_table(filter=dataset.field("system") == "kernel").to_pylist()
    assert [(row["event"], row["n"], row["s"], row["p"]) for row in rows] == [
        ("../../x", at, f"s{at}", 1 << 63) for at in range(5)
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "pq", "t"}


def test_new_metadata_of_an_open_segment_are_read(tmp_path: Path) -> None:
    tracer = Tracer()
    _, metadata = counting(tracer)
    write_trace(tmp_path / "in", {"metadata_0": metadata, "kernel_0": LttBuffer(tracer)})
    trace = stored(tmp_path / "in", tmp_path / "t")
    paths = trace.segments[0].paths
    manifest = Manifest.read(paths.manifest)
    manifest.state = "open"
    paths.manifest.write_bytes(manifest.encode())
    index = paths.stream("metadata_0").index
    whole = index.read_bytes()
    index.write_bytes(whole[:16])
    markers = SegmentMarkers(paths, manifest)
    markers.refresh()
    layout = layout_of(trace.segments[0].streams[0].read())
    assert not markers.of("kernel", layout)
    index.write_bytes(whole)
    markers.refresh()
    assert [one.name for one in markers.of("kernel", layout).values()] == ["tick"]
    version = markers.version
    markers.refresh()
    assert markers.version == version


@pytest.mark.slow
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(program=programs(20), data=st.data())
def test_printing_a_mutated_trace_gives_notes_and_no_exception(
    program: Program, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("ltt")
    put(directory / "in", program)
    trace = stored(directory / "in", directory / "t")
    streams = trace.segments[0].paths.streams
    paths = [path for path in sorted(streams.rglob("*")) if path.is_file()]
    for path in paths:
        raw = bytearray(path.read_bytes())
        for at in data.draw(st.lists(st.integers(0, max(len(raw) - 1, 0)), max_size=3)):
            if raw:
                raw[at] = data.draw(st.integers(0, 255))
        path.write_bytes(raw)
    again = lttd.open(trace.path)
    with suppress(LttdError):  # an index or gaps file that is invalid
        text(again)
    with suppress(LttdError):
        for batch in again.window():
            for rows in batch.by_type():
                rows.columns()
    check(again.segments[0].paths, events=True)
    shutil.rmtree(directory)


@pytest.mark.slow
def test_events_of_a_live_kernel_print_as_they_were_logged(
    ltt_kernel: Kernel, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for path in ("metadata_0", "metadata_1", "kernel_0", "kernel_1"):
        ltt_kernel.add(path, count=64)
    ltt_kernel.describe("metadata_0", "kernel", "printk", 40, "string %s n %u")
    words = [sys.executable, "-m", "lttd", "-t", tmp_path / "t", "-c", ltt_kernel.root]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as run:
        until(lambda: ltt_kernel.is_open("kernel_1"), "lttd")
        for number in range(400):
            if number == 200:  # a marker of a new channel
                ltt_kernel.add("fs_1", count=64)
                ltt_kernel.describe("metadata_1", "fs", "read", 0, "n %u count %zu")
            if number > 200 and number % 3 == 0:
                ltt_kernel.log("fs_1", 0, ("u4", number), ("u8", 1 << 40))
            else:
                ltt_kernel.log(f"kernel_{number % 2}", 40, ("s", b"text " * 9), ("u4", number))
        until(lambda: ltt_kernel.is_open("fs_1"), "the channel that came later")
        ltt_kernel.finalize()
        _, told = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, told
    assert main(["text", str(tmp_path / "t"), "--event", "kernel.*", "--event", "fs.*"]) == 0
    out, err = capfdbinary.readouterr()
    assert not err
    lines = out.decode().splitlines()
    assert [int(n) for line in lines for n in re.findall(r"\bn = (\d+)", line)] == list(range(400))
    assert {line.partition(":")[0] for line in lines} == {"kernel.printk", "fs.read"}
    assert f"count = {1 << 40} }}" in lines[201]
