"""``lttv export --to trace.dat`` restores whole kernel pages, and trace-cmd reads them."""

import os
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.errors import NotATraceError, UsageError
from lttd.subbuffer import Gap, Reason, Unit
from lttd.view.cli import main
from lttd.view.export import export
from lttd.view.export.pages import PageMaker, Tally
from lttd.view.ftrace.saved import SavedFiles
from lttd.view.part import Selection, parts_within
from lttd.view.times import ALWAYS_END, EVERYTHING, Moment, Window, window_of
from lttd.view.trace import Trace
from tests.fakes import page
from tests.ftraced import Traced, tick
from tests.ftraced import pages_of as pages_of_events
from tests.running import Launcher, needs_kernel, until
from tests.segment_builder import LAYOUT, Made, record_at, subbuffer
from tests.tools import decoded, needs_tool, replayed, trace_cmd_report

ROOM = LAYOUT.subbuffer_bytes - LAYOUT.header_bytes


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return replayed(tmp_path_factory.mktemp("fixture") / "t")


# -- pages


def pages_of(made: Made, cpu: int = 0) -> tuple[list[bytes], Tally]:
    tally = Tally()
    maker = PageMaker(LAYOUT, tally)
    part = Selection(made.stream(cpu), 0, ALWAYS_END)
    data = b"".join(bytes(some) for some in maker.pages(part)) + bytes(maker.rest())
    size = LAYOUT.subbuffer_bytes
    assert len(data) == size * tally.pages
    return [data[at : at + size] for at in range(0, len(data), size)], tally


def read_in_parts(begin: int, deltas: list[int], cuts: set[int]) -> list[bytes]:
    """Return a kernel page as flushes deliver it: cut before the events with these numbers."""
    parts: list[bytes] = []
    base = time = begin
    content = b""
    for number, delta in enumerate(deltas):
        if number in cuts and content:
            parts.append(page(base, content))
            base, content = time, b""
        time += delta
        content += record_at(delta, struct.pack("<II", number, 7))
    return [*parts, page(base, content)]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=40), min_size=1, max_size=5),
    st.sets(st.integers(0, 39)),
)
def test_glued_pages_equal_those_of_the_kernel_whatever_was_flushed(
    tmp_path_factory: pytest.TempPathFactory, kernel_pages: list[list[int]], cuts: set[int]
) -> None:
    made = Made(tmp_path_factory.mktemp("glue") / "t")
    # The step of 5 prevents that a page begins exactly at the end of the last one.
    begin, whole = 1000, []
    for deltas in kernel_pages:
        whole += read_in_parts(begin, deltas, set())
        made.append(read_in_parts(begin, deltas, cuts))
        begin += sum(deltas) + 5
    made.finish()
    assert pages_of(made)[0] == whole


def test_parts_that_do_not_fit_into_one_page_are_not_glued(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    event = record_at(0, bytes(range(1, 109)))
    content = event * (ROOM // 2 // len(event) + 1)
    made.append([page(1000, content)] * 3)
    made.append([page(1000, event)])
    made.finish()
    pages, tally = pages_of(made)
    assert [len(one.rstrip(b"\0")) for one in pages[:2]] == [16 + len(content)] * 2
    assert len(pages) == 3
    assert pages[2] == page(1000, content + event)
    assert tally.subbuffers == 4


def word_of(one: bytes) -> int:
    return int(struct.unpack_from("<Q", one, 8)[0])


def test_a_loss_is_flagged_on_the_next_page_with_its_number(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0), subbuffer(1, missed=7)], trailing_loss=3)
    made.append([subbuffer(2)], trailing_loss=5)
    made.finish()
    pages, tally = pages_of(made)
    assert pages[:2] == [subbuffer(0), subbuffer(1, missed=7)]
    assert pages[2] == subbuffer(2, missed=3)
    assert tally.events_lost == 15


