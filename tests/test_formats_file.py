import gzip
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.abi.formats_file import Key, Unpacked, pack, unpack
from lttd.beneath import OpenDirectory
from lttd.limits import FORMAT, FORMAT_MEMBERS, FORMATS
from lttd.view.format_files import FormatFiles
from lttd.view.formats import Formats
from lttd.view.notes import Notes

SWITCH: Key = ("sched", "sched_switch")
WAKING: Key = ("sched", "sched_waking")
FIRST = {SWITCH: b'name: sched_switch\nID: 1\nformat:\n\nprint fmt: ""\n', WAKING: b"ID: 2\n"}
MOST = FORMATS.most
NAMES = st.text(st.characters(exclude_characters="/\n", codec="utf-8"), min_size=1, max_size=20)
TEXTS = st.text(max_size=60).map(lambda text: text.replace("==>", "").encode() + b"\n")


@given(st.dictionaries(st.tuples(NAMES, NAMES), TEXTS, max_size=8))
def test_packed_formats_are_unpacked_unchanged(formats: dict[Key, bytes]) -> None:
    assert unpack(pack(formats), MOST) == Unpacked(formats, None)


def test_a_format_that_is_added_later_counts() -> None:
    both = pack(FIRST) + pack({WAKING: b"ID: 3\n"})
    assert unpack(both, MOST) == Unpacked(
        {**FIRST, WAKING: b"ID: 3\n"}, None, ((WAKING, b"ID: 2\n"),)
    )


def notes_and_formats(tmp_path: Path, packed: bytes) -> tuple[Notes, Formats]:
    (tmp_path / "formats.gz").write_bytes(packed)
    notes = Notes()
    return notes, Formats(OpenDirectory.open(tmp_path).place(tmp_path), "<", 8, notes)


def format_text(number: int, field: str) -> bytes:
    return (
        f"name: x\nID: {number}\nformat:\n\tfield:{field};\toffset:8;\tsize:4;\tsigned:1;\n\n"
        'print fmt: ""\n'
    ).encode()


@pytest.mark.parametrize("second", [("lttd", "x"), ("lttd", "y")])
def test_an_id_of_two_formats_is_not_decoded_by_either(tmp_path: Path, second: Key) -> None:
    """A probe was removed and another one made: nothing says which events are of which."""
    first, later = format_text(1529, "int a"), format_text(1529, "int b")
    packed = pack({("lttd", "x"): first, SWITCH: format_text(7, "int c")}) + pack({second: later})
    notes, formats = notes_and_formats(tmp_path, packed)
    assert formats.get(1529) is None
    assert formats.get(7) is not None
    assert 1529 not in formats.files
    (note,) = notes.told()
    assert "event id 1529 had several formats, of lttd:x" in note


def test_an_event_that_got_another_id_is_decoded_under_both(tmp_path: Path) -> None:
    packed = pack({("lttd", "x"): format_text(1529, "int a")})
    packed += pack({("lttd", "x"): format_text(1530, "int b")})
    _, formats = notes_and_formats(tmp_path, packed)
    found = [formats.get(1529), formats.get(1530)]
    assert [one.own[0].name for one in found if one] == ["a", "b"]
    assert [formats.files[n].name for n in (1529, 1530)] == ["x", "x"]


def test_gzip_reads_the_file_and_tail_prints_its_lines(tmp_path: Path) -> None:
    """Users read it with zcat; its lines are those of tail(1) over several files."""
    for (system, event), text in FIRST.items():
        (tmp_path / f"events/{system}/{event}").mkdir(parents=True)
        (tmp_path / f"events/{system}/{event}/format").write_bytes(text)
    names = [f"events/{system}/{event}/format" for system, event in FIRST]
    told = subprocess.check_output(["tail", "-q", "-n", "+1", *names], cwd=tmp_path)
    printed = subprocess.check_output(["tail", "-n", "+1", *names], cwd=tmp_path)
    unpacked = gzip.decompress(pack(FIRST))
    # tail puts an empty line between two files.
    assert printed.replace(b"\n\n==>", b"\n==>") == unpacked
    assert len(told) < len(unpacked)


