"""Open a ``trace.dat`` of trace-cmd, versions 6 and 7.

    file      := 17 08 44 "tracing" VERSION NUL big_endian:u8 long_bytes:u8 page_bytes:u32 rest
    rest (6)  := texts cpus:u32 ["options  " NUL options] ring buffer*
    rest (7)  := compression NUL its_version NUL options_at:u64 section*
    ring (6)  := "flyrecord" NUL (offset:u64 bytes:u64){cpus} clock_bytes:u64 clock; then pages
    section   := id:u16 flags:u16 description:u32 bytes:u64 data      flag 1: compressed
    data      := plain | compressed_bytes:u32 content_bytes:u32 compressed

Source: trace-cmd Documentation/trace-cmd/trace-cmd.dat.v6.5.txt, trace-cmd.dat.v7.5.txt and
lib/trace-cmd/trace-input.c; see ``tracedat_head`` for the texts, and ``tracedat_options``.

Rule: opening reads what is before the pages, and no page.
Rule: every size and place in the file is checked before it is used.  A file that was cut short is
read as far as it goes, with a line that says so; trace-cmd refuses it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from lttd.abi.ftrace import parse_header_page
from lttd.errors import TraceDamagedError
from lttd.limits import HOLE, OPTION_SECTIONS, SUBBUFFER, Limit
from lttd.plausible import is_name
from lttd.readfile import ReadFile
from lttd.view.foreign.cursor import Cursor, InMemory
from lttd.view.foreign.pages import named
from lttd.view.foreign.parts import (
    COMPRESSIONS,
    ChunkedFile,
    Decompress,
    Extent,
    FilePart,
    content_of,
)
from lttd.view.foreign.segment import Opened, Ring, Told, segment_of
from lttd.view.foreign.tracedat_head import BY_SECTION, IN_ORDER, Texts
from lttd.view.foreign.tracedat_options import Buffer, Options, clock_in, read_options, table_of

if TYPE_CHECKING:
    from lttd.view.trace import Segment

MAGIC: Final = b"\x17\x08\x44tracing"
_TAG_BYTES: Final = 10
_COMPRESSED: Final = 1
_SECTION: Final = Limit(
    128 << 20, "bytes", "a section of a trace.dat", "kallsyms may have 64 MiB, and is the longest"
)
_MOST_CLOCK_BYTES: Final = 4096


class _Found(NamedTuple):
    """What is before the pages."""

    byteorder: str
    long_bytes: int
    page_bytes: int
    decompress: Decompress | None
    texts: Texts
    options: Options
    buffers: list[Buffer]


def open_trace_dat(path: Path) -> Opened:
    """Open the file.

    Raises:
        TraceDamagedError: it cannot be read, is of another version, or what is before its pages is
            damaged.
    """
    try:
        file = ReadFile(path.resolve())  # the user may name a symbolic link
    except FileNotFoundError as error:
        raise TraceDamagedError(path, 0, error.strerror or "gone") from None
    found = _read(file, path)
    texts, options = found.texts, found.options
    notes = texts.notes
    if options.is_shifted:
        notes.append(f"{path}: times are the guest's own: its host's clock is not applied")
    told = Told(
        path,
        "trace.dat",
        found.byteorder,
        scale=options.scale,
        of_day=options.is_of_day,
        machine=_machine(options.uname),
        recorder=options.recorder,
        files=texts.files | {f"per_cpu/cpu{n}/stats": text for n, text in options.stats.items()},
        formats=texts.formats,
    )
    long_bytes = _long_bytes(found, path)
    data = _Data(file, path, found.byteorder, found.decompress, notes)
    segments: list[Segment] = []
    for buffer in _kept(found.buffers):
        told.clock = options.clock_of(buffer)
        ring = data.ring(buffer, found.page_bytes, long_bytes)
        segments.append(segment_of(told, ring, len(segments) + 1))
    if not segments:
        raise TraceDamagedError(path, file.size_bytes, _why_nothing(found.buffers))
    return Opened(segments, notes)


def _kept(buffers: list[Buffer]) -> list[Buffer]:
    """Return the buffers that have events; if none has, one of them."""
    rings = [buffer for buffer in buffers if not buffer.is_text and buffer.cpus]
    filled = [one for one in rings if any(extent.length_bytes for _, extent in one.cpus)]
    return filled or rings[:1]


def _why_nothing(buffers: list[Buffer]) -> str:
    if any(buffer.is_text for buffer in buffers):
        return "it has the text of a latency tracer and no events; trace-cmd report prints it"
    return "it has no buffer"


def _machine(uname: str) -> dict[str, str]:
    """Return a machine's object for the manifest, of "Linux HOST RELEASE ... ARCHITECTURE"."""
    words = uname.split()
    if len(words) < 4:
        return {"host": "?", "kernel": uname}
    return {"host": words[1], "kernel": words[2], "architecture": words[-1]}


