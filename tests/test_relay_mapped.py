"""A mapped relay ring: whole sub-buffers are copied, and overwritten ones are counted."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.config import parse_spec
from lttd.errors import NothingToRecordError, UsageError
from lttd.sources.base import Nothing
from lttd.sources.registry import open_source
from lttd.sources.relay.file import PATIENCE_NS, OpenFile
from lttd.sources.relay.mapped import Geometry, MappedRing
from lttd.sources.relay.mapped_stream import MappedStream
from lttd.sources.relay.mapping import KernelRing, geometry_of, is_offered
from lttd.sources.relay.stream import Shared
from lttd.sources.rows import RowBook
from lttd.subbuffer import Batch, BufferPool, Gap, Reason, Unit
from tests.relay_model import RelayModel
from tests.relay_streams import CHANNEL, Clock

SIZE, COUNT, HEAD = 64, 4, 4
FULL = SIZE - HEAD


def _nothing() -> None:
    return None


class ModelRing:
    """The mapping of a model's ring."""

    def __init__(self, model: RelayModel) -> None:
        self.model = model
        self.view = memoryview(model.data)
        self.gone = False
        self.on_look = _nothing

    def fileno(self) -> int:
        return 0

    def produced(self) -> int:
        if self.gone:
            raise OSError(5, "Input/output error")
        self.on_look()
        return self.model.produced

    def consumed(self) -> int:
        if self.gone:
            raise OSError(5, "Input/output error")
        return self.model.consumed

    def consume(self, count: int) -> None:
        """As relay_subbufs_consumed() does."""
        assert 0 < count <= self.model.count
        self.model.consumed = min(self.model.consumed + count, self.model.produced)

    def size_bytes(self) -> int:
        return self.model.st_size

    def is_closed(self) -> bool:
        return self.gone

    def close(self) -> None:
        pass


