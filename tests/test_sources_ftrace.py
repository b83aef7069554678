"""Record from the ftrace rings of the running kernel; needs root and a mounted tracefs."""

import os
import select
import threading
import time
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from lttd.abi.formats_file import unpack
from lttd.abi.ftrace import PageLayout, last_event_time
from lttd.errors import SourceError, UsageError
from lttd.limits import FORMATS
from lttd.sources.base import NO_OWNER, Attachments, Nothing, When
from lttd.sources.ftrace import instance as ftrace_instance
from lttd.sources.ftrace.source import FtraceSettings, open_ftrace, open_left_by_kill
from lttd.subbuffer import LAST_TAKE_BYTES, TAKE_BYTES, Batch, BufferPool, Reason, RowFlag
from tests.ftrace_sources import QUIET, content, drain, flagged, instance_of, lost, turn
from tests.instances import mark, on_cpu_0
from tests.running import needs_kernel

pytestmark = [*needs_kernel(), pytest.mark.usefixtures("instances")]


@pytest.fixture
def foreign(foreign: Path) -> Path:
    """The foreign instance with a small ring and an event of its own."""
    (foreign / "buffer_size_kb").write_text("64")
    (foreign / "events/sched/sched_switch/enable").write_text("1")
    return foreign


# -- an own instance


def test_an_own_instance_records_and_is_removed_afterwards(instances: Path) -> None:
    with closing(open_ftrace(QUIET, BufferPool())) as source:
        path = instance_of(source)
        assert source.info.clock == "mono"
        assert (path / "tracing_on").read_text() == "0\n"
        source.start()
        mark(path, "hello recorder")
        marked_by = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        batches = drain(source)
        assert b"hello recorder" in content(batches)
        (row,) = (row for batch in batches for row in batch.rows)
        assert row["flags"] == RowFlag.PARTIAL
        assert row["begin"] == row["end"] <= marked_by  # the row ends at its only event
        assert row["kernel_bytes"] == 4096
        assert row["payload_bytes"] < 200
    assert not path.exists()


def test_flushes_deliver_each_event_once_and_in_order() -> None:
    with closing(open_ftrace(QUIET, BufferPool())) as source:
        source.start()
        batches = []
        for number in range(40):
            mark(instance_of(source), f"<{number}>" + "." * 300)
            for stream in source.streams:
                batches += turn(stream)[0]
        batches += drain(source)
        for stream in source.streams:
            rows = np.concatenate([b.rows for b in batches if b.stream == stream.info.id] or [[]])
            if len(rows):
                assert rows["sequence"].tolist() == list(range(len(rows)))
                assert (np.diff(rows["begin"].astype(np.int64)) >= 0).all()
                assert (np.diff(rows["end"].astype(np.int64)) >= 0).all()
        text = content(batches)
        assert [text.count(b"<%d>" % number) for number in range(40)] == [1] * 40
        assert lost(batches) == {}


def test_events_left_in_the_ring_by_an_aborted_drain_are_counted_once() -> None:
    with closing(open_ftrace(QUIET, BufferPool())) as source:
        source.start()
        mark(instance_of(source), "never taken", times=5)
        source.stop()
        batches = [rest for stream in source.streams if (rest := stream.losses())]
        assert lost(batches) == {Reason.ABANDONED: 5}
        assert [stream.losses() for stream in source.streams] == [None] * len(source.streams)


@pytest.mark.parametrize("overwrite", [True, False])
def test_every_event_that_a_full_ring_loses_is_counted_once(overwrite: bool) -> None:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=32 << 10, overwrite=overwrite)
    with closing(open_ftrace(settings, BufferPool())) as source:
        assert source.info.settings["overwrite"] is overwrite
        source.start()
        batches = []
        for _ in range(4):
            mark(instance_of(source), "x" * 80, times=900)
            for stream in source.streams:
                batches += turn(stream)[0]
                rest = stream.losses()
                batches += [rest] if rest else []
        batches += drain(source)
        counters = [stream.counters() for stream in source.streams]
        which = "overrun" if overwrite else "dropped events"
        total = sum(each[which] for each in counters)
        assert total > 0
        reason = Reason.OVERWRITTEN if overwrite else Reason.DROPPED
        assert lost(batches) == {reason: total}
        assert sum(each["read events"] for each in counters) + total == 4 * 900
        assert sum(each["entries"] for each in counters) == 0
        for stream in source.streams:
            totals = [b.rows["discarded_total"] for b in batches if b.stream == stream.info.id]
            flat = np.concatenate(totals).astype(np.int64) if totals else np.zeros(0, np.int64)
            assert (np.diff(flat) >= 0).all()


