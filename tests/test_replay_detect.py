"""``replay:DIR`` detects the kind of its files by names and first bytes, and reports it."""

from contextlib import closing
from pathlib import Path

import pytest

from lttd.config import SourceSpec
from lttd.errors import UsageError
from lttd.sources.registry import open_source
from lttd.sources.replay.source import detect
from lttd.sources.table import SOURCES
from lttd.subbuffer import BufferPool
from tests.blk import record
from tests.fakes import page
from tests.segment_builder_ltt import LttBuffer, Tracer, write_trace

REPLAYS = SOURCES["replay"].replays
PAGE = page(1000, b"\x01\0\0\0\x01\0\0\0")


def put(directory: Path, name: str, data: bytes) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def opened(directory: Path, **options: str) -> tuple[str, str, list[str]]:
    """Return the ABI of the streams, the ABI of the manifest, and the note."""
    spec = SourceSpec("replay", str(directory), options)
    with closing(open_source(spec, BufferPool())) as source:
        abis = {stream.info.abi for stream in source.streams}
        return abis.pop(), str(source.info.settings["abi"]), list(source.notes())


@pytest.mark.parametrize("name", ["per_cpu/cpu1/trace_pipe_raw", "cpu0", "cpu0.pages", "sched_0"])
def test_pages_of_ftrace_are_detected_by_their_names(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, PAGE)
    told = f"{tmp_path / name}: replayed as abi=ftrace, by its name or first bytes"
    assert opened(tmp_path) == ("ftrace", "ftrace", [told])


def test_block_traces_are_detected_by_their_names(tmp_path: Path) -> None:
    for name in ("sda.blktrace.1", "sda.blktrace.0"):
        put(tmp_path, name, record())
    put(tmp_path, "README_1.txt", b"what this is")
    first = tmp_path / "sda.blktrace.0"
    told = f"{first}: replayed as abi=blktrace, by its name or first bytes"
    assert opened(tmp_path) == ("blktrace", "blktrace", [told])


def test_channels_of_ltt_are_detected_by_their_magic(tmp_path: Path) -> None:
    tracer = Tracer()
    buffers = {name: LttBuffer(tracer) for name in ("kernel_0", "metadata_0")}
    for one in buffers.values():
        one.finalize(tracer.start_tsc + 100)
    write_trace(tmp_path / "in", buffers)
    told = f"{tmp_path / 'in/kernel_0'}: replayed as abi=ltt, by its name or first bytes"
    assert opened(tmp_path / "in") == ("ltt", "ltt", [told])


def test_an_explicit_abi_overrides_detection(tmp_path: Path) -> None:
    put(tmp_path, "sda.blktrace.0", record())
    put(tmp_path, "cpu0", PAGE)
    assert opened(tmp_path, abi="ftrace")[::2] == ("ftrace", [])
    assert opened(tmp_path, abi="blktrace")[::2] == ("blktrace", [])
    with pytest.raises(UsageError, match=r"blktrace \(sda.blktrace.0\) and ftrace \(cpu0\): say"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "head", [b"/* CTF 1.8 */\ntrace {", b"\x75\xd1\x1d\x57\0", b"\x57\x1d\xd1\x75"]
)
def test_a_ctf_trace_is_known_by_its_metadata_also_where_files_are_named_as_of_ftrace(
    tmp_path: Path, head: bytes
) -> None:
    put(tmp_path, "metadata", head)
    put(tmp_path, "channel0_0", b"\xc1\x1f\xfc\xc1" + bytes(4092))
    assert detect(tmp_path, REPLAYS) == ("ctf", tmp_path / "metadata")


def test_a_directory_of_unknown_files_is_not_detected(tmp_path: Path) -> None:
    put(tmp_path, "notes.txt", b"hello")
    put(tmp_path, "metadata", b"other")
    assert detect(tmp_path, REPLAYS) is None
    with pytest.raises(UsageError, match="is not a directory"):
        detect(tmp_path / "notes.txt", REPLAYS)