@pytest.mark.parametrize("cut", [1, 8, 9, 20])
def test_a_torn_end_costs_only_the_formats_that_were_being_added(cut: int) -> None:
    first = pack(FIRST)
    found = unpack((first + pack({("irq", "irq_handler_entry"): b"ID: 9\n"}))[:-cut], MOST)
    assert found == Unpacked(FIRST, len(first))


def test_a_format_that_may_be_cut_is_left_out() -> None:
    large = {SWITCH: b"a\n", WAKING: bytes(range(256)) * 4000 + b"\n", ("z", "z"): b"z\n"}
    whole = pack(large)
    for end in range(len(whole) // 2, len(whole) - 8, 97):
        found, damaged_at, _ = unpack(whole[:end], MOST)
        assert damaged_at == 0
        assert all(large[key] == text for key, text in found.items())


def test_no_more_than_the_limit_is_unpacked() -> None:
    bomb = zlib.compress(b"==> events/a/b/format <==\n" + bytes(64 << 20), wbits=31)
    assert unpack(bomb, 1 << 20) == Unpacked({}, 0)
    assert unpack(pack({SWITCH: bytes(600_000) + b"\n"}) * 3, 1 << 20).damaged_at is not None


def test_garbage_is_reported_and_earlier_formats_are_kept() -> None:
    assert unpack(b"no gzip", MOST) == Unpacked({}, 0)
    first = pack(FIRST)
    assert unpack(first + b"no gzip", MOST) == Unpacked(FIRST, len(first))
    assert unpack(b"", MOST) == Unpacked({}, None)


def test_many_members_take_no_longer_than_their_limit_allows() -> None:
    """Each of them costs a copy of what is behind it: 16 MB of empty ones took minutes."""
    empty = gzip.compress(b"", 1)
    first = pack(FIRST)
    most = FORMAT_MEMBERS.most
    assert unpack(first + empty * (most - 1), MOST) == Unpacked(FIRST, None)
    damaged_at = len(first) + len(empty) * (most - 1)
    assert unpack(first + empty * 800_000, MOST) == Unpacked(FIRST, damaged_at)


# -- below a tracefs/


def files_below(directory: Path, notes: Notes) -> FormatFiles:
    return FormatFiles(OpenDirectory.open(directory).place(directory), notes)


def test_a_packed_format_counts_before_one_at_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "events/sched/sched_waking").mkdir(parents=True)
    (tmp_path / "events/sched/sched_waking/format").write_bytes(b"ID: 7\n")
    (tmp_path / "events/irq/irq_handler_exit").mkdir(parents=True)
    (tmp_path / "events/irq/irq_handler_exit/format").write_bytes(b"ID: 8\n")
    (tmp_path / "formats.gz").write_bytes(pack(FIRST))
    notes = Notes()
    files = files_below(tmp_path, notes)
    assert {key: files.text(key) for key in files} == {
        **FIRST,
        ("irq", "irq_handler_exit"): b"ID: 8\n",
    }
    assert not notes.told()


def test_a_damaged_file_of_formats_is_one_note(tmp_path: Path) -> None:
    (tmp_path / "formats.gz").write_bytes(pack(FIRST) + b"no gzip")
    notes = Notes()
    files = files_below(tmp_path, notes)
    assert set(files) == set(FIRST)
    (note,) = notes.told()
    assert note.startswith(f"{tmp_path}/formats.gz: byte {len(pack(FIRST))}: ")


def test_a_packed_format_that_is_too_large_is_left_out_with_a_note(tmp_path: Path) -> None:
    large = {("made", "large"): bytes(FORMAT.most + 1) + b"\n"}
    (tmp_path / "formats.gz").write_bytes(pack(FIRST | large))
    notes = Notes()
    assert set(files_below(tmp_path, notes)) == set(FIRST)
    (note,) = notes.told()
    assert "formats.gz: events/made/large/format: " in note
