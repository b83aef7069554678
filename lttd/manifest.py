"""A segment's ``trace.json`` and ``synced.json``: written, read back, and checked.

Rule: only this module has the keys of both files; docs/FORMAT.md describes them.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from lttd.beneath import OpenDirectory, Place
from lttd.clock import Snapshot
from lttd.errors import TraceDamagedError
from lttd.limits import MANIFEST as MANIFEST_LIMIT
from lttd.limits import SYNCED as SYNCED_LIMIT
from lttd.plausible import is_count, parse_json, refuse_implausible
from lttd.readfile import read_head, read_limited
from lttd.stats import StreamSummary
from lttd.subbuffer import StreamId, StreamInfo
from lttd.tracedir import MOST_FILE_NAME, SegmentPaths, file_name, segments_below

FORMAT_VERSION: Final = 1
SCALED_VERSION: Final = 2
"""The version of a manifest with time scales, since a reader that ignored them would read wrong
times."""
OWN_THREADS: Final = "own_threads"
"""The key of the source's object for Manifest.own_threads."""
_PID: Final = "[0-9]{1,9}"
# Reading a manifest takes 0.3 ms.
MOST_MANIFESTS: Final = 64
_CLOSED: Final = b'\n "state": "closed",\n'
# The keys before it, of which the source's settings are the longest, take some 2 KB.
_HEAD_BYTES: Final = 16 << 10


class Position(NamedTuple):
    """The end of a stream's written files."""

    entries: int
    data_bytes: int
    gaps: int


@dataclass(slots=True)
class StreamRecord:
    """One stream's object in the manifest."""

    info: StreamInfo
    baseline_discarded: int = 0
    """events_discarded at the end of the segment before; the index continues from it."""
    subbuffers_before: int | None = 0
    """The number of sub-buffers that the same run took into earlier segments.  None: that segment
    had not ended yet when this manifest was written, so baseline_discarded may be too small."""
    summary: StreamSummary | None = None
    """The totals, once the segment is closed."""
    counters: dict[str, int] = field(default_factory=dict)
    """The kernel's counters, read at close; they count since lttd took the stream over."""

    @property
    def name(self) -> str:
        """The name of the data file."""
        return file_name(self.info)

    def to_json(self) -> dict[str, Any]:
        """Return the object for the manifest; the source is in it once, for all streams."""
        info = self.info
        layout = {"packet_layout": info.packet_layout} if info.packet_layout else {}
        scale = {"time_scale": info.time_scale} if info.time_scale else {}
        return {
            "name": self.name,
            "channel": info.id.channel,
            "cpu": info.id.cpu,
            "abi": info.abi,
            "subbuffer_bytes": info.subbuffer_bytes,
            "header_bytes": info.header_bytes,
            "ctf_stream_id": info.ctf_stream_id,
            "page_bytes": info.page_bytes,
            "read_events_before": info.read_events_before,
            **layout,
            **scale,
            "baseline_discarded": self.baseline_discarded,
            "subbuffers_before": self.subbuffers_before,
            "summary": _summary_json(self.summary) if self.summary else None,
            "counters": self.counters,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any], source: str) -> "StreamRecord":
        """Read back what to_json() made of a stream of *source*."""
        info = StreamInfo(
            id=StreamId(value["channel"], value["cpu"]),
            abi=value["abi"],
            subbuffer_bytes=value["subbuffer_bytes"],
            header_bytes=value["header_bytes"],
            ctf_stream_id=value["ctf_stream_id"],
            page_bytes=value.get("page_bytes", 0),
            read_events_before=value.get("read_events_before", 0),
            packet_layout=value.get("packet_layout", ""),
            time_scale=value.get("time_scale", ""),
        )
        if len(file_name(info)) > MOST_FILE_NAME:
            raise ValueError(f"channel {info.id.channel[:40]!r}... is too long for a file's name")
        told = value["summary"]
        summary = StreamSummary(**(told | {"source": source})) if told else None
        before = value.get("subbuffers_before", 0)
        return cls(info, value["baseline_discarded"], before, summary, value["counters"])


def _summary_json(summary: StreamSummary) -> dict[str, Any]:
    value = summary.to_json()
    del value["source"]
    return value