def _read(file: ReadFile, path: Path) -> _Found:
    head = Cursor(file, path)
    head.take(len(MAGIC), "the magic of a trace.dat")
    version = head.string("the version of the file")
    if version not in (b"6", b"7"):
        raise head.damaged(f"version {version[:8]!a} of trace.dat; lttv reads 6 and 7")
    big, long_bytes = head.take(2, "byte order and size of a long")
    head.byteorder = ">" if big else "<"
    page_bytes = head.number("I", "the size of a page")
    read = _read_6 if version == b"6" else _read_7
    decompress, texts, options, buffers = read(head)
    return _Found(head.byteorder, long_bytes, page_bytes, decompress, texts, options, buffers)


_Rest = tuple[Decompress | None, Texts, Options, list[Buffer]]


def _read_6(head: Cursor) -> _Rest:
    texts, options = Texts(), Options()
    for read in IN_ORDER:
        read(head, texts)
    cpus = head.number("I", "the number of CPUs")
    tag = head.take(_TAG_BYTES, "the begin of the data")
    if tag.startswith(b"options"):
        read_options(head, 6, options)
        tag = head.take(_TAG_BYTES, "the begin of the data")
    if options.cpus is not None:
        cpus = options.cpus
    head.at -= _TAG_BYTES
    buffers = [_buffer_6(head, Buffer("", "", 0, (), head.at), cpus)]
    for each in options.buffers:
        head.at = each.section_at
        buffers.append(_buffer_6(head, each, cpus))
    return None, texts, options, buffers


def _buffer_6(head: Cursor, buffer: Buffer, cpus: int) -> Buffer:
    """Read the table of a buffer."""
    tag = head.take(_TAG_BYTES, "the begin of a buffer").rstrip(b"\0 ")
    if tag == b"latency":
        return buffer._replace(is_text=True)
    if tag != b"flyrecord":
        head.at -= _TAG_BYTES
        raise head.damaged("neither the places of pages nor the text of a tracer begin here")
    table = table_of(head, cpus)
    return buffer._replace(cpus=table, clock=_clock_6(head))


def _clock_6(head: Cursor) -> str:
    """Return the clock after a table; empty where there is none."""
    if head.left_bytes < 8:
        return ""
    size = head.number("Q", "the size of the clock's name")
    return clock_in(head.take(size, "a clock")) if size <= _MOST_CLOCK_BYTES else ""


def _read_7(head: Cursor) -> _Rest:
    name = head.string("the name of the compression").decode("ascii", "replace")
    head.string("the version of the compression")
    if name not in ("none", "", *COMPRESSIONS):
        raise head.damaged(f"compression {name[:40]!a}; lttv reads {' and '.join(COMPRESSIONS)}")
    decompress = COMPRESSIONS.get(name)
    sections = _Sections(head, decompress)
    texts, options = Texts(), Options()
    at, seen = head.number("Q", "the place of the options"), set[int]()
    while at:
        if at in seen or len(seen) >= OPTION_SECTIONS.most:
            head.at = at
            raise head.damaged(f"sections of options that lead round; {OPTION_SECTIONS}")
        seen.add(at)
        at = read_options(sections.open(at, 0), 7, options)
    for number, read in BY_SECTION.items():
        if number in options.places:
            read(sections.open(options.places[number], number), texts)
    # trace-cmd names the clock `local` in each buffer's option, whatever it was.
    buffers = [each._replace(clock=options.clock or each.clock) for each in options.buffers]
    return decompress, texts, options, buffers


