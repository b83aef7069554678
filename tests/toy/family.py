"""The row in FAMILIES."""

from collections.abc import Iterator, Sequence

import numpy as np

from lttd.abi.ftrace_format import Encoding, Field, Format
from lttd.abi.gather import gather
from lttd.manifest import Manifest
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths
from lttd.view.columns import EventBatch
from lttd.view.family import Family
from lttd.view.formats import EventName, EventType
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.pieces import Columns, Loaded, PieceDecoder, pages_of, within
from lttd.view.window import Piece, WindowStream
from tests.toy.abi import EVENT_BYTES, HEAD_BYTES


class ToyContexts:
    """A toy's events explain themselves."""

    def __init__(self, paths: SegmentPaths, manifest: Manifest, notes: TakesNotes) -> None:
        pass

    def of(self, stream: StoredStream) -> None:
        pass


class ToyTypes:
    """One type."""

    def __init__(self) -> None:
        play = EventType(0, EventName("toy", "play"), 0, "")
        fields = (Field("value", "u64", 8, 8, False, Encoding.INT, 8),)
        play.format = Format("toy", "play", 0, fields, "", "<", 8)
        self.all = [play]

    def find(self, name: str, sources: Sequence[WindowStream]) -> EventType | None:
        return self.all[0] if name in ("play", "toy:play") else None


class ToyDecoder(PieceDecoder[ToyTypes]):
    """Events are records of one size."""

    def __init__(self, notes: WindowNotes) -> None:
        super().__init__(notes, ToyTypes())

    def columns(
        self, piece: Piece, loaded: Loaded, sources: Sequence[WindowStream]
    ) -> tuple[Columns, None]:
        places, cpus = [np.empty(0, np.int64)], [np.empty(0, np.uint16)]
        for member in loaded.members:
            pages = pages_of(loaded.data, [member], self.notes)
            for begin, end in zip(pages.offset, pages.content_end, strict=True):
                places.append(np.arange(begin + HEAD_BYTES, end, EVENT_BYTES))
                cpus.append(np.full(len(places[-1]), member.source.cpu, np.uint16))
        at, cpu = np.concatenate(places), np.concatenate(cpus)
        time = gather(loaded.data, at, np.dtype("<u8"))
        order = np.argsort(time, kind="stable")
        order = order[within(piece, time[order])]
        nothing = np.zeros(len(order), np.uint8)
        return Columns(
            time[order],
            cpu[order],
            nothing.astype(np.int32),
            nothing.astype(np.int32),
            nothing,
            nothing,
            at[order],
            np.full(len(order), EVENT_BYTES, np.uint32),
        ), None


class ToyLines:
    """A line per event."""

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[bytes]:
        for rows in batch.by_type():
            for time, cpu, value in zip(rows.time, rows.cpu, rows["value"], strict=True):
                yield b"%d [%d] play: %d\n" % (time, cpu, value)


FAMILY = Family(
    ToyContexts, ToyDecoder, lambda segments, notes: None, lambda printing, notes: ToyLines()
)