def test_a_full_ring_is_taken_a_buffer_at_a_time_without_flushing() -> None:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=256 << 10)
    pool = BufferPool(take_bytes=64 << 10)
    with closing(open_ftrace(settings, pool)) as source:
        source.start()
        with on_cpu_0():
            mark(instance_of(source), "y" * 900, times=180)
        batches, why = turn(source.streams[0], flush=False)
        assert why is Nothing.YET
        assert [len(batch.rows) for batch in batches[:2]] == [16, 16]
        assert not flagged(batches, RowFlag.PARTIAL)
        for batch in batches:
            batch.release()
        drain(source)


def test_a_ring_that_refuses_events_is_drained_a_pipe_at_a_time() -> None:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=4 << 20, overwrite=False)
    with closing(open_ftrace(settings, BufferPool(4 * TAKE_BYTES))) as source:
        source.start()
        with on_cpu_0():
            mark(instance_of(source), "z" * 900, times=3200)
        batches = drain(source)
        rows = [len(batch.rows) for batch in batches if batch.stream == source.streams[0].info.id]
        # 800 sub-buffers; a pipe takes at least 256; the unfinished one comes last.
        assert sum(rows) >= 799
        assert 1 not in rows[:-1]
        assert rows[0] >= 256


def test_a_ring_at_rest_is_taken_twice_as_much_at_a_time() -> None:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=16 << 20)
    with closing(open_ftrace(settings, BufferPool(LAST_TAKE_BYTES))) as source:
        stream = source.streams[0]
        source.start()
        with on_cpu_0():
            mark(instance_of(source), "r" * 900, times=13 << 10)  # four to a page
        taken = stream.take(flush=False)
        assert isinstance(taken, Batch)
        assert len(taken.rows) == TAKE_BYTES // 4096
        assert not stream.at_rest()
        taken.release()
        source.stop()
        assert stream.at_rest()
        batches, why = turn(stream)
        assert why is Nothing.EVER
        assert len(batches[0].rows) == LAST_TAKE_BYTES // 4096


def test_the_ring_of_an_instance_that_goes_on_tracing_is_never_at_rest(foreign: Path) -> None:
    with closing(open_ftrace(FtraceSettings(foreign.name), BufferPool())) as source:
        source.start()
        assert not source.streams[0].at_rest()


@pytest.mark.alone  # a load would fill the ring faster than it is taken
def test_a_take_ends_although_lttd_traces_itself() -> None:
    settings = FtraceSettings(events=("raw_syscalls:*",))
    with closing(open_ftrace(settings, BufferPool())) as source:
        source.leave_out([os.getpid()])
        assert (instance_of(source) / "set_event_notrace_pid").read_text() == ""
        source.start()
        for stream in source.streams * 5:
            batches, why = turn(stream)
            assert why is Nothing.YET
            assert len(batches) < 20
        drain(source)


@pytest.mark.alone
def test_excluded_threads_are_not_recorded() -> None:
    settings = FtraceSettings(events=("raw_syscalls:sys_enter",), trace_self=False)
    with closing(open_ftrace(settings, BufferPool())) as source:
        source.leave_out([os.getpid(), threading.get_native_id()])
        source.start()
        for _ in range(100):
            os.getppid()
        (instance_of(source) / "events/raw_syscalls/enable").write_text("0")
        pid = os.getpid().to_bytes(4, "little")
        # common_pid is at byte 4 of an event, after its type, flags and preempt count.
        event_id = int((instance_of(source) / "events/raw_syscalls/sys_enter/id").read_text())
        text = content(drain(source))
        assert not any(
            event_id.to_bytes(2, "little") == text[at - 4 : at - 2]
            for at in range(len(text))
            if text.startswith(pid, at)
        )


def test_a_thread_that_cannot_be_excluded_is_reported_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: str, _: str) -> None:
        raise SourceError(f"{path}: gone")

    with closing(open_ftrace(QUIET._replace(trace_self=False), BufferPool())) as source:
        list(source.notes())
        with monkeypatch.context() as patch:
            patch.setattr("lttd.sources.ftrace.undo.write_text", refuse)
            with pytest.raises(SourceError):
                source.leave_out([1])
        source.start()
        with monkeypatch.context() as patch:
            patch.setattr("lttd.sources.ftrace.undo.write_text", refuse)
            for _ in range(2):
                source.leave_out([2])
        assert list(source.notes()) == [f"{instance_of(source)}/set_event_notrace_pid: gone"]
        drain(source)


def test_poll_wakes_once_a_share_of_the_ring_is_full() -> None:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=256 << 10)
    with closing(open_ftrace(settings, BufferPool())) as source:
        source.start()
        poll = select.poll()
        for stream in source.streams:
            poll.register(stream.fileno(), select.POLLIN)
        mark(instance_of(source), "little")
        assert poll.poll(0) == []
        with on_cpu_0():
            mark(instance_of(source), "z" * 900, times=200)
        assert poll.poll(30_000)
        drain(source)