class _Sections:
    """The sections of a file of version 7."""

    def __init__(self, head: Cursor, decompress: Decompress | None) -> None:
        self._head = head
        self._decompress = decompress

    def open(self, at: int, number: int) -> Cursor:
        """Return the content of the section at a place.

        Raises:
            TraceDamagedError: it is another one, or cannot be read.
        """
        head = self._head
        cursor = Cursor(head.data, head.path, head.byteorder, at)
        found, flags = cursor.number("H", "a section"), cursor.number("H", "a section's flags")
        cursor.number("I", "a section's description")
        size = cursor.number("Q", "a section's size")
        if found != number:
            cursor.at = at
            raise cursor.damaged(f"section {found}, where {number} has to be")
        if size > cursor.left_bytes:
            raise cursor.damaged(f"a section of {size:,} bytes reaches beyond the end: cut short?")
        if not flags & _COMPRESSED:
            return cursor
        return self._unpacked(cursor)

    def _unpacked(self, cursor: Cursor) -> Cursor:
        at = cursor.at
        compressed = cursor.number("I", "a section's compressed size")
        content = cursor.number("I", "a section's content")
        if self._decompress is None:
            raise cursor.damaged("a compressed section, and the file names no compression")
        if max(compressed, content) > _SECTION.most:
            raise cursor.damaged(f"{max(compressed, content):,} bytes; {_SECTION}")
        data = cursor.take(compressed, "a compressed section")
        try:
            unpacked = content_of(self._decompress, memoryview(data), content)
        except ValueError as error:
            raise TraceDamagedError(cursor.path, at, f"a section is damaged: {error}") from None
        return Cursor(InMemory(unpacked), cursor.path, cursor.byteorder, base=at)


def _long_bytes(found: _Found, path: Path) -> int:
    """Return the size of the kernel's long: that of the user's may be smaller."""
    text = found.texts.files.get("events/header_page", b"")
    if text:
        try:
            return parse_header_page(text, found.byteorder).long_bytes
        except ValueError as error:
            raise TraceDamagedError(path, 0, str(error)) from None
    if found.long_bytes not in (4, 8):
        raise TraceDamagedError(path, 0, f"a long of {found.long_bytes} bytes")
    return found.long_bytes


class _Data:
    """Makes parts of the file of the places that its tables name."""

    def __init__(
        self,
        file: ReadFile,
        path: Path,
        byteorder: str,
        decompress: Decompress | None,
        notes: list[str],
    ) -> None:
        self._file = file
        self._path = path
        self._byteorder = byteorder
        self._decompress = decompress
        self._notes = notes
        self._left_bytes = file.size_bytes
        """Of all parts together: more would be the same bytes again."""

    def ring(self, buffer: Buffer, page_bytes: int, long_bytes: int) -> Ring:
        """Return a buffer with the pages of its CPUs.

        Raises:
            TraceDamagedError: it has impossible values.
        """
        size = buffer.page_bytes or page_bytes
        name = buffer.name
        if not 8 + long_bytes < size <= SUBBUFFER.most:
            raise TraceDamagedError(self._path, 0, f"pages of {size:,} bytes; {SUBBUFFER}")
        if name and not is_name(name):
            raise TraceDamagedError(self._path, buffer.section_at, "the name of a buffer is not")
        compressed = self._is_compressed(buffer)
        cpus = {
            cpu: self._part(extent, named(self._path, cpu, name), compressed)
            for cpu, extent in buffer.cpus
        }
        return Ring(name, size, long_bytes, cpus)

    def _is_compressed(self, buffer: Buffer) -> bool:
        if self._decompress is None:
            return False
        cursor = Cursor(self._file, self._path, self._byteorder, buffer.section_at)
        cursor.number("H", "the section of a buffer")
        return bool(cursor.number("H", "the flags of a buffer") & _COMPRESSED)

    def _part(self, extent: Extent, label: str, compressed: bool) -> ReadFile:
        end = extent.begin + extent.length_bytes
        missing = end - max(self._file.size_bytes, extent.begin)
        if extent.length_bytes and missing > 0:
            self._notes.append(f"{label}: the file is cut short: {missing:,} bytes are missing")
            extent = Extent(extent.begin, extent.length_bytes - missing)
        self._left_bytes -= extent.length_bytes
        if self._left_bytes < 0:
            reason = f"{label}: pages that belong to others, too"
            raise TraceDamagedError(self._path, extent.begin, reason)
        if not compressed or self._decompress is None or not extent.length_bytes:
            self._file.refuse_hole(extent.begin, extent.begin + extent.length_bytes, HOLE)
            return FilePart(self._file, extent, label)
        return ChunkedFile(self._file, extent, label, self._byteorder, self._decompress)


OPEN: Final[Callable[[Path], Opened]] = open_trace_dat
