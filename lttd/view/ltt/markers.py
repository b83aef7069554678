"""Read the metadata streams of an LTTng 0.x segment, which declare the markers of the others.

They are ordinary streams, ``metadata_<cpu>``.  All of them are read completely before the first
event of the segment is decoded, and again when an open segment has more of them.

A kernel writes each declaration once.  If a trace was recorded in several runs, or its
flight-recorder channels separately, the declarations are in another segment.  Therefore a segment
without the beginning of the metadata also uses the metadata of those other segments that belong
to the same trace of the kernel.

Rule: a declaration that cannot be read is a note; events that need it are then damage.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from lttd.abi.base import Headers
from lttd.abi.ltt import CARRIED, LEAST_HEADER_BYTES, NAME, Layout, is_metadata, layout_of
from lttd.abi.ltt_abi import LttAbi
from lttd.abi.ltt_events import Channel, alike, walk
from lttd.abi.ltt_markers import Marker, Markers, core_markers
from lttd.blocks import Block
from lttd.errors import StorageError, TraceDamagedError
from lttd.limits import CARRIED_METADATA
from lttd.manifest import Manifest
from lttd.readfile import read_limited
from lttd.stored import StoredStream
from lttd.subbuffer import StreamId, StreamInfo
from lttd.tracedir import SegmentPaths, segments_below

I64 = npt.NDArray[np.int64]

METADATA: Final = "metadata"
MOST_NOTES: Final = 100
# Sub-buffers state their own byte order and size.
_ANY: Final = StreamInfo(StreamId(METADATA, 0), NAME, CARRIED_METADATA.most, LEAST_HEADER_BYTES)
_FLIGHT: Final = "flight-"


def channel_of(stream: StoredStream) -> str:
    """Return the metadata's name of a stream's channel: without directory and ``flight-``."""
    return stream.info.id.channel.rpartition("/")[2].removeprefix(_FLIGHT)


class SegmentMarkers:
    """The markers of one segment."""

    def __init__(self, paths: SegmentPaths, manifest: Manifest) -> None:
        self._paths = paths
        self._manifest = manifest
        self._markers = Markers()
        self._read: tuple[tuple[str, int], ...] | None = None
        self.version = 0
        """Number of times that the markers were read."""
        self.notes: list[str] = []
        """A line per declaration that could not be read; the reader removes them."""

    def refresh(self) -> None:
        """Read the metadata again if it has grown."""
        if self._read is not None:
            if self._manifest.state == "closed":
                return
            try:
                self._manifest = Manifest.read(self._paths.place(self._paths.manifest))
            except TraceDamagedError as error:
                self.notes.append(str(error))
                return
        ours = list(_streams(self._paths, self._manifest))
        streams = [one for one in ours if is_metadata(one.info.id.channel)]
        starts: set[int] = set()
        # The beginning of the metadata brings a clock snapshot: then no other segment is needed.
        if not self._manifest.clock_snapshots:
            starts = {start for one in ours if (start := start_of(one)) is not None}
        others = list(self._elsewhere()) if starts else []
        carried = list(carried_metadata(self._paths, self.notes))
        sizes = tuple((str(one.paths.data), one.index_bytes()) for one in (*streams, *others))
        sizes += tuple((name, len(data)) for name, data in carried)
        if sizes == self._read:
            return
        self._read = sizes
        self.version += 1
        self._markers = Markers()
        for name, data in carried:
            self._take_carried(self._paths.directory / CARRIED / name, data)
        for stream in streams:
            self._take(stream, None)
        for stream in others:
            self._take(stream, starts)
        directory = self._paths.directory
        self.notes += [f"{directory}: {each}" for each in self._markers.conflicts]

    def of(self, channel: str, layout: Layout) -> Mapping[int, Marker]:
        """Return the markers of a channel's events, by event id."""
        if channel == METADATA:
            return core_markers(layout.minor, layout.alignment)
        return self._markers.of(channel)

    def _elsewhere(self) -> Iterator[StoredStream]:
        """Yield the metadata streams of the other segments in the directory."""
        try:
            others = segments_below(self._paths.directory.absolute().parent)
        except StorageError:
            return  # the segment can be read, its parent directory cannot
        for paths in others:
            if paths.directory.name == self._paths.directory.absolute().name:
                continue
            try:
                manifest = Manifest.read(paths.place(paths.manifest))
            except TraceDamagedError:
                continue  # reported when that segment itself is read
            for stream in _streams(paths, manifest):
                if is_metadata(stream.info.id.channel):
                    yield stream

    def _take(self, stream: StoredStream, starts: set[int] | None) -> None:
        """Read a metadata stream; *starts*: only the records of traces that were made then."""
        for block in self._blocks(stream):
            self.notes += (str(one) for one in block.left_out)
            base = block.base
            self._take_some(stream.data_path, block.data, block.headers, base, starts)

    def _take_carried(self, path: Path, data: bytes) -> None:
        headers = headers_of(data)
        self._take_some(path, memoryview(data), headers, 0, None)

    def _take_some(
        self, path: Path, data: memoryview, headers: Headers, base: int, starts: set[int] | None
    ) -> None:
        ends = headers.offset_bytes + headers.content_bytes
        for layout, _, subbuffers in alike(data, headers.offset_bytes, ends):
            if starts is not None and layout.start_ns not in starts:
                continue
            channel = Channel(self.of(METADATA, layout), layout)
            for walked in walk(data, subbuffers, channel):
                damage = walked.damage + walked.undeclared
                wrong = [(each.offset_bytes, each.reason) for each in damage]
                ids, places = walked.id.tolist(), walked.payload_at.tolist()
                for one, at, size in zip(ids, places, walked.payload_bytes.tolist(), strict=True):
                    payload = bytes(data[at : at + size])
                    minor, order = layout.minor, layout.order
                    if not self._markers.add_event(one, payload, minor=minor, byteorder=order):
                        wrong.append((at, "no declaration of a marker"))
                more = max(MOST_NOTES - len(self.notes), 0)
                self.notes += [f"{path}: byte {at + base}: {why}" for at, why in wrong[:more]]

    def _blocks(self, stream: StoredStream) -> Iterator[Block]:
        """Read the sub-buffers that the index tells of; without one those that adjoin."""
        try:
            index = stream.index
        except TraceDamagedError as error:
            self.notes.append(f"{error}; read from end to end instead")
            return stream.blocks(stream.derived_entries())
        return stream.blocks(index)