def test_a_finished_stream_always_answers_ever() -> None:
    with closing(open_ftrace(QUIET, BufferPool())) as source:
        source.start()
        drain(source)
        for stream in source.streams:
            assert stream.take(flush=True) is Nothing.EVER
            assert stream.take(flush=False) is Nothing.EVER


def test_a_size_that_the_kernel_rounds_up_to_sub_buffers_needs_no_note() -> None:
    for size_bytes in (64 << 10, 16 << 20):
        settings = FtraceSettings(events=QUIET.events, buffer_bytes=size_bytes)
        with closing(open_ftrace(settings, BufferPool())) as source:
            made_bytes = source.info.settings["buffer_bytes"]
            assert size_bytes <= made_bytes <= size_bytes + 4096
            assert list(source.notes()) == []


def test_a_ring_size_that_the_kernel_changed_is_noted_once() -> None:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=1024, subbuffer_bytes=3 << 10)
    with closing(open_ftrace(settings, BufferPool())) as source:
        notes = list(source.notes())
        assert any("sub-buffer size: asked for 3 KiB, the kernel made 4 KiB" in n for n in notes)
        assert any("buffer size: asked for 1 KiB, the kernel made 7 KiB" in n for n in notes)
        assert list(source.notes()) == []


def test_larger_sub_buffers_are_taken_as_a_whole() -> None:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=256 << 10, subbuffer_bytes=16 << 10)
    with closing(open_ftrace(settings, BufferPool())) as source:
        if source.info.settings["subbuffer_bytes"] != 16 << 10:
            pytest.skip("no buffer_subbuf_size_kb in this kernel")
        source.start()
        with on_cpu_0():
            mark(instance_of(source), "large " * 100, times=100)
        batches = drain(source)
        rows = np.concatenate([batch.rows for batch in batches])
        assert set(rows["kernel_bytes"].tolist()) == {16 << 10}
        assert rows["payload_bytes"].max() > 12 << 10
        assert content(batches).count(b"large large") >= 100


def test_a_large_sub_buffer_ends_before_the_next_one_begins() -> None:
    """A take gets a part of a ring: the next sub-buffer bounds its last entry, without a walk."""
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=1 << 20, subbuffer_bytes=32 << 10)
    with closing(open_ftrace(settings, BufferPool(take_bytes=64 << 10))) as source:
        if source.info.settings["subbuffer_bytes"] != 32 << 10:
            pytest.skip("no buffer_subbuf_size_kb in this kernel")
        source.start()
        with on_cpu_0():
            mark(instance_of(source), "large " * 100, times=400)
        time.sleep(0.01)
        layout = PageLayout(subbuffer_bytes=32 << 10)
        batches = [batch for batch in drain(source) if len(batch.rows) and batch.stream.cpu == 0]
        assert len(batches) > 3
        for batch, later in pairwise(batches[:-1]):  # the last full ones emptied the ring
            last = batch.rows[-1]
            at = int(last["offset_bytes"])
            event = last_event_time(batch.buffer[at:], layout)
            assert event <= last["end"] <= max(int(later.rows["begin"][0]) + 1500, event)


@pytest.mark.parametrize("clock", ["local", "counter"])
def test_a_clock_that_user_space_cannot_read_is_sampled_from_stats(clock: str) -> None:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=64 << 10, clock=clock)
    with closing(open_ftrace(settings, BufferPool())) as source:
        assert source.info.clock == clock
        source.start()
        before = source.now()
        mark(instance_of(source), "tick")
        after = source.now()
        assert before <= after
        batches = drain(source)
        (row,) = (row for batch in batches for row in batch.rows)
        assert row["begin"] <= row["end"]
        if clock == "counter":
            assert before <= row["begin"] <= after