class Mapped:
    """A stream that maps the ring of a model."""

    def __init__(self, *, overwrite: bool = False, model: RelayModel | None = None) -> None:
        self.model = model or RelayModel(SIZE, COUNT, overwrite=overwrite, head=HEAD)
        self.ring = ModelRing(self.model)
        self.now_ns, self.step_ns = 0, 1000
        self.shared = Shared(BufferPool(), overwrite=overwrite, mapped=True, now=Clock())
        mapped = MappedRing(
            self.ring, Geometry(SIZE, COUNT, HEAD), overwrite=overwrite, now_ns=self.tick
        )
        self.stream = MappedStream(CHANNEL, "chan0", mapped, self.shared, RowBook(), born=1000)
        self.gaps: list[Gap] = []

    def tick(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns

    def write(self, text: bytes) -> None:
        for at in range(0, len(text), 10):
            self.model.write(text[at : at + 10])

    def take(self) -> list[bytes]:
        """Take everything that is closed, and return the content of the sub-buffers."""
        found: list[bytes] = []
        for _ in range(8):
            taken = self.stream.take(flush=True)
            if not isinstance(taken, Batch):
                continue
            self.gaps += taken.gaps
            data = b"".join(map(bytes, taken.pieces()))
            at = 0
            for size in taken.rows["payload_bytes"].tolist():
                found.append(data[at : at + size])
                at += size
        return found

    @property
    def lost(self) -> list[tuple[Reason, Unit, int | None]]:
        return [(gap.reason, gap.unit, gap.count) for gap in self.gaps]


def letters(count: int) -> bytes:
    return b"".join(b"%-10d" % number for number in range(count))


def test_each_closed_sub_buffer_of_a_mapped_ring_is_a_row_without_its_head_and_padding() -> None:
    made = Mapped()
    made.write(letters(8))
    assert made.take() == [letters(6)]
    made.model.flush()
    assert made.take() == [letters(8)[60:]]
    assert made.gaps == []


def test_a_sub_buffer_is_consumed_once_the_recorder_has_it() -> None:
    made = Mapped()
    made.write(letters(7))
    taken = made.stream.take(flush=True)
    assert isinstance(taken, Batch)
    assert made.model.consumed == 0, "a kill at this moment leaves it in the kernel"
    assert made.stream.take(flush=True) is Nothing.YET
    assert made.model.consumed == 1


def test_the_next_reader_goes_on_where_the_last_one_was() -> None:
    first = Mapped()
    first.write(letters(13))
    assert first.take() == [letters(6), letters(12)[60:]]
    first.model.flush()
    second = Mapped(model=first.model)
    second.step_ns = PATIENCE_NS
    assert second.take() == [letters(13)[120:]]


def test_sub_buffers_that_waited_at_the_start_are_drained_at_a_stop() -> None:
    first = Mapped()
    first.write(letters(19))
    first.model.flush()
    second = Mapped(model=first.model)
    second.step_ns = PATIENCE_NS
    assert second.stream.file.promised_bytes() == 190
    second.shared.stopped = True
    assert b"".join(second.take()) == letters(19)
    assert second.stream.file.unpromised_bytes == 0


def test_a_head_that_is_not_written_yet_is_not_believed() -> None:
    made = Mapped()
    made.write(letters(6 * COUNT))
    for _ in range(2):  # the slots have heads of an earlier lap
        made.take()
        made.write(letters(6 * COUNT))
    made.take()
    seen: list[bytes] = []
    made.model.between = lambda: seen.extend(made.take())
    made.write(b"0123456789")
    made.model.flush()  # with another padding than a lap before
    made.model.between = lambda: None
    seen += made.take()
    assert seen[-1].endswith(b"0123456789")
    assert len(seen[-1]) < FULL
    assert made.gaps == []


def test_sub_buffers_that_the_writer_lapped_are_counted() -> None:
    made = Mapped(overwrite=True)
    made.step_ns = PATIENCE_NS
    made.write(letters(60))  # nine are closed, and the tenth is open
    assert made.take() == [letters(60)[at : at + 60] for at in (360, 420, 480)]
    assert made.lost == [(Reason.OVERWRITTEN, Unit.SUBBUFFERS, 6)]
    assert made.model.consumed == made.model.produced == 9


def test_a_sub_buffer_that_is_overwritten_while_it_is_copied_is_dropped() -> None:
    made = Mapped(overwrite=True)
    made.write(letters(19))
    looks = iter(range(4))

    def on_look() -> None:
        if next(looks, None) == 2:
            made.write(letters(12))

    made.ring.on_look = on_look
    found = made.take()
    number = made.model.produced
    assert len(found) + sum(gap.count or 0 for gap in made.gaps) == number
    assert all(gap.reason is Reason.OVERWRITTEN for gap in made.gaps)
    assert made.gaps


def test_sub_buffers_that_another_reader_consumed_are_a_loss_once_they_are_overwritten() -> None:
    made = Mapped()
    made.write(letters(6 * COUNT))
    made.ring.consume(COUNT - 1)
    made.write(letters(12))
    made.take()
    assert made.lost[0][:2] == (Reason.FOREIGN_READ, Unit.SUBBUFFERS)


def test_an_impossible_padding_is_damage() -> None:
    made = Mapped()
    made.write(letters(13))
    made.model.data[0:HEAD] = (SIZE + 1).to_bytes(HEAD, "little")
    made.step_ns = PATIENCE_NS
    assert made.take() == [letters(12)[60:]]
    assert made.lost == [(Reason.DAMAGED, Unit.BYTES, SIZE)]


def test_what_was_closed_before_the_module_went_away_is_read() -> None:
    made = Mapped()
    made.write(letters(7))
    made.take()
    made.write(letters(12))
    made.model.flush()
    made.ring.gone = True
    assert b"".join(made.take()) == letters(7)[60:] + letters(12)
    assert made.stream.over
    assert made.gaps == []


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.booleans()), max_size=30),
       st.booleans())  # fmt: skip
