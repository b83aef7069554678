"""The row in SOURCES."""

from pathlib import Path

import numpy as np

from lttd.sources.base import Nothing, Request, SourceInfo
from lttd.sources.replay.files import FileSource, FileStream, open_directory
from lttd.subbuffer import ROW_DTYPE, Batch, StreamId, StreamInfo, make_batch
from tests.toy.abi import EVENT_BYTES, HEAD_BYTES

SUBBUFFER_BYTES = 256


class ToyStream(FileStream):
    """One CPU's file."""

    latest = 0
    _taken_bytes = 0

    def take(self, flush: bool) -> Batch | Nothing:
        buffer = self.pool.take()
        used = self.read_into(buffer, self._taken_bytes)
        if not used:
            self.pool.give(buffer)
            self.close()
            return Nothing.EVER
        words = np.frombuffer(buffer[:used], "<u8").reshape(-1, SUBBUFFER_BYTES // 8)
        rows = np.zeros(len(words), ROW_DTYPE)
        rows["offset_bytes"] = np.arange(len(words)) * SUBBUFFER_BYTES
        rows["kernel_bytes"] = SUBBUFFER_BYTES
        rows["payload_bytes"] = HEAD_BYTES + EVENT_BYTES * words[:, 1]
        rows["content_bits"] = rows["payload_bytes"] << 3
        rows["begin"] = words[:, 0]
        rows["end"] = [row[row[1] * 2] for row in words.tolist()]
        rows["sequence"] = np.arange(len(words)) + self._taken_bytes // SUBBUFFER_BYTES
        self._taken_bytes += used
        self.latest = int(rows["end"][-1])
        return make_batch(self.info.id, rows, pool=self.pool, buffer=buffer)


class ToySource(FileSource[ToyStream]):
    """The files of a directory."""

    def __init__(self, request: Request) -> None:
        directory = open_directory(Path(request.target))
        files = sorted(directory.path.glob("cpu*"))
        super().__init__(
            ToyStream(
                StreamInfo(StreamId("fun", cpu), "toy", SUBBUFFER_BYTES, HEAD_BYTES),
                directory.place(path),
                request.pool,
            )
            for cpu, path in enumerate(files)
        )
        self.info = SourceInfo("toy", f"toy:{request.target}", "mono", live=False)


open_source = ToySource
