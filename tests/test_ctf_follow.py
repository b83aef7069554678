"""``lttv follow`` on a CTF segment that grows, with metadata that grows, too."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lttd.subbuffer import Batch
from lttd.view.commands.follow import follow
from lttd.view.commands.text import Show
from lttd.view.filters import Filter
from tests.ctf_writer import CtfTracer
from tests.lttng_model import ModelStream
from tests.segment_builder import Made
from tests.segment_builder_lttng import packet

TRACER = CtfTracer()
LATER = """event { name = "later"; id = 8; stream_id = 3;
    fields := struct { integer { size = 32; align = 8; } m; }; };
"""


class LttngRing:
    """Makes batches as the source of lttng-modules does."""

    def __init__(self, _cpu: int) -> None:
        self._made = ModelStream()
        self.info = self._made.stream.info

    def batch(self, packets: Sequence[bytes], *, trailing_loss: int = 0) -> Batch:
        assert not trailing_loss, "packets count what was lost before them"
        self._made.model.closed.extend(packets)
        return self._made.take()


class Growing:
    """A segment of one stream that somebody records."""

    def __init__(self, trace: Path) -> None:
        self.made = Made(trace, make_ring=LttngRing)
        self._packets = 0
        self._now = 1000
        self.declare(TRACER.metadata())

    def declare(self, text: str) -> None:
        self.made.disk.replace(self.made.paths.streams / "metadata", text.encode())

    def append(self, *events: tuple[int, int], discarded: int = 0) -> None:
        """Append a packet of events: ids, and numbers in their fields."""
        begin, content = self._now, b""
        for number, value in events:
            self._now += 10
            content += TRACER.packed("HQI", number, self._now, value)
            content += b"text\0" if number == 7 else b""
        self._now += 5
        made = packet(content, self._packets, begin, self._now, discarded=discarded)
        self.made.append([made])
        self._packets += 1


def followed(trace: Path, steps: Iterator[None], *, from_begin: bool = True) -> int:
    """Follow a trace; each wait of the viewer takes a step."""

    def sleep(_: float) -> None:
        next(steps, None)

    shown = Show(Filter())
    return follow(trace, shown, from_begin=from_begin, until_closed=True, sleep=sleep)


def test_follow_shows_events_that_the_metadata_declares_while_it_is_read(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    growing = Growing(tmp_path / "t")
    growing.append((7, 1), (7, 2))

    def steps() -> Iterator[None]:
        yield
        growing.append((7, 3))
        yield
        growing.declare(TRACER.metadata() + LATER)
        growing.append((8, 4), (7, 5))
        yield
        growing.append((8, 6))
        growing.made.finish()

    assert followed(tmp_path / "t", steps()) == 0
    out, err = capfdbinary.readouterr()
    assert err == b""
    assert re.findall(rb": (\w+): [nm]=(\d)", out) == [
        (b"tick", b"1"), (b"tick", b"2"), (b"tick", b"3"),
        (b"later", b"4"), (b"tick", b"5"), (b"later", b"6"),
    ]  # fmt: skip


def test_follow_begins_with_what_comes_and_reports_losses(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    growing = Growing(tmp_path / "t")
    growing.append((7, 1))

    def steps() -> Iterator[None]:
        yield
        growing.append((7, 2), discarded=5)
        growing.made.finish()

    assert followed(tmp_path / "t", steps(), from_begin=False) == 0
    out, _ = capfdbinary.readouterr()
    lines = out.splitlines()
    assert len(lines) == 2
    assert b"lost 5 events" in lines[0].lower()
    assert b"n=2" in lines[1]


def test_an_event_without_its_declaration_is_a_note_and_the_next_packet_is_shown(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    growing = Growing(tmp_path / "t")
    growing.append((7, 1), (8, 2))

    def steps() -> Iterator[None]:
        yield
        growing.declare(TRACER.metadata() + LATER)
        growing.append((8, 3))
        growing.made.finish()

    assert followed(tmp_path / "t", steps()) == 0
    out, err = capfdbinary.readouterr()
    assert re.findall(rb"[nm]=(\d)", out) == [b"1", b"3"]
    assert b"no event has the id 8" in err