def test_parts_before_and_after_a_loss_are_not_glued(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    first, second = read_in_parts(1000, [10, 20, 30], {2})
    made.append([first], trailing_loss=1)
    made.append([second])
    made.finish()
    pages, _ = pages_of(made)
    assert len(pages) == 2
    assert word_of(pages[1]) >> 30 == 3


def test_a_loss_without_room_or_number_sets_only_the_flag(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    full = page(2000, record_at(1, bytes(range(1, 109))) * 36 + record_at(1, b"1234" * 11))
    assert len(full.rstrip(b"\0")) > LAYOUT.subbuffer_bytes - 32
    made.append([subbuffer(0)], trailing_loss=3)
    made.append([full.replace(b"1234" * 11, b"1234" * 11)])
    batch = made.rings[0].batch([subbuffer(5)])
    batch = replace(batch, gaps=(Gap(0, Reason.REFUSED, Unit.SUBBUFFERS, 1, 0, 0),))
    made.files[0].append(batch)
    made.finish()
    pages, tally = pages_of(made)
    room = ROOM - (word_of(pages[1]) & 0xFFFF)
    assert word_of(pages[1]) >> 30 == (3 if room >= 8 else 2)
    assert word_of(pages[2]) >> 30 == 2
    assert tally.events_lost == 3


def test_a_page_that_does_not_parse_is_left_out_reported_and_marked(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(number) for number in range(5)])
    made.finish()
    entries = made.stream().index.entries()
    with made.stream().paths.data.open("r+b") as file:
        file.seek(int(entries["offset_bytes"][1]) + 8)
        file.write(struct.pack("<Q", 0xFFFF))  # larger than any sub-buffer
        file.seek(int(entries["offset_bytes"][3]) + 16 + 12)
        file.write(struct.pack("<I", 28))  # a second event beyond the content
    pages, tally = pages_of(made)
    first, second = tally.notes.told()
    assert first.endswith("no sub-buffer begins here; left out")
    assert "runs past the content" in second
    assert tally.events == 3 + 3 + 1 + 3
    assert pages[0] == subbuffer(0)
    assert word_of(pages[1]) >> 30 == 2
    assert pages[2] == page(4000, subbuffer(3)[16:28])
    assert word_of(pages[3]) >> 30 == 2


# -- files


@needs_tool("trace-cmd")
def test_trace_cmd_reads_every_event_at_its_time(trace: Trace, tmp_path: Path) -> None:
    lines = export(trace, EVERYTHING, "trace.dat", tmp_path / "t.dat")
    told = trace_cmd_report(tmp_path / "t.dat")
    events = decoded(trace)
    assert told.events == {("", cpu): found for cpu, found in events.items()}
    lost = [gap.count for stream in trace.segments[0].streams for gap in stream.gaps]
    assert told.lost == [f"CPU:{cpu} [{count} EVENTS DROPPED]" for cpu, count in enumerate(lost)]
    assert lines == [
        f"{sum(map(len, events.values()))} events of 44 sub-buffers in 28 pages,"
        f" {sum(filter(None, lost))} events lost"
    ]


@needs_tool("trace-cmd")
def test_a_trace_dat_window_holds_the_sub_buffers_that_touch_it(
    trace: Trace, tmp_path: Path
) -> None:
    stream = trace.segments[0].streams[0]
    begin, end = int(stream.index.entries()["begin"][8]), int(stream.index.entries()["begin"][12])
    window = Window(Moment(begin, wall=False), Moment(end, wall=False))
    export(trace, window, "trace.dat", tmp_path / "t.dat")
    found = trace_cmd_report(tmp_path / "t.dat").events[("", 0)]
    whole = decoded(trace)[0]
    at = whole.index(found[0])
    assert found == whole[at : at + len(found)]
    inside = [event for event in whole if begin <= event[0] <= end]
    assert len(inside) <= len(found) < len(whole)
    assert set(inside) <= set(found)
    with pytest.raises(NotATraceError, match="nothing was recorded"):
        export(trace, window_of(trace, "1", "2"), "trace.dat", tmp_path / "none")
    assert os.listdir(tmp_path) == ["t.dat"]


@needs_tool("trace-cmd")
def test_parallel_recordings_become_instances_and_later_ones_are_joined(tmp_path: Path) -> None:
    replayed(tmp_path / "t")
    trace = replayed(tmp_path / "t", "--append")
    export(trace, EVERYTHING, "trace.dat", tmp_path / "beside.dat")
    told = trace_cmd_report(tmp_path / "beside.dat")
    events = decoded(trace)
    instance = f"{trace.segments[0].streams[0].info.id.channel}#2"
    assert told.events == {(name, cpu): events[cpu] for cpu in events for name in ("", instance)}

    # The same in two segments, one after the other.
    (tmp_path / "halves").mkdir()
    middle = int(trace.segments[0].streams[0].index.entries()["begin"][12])
    for number, window in enumerate(
        (Window(None, Moment(middle - 1, wall=False)), Window(Moment(middle, wall=False), None))
    ):
        part = tmp_path / f"part{number}"
        make_half(trace.segments[number].paths.directory, window, part)
        (child,) = part.iterdir()
        child.rename(tmp_path / "halves" / child.name)
    halves = Trace(tmp_path / "halves")
    assert len(halves.segments) == 2
    export(halves, EVERYTHING, "trace.dat", tmp_path / "halves.dat")
    joined = trace_cmd_report(tmp_path / "halves.dat").events
    assert set(joined) == {("", 0), ("", 1)}
    for cpu, found in events.items():
        assert sorted(set(joined[("", cpu)])) == sorted(set(found))


def make_half(segment: Path, window: Window, out: Path) -> None:
    from lttd.view.commands.cut import cut  # noqa: PLC0415

    cut(Trace(segment), window, out)


@needs_tool("trace-cmd")
def test_events_are_exported_without_any_saved_file(tmp_path: Path) -> None:
    made = Made(tmp_path / "t", cpus=3)
    # Without a loss: trace-cmd 3.1.6 stops at a loss before an event of unknown format.
    made.append([subbuffer(0), subbuffer(1)], cpu=2)
    made.finish()
    export(Trace(made.trace), EVERYTHING, "trace.dat", tmp_path / "t.dat")
    run = subprocess.run(
        ["trace-cmd", "report", tmp_path / "t.dat"], capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert lines[0] == "cpus=3"
    assert sum("UNKNOWN" in line for line in lines) == 6


def test_a_pid_has_the_last_command_that_events_name(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    path = made.paths.directory / "tracefs/commands"
    path.parent.mkdir()
    path.write_bytes(
        b"1000\t1\t1\tinit\n1000\t11\t11\tkworker/0:1H-events_highpri\n"
        b"1000\t12\t12\tkworker/R-rcu_gp\n1000\t13\t13\ta\\nb\\\\c\n"
        b"2000\t1\t1\tsystemd-and-so-on\n3000\t1\t1\tlater\n3000\t14\t\tnew\n4000\t1"
    )
    saved = SavedFiles(Trace(made.trace).segments[0])
    assert saved.last_commands(2500) == {
        1: b"systemd-and-so-",
        11: b"kworker/0:1H",
        12: b"kworker/R-rcu_g",
        13: b"a b\\c",
        14: b"new",
    }


@needs_tool("trace-cmd")
def test_an_empty_task_name_does_not_hide_later_names(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.commands((0, 5, "first"), (0, 6, ""), (0, 7, "  "), (0, 8, "later"), (0, 9, "last one"))
    made.append([pages_of_events(1000, [tick(pid, pid=pid) for pid in range(5, 10)])])
    made.finish()
    export(Trace(made.trace), EVERYTHING, "trace.dat", tmp_path / "t.dat")
    run = subprocess.run(
        ["trace-cmd", "report", "-N", tmp_path / "t.dat"],
        capture_output=True,
        text=True,
        check=True,
    )
    shown = [re.match(r" *(.*)-(\d+) +\[", line) for line in run.stdout.splitlines()[1:]]
    assert [(one[1], int(one[2])) for one in shown if one] == [
        ("first", 5), ("<...>", 6), ("<...>", 7), ("later", 8), ("last one", 9),
    ]  # fmt: skip


def test_a_trace_that_one_trace_dat_cannot_hold_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0)])
    made.finish()
    other = Made(tmp_path / "t", number=2, boot_id="yet another")
    other.append([subbuffer(0)])
    other.finish()
    with pytest.raises(UsageError, match="export them one by one"):
        export(Trace(made.trace), EVERYTHING, "trace.dat", tmp_path / "t.dat")
    path = str(other.paths.directory)
    assert main(["export", path, "--to", "trace.dat", "-o", str(tmp_path / "one.dat")]) == 0
    assert capsys.readouterr().err == (
        "lttv: 3 events of 1 sub-buffers in 1 pages, 0 events lost\n"
    )
    for record in other.manifest.streams:
        object.__setattr__(record.info, "abi", "lttng")
    other.write_manifest()
    with pytest.raises(UsageError, match=r"holds lttng, and --to trace.dat takes only ftrace"):
        export(Trace(other.paths.directory), EVERYTHING, "trace.dat", tmp_path / "t.dat")
    assert sorted(os.listdir(tmp_path)) == ["one.dat", "t"]


class TestOnThisKernel:
    pytestmark = [*needs_kernel(), needs_tool("trace-cmd")]  # noqa: RUF012

    def test_a_quiet_second_of_flushes_becomes_few_pages(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        run = lttd.start(
            *("-t", tmp_path / "t", "--events", "sched:sched_switch,timer:*"),
            *("--flush-interval", "10ms", "--duration", "1500ms"),
        )
        until(lambda: run.process.poll() is not None, "a second and a half is over")
        trace = Trace(tmp_path / "t")
        summaries = trace.summaries()
        (line,) = export(trace, EVERYTHING, "trace.dat", tmp_path / "t.dat")
        told, events = trace_cmd_report(tmp_path / "t.dat"), decoded(trace)
        assert told.events == {("", cpu): found for cpu, found in events.items() if found}
        pages = int(line.split(" pages")[0].rpartition(" ")[2])
        delivered = sum(summary.subbuffers for summary in summaries)
        content = sum(summary.payload_bytes - 16 * summary.subbuffers for summary in summaries)
        # The kernel had filled every page except the last one of each CPU.
        assert pages <= content / (ROOM - 256) + len(summaries)
        assert pages < delivered
        assert len(parts_within(trace.segments[0], EVERYTHING)) == len(summaries)
