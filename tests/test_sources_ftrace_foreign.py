"""Record from an ftrace instance that exists already; needs root and a mounted tracefs."""

import os
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from lttd.abi.ftrace import PageLayout, last_event_time
from lttd.errors import LockedError, NothingToRecordError, SourceError, UsageError
from lttd.sources import pipe
from lttd.sources.base import Nothing
from lttd.sources.ftrace import instance as ftrace_instance
from lttd.sources.ftrace import raw
from lttd.sources.ftrace.source import FtraceSettings, open_ftrace
from lttd.sources.ftrace.stream import FtraceStream
from lttd.sources.pipe import Pipe
from lttd.sources.tracefs import StatsFile, parse_stats
from lttd.subbuffer import Batch, BufferPool, Reason, RowFlag, Unit
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


# -- a foreign instance


SETTINGS = (
    "tracing_on",
    "trace_clock",
    "buffer_size_kb",
    "buffer_percent",
    "options/overwrite",
    "options/record-tgid",
    "set_event",
    "set_event_notrace_pid",
)


def settings_of(path: Path) -> dict[str, str]:
    return {name: (path / name).read_text() for name in SETTINGS}


def test_every_change_to_a_foreign_instance_is_undone(foreign: Path) -> None:
    (foreign / "tracing_on").write_text("0")
    (foreign / "buffer_percent").write_text("0")
    before = settings_of(foreign)
    settings = FtraceSettings(
        instance=foreign.name,
        events=("sched:*", "raw_syscalls:sys_enter"),
        buffer_bytes=128 << 10,
        clock="boot",
        overwrite=False,
        trace_self=False,
    )
    with closing(open_ftrace(settings, BufferPool())) as source:
        assert "sched:*" in source.info.settings["events"]
        assert source.streams[0].fileno() >= 0
        source.leave_out([os.getpid()])
        source.start()
        during = settings_of(foreign)
        assert all(
            during[name] != before[name] for name in SETTINGS if name != "options/record-tgid"
        )
        drain(source)
    assert settings_of(foreign) == before


def test_only_requested_settings_of_a_foreign_instance_are_written(foreign: Path) -> None:
    (foreign / "set_event_notrace_pid").write_text("1")
    before = settings_of(foreign)
    settings = FtraceSettings(foreign.name, trace_self=False)
    with closing(open_ftrace(settings, BufferPool())) as source:
        assert source.info.settings["events"] == ["sched:sched_switch"]
        source.leave_out([os.getpid()])
        source.start()
        assert settings_of(foreign) == before
        (foreign / "tracing_on").write_text("0")
        drain(source)


@pytest.mark.parametrize("way", ["read", "spliced"])
def test_an_interrupted_take_loses_only_its_own_data(
    instances: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=256 << 10)
    with closing(open_ftrace(settings, BufferPool())) as source, on_cpu_0():
        source.start()
        stream = source.streams[0]
        mark(instance_of(source), "x" * 900, times=40)  # ten sub-buffers
        with monkeypatch.context() as patched:
            if way == "spliced":
                patched.setattr(FtraceStream, "_full_subbuffers", lambda _: 0)
                patched.setattr(pipe, "fill", breaks_off)
            else:
                patched.setattr(raw, "_libc", ShortLibc())
                patched.setattr(raw, "fill", cannot_fill)
            with pytest.raises(SourceError, match="broke off"):
                stream.take(flush=False)
        mark(instance_of(source), "y" * 900, times=40)
        batches = [batch for batch in drain(source) if batch.stream == stream.info.id]
        gaps = [gap for batch in batches for gap in batch.gaps]
        assert [(gap.reason, gap.unit) for gap in gaps] == [(Reason.REFUSED, Unit.SUBBUFFERS)]
        assert gaps[0].count is not None
        rows = sum(len(batch.rows) for batch in batches)
        assert gaps[0].count + rows >= 20
        assert content(batches).count(b"y" * 900) == 40


class ShortLibc:
    """A readv that reads a sub-buffer and a part of the next one."""

    def readv(self, fd: int, _vectors: int, _count: int) -> int:
        return len(os.read(fd, 4096)) + len(os.read(fd, 1000))


def cannot_fill(_fd: int, _buffer: memoryview, used_bytes: int, done_bytes: int) -> None:
    raise pipe.TakeBrokeOffError(done_bytes, used_bytes, "Input/output error")