def carried_metadata(
    segment: SegmentPaths, notes: list[str] | None = None
) -> Iterator[tuple[str, bytes]]:
    """Yield name and sub-buffers of each metadata stream of before the segment, as carried."""
    directory = segment.directory / CARRIED
    try:
        names = sorted(segment.base.names(directory))
    except OSError:
        return  # it is the first segment of a run
    for name in names:
        try:
            yield name, read_limited(segment.place(directory / name), CARRIED_METADATA)
        except (TraceDamagedError, OSError) as error:
            if notes is not None:
                notes.append(str(error))


def headers_of(data: bytes) -> Headers:
    """Return the headers of carried sub-buffers; they adjoin."""
    return LttAbi(_ANY, "little").walk(data, 0)


def _streams(paths: SegmentPaths, manifest: Manifest) -> Iterator[StoredStream]:
    return (
        StoredStream(paths, manifest, record)
        for record in manifest.streams
        if record.info.abi == NAME
    )


def start_of(stream: StoredStream) -> int | None:
    """Return when the trace was made, wall clock in ns; None: nothing of the stream tells."""
    try:
        for block in stream.blocks(stream.index[:1]):
            if len(block.rows):
                return layout_of(block.data, int(block.headers.offset_bytes[0])).start_ns
    except (TraceDamagedError, ValueError):
        pass
    return None
