"""A ring that survived a reboot is drained boot by boot, with what the trace knows of the boot."""

from pathlib import Path

import pytest

from lttd.abi.ftrace import MISSED_EVENTS, MISSED_STORED
from lttd.beneath import OpenDirectory
from lttd.earlier import recorded_before
from lttd.sources.base import Nothing
from lttd.sources.ftrace.last_boot import LINKED_AT, parse_last_boot
from lttd.sources.ftrace.survived import SurvivedRing
from lttd.subbuffer import Batch, BufferPool, Reason, StreamId
from tests.fakes import LAYOUT, event, page
from tests.segment_builder import Made

STREAM = StreamId("bm", 0)
KALLSYMS = b"""ffffffff83000000 T _text
ffffffff83000010 T start_it
ffffffffc0000000 t probe\t[some_module]
"""


class Pages:
    """A ``trace_pipe_raw`` with these sub-buffers."""

    def __init__(self, *pages: bytes) -> None:
        self._left = list(pages)

    def read(self, buffer: memoryview) -> int:
        if not self._left:
            return 0
        buffer[: LAYOUT.subbuffer_bytes] = self._left.pop(0)
        return LAYOUT.subbuffer_bytes

    def close(self) -> None:
        self._left.clear()


def ring_of(*pages: bytes, pool: BufferPool | None = None) -> SurvivedRing:
    return SurvivedRing(Pages(*pages), 0, LAYOUT, pool or BufferPool(), 64 << 10)


def taken(ring: SurvivedRing, boot: int) -> list[Batch]:
    batches = []
    while isinstance(batch := ring.take(STREAM, boot), Batch):
        batches.append(batch)
    assert batch is Nothing.EVER
    return batches


def test_a_new_boot_begins_where_the_time_goes_back() -> None:
    word = event(b"abcd")
    ring = ring_of(page(4000, word), page(5000, word), page(100, word), page(300, word))
    old, new = taken(ring, 0), taken(ring, 1)
    assert [int(begin) for batch in old for begin in batch.rows["begin"]] == [4000, 5000]
    assert [int(begin) for batch in new for begin in batch.rows["begin"]] == [100, 300]
    assert [int(number) for batch in new for number in batch.rows["sequence"]] == [0, 1]
    assert ring.boot == 1


def test_the_ring_of_one_boot_has_no_second_part() -> None:
    ring = ring_of(page(4000, event(b"abcd")))
    assert len(taken(ring, 0)) == 1
    assert ring.boot == 0
    assert not taken(ring, 1)


def test_a_boot_may_take_more_than_one_buffer() -> None:
    pages = [page(begin, event(b"abcd")) for begin in range(1, 9)]
    pool = BufferPool(0, take_bytes=2 * LAYOUT.subbuffer_bytes)
    batches = taken(ring_of(*pages, pool=pool), 0)
    assert [len(batch.rows) for batch in batches] == [2, 2, 2, 2]
    assert [int(n) for batch in batches for n in batch.rows["sequence"]] == list(range(8))


def test_zeros_are_damage_and_not_another_boot() -> None:
    ring = ring_of(
        page(4000, event(b"abcd")), bytes(LAYOUT.subbuffer_bytes), page(5000, event(b"abcd"))
    )
    (batch,) = taken(ring, 0)
    assert ring.boot == 0
    assert len(batch.rows) == 2
    assert [gap.reason for gap in batch.gaps] == [Reason.DAMAGED]


def test_overwritten_events_that_a_page_reports_are_a_gap_before_it() -> None:
    flagged = bytearray(page(5000, event(b"abcd")))
    content = int.from_bytes(flagged[8:16], "little")
    flagged[8:16] = (content | MISSED_EVENTS | MISSED_STORED).to_bytes(8, "little")
    flagged[16 + content : 24 + content] = (77).to_bytes(8, "little")
    (batch,) = taken(ring_of(page(4000, event(b"abcd")), bytes(flagged)), 0)
    (gap,) = batch.gaps
    assert (gap.row, gap.reason, gap.count) == (1, Reason.OVERWRITTEN, 77)
    assert 4000 <= gap.begin <= gap.end == 5000


def test_a_ring_that_is_still_written_is_read_at_most_once_around() -> None:
    class Endless(Pages):
        def read(self, buffer: memoryview) -> int:
            buffer[: LAYOUT.subbuffer_bytes] = page(7, event(b"abcd"))
            return LAYOUT.subbuffer_bytes

    ring = SurvivedRing(Endless(), 0, LAYOUT, BufferPool(), 64 << 10)
    assert sum(len(batch.rows) for batch in taken(ring, 0)) == 17


@pytest.mark.parametrize(
    ("content", "has_data"),
    [
        (b"text delta:\t-423624704\ndata delta:\t-423624704\n", True),
        (b"text delta:\t0\ndata delta:\t0\n", False),
        (b"39000000\t[kernel]\nffffffffc0a1c000\tsome_module\n", True),
        (b"# Current\n", False),
        (b"", False),
        (b"text delta:\t" + b"9" * 4000, True),
    ],
)
def test_the_kernel_says_whether_a_ring_is_of_an_earlier_boot(
    content: bytes, has_data: bool
) -> None:
    assert parse_last_boot(content).has_data is has_data


@pytest.mark.parametrize(
    "content",
    [
        b"text delta:\t16777216\ndata delta:\t16777216\n",
        b"%x\t[kernel]\n" % (0xFFFFFFFF82000000 - LINKED_AT),
    ],
)
def test_symbols_of_this_boot_give_those_of_the_previous_one(content: bytes) -> None:
    symbols = parse_last_boot(content).symbols_of(KALLSYMS)
    assert symbols == b"ffffffff82000000 T _text\nffffffff82000010 T start_it\n"


def test_the_newest_segment_of_another_boot_describes_the_ring(tmp_path: Path) -> None:
    recorded = (("fake:bm", "a"), ("fake:bm", "b"), ("fake:x", "b"), ("fake:bm", "c"))
    for number, (spec, boot) in enumerate(recorded, 1):
        made = Made(tmp_path, number=number, boot_id=boot)
        made.manifest.source["spec"] = spec
        made.finish()
        (made.paths.directory / "tracefs").mkdir()
        (made.paths.directory / "tracefs/printk_formats").write_text(boot)
    earlier = recorded_before(OpenDirectory.open(tmp_path), "fake:bm", "c")
    assert earlier is not None
    assert earlier.machine["boot_id"] == "b"
    files = {attachment.name: attachment.data for attachment in earlier.files()}
    assert files["tracefs/printk_formats"] == b"b"
    assert recorded_before(OpenDirectory.open(tmp_path), "fake:y", "c") is None
