"""Export to Parquet: a file per event type and segment, whose names are Hive partitions.

    system=sched/event=sched_switch/20261123T065747Z-000001-ftrace.parquet

Columns: ``time`` (int64, trace clock, in ns if that counts ns), ``timestamp`` (UTC, in us, which
every engine reads; null without clock snapshots), ``cpu``, ``common_pid``, then the event's own
fields.  Strings are UTF-8, with U+FFFD for invalid bytes; arrays are lists.  The metadata of a file
(``lttd.*``) names the machine and the source.

Losses are rows too, of ``system=lttd/event=lost``: ``lost`` (null: some), ``unit``, ``reason``.

Rule: rows are in the order of time; memory holds a piece of the window and PENDING_ROWS of rows.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lttd.errors import NotATraceError
from lttd.files import Disk
from lttd.view.columns import EventRows
from lttd.view.export.arrow import field_array, realtimes_ns
from lttd.view.export.remote import Remote
from lttd.view.filters import Filter
from lttd.view.library import ClockGroup
from lttd.view.losses import Loss
from lttd.view.notes import Notes, WindowNotes
from lttd.view.output import nothing_within
from lttd.view.progress import pieces_of
from lttd.view.times import Window
from lttd.view.trace import Segment, Trace
from lttd.view.window import PIECE_BYTES

GROUP_ROWS: Final = 1 << 17
"""The number of rows of a type in a row group."""
PENDING_ROWS: Final = 1 << 20
"""The number of rows of all types that may wait for a row group."""
_US_NS: Final = 1000
U64 = npt.NDArray[np.uint64]
Open = Callable[[str], IO[bytes]]


def export(trace: Trace, window: Window, out: Path, disk: Disk) -> list[str]:
    """See ``lttd.view.export.Exporter``."""

    def create(name: str) -> IO[bytes]:
        path = out / name
        disk.make_directory(path.parent)
        return disk.create(path)

    disk.make_directory(out)
    return _export(trace, window, create)


def export_url(trace: Trace, window: Window, url: str) -> list[str]:
    """Export to a URL that fsspec can write to, such as ``s3://bucket/directory``."""
    remote = Remote(url)
    with remote.whole():
        return _export(trace, window, remote.create)


def _export(trace: Trace, window: Window, create: Open) -> list[str]:
    notes = WindowNotes()
    told = Notes()
    events = files = losses = 0
    for segment in trace.segments:
        sink = _Sink(segment, create)
        try:
            for abi in dict.fromkeys(stream.info.abi for stream in segment.streams):
                chosen = Filter(None, None, None)
                group = ClockGroup(abi, [segment], window, chosen, notes, PIECE_BYTES)
                for piece in pieces_of(group):
                    batch = group.batch(piece)
                    told.add(*batch.notes)
                    for rows in batch.by_type():
                        sink.add(rows)
                    sink.lose(batch.losses)
            sink.finish()
        finally:
            sink.close()
        events += sink.events
        files += sink.files
        losses += sink.losses
    if not events and not losses:
        raise NotATraceError(nothing_within(trace))
    told.add(*notes.take())
    return [*told.told(), f"{events} events and {losses} losses in {files} files"]