def breaks_off(fd: int, buffer: memoryview, used_bytes: int, done_bytes: int) -> None:
    os.read(fd, used_bytes)
    raise pipe.TakeBrokeOffError(0, used_bytes, "Input/output error")


def test_the_earlier_content_of_a_foreign_ring_is_delivered(foreign: Path) -> None:
    # Otherwise other events could overwrite it before it is read.
    (foreign / "events/enable").write_text("0")
    mark(foreign, "before you came")
    with closing(open_ftrace(FtraceSettings(foreign.name), BufferPool())) as source:
        source.start()
        assert b"before you came" in content(drain(source))


def test_a_sub_buffer_ends_at_its_last_event_however_old_that_is(foreign: Path) -> None:
    """A take gets a part of a full ring; no entry may end at the time of the take."""
    (foreign / "events/enable").write_text("0")
    (foreign / "buffer_size_kb").write_text("512")
    with on_cpu_0():
        mark(foreign, "z" * 900, times=300)
    (foreign / "tracing_on").write_text("0")
    with closing(open_ftrace(FtraceSettings(foreign.name), BufferPool(take_bytes=64 << 10))) as one:
        filled_by = one.now()
        batches = [batch for batch in drain(one) if len(batch.rows) and batch.stream.cpu == 0]
        rows = np.concatenate([batch.rows for batch in batches])
        assert len(batches) > 3
        begins, ends = rows["begin"].astype(np.int64), rows["end"].astype(np.int64)
        assert (ends[:-1] <= begins[1:]).all()
        assert (ends >= begins).all()
        assert ends[-1] < filled_by
        layout = PageLayout()
        last = batches[-1].rows[-1]
        raw = bytes(list(batches[-1].pieces())[-1])
        assert int(last["end"]) == last_event_time(raw, layout)


def test_earlier_losses_of_a_foreign_ring_are_not_counted(foreign: Path) -> None:
    mark(foreign, "w" * 900, times=400)
    (foreign / "tracing_on").write_text("0")
    (foreign / "events/enable").write_text("0")
    with closing(open_ftrace(FtraceSettings(foreign.name), BufferPool())) as source:
        assert any(parse_stats(stream.stats_text())["overrun"] for stream in source.streams)
        assert not any(stream.counters()["overrun"] for stream in source.streams)
        batches = drain(source)
        assert flagged(batches, RowFlag.MISSED)
        assert lost(batches) == {}
        assert not any(batch.gaps for batch in batches)


def test_delivered_events_are_counted_from_the_start_of_lttd(foreign: Path) -> None:
    (foreign / "events/enable").write_text("0")
    (foreign / "trace").write_text("")
    for text in ("the one before", "the other one"):
        mark(foreign, text)
        with closing(open_ftrace(FtraceSettings(foreign.name), BufferPool())) as source:
            drain(source)
            assert sum(stream.counters()["read events"] for stream in source.streams) == 1


def test_a_drain_of_a_ring_that_others_keep_filling_ends(foreign: Path) -> None:
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(0.0005):
            mark(foreign, "more")

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        with closing(open_ftrace(FtraceSettings(foreign.name), BufferPool())) as source:
            source.start()
            source.stop()
            stopped = source.now()
            for stream in source.streams:
                deadline = time.monotonic() + 30
                rows = []
                while isinstance(taken := stream.take(flush=True), Batch):
                    rows += taken.rows["begin"].tolist()
                    assert time.monotonic() < deadline, "the drain does not end"
                assert taken is Nothing.EVER
                assert sum(begin > stopped for begin in rows) <= 1
    finally:
        done.set()
        writer.join()


def test_only_one_lttd_at_a_time_reads_an_instance(foreign: Path) -> None:
    with closing(open_ftrace(FtraceSettings(foreign.name), BufferPool())):
        with pytest.raises(LockedError, match=rf"pid {os.getpid()}") as caught:
            open_ftrace(FtraceSettings(foreign.name), BufferPool())
        assert Path("/proc/self/comm").read_text().strip() in str(caught.value)
    open_ftrace(FtraceSettings(foreign.name), BufferPool()).close()


def test_a_missing_instance_is_reported_with_a_remedy() -> None:
    with pytest.raises(NothingToRecordError, match="make it with mkdir"):
        open_ftrace(FtraceSettings(f"{ftrace_instance.OWN_PREFIX}none"), BufferPool())
    with pytest.raises(UsageError):
        open_ftrace(FtraceSettings("../instances"), BufferPool())