@dataclass(slots=True)
class Manifest:
    """A segment's ``trace.json``."""

    source: dict[str, Any]
    """kind, spec, clock, settings, previous_run: from the source."""
    layout: str
    machine: dict[str, str] = field(default_factory=dict)
    """The recording machine: host, boot_id, kernel, architecture, byteorder."""
    state: str = "open"
    lttd_version: str = ""
    streams: list[StreamRecord] = field(default_factory=list)
    clock_snapshots: list[Snapshot] = field(default_factory=list)
    compression: str = ""
    """``zstd``: data and indexes are compressed; empty: they are plain."""

    @property
    def clock(self) -> str:
        """The name of the trace clock."""
        return str(self.source["clock"])

    @property
    def own_threads(self) -> dict[str, str]:
        """The names of lttd's threads that may be in the data, by the kernel's ids."""
        return dict(self.source.get(OWN_THREADS, {}))

    @property
    def own_pids(self) -> frozenset[int]:
        """The ids of these threads."""
        return frozenset(int(word) for word in self.own_threads if re.fullmatch(_PID, word))

    @property
    def source_name(self) -> str:
        """Kind and target of the source: its SPEC without the keys."""
        return _source_name(self.source)

    def encode(self) -> bytes:
        """Return the file's content."""
        scaled = any(record.info.time_scale for record in self.streams)
        version = SCALED_VERSION if scaled else FORMAT_VERSION
        value: dict[str, Any] = {"format_version": version}
        value |= {slot: getattr(self, slot) for slot in self.__slots__}
        value["streams"] = [record.to_json() for record in self.streams]
        value["clock_snapshots"] = [snapshot.to_json() for snapshot in self.clock_snapshots]
        if not self.compression:
            del value["compression"]
        return json.dumps(value, indent=1).encode() + b"\n"

    @classmethod
    def read(cls, where: Place | Path) -> "Manifest":
        """Read a segment's manifest.

        Raises:
            TraceDamagedError: it is absent, not JSON, of a later format, or lacks a key.
        """
        path = where if isinstance(where, Path) else Path(where.path)
        try:
            value = parse_json(read_limited(where, MANIFEST_LIMIT))
            version = value.pop("format_version")
            if version not in (FORMAT_VERSION, SCALED_VERSION):
                versions = f"{FORMAT_VERSION} and {SCALED_VERSION}"
                reason = f"format version {version!a:.40}; this lttv knows {versions}"
                raise TraceDamagedError(path, 0, reason)
            refuse_implausible(value)
            source = _source_name(value["source"])
            value["streams"] = [StreamRecord.from_json(one, source) for one in value["streams"]]
            snapshots = value["clock_snapshots"]
            value["clock_snapshots"] = [Snapshot.from_json(snapshot) for snapshot in snapshots]
            known = cls.__slots__
            manifest = cls(**{key: told for key, told in value.items() if key in known})
        except FileNotFoundError:
            reason = "missing; move its segment elsewhere, and the others can be read"
            raise TraceDamagedError(path, 0, reason) from None
        except OSError as error:
            raise TraceDamagedError(path, 0, error.strerror or str(error)) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            reason = f"no manifest: {what}; move its segment elsewhere, and the others can be read"
            raise TraceDamagedError(path, getattr(error, "pos", 0), reason) from None
        return manifest


def newest_manifests(trace: OpenDirectory, kind: str) -> Iterator[tuple[SegmentPaths, Manifest]]:
    """List the segments of sources of a kind; return the readable manifests, newest first.

    There are at most MOST_MANIFESTS: a start must not read all of a large trace.
    """
    ours = [one for one in reversed(segments_below(trace)) if one.kind == kind]
    return _readable(ours[:MOST_MANIFESTS])


def _readable(segments: Iterable[SegmentPaths]) -> Iterator[tuple[SegmentPaths, Manifest]]:
    for paths in segments:
        with suppress(TraceDamagedError):
            yield paths, Manifest.read(paths.place(paths.manifest))


def says_closed(where: Place) -> bool:
    """Tell by the begin of a manifest that its segment is closed; False: read all of it.

    A string of JSON has no line break, and only keys of the outermost object follow one space.
    """
    try:
        return _CLOSED in read_head(where, _HEAD_BYTES)
    except OSError:
        return False


def _source_name(source: Mapping[str, Any]) -> str:
    return str(source.get("spec", "")).partition(",")[0]


def recorded_source(source: Mapping[str, Any]) -> str:
    """Return the name of the source that was recorded first.

    The ring of a killed lttd is drained under its instance's name, and was recorded as lttd's own.
    """
    return str(source.get("kind")) if source.get("previous_run") else _source_name(source)


def this_machine() -> dict[str, str]:
    """Return this machine's object for the manifest."""
    uname = os.uname()
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    return {
        "host": uname.nodename,
        "boot_id": boot_id.read_text().strip() if boot_id.exists() else "",
        "kernel": uname.release,
        "architecture": uname.machine,
        "byteorder": sys.byteorder,
    }


def encode_synced(positions: Mapping[str, Position]) -> bytes:
    """Return the content of the synced record: the durable end of each stream."""
    return json.dumps({"streams": {name: at._asdict() for name, at in positions.items()}}).encode()


def read_synced(where: Place | Path) -> dict[str, Position]:
    """Read the synced record; return nothing if it is absent or unreadable."""
    try:
        streams = parse_json(read_limited(where, SYNCED_LIMIT))["streams"]
        found = {str(name): Position(**at) for name, at in streams.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, TraceDamagedError):
        return {}
    if not all(is_count(number) for at in found.values() for number in at):
        return {}
    return found