def test_two_own_instances_have_nothing_in_common() -> None:
    with (
        closing(open_ftrace(QUIET, BufferPool())) as one,
        closing(open_ftrace(QUIET, BufferPool())) as other,
    ):
        assert instance_of(one) != instance_of(other)
        assert open_left_by_kill(BufferPool(), NO_OWNER) == ([], [])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (FtraceSettings(events=("sched:sched_swich",)), "sched:sched_switch"),
        (FtraceSettings(clock="sundial"), "mono_raw"),
        (FtraceSettings(subbuffer_bytes=1000), "multiple of 1024"),
    ],
)
def test_an_impossible_option_leaves_nothing_in_the_kernel(
    instances: Path, settings: FtraceSettings, text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        open_ftrace(settings, BufferPool())
    assert not [
        name for name in os.listdir(instances) if name.startswith(ftrace_instance.OWN_PREFIX)
    ]


def test_an_interrupt_during_setup_leaves_nothing_in_the_kernel(
    instances: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lttd.sources.ftrace.setup._record_events", interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_ftrace(QUIET, BufferPool())
    assert not [
        name for name in os.listdir(instances) if name.startswith(ftrace_instance.OWN_PREFIX)
    ]


# -- files for decoding


def test_attachments_are_tracefs_files_and_commands_follow_changes() -> None:
    with closing(open_ftrace(QUIET, BufferPool())) as source:
        due = source.attachments()
        opened = {one.name: one for one in due(When.OPEN)}
        path = instance_of(source)
        name = "events/header_page"
        assert opened[f"tracefs/{name}"].data == (path / name).read_bytes()
        for name in ("events/header_event", "trace_clock"):
            assert f"tracefs/{name}" in opened
        formats, *_ = unpack(opened["tracefs/formats.gz"].data, FORMATS.most)
        name = "events/sched/sched_process_hang/format"
        assert formats["sched", "sched_process_hang"] == (path / name).read_bytes()
        assert ("ftrace", "print") in formats
        commands = opened["tracefs/commands"]
        assert commands.append
        lines = [line.split(b"\t") for line in commands.data.splitlines()]
        assert all(len(line) == 4 and int(line[0]) <= source.now() for line in lines)
        ours = {int(pid): tgid for _, pid, tgid, _ in lines}
        assert ours[os.getpid()] == str(os.getpid()).encode()

        def rename(name: str) -> None:
            Path("/proc/self/task", str(threading.get_native_id()), "comm").write_text(name)

        before = Path("/proc/self/comm").read_text()
        try:
            rename("a\\new\nname")
            (again,) = (one for one in due(When.PERIODIC) if one.name == commands.name)
            changed = [line.split(b"\t") for line in again.data.splitlines()]
            names = {int(pid): command for _, pid, _, command in changed}
            assert names[threading.get_native_id()] == rb"a\\new\nname"
        finally:
            rename(before.strip())
        drain(source)
        closed = {one.name for one in due(When.CLOSE)}
        assert "tracefs/per_cpu/cpu0/stats" in closed
        assert not {"tracefs/events/header_page", "tracefs/formats.gz"} & closed
        next_segment = {one.name for one in source.attachments()(When.OPEN)}
        # The names of enums are read in time; until then the first segment is without them.
        later = {"tracefs/enums.json"} - set(opened)
        assert next_segment - later == set(opened), "another segment gets all of them again"


def formats_of(due: Attachments, when: When) -> set[str]:
    """Return SYSTEM/EVENT of each format that is to be saved."""
    return {
        "/".join(key)
        for one in due(when)
        if one.name == "tracefs/formats.gz"
        for key in unpack(one.data, FORMATS.most).formats
    }


def test_the_formats_of_every_event_in_a_foreign_ring_are_saved(foreign: Path) -> None:
    """The ring still holds events that were turned off before lttd started."""
    mark(foreign, "one event is enough")
    (foreign / "events/enable").write_text("0")
    with closing(open_ftrace(FtraceSettings(foreign.name), BufferPool())) as source:
        due = source.attachments()
        saved = formats_of(due, When.OPEN)
        assert formats_of(due, When.CLOSE) == set()
    there = {f"{path.parts[-3]}/{path.parts[-2]}" for path in foreign.glob("events/*/*/format")}
    assert {"sched/sched_switch", "ftrace/print"} <= there
    assert saved == there


def test_formats_of_other_events_are_not_saved_while_no_ring_can_hold_them(foreign: Path) -> None:
    """All 2,323 of them would be most of what a short recording costs."""
    (foreign / "tracing_on").write_text("0")
    (foreign / "events/enable").write_text("0")
    (foreign / "trace").write_text("")
    (foreign / "events/irq/enable").write_text("1")
    with closing(open_ftrace(FtraceSettings(foreign.name), BufferPool())) as source:
        due = source.attachments()
        systems = {name.partition("/")[0] for name in formats_of(due, When.OPEN)}
        assert systems == {"ftrace", "irq"}
        (foreign / "events/signal/enable").write_text("1")
        assert "signal/signal_generate" in formats_of(due, When.CLOSE)


def test_the_formats_of_events_that_another_process_enabled_are_saved() -> None:
    with closing(open_ftrace(QUIET, BufferPool())) as source:
        due = source.attachments()
        assert not any(name.startswith("signal/") for name in formats_of(due, When.OPEN))
        (instance_of(source) / "events/signal/enable").write_text("1")
        assert {"signal/signal_generate", "signal/signal_deliver"} <= formats_of(due, When.CLOSE)
