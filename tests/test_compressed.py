"""A compressed segment: the same to every reader, whole after any crash, harmless if hostile."""

import os
import random
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import lttd
from lttd.abi import declared
from lttd.beneath import place_of
from lttd.compress import FRAME_BYTES, MOST_FRAME_BYTES, compress, decompress, frame_ends
from lttd.compressed import CompressedFile, open_stored
from lttd.errors import LttdError, StorageError, TraceDamagedError
from lttd.files import Disk
from lttd.index import ENTRY_BYTES, INDEX_HEADER
from lttd.leftovers import remove_leftovers
from lttd.lockfile import Lock
from lttd.manifest import Manifest
from lttd.seekable import FOOTER, HEAD, ROW_DTYPE, encode_table, parse_table, table_bytes
from lttd.tracedir import MANIFEST, OCCURRENCES, SegmentPaths, segments
from lttd.view.export import export
from lttd.view.times import EVERYTHING
from lttd.view.verify import check
from lttd.writefile import File
from lttd.zstd import ZstdCompressor
from tests.confined import confined
from tests.failing_disk import FailingDisk
from tests.ftraced import Traced, pages_of, tick
from tests.segment_builder import segment_at
from tests.test_old_traces import KNOWN, OLD, VERSIONS
from tests.viewer import run

Change = Callable[[SegmentPaths, Disk], object]

PAGES = 1800
EVENTS = 89


