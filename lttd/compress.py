"""Compress a closed segment, and decompress it again; a crash at any instant loses nothing.

    compress      make, sync and compare .new-compressed/, rename it to compressed/,
                  note it in the manifest, remove streams/NAME and streams/index/NAME.idx
    decompress    make, sync and compare streams/.new-*, rename them to NAME and NAME.idx,
                  note it in the manifest, remove compressed/

Rule: a file is removed only after its other form was synced, read back, compared with it byte by
byte, and noted in the manifest.
Rule: the occurrence table, which is of both forms, is made from the plain files, which are read in
less time: it is a cache, and whoever stops in between leaves a plain segment with a table.
Rule: gaps stay plain.  They are few, and nobody else reads them.
Invariant: at each instant every file is there in one form at least, and each that has its final
name is whole.  What the manifest does not note is a leftover of a crash, which the next call and
the next start of lttd remove.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lttd.beneath import Place
from lttd.blocks import bytes_of
from lttd.compressed import CompressedFile
from lttd.errors import LttdError, StorageError, TraceDamagedError
from lttd.files import Disk
from lttd.held import held_alone
from lttd.index import ENTRY_BYTES, HEADER, SeekIndex
from lttd.manifest import Manifest
from lttd.occurrence_maker import has_occurrences, make_occurrences
from lttd.readfile import ReadFile
from lttd.seekable import encode_table
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths, is_unfinished
from lttd.writefile import File

I64 = npt.NDArray[np.int64]

ZSTD: Final = "zstd"
DEFAULT_LEVEL: Final = 1
LEVELS: Final = range(1, 20)
# Frames of whole sub-buffers, about: larger ones compress 3 % better, and cost a window more.
FRAME_BYTES: Final = 256 << 10
# A sub-buffer that is larger is divided.
MOST_FRAME_BYTES: Final = 1 << 20
# Of an index: a bisection decompresses one of them for each step.
INDEX_FRAME_BYTES: Final = 910 * ENTRY_BYTES
_CHUNK_ENTRIES: Final = 65536

Pace = Callable[[float], None]
"""Called after each step with the seconds that its I/O took; it may sleep, or raise to stop."""


class Sizes(NamedTuple):
    """The bytes of a segment's data and indexes."""

    plain_bytes: int = 0
    compressed_bytes: int = 0

    def plus(self, other: "Sizes") -> "Sizes":
        """Return both added up."""
        return Sizes(*(one + two for one, two in zip(self, other, strict=True)))


def no_pace(_io_seconds: float) -> None:
    """Work at full speed."""


def compress(
    segment: SegmentPaths, disk: Disk, level: int = DEFAULT_LEVEL, pace: Pace = no_pace
) -> Sizes | None:
    """Compress the data and the indexes of *segment*; None: they are compressed already.

    Raises:
        LttdError: it is open, or damaged: it stays as it is.
        LockedError: another process uses it.
        StorageError: a file could not be written; the segment is plain, and whole.
    """
    with held_alone(segment, disk) as own:
        manifest = _closed_manifest(own)
        if manifest.compression:
            _remove_plain(own, manifest, disk)
            return None
        _remove_compressed(own, disk)
        try:
            sizes = _make_compressed(own, manifest, disk, level, pace)
            with suppress(StorageError):  # nothing needs the table
                if not has_occurrences(own, manifest):
                    make_occurrences(own, manifest, disk, lambda: pace(0.0))
            disk.rename(own.unfinished, own.compressed.name)
            manifest.compression = ZSTD
            disk.replace(own.manifest, manifest.encode())
        except BaseException:
            if not _is_noted(own):
                _remove_compressed(own, disk)
            raise
        _remove_plain(own, manifest, disk)
    return sizes


def decompress(segment: SegmentPaths, disk: Disk) -> Sizes | None:
    """Make *segment* plain again; None: it is plain already.

    Raises:
        LttdError: it is open.
        LockedError: another process uses it.
        TraceDamagedError: a compressed file is damaged; the segment stays compressed.
        StorageError: a file could not be written; the segment is compressed, and whole.
    """
    with held_alone(segment, disk) as own:
        manifest = _closed_manifest(own)
        if not manifest.compression:
            _remove_compressed(own, disk)
            return None
        return decompress_held(own, manifest, disk)


def tidy(segment: SegmentPaths, disk: Disk) -> None:
    """Remove what a killed call of the functions above left in *segment*.

    Raises:
        LttdError: it is open.
        LockedError: another process uses it.
        StorageError: a file cannot be removed.
    """
    with held_alone(segment, disk) as own:
        manifest = _closed_manifest(own)
        if manifest.compression:
            _remove_plain(own, manifest, disk)
        else:
            _remove_compressed(own, disk)


