"""Open traces, and run ``lttv info`` and ``lttv check``."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import lttd
from lttd.clock import Snapshot
from lttd.errors import LttdError, NotATraceError, TraceDamagedError
from lttd.index import ENTRY_BYTES, INDEX_HEADER
from lttd.lockfile import Lock
from lttd.manifest import Manifest
from lttd.stats import StreamSummary, losses_text, summary_table
from lttd.subbuffer import Gap, Reason, Unit
from lttd.tracedir import SegmentPaths
from lttd.view.cli import PIPE_CLOSED, main
from lttd.view.commands.info import info_json, info_text
from lttd.view.times import seconds, utc
from lttd.view.trace import Trace, merge_summaries
from lttd.view.verify import MOST_FINDINGS, check
from tests.segment_builder import SNAPSHOT, Made, subbuffer


def recorded(trace: Path, *, cpus: int = 2, number: int = 1, layout: str = "packed") -> Made:
    made = Made(trace, cpus=cpus, number=number, layout=layout)
    made.append([subbuffer(0), subbuffer(1, missed=7)])
    made.append([subbuffer(2, events=40)], trailing_loss=3)
    if cpus > 1:
        made.append([subbuffer(1)], cpu=1)
    return made


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    recorded(tmp_path / "t").finish()
    return tmp_path / "t"


def run(*arguments: str) -> int:
    return main(list(arguments))


# -- opening


def test_opening_a_trace_reads_only_the_manifests(trace: Path) -> None:
    for file in trace.glob("*/streams/**/*"):
        if file.is_file():
            file.write_bytes(b"")
    opened = lttd.open(trace)
    assert [stream.name for stream in opened.segments[0].streams] == ["fake_0", "fake_1"]
    assert opened.summaries()[0].events_lost == 10


@pytest.mark.parametrize(
    ("words", "soft", "hard", "says"),
    [
        (("info",), 64, 64, ""),
        (("text", "-n", "1"), 150, 4096, ""),
        (("text",), 64, 64, "Too many open files: let lttd open more files (ulimit -n; systemd"),
    ],
)
def test_a_trace_of_many_segments_opens_with_few_descriptors(
    tmp_path: Path, words: tuple[str, ...], soft: int, hard: int, says: str
) -> None:
    for number in range(1, 121):
        recorded(tmp_path / "t", cpus=1, number=number).finish()
    done = subprocess.run(
        [sys.executable, "-m", "lttd.view", words[0], tmp_path / "t", *words[1:]],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == bool(says), done.stderr
    assert says in done.stderr


def test_any_number_of_segments_that_cannot_be_read_are_a_few_lines(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2, 22):
        recorded(trace, number=number).finish().paths.manifest.write_text("garbage")
    assert run("info", str(trace)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 9
    assert lines[-1] == f"lttv: {trace}: 12 more segments are left out"


def test_losses_are_printed_with_their_units() -> None:
    lost = {"overwritten": 1, "commit_overrun": 2000, "storage_subbuffers": 3, "torn_bytes": 1}
    assert losses_text(lost, 2) == (
        "1 event overwritten, 2,000 events overrun while being written,"
        " 3 sub-buffers not written, 1 byte torn, some, 2 times"
    )
    assert losses_text({}) == "nothing"


def test_importing_lttd_and_its_viewer_loads_nothing_of_the_daemon() -> None:
    code = (
        "import sys, lttd, lttd.view.cli; early = 'numpy' in sys.modules\n"
        "lttd.open; import lttd.view.commands.check\n"
        "print(early, [m for m in ('trio', 'prometheus_client', 'construct') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False []"
    with pytest.raises(AttributeError):
        _ = lttd.nothing_of_this_name


def test_a_trace_begins_with_its_first_and_ends_with_its_last_sub_buffer(trace: Path) -> None:
    opened = Trace(trace)
    assert (opened.begin, opened.end) == (1000, 3500)
    span = opened.span
    assert span is not None
    assert span.begin_realtime_ns == SNAPSHOT.realtime_ns
    assert span.end_realtime_ns == SNAPSHOT.realtime_ns + 2500


def test_the_totals_of_the_manifest_equal_those_of_index_and_gaps(tmp_path: Path) -> None:
    for layout in ("packed", "sparse"):
        recorded(tmp_path / layout, layout=layout).leave()
        while_open = Trace(tmp_path / layout).summaries()
        stored = 52 + 60 + 496
        assert while_open[0] == StreamSummary(
            *("fake_0", 0, 3, stored, 3 * 4096 - stored, 10),
            lost={"overwritten": 7, "dropped": 3},
            source="fake",
        )


def test_the_segments_of_a_trace_are_summed_by_stream(tmp_path: Path) -> None:
    recorded(tmp_path / "t").finish()
    recorded(tmp_path / "t", cpus=1, number=2).finish()
    opened = Trace(tmp_path / "t")
    assert [segment.paths.number for segment in opened.segments] == [1, 2]
    one, other = opened.summaries()
    assert (one.subbuffers, one.events_lost, one.lost["dropped"]) == (6, 20, 6)
    assert (other.subbuffers, other.events_lost) == (1, 0)
    assert merge_summaries([]) == []


def test_streams_of_the_same_name_get_a_line_for_each_source(
    tmp_path: Path,
) -> None:
    for number, spec in enumerate(("ltt:/a", "ltt:/b,channels=flight"), 1):
        made = recorded(tmp_path / "t", cpus=1, number=number)
        made.manifest.source["spec"] = spec
        made.finish()
    one, other = Trace(tmp_path / "t").summaries()
    assert (one.source, one.name, other.source, other.name) == (
        "ltt:/a",
        "fake_0",
        "ltt:/b",
        "fake_0",
    )
    lines = summary_table([one, other]).splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["ltt:/a", "fake_0"], ["ltt:/b", "fake_0"]]
    assert "ltt:/a" not in summary_table([one])


def test_segments_of_two_boots_are_ordered_by_the_wall_clock(tmp_path: Path) -> None:
    recorded(tmp_path / "t").finish()
    later = recorded(tmp_path / "t", number=2)
    later.manifest.machine["boot_id"] = "the next boot"
    day_ns = 86_400_000_000_000
    later.manifest.clock_snapshots = [
        Snapshot(1_000_000, 0, 0, SNAPSHOT.realtime_ns + day_ns, 1),
    ]
    later.finish()
    found = info_json(Trace(tmp_path / "t"))
    assert not Trace(tmp_path / "t").one_clock
    assert found["begin_utc"] == "2023-11-14T22:13:20.000000000Z"
    assert found["end_utc"] == "2023-11-15T22:13:19.999003500Z"
    assert found["duration_ns"] == day_ns - 996_500


def test_a_directory_that_is_not_a_trace_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", str(tmp_path / "nowhere")) == 2
    assert run("info", str(tmp_path)) == 2
    assert run("check", str(tmp_path)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"lttv: {tmp_path}") for line in lines)
    with pytest.raises(NotATraceError):
        Trace(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": 99}'])
def test_a_damaged_manifest_is_reported_in_one_line_with_its_place(
    trace: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = next(trace.glob("*/trace.json"))
    manifest.write_bytes(content)
    with pytest.raises(TraceDamagedError):
        Trace(trace)
    assert run("info", str(trace)) == 1
    assert run("check", str(trace)) == 1
    captured = capsys.readouterr()
    assert str(manifest) in captured.err
    assert "Traceback" not in captured.err


# -- info


def test_info_prints_a_summary_for_people(trace: Path) -> None:
    text = info_text(Trace(trace))
    assert "2023-11-14T22:13:20.000000000Z" in text
    assert "7 events overwritten, 3 events dropped" in text
    assert "closed, 1 segment" in text


def test_info_json_has_the_summary_and_the_times(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("info", "--json", str(trace)) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["events_lost"], found["subbuffers"]) == (10, 4)
    assert (found["begin"], found["end"], found["duration_ns"]) == (1000, 3500, 2500)
    assert found["begin_utc"].endswith("Z")
    assert {"payload_bytes", "padding_bytes", "streams", "clock", "source", "host", "kernel"} <= (
        found.keys()
    )
    assert (found["state"], len(found["segments"])) == ("closed", 1)


def test_info_of_an_empty_recording_succeeds(tmp_path: Path) -> None:
    Made(tmp_path / "t").finish()
    assert "nothing was recorded" in info_text(Trace(tmp_path / "t"))
    assert info_json(Trace(tmp_path / "t"))["begin"] is None


def test_times_are_written_exactly() -> None:
    assert utc(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456789Z"
    assert utc(1 << 80) is None
    assert seconds(-1) == "-0.000000001"
    assert seconds(12_000_000_034) == "12.000000034"


def test_lttv_help_starts_without_numpy() -> None:
    code = "import sys; from lttd.view.cli import main\ntry: main(['--help'])\nexcept SystemExit: "
    code += "print('numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.endswith("False\n")
    assert "info" in out.stdout


@pytest.mark.parametrize("command", ["info", "check"])
def test_lttv_info_ends_quietly_if_its_pipe_is_closed(trace: Path, command: str) -> None:
    program = [sys.executable, "-m", "lttd.view", command, str(trace)]
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as gone:
        done = subprocess.run(program, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (PIPE_CLOSED, b"")


# -- check


@pytest.mark.parametrize("layout", ["packed", "sparse"])
def test_check_reports_a_whole_trace_as_whole(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "t", layout=layout).finish()
    assert run("check", "--events", str(tmp_path / "t")) == 0
    assert capsys.readouterr().out == "whole: 1 segment, 2 streams, 4 sub-buffers, 49 events\n"


def test_check_compares_events_with_the_count_of_the_kernel(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t")
    made.records[0].counters = {"read events": 46}
    made.records[1].counters = {"read events": 5}
    made.finish()
    report = check(made.paths, events=True)
    assert [(s.events, s.read_events) for s in report.streams] == [(46, 46), (3, 5)]
    assert [f.reason for f in report.findings] == [
        "3 events decoded, the kernel counted 5 as read: another process reads this buffer, too"
    ]
    assert check(made.paths).whole


def test_events_of_damaged_sub_buffers_are_not_blamed_on_another_reader(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t", cpus=1)
    made.records[0].counters = {"read events": 46}
    made.finish()
    data = made.paths.stream("fake_0").data
    data.write_bytes(data.read_bytes()[:100])
    report = check(made.paths, events=True)
    assert report.findings
    assert not any("somebody else" in finding.reason for finding in report.findings)
    assert any("damaged events cannot be counted" in note for note in report.notes)


def test_check_finds_entries_that_end_long_after_their_events(tmp_path: Path) -> None:
    """An earlier lttd wrote such entries for rings that were full when it attached."""
    made = recorded(tmp_path / "t", cpus=1)
    made.finish()
    assert check(made.paths, events=True).notes == []
    index = made.paths.stream("fake_0").index
    raw = bytearray(index.read_bytes())
    for number in (1, 2):
        at = len(INDEX_HEADER) + number * ENTRY_BYTES + 4 * 8
        raw[at : at + 8] = (1_000_000_000_000).to_bytes(8, "big")
    index.write_bytes(raw)
    report = check(made.paths, events=True)
    assert report.findings == []
    assert report.notes == [
        "fake_0: 2 of 3 entries end up to 1000.000 s after their last events: a window there"
        " reads more than it needs"
    ]
    assert check(made.paths).notes == []


@pytest.mark.parametrize(
    ("reason", "count", "read_events", "note"),
    [
        (Reason.FOREIGN_READ, 2, 5, "another process read the others"),
        (Reason.FOREIGN_READ, 2, 6, ""),
        (Reason.FOREIGN_READ, None, 6, "the gaps list the missing ones"),
        (Reason.EMPTIED, None, 1, "another process emptied the ring"),
        (Reason.SWITCHED_OFF, None, 5, ""),
    ],
)
def test_acts_of_another_process_on_the_ring_are_not_damage(
    tmp_path: Path, reason: Reason, count: int | None, read_events: int, note: str
) -> None:
    made = recorded(tmp_path / "t")
    batch = made.rings[1].batch([])
    batch = replace(batch, gaps=(Gap(0, reason, Unit.EVENTS, count, 0, 9),))
    made.files[1].append(batch)
    made.records[1].counters = {"read events": read_events}
    made.finish()
    report = check(made.paths, events=True)
    assert report.whole == bool(note), report.findings
    assert [note in each for each in report.notes] == [True] * bool(note)


def test_data_taken_during_a_change_of_the_clock_are_not_damage(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t", cpus=1)
    made.append([subbuffer(3)])
    batch = made.rings[0].batch([])
    batch = replace(batch, gaps=(Gap(0, Reason.EMPTIED, Unit.EVENTS, None, 3_500, 9_000),))
    made.files[0].append(batch)
    made.finish()
    index = made.paths.stream("fake_0").index
    raw = bytearray(index.read_bytes())
    for number in (2, 3):  # entries begin at 3,000, before the doubtful time, and at 4,000
        at = len(INDEX_HEADER) + number * ENTRY_BYTES
        begin = raw[at + 3 * 8 : at + 4 * 8]
        raw[at + 4 * 8 : at + 5 * 8] = begin
    index.write_bytes(raw)
    late = [f.entry for f in check(made.paths, events=True).findings if "later" in f.reason]
    assert late == [2]


def damaged(made: Made, which: str, at: int, value: bytes) -> list[str]:
    path = getattr(made.paths.stream("fake_0"), which)
    raw = bytearray(path.read_bytes())
    raw[at : at + len(value)] = value
    path.write_bytes(raw)
    return [
        f"{f.path.name}: {f.entry}: {f.reason}" for f in check(made.paths, events=True).findings
    ]


@pytest.mark.parametrize(
    ("which", "at", "value", "finding"),
    [
        ("data", 52, b"\1", "fake_0: 1: the sub-buffer's header says another begin"),
        ("data", 60, b"\1", "fake_0: 1: the sub-buffer's header says another size"),
        ("data", 16, bytes(8), "fake_0: 0: record states no length"),
        ("index", 16 + 7, b"\1", "fake_0.idx: 0: does not begin where the one before it ends"),
        ("index", 16 + 38, b"\0", "fake_0.idx: 0: steps back in time or number"),
        ("index", 16 + 55, b"\1", "fake_0.idx: 0: names another stream"),
        ("index", 88 + 47, b"\1", "fake_0.idx: 1: events_discarded does not grow by"),
        ("index", 0, b"\0", "fake_0.idx: None: magic"),
        ("gaps", 16 + 35, b"\x77", "fake_0.gaps: None: 119 is not a valid Reason"),
    ],
)
def test_check_finds_damage_and_its_place(
    tmp_path: Path, which: str, at: int, value: bytes, finding: str
) -> None:
    found = damaged(recorded(tmp_path / "t").finish(), which, at, value)
    assert found
    assert found[0].startswith(finding)


def test_check_finds_padding_in_packed_data(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t").finish()
    path = made.paths.stream("fake_0").data
    path.write_bytes(path.read_bytes() + bytes(100))
    assert [str(f) for f in check(made.paths).findings] == [
        f"{path}: byte 608: 100 bytes after the last entry"
    ]


def test_check_finds_manifest_totals_that_the_files_contradict(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t").finish()
    text = made.paths.manifest.read_text().replace('"events_lost": 10', '"events_lost": 11')
    made.paths.manifest.write_text(text)
    assert [f.reason for f in check(made.paths).findings] == [
        "fake_0: events_lost 11 in the manifest, 10 in the files"
    ]


def test_check_reports_a_thousand_bad_entries_in_few_lines(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(n) for n in range(1000)])
    made.finish()
    path = made.paths.stream("fake_0").index
    raw = bytearray(path.read_bytes())
    raw[16 + 55 :: 72] = b"\1" * len(raw[16 + 55 :: 72])
    path.write_bytes(raw)
    report = check(made.paths)
    assert len(report.findings) == MOST_FINDINGS
    assert len(report.notes) == 1


def test_losses_survive_the_removal_of_the_gaps_file(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(trace.glob("*/streams/index/fake_0.gaps")).unlink()
    assert run("check", str(trace)) == 1
    assert run("check", "--repair", str(trace)) == 0
    # All except the loss after the last sub-buffer, which has no entry.
    assert Trace(trace).summaries()[0].lost == {"discarded": 7}
    capsys.readouterr()


def test_repair_makes_a_missing_index_again(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next(trace.glob("*/streams/index/fake_0.idx")).unlink()
    assert run("info", str(trace)) == 1
    assert run("check", str(trace)) == 1
    assert run("check", "--repair", str(trace)) == 0
    assert run("check", "--events", "--json", str(trace)) == 0
    captured = capsys.readouterr()
    assert "3 of them indexed again" in captured.out
    assert "--repair makes it again" in captured.err


def test_repair_closes_a_segment_of_a_killed_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recorded(tmp_path / "t").leave()
    assert run("check", str(tmp_path / "t")) == 1
    assert "--repair closes it" in capsys.readouterr().out
    assert run("check", "--repair", str(tmp_path / "t")) == 0
    assert Manifest.read(made.paths.manifest).state == "closed"
    assert "closed" in capsys.readouterr().out


def test_a_segment_that_is_closed_while_check_looks_at_it_is_not_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0)])

    def closes_it(_: SegmentPaths) -> bool:
        made.finish()
        return False

    monkeypatch.setattr("lttd.view.verify.is_live", closes_it)
    report = check(made.paths)
    assert (report.state, report.findings) == ("closed", [])


def test_check_reads_a_live_trace_and_does_not_repair_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recorded(tmp_path / "t")
    lock = Lock(made.paths.base, made.paths.lock)
    assert run("check", str(tmp_path / "t")) == 0
    assert run("check", "--repair", str(tmp_path / "t")) == 1
    assert f"pid {os.getpid()}" in capsys.readouterr().err
    lock.release()
    made.leave()


def test_check_finds_a_stream_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    made = recorded(tmp_path / "t").finish()
    (made.paths.streams / "stray_0").write_bytes(b"?")
    assert [f.path.name for f in check(made.paths).findings] == ["stray_0"]


def test_every_error_of_the_package_has_an_exit_status() -> None:
    assert LttdError.exit_status == 1
    assert NotATraceError.exit_status == 2


def test_segments_beside_one_with_a_damaged_manifest_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        made = Made(tmp_path / "t", number=number)
        made.append([subbuffer(number)])
        made.finish()
    manifest = sorted((tmp_path / "t").glob("*/trace.json"))[1]
    manifest.write_bytes(b"{")
    for command in (["info"], ["text"], ["cut", "-o", str(tmp_path / "cut")]):
        assert run(*command, str(tmp_path / "t")) == 0
        told = capsys.readouterr()
        assert told.err.count(str(manifest)) == 1
        assert "its segment is left out" in told.err
        assert "not there" not in told.err
    assert len(Trace(tmp_path / "cut").segments) == 2