def make(trace: Path, layout: str = "packed") -> SegmentPaths:
    """Make a segment of two streams of some 10 frames each, with losses."""
    made = Traced(trace, cpus=2, layout=layout)
    rng = random.Random(3)
    for cpu in (0, 1):
        for number in range(PAGES):
            times = range(rng.randint(2, EVENTS))
            made.append(
                [pages_of(1000 * number, [tick(rng.getrandbits(30)) for _ in times], delta=5)],
                cpu=cpu,
                trailing_loss=3 if number == 100 else 0,
            )
    made.finish()
    return made.paths


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a plain segment, which tests only copy."""
    return make(tmp_path_factory.mktemp("plain") / "t").directory


@pytest.fixture
def segment(plain: Path, tmp_path: Path) -> SegmentPaths:
    return copied(plain, tmp_path / "t")


def copied(segment: Path, trace: Path) -> SegmentPaths:
    shutil.copytree(segment, trace / segment.name)
    return segments(trace)[0]


def files(segment: SegmentPaths) -> dict[str, bytes]:
    """Return the content of every file, without the manifest's note and the occurrence table.

    The table is of both forms, so compressing makes it and decompressing keeps it.
    """
    passing = {f".{MANIFEST}.new", f".{OCCURRENCES}.new", OCCURRENCES}  # the next replace() removes
    found = {
        str(path.relative_to(segment.directory)): path.read_bytes()
        for path in segment.directory.rglob("*")
        if path.is_file() and path.name not in passing
    }
    return found | {"trace.json": b""}


def text(segment: SegmentPaths) -> list[str]:
    return [
        line for batch in lttd.open(segment.directory).window() for line in map(str, batch.time)
    ]


def names(segment: SegmentPaths) -> set[str]:
    return {str(path) for path in segment.directory.rglob("*")}


# -- the same to every reader


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", KNOWN)
def test_a_trace_of_every_abi_reads_the_same_and_comes_back_byte_by_byte(
    tmp_path: Path, version: str, name: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with tarfile.open(OLD / f"{version}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    trace = tmp_path / "traces" / name
    if any('"open"' in path.read_text() for path in trace.glob("*/trace.json")):
        run(capfdbinary, "check", "--repair", trace)
    before = [files(one) for one in segments(trace)]
    commands = [["info"], ["text", "--jobs", "1"], ["check", "--events"]]
    seen = [run(capfdbinary, *words, trace)[:2] for words in commands]
    assert run(capfdbinary, "compress", trace)[0] == 0
    assert not [one for one in trace.glob("*/streams/*_*") if one.is_file()]
    assert [run(capfdbinary, *words, trace)[:2] for words in commands] == seen
    assert run(capfdbinary, "decompress", trace)[0] == 0
    assert [files(one) for one in segments(trace)] == before


@pytest.mark.parametrize("layout", ["packed", "sparse"])
def test_exports_and_cuts_of_both_forms_are_equal(tmp_path: Path, layout: str) -> None:
    paths = make(tmp_path / "t", layout)

    def made(form: str) -> list[dict[str, bytes]]:
        trace = lttd.open(paths.directory)
        export(trace, EVERYTHING, "trace.dat", str(tmp_path / f"{form}.dat"))
        words = ["--begin", "0.000100", "--end", "0.000500", "-o", str(tmp_path / form)]
        assert run_lttv("cut", str(paths.directory), *words) == 0
        (cut,) = segments(tmp_path / form)
        assert check(cut, events=True).whole
        return [files(cut), {"dat": (tmp_path / f"{form}.dat").read_bytes()}]

    before = made("plain")
    blocks = sum(path.stat().st_blocks for path in paths.streams.iterdir())
    compress(paths, Disk())
    assert made("compressed") == before
    decompress(paths, Disk())
    assert sum(path.stat().st_blocks for path in paths.streams.iterdir()) <= blocks


def run_lttv(*words: str) -> int:
    from lttd.view.cli import main  # noqa: PLC0415

    return main(list(words))


def test_any_range_of_a_compressed_file_reads_as_of_the_plain_one(segment: SegmentPaths) -> None:
    data = (segment.streams / "fake_0").read_bytes()
    compress(segment, Disk())
    file = CompressedFile(segment.data_places("fake_0").compressed)
    assert file.size_bytes == len(data)
    rng = random.Random(1)
    for _ in range(300):
        begin = rng.randrange(len(data))
        end = begin + rng.choice((1, 100, 70_000, 1 << 21))
        assert file.read(begin, end) == data[begin:end]
    assert file.read(0, 1 << 40) == data


@pytest.mark.skipif(not shutil.which("zstd"), reason="no zstd; apt install zstd")
def test_zstd_decompresses_data_and_index_as_a_whole(segment: SegmentPaths) -> None:
    before = files(segment)
    compress(segment, Disk())
    for name, whole in before.items():
        if name.startswith("streams/") and not name.endswith(".gaps"):
            compressed = "compressed" + name.removeprefix("streams").removesuffix(".idx") + ".zst"
            command = ["zstd", "-dc", str(segment.directory / compressed)]
            assert subprocess.run(command, capture_output=True, check=True).stdout == whole


def test_a_frame_holds_whole_subbuffers(segment: SegmentPaths) -> None:
    stream = lttd.open(segment.directory).segments[0].streams[0]
    ends = set(np.cumsum(stream.index.entries()["packet_bits"].astype(np.int64) >> 3).tolist())
    compress(segment, Disk())
    file = CompressedFile(segment.data_places("fake_0").compressed)
    bounds = file.table.content_at.tolist()
    assert len(bounds) > 5
    assert set(bounds[1:]) <= ends
    assert max(np.diff(bounds)) <= FRAME_BYTES


def test_frames_end_also_where_an_index_is_wrong_or_subbuffers_are_large() -> None:
    def of(*ends: int, size: int) -> list[int]:
        return list(frame_ends(iter([np.array(ends, np.int64)]), size))

    mib = 1 << 20
    assert of(size=0) == []
    assert of(100, 200, size=300) == [200, 300] or of(100, 200, size=300)[-1] == 300
    assert of(3 * mib, 4 * mib, size=4 * mib) == [mib, 2 * mib, 3 * mib, 4 * mib]
    for wrong in ((-5, 7, 3, 1 << 62), (1 << 62,), (9, 9, 9)):
        found = of(*wrong, size=5 * mib)
        assert found[-1] == 5 * mib
        assert max(np.diff([0, *found])) <= MOST_FRAME_BYTES
        assert min(np.diff([0, *found])) > 0


def test_a_window_decompresses_only_the_frames_that_it_touches(
    segment: SegmentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress(segment, Disk())
    touched: list[str] = []
    content = CompressedFile._content

    def counted(self: CompressedFile, number: int, frame: memoryview) -> bytes:
        touched.append(self.name.partition("compressed/")[2])
        return content(self, number, frame)

    monkeypatch.setattr(CompressedFile, "_content", counted)
    for batch in lttd.open(segment.directory).window(begin="0.000300", end="0.000301"):
        assert len(batch)
    assert 2 <= len([name for name in touched if not name.startswith("index")]) <= 4


def test_a_compressed_segment_keeps_its_permissions(segment: SegmentPaths) -> None:
    for path in (*segment.streams.glob("fake_*"), *segment.index.glob("*.idx")):
        path.chmod(0o604)
    compress(segment, Disk())
    assert {path.stat().st_mode & 0o777 for path in segment.compressed.rglob("*.zst")} == {0o604}


# -- forms


def test_compressing_and_decompressing_twice_is_done_once(segment: SegmentPaths) -> None:
    assert compress(segment, Disk()) is not None
    assert compress(segment, Disk()) is None
    assert Manifest.read(segment.manifest).compression == "zstd"
    assert decompress(segment, Disk()) is not None
    assert decompress(segment, Disk()) is None
    assert b"compression" not in segment.manifest.read_bytes()


def test_an_open_segment_and_a_locked_one_stay_as_they_are(segment: SegmentPaths) -> None:
    before = names(segment)
    lock = Lock(segment.base, segment.lock)
    with pytest.raises(LttdError, match="in use"):
        compress(segment, Disk())
    lock.release()
    told = segment.manifest.read_bytes()
    segment.manifest.write_bytes(told.replace(b'"closed"', b'"open"'))
    with pytest.raises(LttdError, match="not closed"):
        compress(segment, Disk())
    assert names(segment) == before


def test_a_segment_that_is_renamed_while_it_is_read_stays_readable(segment: SegmentPaths) -> None:
    """As with any reader that has opened its files."""
    trace = lttd.open(segment.directory)
    wanted = [len(batch) for batch in trace.window()]
    compress(segment, Disk())
    assert [len(batch) for batch in trace.window()] == wanted


def test_a_damaged_segment_stays_as_it_is(segment: SegmentPaths) -> None:
    before = names(segment)
    data = segment.streams / "fake_1"
    whole = data.stat().st_size
    for size in (whole + 1, whole - 1, 1 << 40):
        os.truncate(data, size)
        with pytest.raises(TraceDamagedError, match="lttv check --repair"):
            compress(segment, Disk())
        assert names(segment) == before


def test_a_file_that_changes_its_form_while_it_is_looked_for_is_found(
    segment: SegmentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = segment.data_places("fake_0")
    compress(segment, Disk())
    opened = CompressedFile.__init__

    def first_decompressed(self: CompressedFile, *chosen: object) -> None:
        monkeypatch.setattr(CompressedFile, "__init__", opened)
        decompress(segment, Disk())
        opened(self, *chosen)  # type: ignore[arg-type]

    monkeypatch.setattr(CompressedFile, "__init__", first_decompressed)
    assert open_stored(places) is not None


def test_the_plain_file_is_read_where_both_forms_exist(segment: SegmentPaths) -> None:
    wanted = text(segment)
    data = segment.streams / "fake_0"
    held = data.read_bytes()
    compress(segment, Disk())
    data.write_bytes(held)
    (segment.compressed / "fake_0.zst").write_bytes(b"nothing")
    assert text(segment) == wanted


# -- crashes and full disks


class DyingDisk(Disk):
    """A disk whose process dies before a given operation."""

    def __init__(self, operations: int) -> None:
        super().__init__()
        self._left = operations

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            os._exit(9)

    def open(self, path: Path, *, truncate: bool = False) -> File:
        self._count()
        return super().open(path, truncate=truncate)

    def file(self, path: Path, fd: int) -> File:
        return _DyingFile(self, path, fd)

    def make_directory(self, path: Path) -> None:
        self._count()
        super().make_directory(path)

    def rename(self, path: Path, name: str) -> None:
        self._count()
        super().rename(path, name)

    def replace(self, path: Path, data: bytes, *, like: Path | None = None) -> None:
        self._count()
        super().replace(path, data, like=like)

    def remove(self, path: Path) -> None:
        self._count()
        super().remove(path)

    def remove_tree(self, path: Path) -> None:
        self._count()
        super().remove_tree(path)


class _DyingFile(File):
    def __init__(self, disk: DyingDisk, path: Path, fd: int) -> None:
        super().__init__(path, fd)
        self._disk = disk

    def write_at(self, pieces: list[bytes | memoryview], offset_bytes: int) -> int:  # type: ignore[override]
        self._disk._count()
        return super().write_at(pieces, offset_bytes)

    def sync(self) -> None:
        self._disk._count()
        super().sync()


def deaths(act: Callable[[DyingDisk], object]) -> Iterator[int]:
    """Run *act* in children that die before their first operation, their second, and so on."""
    for number in range(1000):
        pid = os.fork()
        if not pid:
            try:
                act(DyingDisk(number))
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        yield number
        if not status:
            return
    raise AssertionError("it never came to its end")


def short(trace: Path) -> SegmentPaths:
    made = Traced(trace, cpus=2)
    for cpu in (0, 1):
        made.append([pages_of(1000 * n, [tick(n)]) for n in range(4)], cpu=cpu, trailing_loss=2)
    made.finish()
    return made.paths


def test_a_kill_at_any_instant_leaves_a_whole_trace_and_the_next_call_completes_it(
    tmp_path: Path,
) -> None:
    made = short(tmp_path / "made").directory
    wanted = files(segment_at(made))
    seen = text(segment_at(made))
    packed = tmp_path / "packed"
    shutil.copytree(made, packed / made.name)
    compress(segments(packed)[0], Disk())
    compressed = files(segments(packed)[0])
    count = sum(
        _survives(tmp_path, begin, act, seen, {compress: compressed, decompress: wanted})
        for begin, act in ((made, compress), (packed / made.name, decompress))
    )
    assert count > 30


def _survives(
    tmp_path: Path, begin: Path, act: Change, seen: list[str], after: dict[Change, dict[str, bytes]]
) -> int:
    """Let *act* die at each operation; return how often."""
    trace, other = tmp_path / "t", tmp_path / "other"
    copied(begin, trace)
    number = 0
    for number in deaths(lambda disk: act(segments(trace)[0], disk)):  # noqa: B007
        found = segments(trace)[0]
        assert text(found) == seen
        assert check(found, events=True).whole
        tidied = copied(found.directory, other)
        remove_leftovers(tidied, Manifest.read(tidied.manifest))
        assert files(tidied) in after.values()
        shutil.rmtree(other)
        for then in (compress, decompress):
            again = copied(found.directory, other)
            then(again, Disk())
            assert files(again) == after[then]
            shutil.rmtree(other)
        shutil.rmtree(trace)
        copied(begin, trace)
    shutil.rmtree(trace)
    return number


@pytest.mark.parametrize("room_bytes", [0, 20, 100_000, 300_000])
def test_a_full_disk_leaves_the_original_and_nothing_else(
    segment: SegmentPaths, room_bytes: int
) -> None:
    before = names(segment)
    disk = FailingDisk(room_bytes=room_bytes, is_limited=lambda path: "compressed" in str(path))
    with pytest.raises(StorageError, match="no space left"):
        compress(segment, disk)
    assert names(segment) == before
    assert compress(segment, Disk()) is not None


def test_a_full_disk_leaves_the_compressed_form_when_decompressing(segment: SegmentPaths) -> None:
    compress(segment, Disk())
    before = names(segment)
    disk = FailingDisk(room_bytes=300_000, is_limited=lambda path: path.name.startswith(".new-"))
    with pytest.raises(StorageError, match="no space left"):
        decompress(segment, disk)
    assert names(segment) == before


def test_a_disk_that_stores_other_bytes_leaves_the_original(
    segment: SegmentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = names(segment)
    write_at = File.write_at

    def wrong(self: File, pieces: list[bytes], offset_bytes: int) -> int:
        if self.path.name == "fake_1.zst" and len(pieces[0]) > 1000:
            pieces = [pieces[0][:500] + b"!" + pieces[0][501:]]
        return write_at(self, pieces, offset_bytes)

    monkeypatch.setattr(File, "write_at", wrong)
    with pytest.raises(LttdError, match=r"fake_1\.zst"):
        compress(segment, Disk())
    assert names(segment) == before


# -- damaged and hostile files


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_damaged_frame_costs_its_own_events_only(
    segment: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    wanted = len(text(segment))
    compress(segment, Disk())
    path = segment.compressed / "fake_0.zst"
    table = CompressedFile(place_of(path)).table
    flipped(path, int(table.compressed_at[3]) + 300)
    share = 1 / (2 * (len(table.content_at) - 1))
    status, out, err = run(capfdbinary, "text", "--jobs", "1", segment.directory)
    lines = len([line for line in out.splitlines() if b"tick" in line])
    assert wanted * (1 - 2 * share) < lines < wanted
    assert f"{path}: byte {table.compressed_at[3]}: compressed frame 3 is damaged" in err
    assert status == 0
    found = check(segment, events=True).findings
    assert any("compressed frame 3 is damaged" in one.reason for one in found)
    assert run(capfdbinary, "cut", segment.directory, "-o", segment.directory.parent / "x")[0] == 1
    status, _, err = run(capfdbinary, "decompress", segment.directory)
    assert status == 1
    assert "compressed frame 3 is damaged" in err
    assert path.exists()


def test_messages_name_the_compressed_file_that_was_read(
    segment: SegmentPaths, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """What was wrong already when the segment was compressed, by the offset in its content."""
    data, index = segment.streams / "fake_0", segment.index / "fake_1.idx"
    entries = lttd.open(segment.directory).segments[0].streams[0].index.entries()
    with data.open("r+b") as file:
        file.seek(int(entries[30]["offset_bytes"]) + 16)
        file.write(struct.pack("<II", 0, 0x7FFFFFFF))  # an event that is longer than its page
    flipped(index, len(INDEX_HEADER) + 5 * ENTRY_BYTES + 20)  # the content of entry 5
    flipped(index, len(INDEX_HEADER) + 9 * ENTRY_BYTES + 1)  # the offset of entry 9
    directory = segment.directory
    commands = [
        *(("text", "--jobs", "1", directory), ("check", "--events", directory)),
        ("export", directory, "--to", "ctf", "-o", tmp_path / "ctf"),
        ("export", directory, "--to", "trace.dat", "-o", tmp_path / "t.dat"),
    ]

    def said() -> list[str]:
        shutil.rmtree(tmp_path / "ctf", ignore_errors=True)
        (tmp_path / "t.dat").unlink(missing_ok=True)
        lines = []
        for words in commands:
            _, out, err = run(capfdbinary, *words)
            lines += [line for line in (err + out.decode()).splitlines() if ": byte " in line]
        return lines

    before = said()
    assert any(f"{data}: byte" in line for line in before)
    assert any(f"{index}: byte" in line for line in before)
    compress(segment, Disk())
    compressed = segment.compressed
    assert said() == [
        line.replace(f"{data}:", f"{compressed}/fake_0.zst:")
        .replace(f"{segment.streams}/fake_1:", f"{compressed}/fake_1.zst:")
        .replace(f"{index}:", f"{compressed}/index/fake_1.zst:")
        for line in before
    ]


def test_repair_makes_a_damaged_segment_plain_and_leaves_a_whole_one_compressed(
    segment: SegmentPaths, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    compress(segment, Disk())
    before = files(segment)
    assert run(capfdbinary, "check", "--repair", segment.directory)[0] == 0
    assert files(segment) == before
    index = segment.compressed / "index" / "fake_1.zst"
    index.unlink()
    assert run(capfdbinary, "check", segment.directory)[0] == 1
    assert run(capfdbinary, "check", "--repair", segment.directory)[0] == 0
    assert not segment.compressed.exists()
    assert check(segment, events=True).findings == []


def _footer(count: int, flags: int = 0, magic: int = 0x8F92EAB1) -> bytes:
    return struct.pack("<IBI", count, flags, magic)


def _bomb(content_bytes: int) -> bytes:
    """Return a frame that claims a content and a window of that size."""
    whole = ZstdCompressor().compress(b"x" * 200_000, ZstdCompressor.FLUSH_FRAME)
    head = struct.pack("<IBQ", 0xFD2FB528, 0xE0, content_bytes)
    return head + whole[7:]


HOSTILE = {
    "empty": b"",
    "no table": b"x" * 100,
    "a table that is longer than the file": _footer(4_000_000),
    "more frames than any file has": _footer(1 << 27),
    "flags of later versions": HEAD.pack(0x184D2A5E, 9) + _footer(0, 4),
    "another length than its head says": HEAD.pack(0x184D2A5E, 8) + _footer(0),
    "frames that the file lacks": encode_table([(100, 1000)]),
    "bytes that no frame has": b"x" + encode_table([]),
    "a frame of no content": b"x" * 9 + encode_table([(9, 0)]),
    "a frame of 4 GB": b"x" * 9 + encode_table([(9, (1 << 32) - 1)]),
    "a frame that is larger than its content": b"x" * 90_000 + encode_table([(90_000, 1)]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_seek_table_is_refused_with_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.zst"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(TraceDamagedError) as raised:
        CompressedFile(place_of(path))
    assert "\n" not in str(raised.value)
    assert "zstd -d" in str(raised.value)


@pytest.mark.parametrize("content_bytes", [1 << 20, 1 << 34, (1 << 63) - 1])
def test_a_frame_that_claims_more_than_its_row_takes_no_memory(
    tmp_path: Path, content_bytes: int
) -> None:
    path = tmp_path / "x.zst"
    frame = _bomb(content_bytes)
    path.write_bytes(frame + encode_table([(len(frame), 100_000)]))

    def act() -> str:
        with pytest.raises(TraceDamagedError, match="frame 0 is damaged"):
            CompressedFile(place_of(path)).read(0, 100)
        return ""

    ended = confined(act)
    assert ended.well, ended.told


@pytest.mark.parametrize("where", ["fake_0.zst", "index/fake_0.zst"])
def test_anything_else_in_place_of_a_compressed_file_is_reported(
    segment: SegmentPaths, where: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    compress(segment, Disk())
    path = segment.compressed / where
    for put in (
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        path.mkdir,
        lambda: path.write_bytes(HOSTILE["a table that is longer than the file"]),
    ):
        path.unlink()
        put()
        status, _, err = run(capfdbinary, "text", "--jobs", "1", segment.directory)
        assert str(path) in err
        assert "Traceback" not in err
        assert status in (0, 1)
        assert run(capfdbinary, "check", segment.directory)[0] == 1
        assert run(capfdbinary, "decompress", segment.directory)[0] == 1
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
            path.touch()


def test_a_compressed_file_that_is_cut_while_it_is_read_ends_there(segment: SegmentPaths) -> None:
    compress(segment, Disk())
    file = CompressedFile(segment.data_places("fake_0").compressed)
    os.truncate(file.path, int(file.table.compressed_at[2]) + 10)
    assert len(file.read(0, file.size_bytes)) == int(file.table.content_at[2])


def test_the_seek_table_has_the_declared_layout() -> None:
    rows = [(7, 100), (9, 200)]
    table = encode_table(rows)
    built = declared.SeekTableHead.build({"bytes": 2 * 8 + 9})
    built += b"".join(
        declared.SeekTableRow.build({"compressed_bytes": a, "content_bytes": b}) for a, b in rows
    )
    assert table == built + declared.SeekTableFooter.build({"rows": 2})
    assert ROW_DTYPE.itemsize == declared.SeekTableRow.sizeof()
    assert (HEAD.size, FOOTER.size) == (
        declared.SeekTableHead.sizeof(),
        declared.SeekTableFooter.sizeof(),
    )


def test_a_seek_table_with_checksums_of_another_program_is_read() -> None:
    rows = struct.pack("<3I", 7, 100, 0xABCD) + struct.pack("<3I", 9, 200, 0xEF01)
    table = HEAD.pack(0x184D2A5E, len(rows) + 9) + rows + _footer(2, 0x80)
    assert table_bytes(table[-9:], 16 + len(table)) == len(table)
    found = parse_table(table, 16 + len(table))
    assert found.compressed_at.tolist() == [0, 7, 16]
    assert found.content_at.tolist() == [0, 100, 300]
