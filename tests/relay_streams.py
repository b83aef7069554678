"""Streams that read a model of a relay channel: records are written, and batches taken."""

import struct

from lttd.abi.framing import more_of, parse_framing
from lttd.sources.relay.file import RelayFile
from lttd.sources.relay.stream import RelayStream, Shared
from lttd.sources.rows import RowBook
from lttd.subbuffer import Batch, BufferPool, StreamId
from tests.relay_model import RelayModel

CHANNEL = StreamId("chan", 0)


class Clock:
    """A clock that advances by one at each read."""

    def __init__(self) -> None:
        self.time = 1000

    def __call__(self) -> int:
        self.time += 1
        return self.time


def record(number: int, payload: int = 4, *, time: int = 0) -> bytes:
    """Return a length-prefixed record with its number at byte 4 and its time at byte 8."""
    body = struct.pack("<IQ", number, time) + bytes([number % 256]) * payload
    return struct.pack("<I", len(body)) + body


class ModelStream:
    """A stream that reads the model of a kernel buffer."""

    def __init__(
        self, framing: str | None = "u32le-length", *, model: RelayModel | None = None,
        book: RowBook | None = None, sequence: int | None = 4, time: int | None = None,
        overwrite: bool = False, unfinished: bool = False,
    ) -> None:  # fmt: skip
        self.model = model or RelayModel(200, 8)
        parsed = None
        if framing == "blktrace":
            parsed = parse_framing(framing)
        elif framing:
            parsed = parse_framing(framing, sequence_at=sequence, time_at=time)
        self.clock = Clock()
        self.shared = Shared(
            BufferPool(), parsed, overwrite=overwrite, unfinished=unfinished, now=self.clock
        )
        more = (lambda begun: more_of(parsed, begun)) if parsed else None
        file = RelayFile("chan0", self.model, more)
        self.stream = RelayStream(CHANNEL, file, self.shared, book or RowBook(), born=1000)

    def write(self, *numbers: int, time: int = 0) -> None:
        for number in numbers:
            self.model.write(record(number, time=time))

    def take(self) -> Batch:
        taken = self.stream.take(flush=True)
        assert isinstance(taken, Batch), taken
        return taken

    def takes(self) -> list[Batch]:
        """Take until nothing is left, and then drain the rest."""
        taken = []
        self.shared.stopped = True
        while isinstance(some := self.stream.take(flush=True), Batch):
            taken.append(some)
        return taken