def test_every_sub_buffer_is_on_disk_or_counted(
    steps: list[tuple[int, bool, bool]], overwrite: bool
) -> None:
    made = Mapped(overwrite=overwrite)
    found: list[bytes] = []
    written = 0
    for count, flushes, takes in steps:
        for _ in range(count):
            written += made.model.write(b"%-10d" % written)
        if flushes:
            made.model.flush()
        if takes:
            found += made.take()
    made.model.flush()
    made.step_ns = PATIENCE_NS
    found += made.take()
    numbers = [int(text[at : at + 10]) for text in found for at in range(0, len(text), 10)]
    assert numbers == sorted(set(numbers))
    read = made.stream.counters()["read subbuffers"]
    lost = sum(gap.count or 0 for gap in made.gaps)
    assert all(gap.unit is Unit.SUBBUFFERS for gap in made.gaps)
    if overwrite:
        assert not numbers or numbers[-1] == written - 1
        assert read + lost <= made.model.produced  # the others were empty
    else:
        assert (numbers, lost) == (list(range(written)), 0)


def ring_files(directory: Path, *, size: int = SIZE * COUNT) -> str:
    """Make files as a module does; a ring on tmpfs can be mapped, too."""
    (directory / "subbuf_size").write_text(f"{SIZE}\n")
    (directory / "n_subbufs").write_text(f"{COUNT}\n")
    (directory / "cpu0").write_bytes(bytes(range(256))[:size])
    (directory / "cpu0.produced").write_bytes((7).to_bytes(8, sys.byteorder))
    (directory / "cpu0.consumed").write_bytes((5).to_bytes(8, sys.byteorder))
    return str(directory / "cpu0")


def test_a_ring_is_mapped_with_its_control_files(tmp_path: Path) -> None:
    path = ring_files(tmp_path)
    ring = KernelRing(path, OpenFile(path), geometry_of(path, HEAD, None, None))
    assert (ring.produced(), ring.consumed(), ring.size_bytes()) == (7, 5, 256)
    assert bytes(ring.view[:256]) == bytes(range(256))
    ring.consume(2)
    assert ring.consumed() == 2  # the module would add it
    (tmp_path / "cpu0.produced").write_bytes(b"")
    with pytest.raises(OSError, match="Input/output error"):
        ring.produced()
    ring.close()
    assert ring.fileno() == -1


def test_a_channel_that_cannot_be_mapped_is_explained(tmp_path: Path) -> None:
    path = ring_files(tmp_path)
    assert geometry_of(path, HEAD, 128, 2) == (128, 2, HEAD)
    assert is_offered(path)
    with pytest.raises(NothingToRecordError, match="4 sub-buffers of 3 bytes are not possible"):
        geometry_of(path, HEAD, 3, None)
    (tmp_path / "cpu0.consumed").unlink()
    assert not is_offered(path)
    with pytest.raises(NothingToRecordError, match=r"cpu0.consumed: No such file.*padding= needs"):
        KernelRing(path, OpenFile(path), geometry_of(path, HEAD, None, None))
    OpenFile(path).close()  # its lock was released
    (tmp_path / "n_subbufs").write_text("many")
    with pytest.raises(NothingToRecordError, match="n_subbufs: it holds no number"):
        geometry_of(path, HEAD, None, None)
    (tmp_path / "subbuf_size").unlink()
    with pytest.raises(NothingToRecordError, match="subbuf_size: No such file"):
        geometry_of(path, HEAD, None, None)


def test_sub_buffers_of_a_take_that_failed_stay_in_the_kernel() -> None:
    made = Mapped()
    made.write(letters(7))
    clock, made.shared.now = made.shared.now, lambda: 1 // 0
    with pytest.raises(ZeroDivisionError):
        made.stream.take(flush=True)
    made.shared.now = clock
    made.stream.close()
    assert made.model.consumed == 0


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("padding=3", "write 4 or 8"),
        ("padding=4,unfinished=yes", "unfinished= does not go with padding="),
        ("subbuffers=4", "need padding="),
    ],
)
def test_impossible_keys_of_a_mapped_channel_are_refused(keys: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_source(parse_spec(f"relay:/sys,{keys}"), BufferPool())