# -- the pipe


def test_an_interrupted_take_leaves_its_pipe_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(8192))
    pipe = Pipe(1 << 20)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    # A buffer that is too small aborts the take after the splice.
    with pytest.raises(SourceError, match="broke off after 4096 of 8192"):
        pipe.move(fd, 8192, memoryview(bytearray(4096)))
    os.set_blocking(pipe.read_fd, False)
    with pytest.raises(BlockingIOError):
        os.read(pipe.read_fd, 1)
    os.close(fd)
    pipe.close()


# -- many sub-buffers by one call


def taken_of(tmp_path: Path, content: bytes, *, full: int) -> tuple[bytes, raw.Taken]:
    """Take from a file of *content* as from a ring of sub-buffers of 4 KiB."""
    (tmp_path / "file").write_bytes(content)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    between, buffer = Pipe(1 << 20), bytearray((full + 1) * 4096)
    with closing(raw.RawFile(0, fd, 4096, between)) as ring, closing(between):
        found = ring.take_full(memoryview(buffer), full=full, once=True)
    return bytes(buffer), found


def test_sub_buffers_that_the_kernel_has_left_are_read_in_order(tmp_path: Path) -> None:
    content = bytes(range(256)) * 16 * 2000
    found, taken = taken_of(tmp_path, content, full=1999)
    assert taken == raw.Taken(1999 * 4096)
    assert found == content[: 1999 * 4096] + bytes(4096)


def test_fewer_sub_buffers_than_the_kernel_counted_are_whole(tmp_path: Path) -> None:
    _, taken = taken_of(tmp_path, bytes(3 * 4096), full=3)
    assert taken.used_bytes == 3 * 4096
    with pytest.raises(pipe.TakeBrokeOffError, match="after 8292 of 12288 bytes: it ended"):
        taken_of(tmp_path, bytes(2 * 4096 + 100), full=3)


def test_a_full_ring_is_taken_by_reads_alone(
    instances: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=256 << 10)
    with closing(open_ftrace(settings, BufferPool())) as source, on_cpu_0():
        source.start()
        mark(instance_of(source), "x" * 900, times=40)  # ten sub-buffers, the last one open
        spliced: list[int] = []
        monkeypatch.setattr(Pipe, "move", lambda *_: spliced.append(1) or 0)
        batch = source.streams[0].take(flush=False)
        assert isinstance(batch, Batch)
        assert len(batch.rows) == 9
        assert content([batch]).count(b"x" * 900) == 36
        assert not flagged([batch], RowFlag.PARTIAL)


def test_an_open_sub_buffer_is_not_taken_as_full_when_the_kernel_counts_too_many_bytes(
    instances: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truly = StatsFile.read

    def too_many(stats: StatsFile) -> dict[str, int]:
        # As after some million overwritten events: Linux 6.18 forgets to subtract some pages.
        fields = truly(stats)
        overwritten = {"overrun": fields["overrun"] + 1_000_000}
        return fields | overwritten | {"bytes": fields["bytes"] + 10 * 4080}

    monkeypatch.setattr(StatsFile, "read", too_many)
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=256 << 10, overwrite=False)
    with closing(open_ftrace(settings, BufferPool())) as source, on_cpu_0():
        source.start()
        mark(instance_of(source), "x" * 900)
        assert source.streams[0].take(flush=False) is Nothing.YET
        mark(instance_of(source), "x" * 900, times=39)  # ten sub-buffers, the last one open
        batches, _ = turn(source.streams[0], flush=False)
        assert sum(len(batch.rows) for batch in batches) == 9
        assert content(drain(source)).count(b"x" * 900) == 4


def test_events_of_another_clock_are_not_stored_although_their_subbuffer_begins_in_time(
    instances: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that is ahead by less than the sub-buffer lasts: the real ones here are not.
    with closing(open_ftrace(QUIET, BufferPool())) as source, on_cpu_0():
        source.start()
        stream = source.streams[0]
        mark(instance_of(source), "before")
        between = source.now()
        mark(instance_of(source), "after")
        monkeypatch.setattr(stream._shared, "now", lambda: between)
        monkeypatch.setattr(stream._shared, "same_clock", lambda: False)
        assert stream.take(flush=True) is Nothing.OFFLINE
        assert stream._shared.paused
