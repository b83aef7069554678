"""Flush a ring that has full sub-buffers, too; needs root and a mounted tracefs."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from lttd.sources.base import Nothing
from lttd.sources.ftrace.raw import RawFile
from lttd.sources.ftrace.source import FtraceSettings, FtraceSource, open_ftrace
from lttd.sources.pipe import TakeBrokeOffError
from lttd.subbuffer import Batch, BufferPool, Reason, RowFlag, Unit
from tests.ftrace_sources import QUIET, content, drain, flagged, instance_of, turn
from tests.instances import mark, on_cpu_0
from tests.running import needs_kernel

pytestmark = [*needs_kernel(), pytest.mark.usefixtures("instances")]


@contextmanager
def ring_of_ten_sub_buffers(*, overwrite: bool = True) -> Iterator[FtraceSource]:
    """Four marks fill a sub-buffer; the last one is open and has two."""
    settings = FtraceSettings(events=QUIET.events, buffer_bytes=256 << 10, overwrite=overwrite)
    with closing(open_ftrace(settings, BufferPool())) as source, on_cpu_0():
        source.start()
        mark(instance_of(source), "x" * 900, times=38)
        yield source


def test_a_flush_takes_the_open_sub_buffer_together_with_the_full_ones() -> None:
    with ring_of_ten_sub_buffers() as source:
        stream = source.streams[0]
        (batch,), why = turn(stream)
        assert why is Nothing.YET
        assert [int(flags) & RowFlag.PARTIAL for flags in batch.rows["flags"]] == [0] * 9 + [1]
        assert content([batch]).count(b"x" * 900) == 38
        assert turn(stream) == ([], Nothing.YET)
        assert stream.losses() is None


def test_the_open_sub_buffer_of_a_ring_that_refuses_events_is_a_batch_of_its_own() -> None:
    with ring_of_ten_sub_buffers(overwrite=False) as source:
        full, last = turn(source.streams[0])[0]
        assert not flagged([full], RowFlag.PARTIAL)
        assert [len(full.rows), len(last.rows)] == [9, 1]


def test_full_sub_buffers_are_kept_when_the_open_one_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truly = RawFile.read

    def breaks_off(raw: RawFile, buffer: memoryview) -> Nothing | int:
        truly(raw, buffer)
        raise TakeBrokeOffError(0, 4096, "Input/output error")

    with ring_of_ten_sub_buffers() as source:
        stream = source.streams[0]
        with monkeypatch.context() as patched:
            patched.setattr(RawFile, "read", breaks_off)
            full = stream.take(flush=True)
        assert isinstance(full, Batch)
        assert content([full]).count(b"x" * 900) == 36
        with pytest.raises(TakeBrokeOffError):
            stream.take(flush=True)
        (gap,) = (gap for batch in drain(source) for gap in batch.gaps)
        assert (gap.reason, gap.unit, gap.count) == (Reason.REFUSED, Unit.SUBBUFFERS, 1)
