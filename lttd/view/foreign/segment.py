"""Segments of a foreign trace: what it says of itself as a manifest, and its parts as streams."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from lttd.abi.formats_file import NAME as FORMATS_FILE
from lttd.abi.formats_file import Key, pack
from lttd.abi.ftrace import NAME
from lttd.abi.time_scale import TimeScale
from lttd.clock import Snapshot
from lttd.manifest import Manifest, StreamRecord
from lttd.readfile import ReadFile
from lttd.subbuffer import StreamId, StreamInfo
from lttd.tracedir import MANIFEST, SegmentPaths, segment_name
from lttd.version import VERSION
from lttd.view.foreign.memory import Content, MemoryFiles
from lttd.view.foreign.pages import PageStream
from lttd.view.trace import Segment

KIND: Final = "import"
"""The kind of the source of what lttd did not record."""


class Opened(NamedTuple):
    """A foreign trace."""

    segments: list[Segment]
    notes: list[str]
    """A line for each part that cannot be read."""


@dataclass
class Told:
    """What a foreign trace says of itself."""

    path: Path
    form: str
    """The name of its format."""
    byteorder: str = "<"
    clock: str = "unknown"
    scale: TimeScale | None = None
    of_day: bool = False
    """Whether its times are those of the wall clock."""
    machine: dict[str, str] = field(default_factory=dict)
    """host, kernel, architecture."""
    recorder: str = ""
    files: Mapping[str, Content] = field(default_factory=dict)
    """Files by their names below tracefs."""
    formats: Mapping[Key, bytes] = field(default_factory=dict)


class Ring(NamedTuple):
    """One ring buffer of it."""

    name: str
    """Empty: the top one."""
    page_bytes: int
    long_bytes: int
    cpus: Mapping[int, ReadFile]
    """The pages of each CPU."""


class ForeignSegment(Segment):
    """A segment whose streams are parts of foreign files."""

    def __init__(self, paths: SegmentPaths, data: Mapping[str, ReadFile]) -> None:
        """*data*: of each stream, by its name.

        Raises:
            TraceDamagedError: the manifest that was made of it has impossible values.
        """
        super().__init__(paths)
        self.streams = [
            PageStream(paths, self.manifest, one, data[one.name]) for one in self.manifest.streams
        ]


def segment_of(told: Told, ring: Ring, number: int) -> Segment:
    """Make segment *number* of a foreign trace, of one of its rings.

    Raises:
        TraceDamagedError: it has impossible values.
        OSError: the foreign trace is gone.
    """
    at_s = int(told.path.stat().st_mtime)
    directory = told.path / segment_name(number, KIND, max(at_s, 0))
    channel = ring.name or NAME
    scale = "" if told.scale is None else str(told.scale)
    records = {
        cpu: StreamRecord(
            StreamInfo(
                StreamId(channel, cpu), NAME, ring.page_bytes, 8 + ring.long_bytes, time_scale=scale
            )
        )
        for cpu in sorted(ring.cpus)
    }
    manifest = Manifest(
        source={
            "kind": KIND,
            "spec": f"{told.form}:{told.path}" + (f"#{ring.name}" if ring.name else ""),
            "clock": told.clock,
            "settings": {},
            "live": False,
            "recorder": told.recorder,
        },
        layout="sparse",
        machine=told.machine | {"byteorder": "little" if told.byteorder == "<" else "big"},
        state="closed",
        lttd_version=VERSION,
        streams=list(records.values()),
        clock_snapshots=[_OF_DAY] if told.of_day else [],
    )
    files: dict[str, Content] = {f"tracefs/{name}": text for name, text in told.files.items()}
    files[f"tracefs/{FORMATS_FILE}"] = lambda: pack(told.formats, level=0)
    files[MANIFEST] = manifest.encode
    paths = SegmentPaths(directory, MemoryFiles(directory, told.path, files))
    data = {record.name: ring.cpus[cpu] for cpu, record in records.items()}
    return ForeignSegment(paths, data)


_OF_DAY: Final = Snapshot(0, 0, 0, 0, 0)
"""The trace clock is the wall clock."""
