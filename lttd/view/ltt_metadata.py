"""What the metadata channel of an LTTng 0.x segment declares, for the channels that need it.

The segment's ``metadata_*`` streams, one a CPU, are read whole when the first event is to be shown,
and again when an open segment has more of them.

Rule: a declaration that cannot be read is a note; events that need it are then damage.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.abi import ltt
from lttd.abi.ltt_events import Channel, SubBuffers, walk
from lttd.abi.ltt_markers import Marker, Markers, core_markers
from lttd.stored import StoredStream
from lttd.view.columns import gather
from lttd.view.decode import pages_of, usable
from lttd.view.trace import Segment
from lttd.view.window import Part, Source

I64 = npt.NDArray[np.int64]

METADATA: Final = "metadata"
_FLIGHT: Final = "flight-"
_SAME: Final = ["minor", "pointer_bytes", "alignment", "frequency", "scale"]


def channel_of(stream: StoredStream) -> str:
    """Return what the metadata calls a stream's channel: no directory, no ``flight-``."""
    return stream.info.id.channel.rpartition("/")[2].removeprefix(_FLIGHT)


class Alike(NamedTuple):
    """Sub-buffers of one stream that the same tracer wrote."""

    layout: ltt.Layout
    rows: I64
    """Numbers of them among those that were asked about."""
    subbuffers: SubBuffers


def alike(data: memoryview, offset_bytes: I64, end_bytes: I64) -> Iterator[Alike]:
    """Tell sub-buffers of one stream apart by tracer; all their headers are sound.

    There is one tracer, unless legacy lttd's ``-a`` put runs of several into one file.
    """
    if not len(offset_bytes):
        return
    order = ltt.layout_of(data, int(offset_bytes[0])).order
    heads = gather(data, offset_bytes, ltt.header_dtype(order))
    told = heads[_SAME]
    left = np.ones(len(heads), np.bool_)
    while left.any():
        first = int(left.argmax())
        same = left & (told == told[first])
        rows = np.flatnonzero(same)
        layout = ltt.layout_of(data, int(offset_bytes[first]))
        at = offset_bytes[rows]
        begin = heads["begin"][rows].astype(np.uint64)
        yield Alike(layout, rows, SubBuffers(at, at + layout.header_bytes, end_bytes[rows], begin))
        left &= ~same


class SegmentMarkers:
    """The markers of one segment."""

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._read: tuple[tuple[str, int], ...] | None = None
        self._markers = Markers()
        self.version = 0
        """Counts how often they were read."""
        self.notes: list[str] = []
        """What could not be read, a line each; the reader takes them away."""

    def refresh(self) -> None:
        """Read what is there, if that is more than before."""
        if self._read is not None:
            if self._segment.manifest.state == "closed":
                return
            self._segment = Segment(self._segment.paths)
        streams = [one for one in self._segment.streams if channel_of(one) == METADATA]
        sizes = tuple((one.name, _size(one)) for one in streams)
        if sizes == self._read:
            return
        self._read = sizes
        self.version += 1
        self._markers = Markers()
        for stream in streams:
            self._take(stream)
        directory = self._segment.paths.directory
        self.notes += [f"{directory}: {each}; the first counts" for each in self._markers.conflicts]

    def of(self, channel: str, layout: ltt.Layout) -> Mapping[int, Marker]:
        """Return what the events of a channel may be, by id."""
        if channel == METADATA:
            return core_markers(layout.minor, layout.alignment)
        return self._markers.of(channel)

    def _take(self, stream: StoredStream) -> None:
        source = Source(stream, None, self.notes)
        part = usable(Part(source, 0, source.index.entries()), self.notes)
        pages = pages_of([(part, 0)], self.notes)
        data = stream.data
        for layout, _, subbuffers in alike(data, pages.offset, pages.content_end):
            channel = Channel(self.of(METADATA, layout), layout)
            for walked in walk(data, subbuffers, channel):
                wrong = [(each.offset_bytes, each.reason) for each in walked.damage]
                ids, places = walked.id.tolist(), walked.payload_at.tolist()
                for one, at, size in zip(ids, places, walked.payload_bytes.tolist(), strict=True):
                    payload = bytes(data[at : at + size])
                    minor, order = layout.minor, layout.order
                    if not self._markers.add_event(one, payload, minor=minor, byteorder=order):
                        wrong.append((at, "no declaration of a marker"))
                self.notes += [f"{stream.paths.data}: byte {at}: {why}" for at, why in wrong]


def _size(stream: StoredStream) -> int:
    try:
        return stream.paths.index.stat().st_size
    except OSError:
        return 0  # not written to yet


class LttContext:
    """What decoding one channel of a segment needs."""

    def __init__(self, markers: SegmentMarkers, channel: str) -> None:
        self.channel: Final = channel
        self.markers: Final = markers
        self._walking: dict[tuple[ltt.Layout, int], Channel] = {}

    def walking(self, layout: ltt.Layout) -> Channel:
        """Return what walking sub-buffers of *layout* needs to know, by what is known now."""
        key = (layout, self.markers.version)
        if key not in self._walking:
            self._walking = {}  # what was known before is of no more use
            self._walking[key] = Channel(self.markers.of(self.channel, layout), layout)
        return self._walking[key]


class LttContexts:
    """See ``lttd.view.families.Contexts``."""

    def __init__(self, segment: Segment) -> None:
        self._markers = SegmentMarkers(segment)
        self._channels: dict[str, LttContext] = {}

    def of(self, stream: StoredStream) -> LttContext:
        """Return a channel's context, which its CPUs share."""
        channel = channel_of(stream)
        if channel not in self._channels:
            self._channels[channel] = LttContext(self._markers, channel)
        return self._channels[channel]
