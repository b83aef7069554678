"""The index: its layout, and the search for a time in it."""

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lttd.abi import declared
from lttd.abi.ftrace import PageLayout
from lttd.errors import TraceDamagedError
from lttd.index import (
    ENTRY_BYTES,
    ENTRY_DTYPE,
    GAP_BYTES,
    GAP_DTYPE,
    GAPS_HEADER,
    INDEX_HEADER,
    SeekIndex,
    encode_gaps,
    parse_gaps,
    salvage_entries,
    salvage_gaps,
)
from lttd.subbuffer import Gap, Reason, Unit
from tests.data import SHARED, needs

CTF = SHARED / "ctf"
U64 = st.integers(0, (1 << 64) - 1)


def write_index(path: Path, ends: list[int]) -> SeekIndex:
    entries = np.zeros(len(ends), ENTRY_DTYPE)
    entries["end"] = ends
    path.write_bytes(INDEX_HEADER + entries.tobytes())
    return SeekIndex(path)


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("index")


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50) | U64, max_size=80),
    st.lists(st.integers(0, 60) | U64, min_size=1),
)
def test_seek_equals_a_linear_scan_with_equal_times_and_running_maxima(
    somewhere: Path, times: list[int], wanted: list[int]
) -> None:
    ends = np.maximum.accumulate(np.array(times, np.uint64)).tolist() if times else []
    index = write_index(somewhere / "seek.idx", ends)
    for time in [*wanted, *ends]:
        linear = next((n for n, end in enumerate(ends) if end >= time), len(ends))
        assert index.first_at_or_after(time) == linear


def test_seek_touches_few_pages_of_a_long_index(somewhere: Path) -> None:
    index = write_index(somewhere / "long.idx", list(range(0, 2_000_000, 10)))
    assert index.first_at_or_after(999_991) == 100_000
    assert index.first_at_or_after(0) == 0
    assert index.first_at_or_after(2_000_000) == len(index) == 200_000


@pytest.mark.parametrize(
    ("dtype", "declaration"),
    [
        (ENTRY_DTYPE, declared.CtfIndexEntry),
        (GAP_DTYPE, declared.GapRecord),
        (PageLayout().header_dtype, declared.FtracePageHeader),
        (PageLayout(long_bytes=4).header_dtype, declared.FtracePageHeader32),
        (PageLayout(byteorder=">").header_dtype, declared.FtracePageHeaderBig),
    ],
)
def test_the_index_dtypes_match_their_declarations(
    dtype: np.dtype[np.void],
    declaration: Any,  # noqa: ANN401
) -> None:
    assert dtype.itemsize == declaration.sizeof()
    names = [part.name for part in declaration.subcons]
    assert list(dtype.names or ()) == names
    raw = bytes(range(1, dtype.itemsize + 1))
    said = declaration.parse(raw)
    for name in names:
        assert int(np.frombuffer(raw, dtype)[name][0]) == int(getattr(said, name))


def test_the_file_headers_match_their_declarations() -> None:
    assert declared.CtfIndexHeader.build({}) == INDEX_HEADER
    assert declared.GapsHeader.build({}) == GAPS_HEADER
    assert (declared.CtfIndexEntry.sizeof(), declared.GapRecord.sizeof()) == (
        ENTRY_BYTES,
        GAP_BYTES,
    )
    record = encode_gaps([Gap(3, Reason.TORN, Unit.BYTES, None, 1, 2)], 4)
    said = declared.GapRecord.parse(record)
    assert (said.row, said.count, str(said.reason), str(said.unit)) == (
        7,
        (1 << 64) - 1,
        "torn",
        "bytes",
    )


GAPS = st.builds(
    Gap,
    st.integers(0, 1 << 40),
    st.sampled_from(Reason),
    st.sampled_from(Unit),
    st.none() | st.integers(0, 1 << 60),
    U64,
    U64,
)


@given(st.lists(GAPS, max_size=8))
def test_gaps_are_read_back_as_written(gaps: list[Gap]) -> None:
    data = GAPS_HEADER + encode_gaps(gaps, 0) if gaps else b""
    assert parse_gaps(data, Path("x")) == gaps
    assert salvage_gaps(memoryview(data)) == (gaps, False)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_parse_as_gaps_or_raise_our_own_error(data: bytes, headed: bool) -> None:
    data = GAPS_HEADER + data if headed else data
    salvage_gaps(memoryview(data))
    salvage_entries(memoryview(data))
    with suppress(TraceDamagedError):
        parse_gaps(data, Path("x"))


@settings(deadline=None)
@given(data=st.binary(max_size=200), headed=st.booleans(), time=U64)
def test_any_bytes_parse_as_an_index_or_raise_our_own_error(
    somewhere: Path, data: bytes, headed: bool, time: int
) -> None:
    path = somewhere / "any.idx"
    path.write_bytes(INDEX_HEADER + data if headed else data)
    try:
        index = SeekIndex(path)
    except TraceDamagedError:
        return
    assert 0 <= index.first_at_or_after(time) <= len(index) == len(index.entries())
    assert index.torn_bytes == (len(path.read_bytes()) - 16) % 72


def indexes() -> list[Path]:
    return sorted(CTF.glob("**/index/*.idx"))


@needs(CTF)
def test_indexes_that_lttng_wrote_agree_with_their_packets() -> None:
    # The packet header and context of lttng-modules; the UST of 2packets has no sequence numbers.
    packet = struct.Struct("<I16sIQQQQQQQ")
    looked_at = 0
    for path in indexes():
        if "2packets" in str(path):
            assert len(SeekIndex(path)) == 2
            continue
        data = (path.parents[1] / path.stem).read_bytes()
        entries = SeekIndex(path).entries()
        assert int(entries["packet_bits"].sum()) == len(data) * 8
        for entry in entries:
            magic, _, stream, instance, begin, end, content, size, sequence, discarded = (
                packet.unpack_from(data, int(entry["offset_bytes"]))
            )
            assert magic == 0xC1FC1FC1
            assert entry.tolist()[1:] == (
                size,
                content,
                begin,
                end,
                discarded,
                stream,
                instance,
                sequence,
            )
            looked_at += 1
    assert looked_at > 200