def wants_compression(segment: SegmentPaths) -> bool:
    """Tell whether *segment* is closed, and something is left to do for compress()."""
    try:
        names = segment.base.names(segment.streams)
        manifest = Manifest.read(segment.place(segment.manifest))
    except (OSError, TraceDamagedError):
        return False  # it was deleted, or is damaged
    plain = {record.name for record in manifest.streams}.intersection(names)
    return manifest.state == "closed" and (not manifest.compression or bool(plain))


def _closed_manifest(segment: SegmentPaths) -> Manifest:
    manifest = Manifest.read(segment.place(segment.manifest))
    if manifest.state != "closed":
        raise LttdError(f"{segment.directory}: not closed, so it stays as it is; see lttv check")
    return manifest


def _is_noted(segment: SegmentPaths) -> bool:
    """Tell whether the manifest on disk says compressed; unsure counts as yes."""
    try:
        return bool(Manifest.read(segment.place(segment.manifest)).compression)
    except TraceDamagedError:
        return True


# -- compressing


def _make_compressed(
    segment: SegmentPaths, manifest: Manifest, disk: Disk, level: int, pace: Pace
) -> Sizes:
    made, total = segment.unfinished, Sizes()
    disk.make_directory(made / "index")
    for record in manifest.streams:
        data, index = segment.data_places(record.name), segment.index_places(record.name)
        compressed = made / f"{record.name}.zst"
        with suppress(FileNotFoundError):
            ends = _subbuffer_ends(_whole_index(StoredStream(segment, manifest, record)))
            total = total.plus(_compress_file(data.plain, compressed, disk, level, ends, pace))
            ends = _steps(INDEX_FRAME_BYTES, HEADER.size)
            compressed = made / "index" / compressed.name
            total = total.plus(_compress_file(index.plain, compressed, disk, level, ends, pace))
    for directory in (made / "index", made, segment.directory):
        disk.sync_directory(directory)
    return total


def _whole_index(stream: StoredStream) -> SeekIndex:
    """Return the index of a stream; reject one that does not account for each byte of the data.

    Raises:
        TraceDamagedError: it does not.
        FileNotFoundError: the stream has no files.
    """
    if stream.file is None and not stream.index_bytes():
        raise FileNotFoundError(stream.paths.data)
    index, at = stream.index, 0
    if len(index):
        last = index[-1]
        at = int(last["offset_bytes"]) + (int(last["packet_bits"]) >> 3)
    most_bytes = len(index) * (stream.info.subbuffer_bytes or stream.data_bytes)
    if at != stream.data_bytes or at > most_bytes or index.torn_bytes:
        reason = "data and index do not end together; lttv check --repair mends that"
        raise TraceDamagedError(stream.paths.data, at, reason)
    return index


def _subbuffer_ends(index: SeekIndex) -> Iterator[I64]:
    """Yield where sub-buffers end, some at a time."""
    for at in range(0, len(index), _CHUNK_ENTRIES):
        offset, size = bytes_of(index.entries(at, at + _CHUNK_ENTRIES))
        yield offset + size


def _steps(step_bytes: int, first_bytes: int) -> Iterator[I64]:
    """Yield the multiples of a size, after a first one."""
    at = first_bytes
    while True:
        yield at + step_bytes * np.arange(1, 1025, dtype=np.int64)
        at += 1024 * step_bytes


def frame_ends(ends: Iterator[I64], size_bytes: int) -> Iterator[int]:
    """Yield where the frames of a file end: after whole sub-buffers, as far as *ends* tells."""
    at, known = 0, np.empty(0, np.int64)
    while at < size_bytes:
        while not len(known) or known[-1] < min(at + FRAME_BYTES, size_bytes):
            more = next(ends, None)
            if more is None:
                break
            later = known[known > at]
            # The index may be damaged: what steps back ends no frame.
            known = np.maximum.accumulate(np.concatenate((later, np.clip(more, at, size_bytes))))
        fitting = int(np.searchsorted(known, at + FRAME_BYTES, "right"))
        within, beyond = known[:fitting], known[fitting:]
        if len(within) and within[-1] > at:
            end = int(within[-1])
        else:
            end = int(beyond[0]) if len(beyond) else at + FRAME_BYTES
        at = min(end, at + MOST_FRAME_BYTES, size_bytes)
        yield at


def _compress_file(
    plain: Place, to: Path, disk: Disk, level: int, ends: Iterator[I64], pace: Pace
) -> Sizes:
    """Write the compressed form of a file, sync it, read it back and compare."""
    source = ReadFile(plain)
    target = disk.open(to, truncate=True)
    try:
        target.permit(plain.stat().st_mode & 0o777)
        size_bytes = _write_frames(source, target, level, ends, pace)
        target.sync()
        target.forget()
    finally:
        target.close()
    _compare(source, CompressedFile(plain.directory.place(to)), pace)
    return Sizes(source.size_bytes, size_bytes)


