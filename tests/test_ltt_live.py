"""Run lttd on an emulated LTTng 0.x kernel, with the command lines of legacy lttd."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from lttd.stored import StoredStream
from lttd.subbuffer import Reason, Unit
from lttd.tracedir import segments
from tests.ltt_kernel import Kernel, Load, Report, stripped
from tests.ltt_runs import Runs, lost, recorded, subbuffers
from tests.running import PATIENCE_S, assert_whole, lttv, until

pytestmark = pytest.mark.slow


def assert_is_all(stream: StoredStream, report: Report, *, fresh: bool = False) -> None:
    """Assert that the written sub-buffers are stored or counted as lost, every one of them.

    *fresh*: the channel appeared during the run. Otherwise the sub-buffers that were overwritten
    before the first read are not losses of this run.
    """
    as_stored = stripped if not stream.slot_bytes else bytes
    assert subbuffers(stream) == [as_stored(one) for one in report.delivered]
    overwritten = [number for number in report.overwritten if fresh or number >= report.first]
    assert lost(stream, Reason.OVERWRITTEN, Unit.SUBBUFFERS) == len(overwritten)
    assert lost(stream, Reason.REFUSED, Unit.SUBBUFFERS) == len(report.refused)
    assert lost(stream, Reason.DISCARDED, Unit.EVENTS) == report.events_lost
    # Only header and content take disk space: padding is cut off or a hole.
    size = stream.paths.data.stat().st_size
    stored = sum(len(one) for one in report.delivered)
    if not stream.slot_bytes:
        assert size == stored
    else:
        assert size == len(report.delivered) * stream.slot_bytes


@pytest.mark.parametrize(
    ("minor", "layout", "count"),
    [
        (6, "packed", 10_000),
        (4, "sparse", 3_000),
        pytest.param(6, "sparse", 100_000, marks=pytest.mark.nightly),
        pytest.param(4, "packed", 100_000, marks=pytest.mark.nightly),
    ],
)
def test_all_data_of_a_busy_tracer_are_stored_or_counted(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path, minor: int, layout: str, count: int
) -> None:
    how = {
        "metadata_0": {},
        "kernel_0": {"subbuffer_bytes": 8192, "urgent_from": 3},
        "kernel_1": {"subbuffer_bytes": 8192, "urgent_from": 3},
        "fs_1": {},
        "flight-mm_0": {"overwrite": True},
        "flight-mm_1": {"overwrite": True, "count": 2},
    }
    late = {"fs_2": {}, "flight-mm_2": {"overwrite": True}, "more/kernel_2": {}}
    for path, options in how.items():
        ltt_kernel.add(path, minor=minor, **options)
    out = tmp_path / "t"
    words = ["-t", out, "-c", ltt_kernel.root, "-N", "4"]
    first = lttds.start(*words, "--layout", layout, "--flush-interval", "100ms")
    until(lambda: ltt_kernel.is_open("metadata_0"), "the first lttd")
    status, told = lttds.run("-t", tmp_path / "second", "-c", ltt_kernel.root)
    assert (status, told.count("has a reader")) == (1, 1), told
    assert not (tmp_path / "second").exists()

    appear = [
        (count // 3 * (1 + number % 2), path, {"minor": minor, **options})
        for number, (path, options) in enumerate(late.items())
    ]
    ltt_kernel.start(Load(seed=minor, subbuffers=count, late=tuple(appear)))
    _, told = first.communicate(timeout=PATIENCE_S + count / 100)
    assert first.returncode == 0, told
    streams = recorded(out)
    assert streams.keys() == how.keys() | late.keys()
    reports = {path: ltt_kernel.report(path) for path in streams}
    for path, report in reports.items():
        assert_is_all(streams[path], report, fresh=path in late)
    assert sum(len(report.written) for report in reports.values()) >= count
    # Without these the test would prove nothing.
    assert sum(len(report.overwritten) for report in reports.values())
    assert sum(report.events_lost for report in reports.values())
    assert_whole(out)


def test_a_sparse_file_has_a_hole_where_a_subbuffer_had_padding(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path
) -> None:
    size = 1 << 20
    ltt_kernel.add("kernel_0", minor=6, subbuffer_bytes=size)
    ltt_kernel.fill("kernel_0", 3)
    ltt_kernel.finalize()
    status, told = lttds.run("-t", tmp_path / "t", "-c", ltt_kernel.root, "--layout", "sparse")
    assert status == 0, told
    stream = recorded(tmp_path / "t")["kernel_0"]
    assert_is_all(stream, ltt_kernel.report("kernel_0"))
    found = stream.paths.data.stat()
    assert (found.st_size, found.st_blocks * 512 <= 4 * 4096) == (4 * size, True)


@pytest.mark.parametrize(
    ("letters", "names"),
    [
        ((), ["control/metadata_0", "flight-fs_0", "kernel_0"]),
        (("-n",), ["control/metadata_0", "kernel_0"]),
        (("-f", "-N", "4"), ["flight-fs_0"]),
    ],
)
def test_the_options_of_legacy_lttd_work_as_before(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path, letters: Sequence[str], names: list[str]
) -> None:
    for path in ("kernel_0", "flight-fs_0", "control/metadata_0"):
        ltt_kernel.add(path, minor=2)
        ltt_kernel.fill(path, 1)
    ltt_kernel.finalize()
    status, told = lttds.run("-t", tmp_path / "t", "-c", ltt_kernel.root, *letters)
    assert status == 0, told
    assert sorted(recorded(tmp_path / "t")) == names
    (segment,) = segments(tmp_path / "t")
    files = sorted(path.name for path in segment.streams.iterdir() if path.is_file())
    assert files == sorted(name.replace("/", "%2F") for name in names)


def test_a_background_lttd_records_until_the_trace_is_destroyed(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path
) -> None:
    ltt_kernel.add("kernel_0")
    status, told = lttds.run(
        "-t", "out", "-c", os.path.relpath(ltt_kernel.root, tmp_path), "-d", "-n",
        "--summary", "json:summary", "--flush-interval", "50ms",
    )  # fmt: skip
    assert status == 0, told
    assert ltt_kernel.is_open("kernel_0")
    ltt_kernel.fill("kernel_0", 2)
    ltt_kernel.finalize()
    until((tmp_path / "summary").exists, "the end of the trace")
    assert_is_all(recorded(tmp_path / "out")["kernel_0"], ltt_kernel.report("kernel_0"))


def test_a_second_run_is_appended_as_a_segment(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path
) -> None:
    words = ["-t", tmp_path / "t", "-c", ltt_kernel.root]
    reports = []
    for letters in ((), ("-a",)):
        ltt_kernel.add("kernel_0")
        ltt_kernel.fill("kernel_0", 1)
        ltt_kernel.finalize()
        status, told = lttds.run(*words, *letters)
        assert status == 0, told
        reports.append(ltt_kernel.report("kernel_0"))
        ltt_kernel.remove("kernel_0")
    for number, report in enumerate(reports):
        assert_is_all(recorded(tmp_path / "t", number)["kernel_0"], report)
    ltt_kernel.add("kernel_0")
    status, told = lttds.run(*words)
    assert (status, "--append adds to it" in told) == (2, True)
    assert not ltt_kernel.is_open("kernel_0")


def test_flight_recorder_channels_can_be_dumped_during_another_run(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path
) -> None:
    for path in ("kernel_0", "flight-fs_0"):
        ltt_kernel.add(path, overwrite=path.startswith("flight"))
        ltt_kernel.fill(path, 2)
    normal = lttds.start("-t", "out", "-c", ltt_kernel.root, "-n", "--flush-interval", "50ms")
    until(lambda: segments_of(tmp_path / "out"), "the recording")
    # lttctl destroys a trace so; the directory belongs to another program.
    for letters in ((), ("-a",)):
        status, told = lttds.run("-t", "out", "-c", ltt_kernel.root, "-f", *letters)
        assert status in (1, 2), told
        assert "out" in told
    flight = lttds.start("-t", "flight", "-c", ltt_kernel.root, "-f", "--flush-interval", "50ms")
    until(lambda: ltt_kernel.is_open("flight-fs_0"), "the second recording")
    ltt_kernel.finalize()
    for run, name, path in ((normal, "out", "kernel_0"), (flight, "flight", "flight-fs_0")):
        _, told = run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 0, told
        assert recorded(tmp_path / name).keys() == {path}
        assert_is_all(recorded(tmp_path / name)[path], ltt_kernel.report(path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_ltt_recording_with_all_readable_data(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path, number: int
) -> None:
    ltt_kernel.add("kernel_0", count=16)
    ltt_kernel.add("kernel_1", count=16)
    # No tick comes, so only the drain can have taken these data.
    run = lttds.start("-t", tmp_path / "t", "-c", ltt_kernel.root, "--flush-interval", "1h")
    until(lambda: (tmp_path / "t").exists() and segments_of(tmp_path / "t"), "the recording")
    run.send_signal(signal.SIGSTOP)
    ltt_kernel.fill("kernel_0", 7)
    ltt_kernel.fill("kernel_1", 9)
    ltt_kernel.burst("kernel_1", 1)  # in the open sub-buffer, which belongs to the tracer
    run.send_signal(number)
    run.send_signal(signal.SIGCONT)
    _, told = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, told
    for path, count in (("kernel_0", 7), ("kernel_1", 9)):
        assert_is_all(recorded(tmp_path / "t")[path], ltt_kernel.report(path))
        assert len(ltt_kernel.report(path).written) == count
    until(lambda: not ltt_kernel.is_open("kernel_0"), "the close")


def segments_of(trace: Path) -> bool:
    return any(path.name == "trace.json" for path in trace.glob("*/*"))


def test_a_broken_channel_fails_the_run_and_the_others_are_recorded(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path
) -> None:
    for path in ("kernel_0", "kernel_1"):
        ltt_kernel.add(path)
        ltt_kernel.fill(path, 2)
    ltt_kernel.fault("kernel_0", put_errno=14)
    ltt_kernel.finalize()
    status, told = lttds.run("-t", tmp_path / "t", "-c", ltt_kernel.root)
    # Once at the failure, and once at the end as the reason for the status.
    assert (status, told.count("kernel_0: PUT: Bad address")) == (1, 2), told
    assert_is_all(recorded(tmp_path / "t")["kernel_1"], ltt_kernel.report("kernel_1"))
    assert subbuffers(recorded(tmp_path / "t")["kernel_0"]) == []


@pytest.mark.parametrize("letters", [(), ("-d",)])
def test_a_directory_with_nothing_to_record_is_refused_before_anything_is_made(
    lttds: Runs, tmp_path: Path, letters: Sequence[str]
) -> None:
    (tmp_path / "empty").mkdir()
    status, told = lttds.run("-t", "out", "-c", "empty", *letters)
    assert (status, told.count("no channel available for reading")) == (77, 1), told
    assert not (tmp_path / "out").exists()


def test_the_manifest_records_the_options_of_the_run(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path
) -> None:
    ltt_kernel.add("metadata_0")
    ltt_kernel.finalize()
    status, told = lttds.run("-t", "out", "--source", f"ltt:{ltt_kernel.root},channels=normal")
    assert status == 0, told
    (segment,) = segments(tmp_path / "out")
    manifest = json.loads(segment.manifest.read_text())
    assert segment.directory.name.endswith("-ltt")
    assert manifest["source"]["settings"]["channels"] == "normal"
    (snapshot,) = manifest["clock_snapshots"]
    assert snapshot["realtime_ns"] == 1_262_715_366_408_819_000


@pytest.mark.parametrize("minor", [2, 4, 6])
def test_lttv_shows_a_recording_of_ltt(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path, minor: int
) -> None:
    folder = "control/" if minor == 2 else ""
    ltt_kernel.add(f"{folder}metadata_0", minor=minor)
    ltt_kernel.add("kernel_1", minor=minor)
    for number, name in ((2, "irq_entry"), (3, "irq_exit")):
        channel = "cpu" if minor == 2 else "kernel"
        words = (channel, name, number, "irq %u name %s")
        ltt_kernel.describe(f"{folder}metadata_0", *words)
    for number in range(300):
        ltt_kernel.log("kernel_1", 2 + number % 2, ("u4", number), ("s", b"eth0"))
    ltt_kernel.finalize()
    status, told = lttds.run("-t", tmp_path / "t", "-c", ltt_kernel.root)
    assert status == 0, told
    lines = lttv("text", tmp_path / "t", "--event", "*irq_*").stdout.splitlines()
    assert len(lines) == 300, lines[:2]
    assert "irq = 298" in lines[298]
    assert 'name = "eth0"' in lines[298]


def test_metadata_of_an_earlier_run_or_another_source_describe_the_events(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path
) -> None:
    names = ("metadata_0", "kernel_0", "flight-fs_0")
    for name in names:
        ltt_kernel.add(name)
    ltt_kernel.describe("metadata_0", "kernel", "tick", 3, "n %u")
    ltt_kernel.describe("metadata_0", "fs", "tock", 4, "n %u")
    words = ("-t", tmp_path / "t", "--flush-interval", "20ms", "--duration")
    root = ltt_kernel.root
    for letters in ((), ("-a",)):
        ltt_kernel.log("kernel_0", 3, ("u4", 40 + len(letters)))
        ltt_kernel.log("flight-fs_0", 4, ("u4", 50 + len(letters)))
        for name in names:
            ltt_kernel.flush(name)
        sources = (f"--source=ltt:{root},channels={channels}" for channels in ("normal", "flight"))
        status, told = lttds.run(*words, "200ms", *sources, *letters)
        assert status == 0, told
    shown = lttv("text", tmp_path / "t")
    for event in ("tick", "tock"):
        lines = [line for line in shown.stdout.splitlines() if f".{event}: " in line]
        assert len(lines) == 2, (shown.stdout, shown.stderr)
    assert_whole(tmp_path / "t")


def test_metadata_of_another_kernel_trace_are_not_used(
    ltt_kernel: Kernel, lttds: Runs, tmp_path: Path
) -> None:
    for start_us, name in enumerate(("metadata_0", "flight-kernel_0")):
        ltt_kernel.add(name, start_us=start_us)
    ltt_kernel.describe("metadata_0", "kernel", "tick", 3, "n %u")
    ltt_kernel.log("flight-kernel_0", 3, ("u4", 1))
    ltt_kernel.finalize()
    sources = (
        f"--source=ltt:{ltt_kernel.root},channels={channels}" for channels in ("normal", "flight")
    )
    status, told = lttds.run("-t", tmp_path / "t", *sources)
    assert status == 0, told
    shown = lttv("text", tmp_path / "t")
    assert "kernel.tick: " not in shown.stdout
    assert "no marker is known for event id 3" in shown.stderr