class _Sink:
    """The files of one segment."""

    def __init__(self, segment: Segment, create: Open) -> None:
        self._segment = segment
        self._create = create
        self._pending: dict[str, list[Any]] = {}
        self._pending_rows: dict[str, int] = {}
        self._writers: dict[str, tuple[Any, IO[bytes]]] = {}
        self.events = 0
        self.losses = 0
        self.files = 0

    def add(self, rows: EventRows) -> None:
        """Add events of one type."""
        event_type = rows.event_type
        undecoded = "_undecoded" if event_type.format is None and event_type.system else ""
        # A trace chooses the names of markers: none may lead out of the directory.
        system, event = (
            quote(word, safe="") for word in (event_type.system or "unknown", event_type.name)
        )
        name = f"system={system}/event={event}{undecoded}/"
        self.events += len(rows)
        self._hold(name, self._table(rows))

    def lose(self, losses: Sequence[Loss]) -> None:
        """Add known losses."""
        if not losses:
            return
        time = np.array([one.time for one in losses], np.uint64)
        columns = {
            "time": pa.array(time.astype(np.int64)),
            "timestamp": timestamps(time, self._segment),
            "cpu": pa.array([one.cpu for one in losses], pa.uint16()),
            "lost": pa.array([one.lost for one in losses], pa.int64()),
            "unit": pa.array([one.unit.name.lower() for one in losses]),
            "reason": pa.array([_named(one) for one in losses], pa.string()),
        }
        self.losses += sum(one.was_wanted for one in losses)
        self._hold("system=lttd/event=lost/", pa.table(columns))

    def _hold(self, name: str, table: Any) -> None:  # noqa: ANN401
        """Keep a table until there are enough rows of its type, or too many of all types."""
        self._pending.setdefault(name, []).append(table)
        self._pending_rows[name] = self._pending_rows.get(name, 0) + table.num_rows
        if self._pending_rows[name] >= GROUP_ROWS:
            self._write(name)
        while sum(self._pending_rows.values()) > PENDING_ROWS:
            self._write(max(self._pending_rows, key=lambda one: self._pending_rows[one]))

    def _table(self, rows: EventRows) -> Any:  # noqa: ANN401
        time = rows.time
        columns = {
            "time": pa.array(time.astype(np.int64)),
            "timestamp": timestamps(time, self._segment),
            "cpu": pa.array(rows.cpu),
            "common_pid": pa.array(rows.pid.astype(np.int32)),
        }
        if rows.event_type.format is None:
            columns["raw"] = pa.array(rows.raw(), pa.binary())
        for name in rows.names:
            # A field with the name of a common column would hide that column.
            columns[name if name not in columns else f"{name}_"] = field_array(rows, name)
        return pa.table(columns)

    def _write(self, name: str) -> None:
        tables, count = self._pending.pop(name), self._pending_rows.pop(name)
        table = pa.concat_tables(tables)
        if name not in self._writers:
            file = self._create(f"{name}{self._segment.paths.directory.name}.parquet")
            schema = table.schema.with_metadata(self._told())
            self._writers[name] = pq.ParquetWriter(file, schema, compression="zstd"), file
            self.files += 1
        writer, _ = self._writers[name]
        writer.write_table(table.replace_schema_metadata(self._told()), row_group_size=count)

    def _told(self) -> dict[str, str]:
        manifest = self._segment.manifest
        told = {"clock": manifest.clock, **manifest.machine, "lttd_version": manifest.lttd_version}
        return {f"lttd.{name}": value for name, value in told.items()}

    def finish(self) -> None:
        """Write the waiting rows; files of rare types are opened only here, one at a time."""
        for name in list(self._pending):
            self._write(name)
            self._close(name)

    def _close(self, name: str) -> None:
        writer, file = self._writers.pop(name)
        try:
            writer.close()
        finally:
            file.close()

    def close(self) -> None:
        """Close all open files, also if one of them fails."""
        with ExitStack() as stack:
            for name in self._writers:
                stack.callback(self._close, name)


def _named(loss: Loss) -> str | None:
    return loss.reason.name.lower() if loss.reason is not None else None


def timestamps(time: U64, segment: Segment) -> Any:  # noqa: ANN401
    """Return the wall-clock times of a column by the segment's conversion, in us; null: unknown."""
    timestamps = pa.timestamp("us", tz="UTC")
    if segment.conversion is None:
        return pa.nulls(len(time), timestamps)
    real, beyond = realtimes_ns(time, segment.conversion, segment.manifest.clock_snapshots)
    return pa.array(real // _US_NS, pa.int64(), mask=beyond).cast(timestamps)
