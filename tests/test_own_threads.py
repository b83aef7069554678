"""lttd's own threads are in the data, named in the manifest, and left out by --hide-self alone."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

import lttd as library
from lttd.beneath import OpenDirectory
from lttd.errors import TraceDamagedError, UsageError
from lttd.manifest import OWN_THREADS, Manifest
from lttd.own_threads import threads_in
from lttd.sources.base import SourceInfo
from lttd.tracedir import segments
from lttd.view.export import export
from lttd.view.times import EVERYTHING
from lttd.view.trace import Trace
from tests.ftraced import Traced, pages_of, tick
from tests.running import Launcher, needs_kernel, until
from tests.tools import babeltrace, needs_tool
from tests.viewer import run

OWN, OTHER = 40, 7


def made(trace: Path) -> Path:
    """Make a trace of two runs: the pid of lttd in each is another process in the other."""
    for number, own in ((1, OWN), (2, OTHER)):
        segment = Traced(trace, number=number)
        segment.manifest.source[OWN_THREADS] = {str(own): "lttd", "41": "lttd-sync"}
        begin = 1000 * number
        pids = (OWN, OTHER, 41, 8)
        segment.append([pages_of(begin, [tick(begin + pid, pid=pid) for pid in pids])])
        segment.finish()
    return trace


ALL = [1040, 1007, 1041, 1008, 2040, 2007, 2041, 2008]
OTHERS = [1007, 1008, 2040, 2008]


def counts_in(text: str) -> list[int]:
    return [int(one) for one in re.findall(r"count=(\d+)", text)]


@pytest.mark.parametrize(("options", "expected"), [((), ALL), (("--hide-self",), OTHERS)])
@pytest.mark.parametrize("command", ["text", "follow"])
def test_lines_have_all_events_unless_lttds_own_are_hidden(
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    command: str,
    options: tuple[str, ...],
    expected: list[int],
) -> None:
    follow = ("--from-begin", "--until-closed") if command == "follow" else ()
    status, out, _ = run(capfdbinary, command, made(tmp_path / "t"), *follow, *options)
    assert status == 0
    assert counts_in(out.decode()) == expected


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
def test_columns_have_all_events_unless_lttds_own_are_hidden(
    tmp_path: Path, piece_bytes: int
) -> None:
    def counts(*, hide_self: bool) -> list[int]:
        trace = library.open(made(tmp_path / str(hide_self)), hide_self=hide_self)
        window = trace.window(piece_bytes=piece_bytes)
        return [int(one) for batch in window for one in batch["tick"]["count"]]

    assert counts(hide_self=False) == ALL
    assert counts(hide_self=True) == OTHERS


def test_a_where_sees_what_is_left(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    options = ("--hide-self", "--where", "count > 2000")
    _, out, _ = run(capfdbinary, "text", made(tmp_path / "t"), *options)
    assert counts_in(out.decode()) == [2040, 2008]


def test_a_plot_counts_what_is_left_and_states_it(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trace = made(tmp_path / "t")
    assert run(capfdbinary, "plot", trace, "-o", tmp_path / "all.svg")[0] == 0
    assert run(capfdbinary, "plot", trace, "--hide-self", "-o", tmp_path / "some.svg")[0] == 0
    everything, some = ((tmp_path / name).read_text() for name in ("all.svg", "some.svg"))
    assert "8 events" in everything
    assert "own threads" not in everything
    assert "4 events" in some
    assert "without lttd's own threads" in some


def test_exports_that_hold_events_leave_lttds_own_out(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    trace = Trace(made(tmp_path / "t")).without_own_threads()
    export(trace, EVERYTHING, "systrace", tmp_path / "text")
    assert counts_in((tmp_path / "text").read_text()) == OTHERS
    export(trace, EVERYTHING, "parquet", tmp_path / "parquet")
    files = sorted((tmp_path / "parquet").rglob("*tick*.parquet"))
    files = files or sorted(
        p for p in (tmp_path / "parquet").rglob("*.parquet") if "tick" in str(p)
    )
    found = [one for file in files for one in parquet.read_table(file)["count"].to_pylist()]
    assert sorted(found) == sorted(OTHERS)


@needs_tool("babeltrace2")
def test_ctf_leaves_lttds_own_out(tmp_path: Path) -> None:
    export(Trace(made(tmp_path / "t")).without_own_threads(), EVERYTHING, "ctf", tmp_path / "ctf")
    events, _ = babeltrace(tmp_path / "ctf")
    assert len(events) == len(OTHERS)


@pytest.mark.parametrize("to", ["trace.dat"])
def test_a_format_of_whole_sub_buffers_refuses_to_leave_out_events(tmp_path: Path, to: str) -> None:
    trace = Trace(made(tmp_path / "t")).without_own_threads()
    with pytest.raises(UsageError, match="whole sub-buffers; formats for --hide-self: ctf, parq"):
        export(trace, EVERYTHING, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_info_names_the_option(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    _, out, _ = run(capfdbinary, "info", made(tmp_path / "t"))
    assert "2 of lttd's own are recorded, too; --hide-self leaves them out" in out.decode()


def test_a_trace_without_the_key_hides_nothing(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    old = Traced(tmp_path / "t")
    old.append([pages_of(1000, [tick(1)])])
    old.finish()
    _, out, _ = run(capfdbinary, "text", tmp_path / "t", "--hide-self")
    assert counts_in(out.decode()) == [1]


@pytest.mark.parametrize("value", [[], {"7": 7}, "lttd", {"7": "x" * 5000}])
def test_impossible_threads_are_refused(tmp_path: Path, value: object) -> None:
    segment = Traced(tmp_path / "t")
    segment.finish()
    segment.manifest.source[OWN_THREADS] = value
    segment.write_manifest()
    with pytest.raises(TraceDamagedError, match="own_threads"):
        Trace(tmp_path / "t")


def test_words_that_are_not_ids_hide_nothing(tmp_path: Path) -> None:
    segment = Traced(tmp_path / "t")
    segment.manifest.source[OWN_THREADS] = {
        "x": "a",
        "-7": "b",
        "\u0667": "c",
        "7" * 40: "d",
        "7": "e",
    }
    segment.finish()
    assert Manifest.read(segment.paths.manifest).own_pids == {7}


def test_the_ring_of_a_killed_lttd_has_the_threads_of_the_segment_before(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    made(trace)
    first = segments(trace)[0].directory.name
    now = {99: "lttd"}
    opened = OpenDirectory.open(trace)
    left = SourceInfo("fake", "fake", "mono", previous_run=True, continues=first)
    assert threads_in(left, opened, now) == {str(OWN): "lttd", "41": "lttd-sync"}
    boot = SourceInfo(
        "fake", "fake", "mono", previous_boot=True, machine={"boot_id": "another boot"}
    )
    assert threads_in(boot, opened, now) == {str(OTHER): "lttd", "41": "lttd-sync"}
    unknown = SourceInfo("fake", "fake", "mono", previous_boot=True, machine={"boot_id": ""})
    assert threads_in(unknown, opened, now) == {}
    replay = SourceInfo("replay", "replay:x", "mono", live=False)
    assert threads_in(replay, opened, now) == {}
    assert threads_in(SourceInfo("fake", "fake", "mono"), opened, now) == {"99": "lttd"}


# -- on a kernel

SYSCALLS = ("--events", "raw_syscalls:sys_enter", "--summary", "none", "--flush-interval", "50ms")


THREADS = {"lttd", "lttd-write0", "lttd-sync", "lttd-help", "lttd-name", "lttd-close", "lttd-store"}


def pids_in(trace: Path, *, hide_self: bool) -> set[int]:
    batches = library.open(trace, hide_self=hide_self).window()
    return {pid for batch in batches for pid in batch.pid.tolist()}


@pytest.mark.parametrize("_", [pytest.param("", marks=needs_kernel())])
def test_a_recording_writes_no_list_of_pids_and_names_its_threads(
    lttd: Launcher, tmp_path: Path, _: str
) -> None:
    trace = tmp_path / "t"
    run = lttd.start("-t", trace, *SYSCALLS).recording()
    threads = {int(name) for name in os.listdir(f"/proc/{run.process.pid}/task")}
    assert (run.instance / "set_event_notrace_pid").read_text() == ""
    run.signal(signal.SIGUSR1)
    until(lambda: len(segments(trace)) == 2, "a roll")
    assert run.end() == 0, run.stderr
    assert run.stderr == ""
    for segment in segments(trace):
        manifest = Manifest.read(segment.manifest)
        assert manifest.own_pids <= threads  # this launcher loads numpy, which starts one more
        assert manifest.own_threads[str(run.process.pid)] == "lttd"
        assert set(manifest.own_threads.values()) >= THREADS
    assert run.process.pid in pids_in(trace, hide_self=False)
    assert not threads & pids_in(trace, hide_self=True)


@pytest.mark.parametrize("_", [pytest.param("", marks=needs_kernel())])
def test_the_drained_ring_of_a_killed_lttd_names_the_threads_of_that_lttd(
    lttd: Launcher, tmp_path: Path, _: str
) -> None:
    trace = tmp_path / "t"
    killed = lttd.start("-t", trace, *SYSCALLS).recording()
    until(lambda: any(s.streams.exists() for s in segments(trace)), "a segment")
    killed.signal(signal.SIGKILL).wait()
    again = lttd.run("-t", trace, "-a", *SYSCALLS, "--duration", "50ms")
    assert again.process.returncode == 0, again.stderr
    first, *drained, last = (Manifest.read(each.manifest) for each in segments(trace))
    assert str(killed.process.pid) in first.own_threads
    for manifest in drained:
        assert manifest.own_threads == first.own_threads
    assert str(again.process.pid) in last.own_threads
    assert killed.process.pid not in pids_in(trace, hide_self=True)
    assert json.dumps(first.own_threads) != json.dumps(last.own_threads)