def _write_frames(
    source: ReadFile, target: File, level: int, ends: Iterator[I64], pace: Pace
) -> int:
    # Loading the library takes 5 ms, and each start of lttd loads this module.
    from lttd.zstd import CompressionParameter, ZstdCompressor  # noqa: PLC0415

    parameters: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.checksum_flag: 1,
    }
    compressor = ZstdCompressor(options=parameters)
    frames: list[tuple[int, int]] = []
    at = done = 0
    for end in frame_ends(ends, source.size_bytes):
        began = time.perf_counter()
        content = source.read_all_of(at, end)
        io_seconds = time.perf_counter() - began
        compressor.set_pledged_input_size(len(content))
        frame = compressor.compress(content, ZstdCompressor.FLUSH_FRAME)
        frames.append((len(frame), len(content)))
        began = time.perf_counter()
        done, at = target.write_at([frame], done), end
        pace(io_seconds + time.perf_counter() - began)
    return target.write_at([encode_table(frames)], done)


def _compare(plain: ReadFile, compressed: CompressedFile, pace: Pace) -> None:
    """Compare both forms, byte by byte.

    Raises:
        StorageError: they differ.
    """
    if compressed.size_bytes != plain.size_bytes:
        raise StorageError(compressed.path, "has another length than the original when read back")
    for at in range(0, plain.size_bytes, MOST_FRAME_BYTES):
        began = time.perf_counter()
        one = plain.read_all_of(at, min(at + MOST_FRAME_BYTES, plain.size_bytes))
        io_seconds = time.perf_counter() - began
        # numpy compares them 18 times as fast as memoryview does.
        other = compressed.read(at, at + len(one))
        if not np.array_equal(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)):
            raise StorageError(compressed.path, "differs from the original when read back")
        pace(io_seconds)


def _remove_plain(segment: SegmentPaths, manifest: Manifest, disk: Disk) -> None:
    """Remove the plain form of each file whose compressed form has all of it."""
    disk.remove_tree(segment.unfinished)
    for record in manifest.streams:
        for places in (segment.data_places(record.name), segment.index_places(record.name)):
            with suppress(FileNotFoundError):
                size_bytes = places.plain.stat().st_size
                if CompressedFile(places.compressed).size_bytes == size_bytes:
                    disk.remove(Path(places.plain.path))
    _remove_unfinished(segment, disk)


def _remove_compressed(segment: SegmentPaths, disk: Disk) -> None:
    """Remove the files that the manifest does not note: a crash left them."""
    for made in (segment.unfinished, segment.compressed):
        if not segment.base.is_missing(made):
            disk.remove_tree(made)
    _remove_unfinished(segment, disk)


def _remove_unfinished(segment: SegmentPaths, disk: Disk) -> None:
    for directory in (segment.streams, segment.index):
        with suppress(OSError):
            for name in filter(is_unfinished, segment.base.names(directory)):
                disk.remove(directory / name)


# -- decompressing


def decompress_held(
    segment: SegmentPaths, manifest: Manifest, disk: Disk, *, salvage: bool = False
) -> Sizes:
    """Make a segment plain that the caller holds; see decompress().

    *salvage*: a damaged frame becomes zeros, instead of an error.
    """
    total = Sizes()
    made: dict[Path, str] = {}
    disk.remove_tree(segment.unfinished)
    _remove_unfinished(segment, disk)
    try:
        for record in manifest.streams:
            for places in (segment.data_places(record.name), segment.index_places(record.name)):
                with suppress(FileNotFoundError):
                    plain = Path(places.plain.path)
                    file = _compressed(places.compressed, salvage=salvage)
                    unfinished = plain.with_name(f".new-{len(made)}")
                    made[unfinished] = plain.name
                    mode = places.compressed.stat().st_mode & 0o777
                    _decompress_file(file, unfinished, disk, mode)
                    _compare(ReadFile(segment.place(unfinished)), file, no_pace)
                    total = total.plus(Sizes(file.size_bytes, file.stored_bytes))
    except BaseException:
        _remove_unfinished(segment, disk)
        raise
    for unfinished, name in made.items():
        disk.rename(unfinished, name)
    manifest.compression = ""
    disk.replace(segment.manifest, manifest.encode())
    _remove_compressed(segment, disk)
    return total


def _compressed(place: Place, *, salvage: bool) -> CompressedFile:
    return CompressedFile(place, (lambda _damage: None) if salvage else None)


def _decompress_file(source: CompressedFile, to: Path, disk: Disk, mode: int) -> None:
    target = disk.open(to, truncate=True)
    try:
        target.permit(mode)
        source.copy_to(target, 0, source.size_bytes, 0)
        target.sync()
        target.forget()
    finally:
        target.close()
