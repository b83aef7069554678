"""Read a relay file up to its last closed sub-buffer, and count the bytes that never came."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lttd.errors import LockedError, NothingToRecordError, SourceError
from lttd.sources import refused
from lttd.sources.relay import file as relay_file
from lttd.sources.relay.file import OpenFile, RelayFile
from tests.relay_model import STALE, RelayModel


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_file, "PATIENCE_NS", 0)


def record(number: int, length: int = 24) -> bytes:
    """Return a record with its number and length, filled with the number."""
    return number.to_bytes(4, "little") + bytes([length]) + bytes([number % 200]) * (length - 5)


def records_in(data: bytes) -> list[int]:
    """Return the numbers of the records in *data*; fail if it contains anything else."""
    numbers, at = [], 0
    while at < len(data):
        number, length = int.from_bytes(data[at : at + 4], "little"), data[at + 4]
        assert data[at : at + length] == record(number, length), f"damage at byte {at}"
        numbers.append(number)
        at += length
    return numbers


def more(begun: memoryview) -> int:
    """Return the number of bytes that a record still needs."""
    return (5 if len(begun) < 5 else begun[4]) - len(begun)


def read(file: RelayFile, *, everything: bool = False, room_bytes: int = 1 << 16) -> bytes:
    buffer = memoryview(bytearray(room_bytes))
    return bytes(buffer[: file.read(buffer, everything=everything)])


def test_the_current_sub_buffer_is_not_read() -> None:
    model = RelayModel(100, 4)
    file = RelayFile("chan0", model, more)
    for number in range(10):
        model.write(record(number))
    assert records_in(read(file)) == [*range(8)]
    assert read(file) == b""
    assert records_in(read(file, everything=True)) == [8, 9]
    assert file.lost_bytes == 0


def test_a_reserved_but_unwritten_record_is_not_read() -> None:
    model = RelayModel(100, 8)
    file = RelayFile("chan0", model, more)
    found = b""
    naive = 0

    def look() -> None:
        nonlocal found, naive
        found += read(file)
        open_bytes = model.data[model.current * model.size :][: min(model.offset, model.size)]
        naive += STALE in open_bytes

    model.between = look
    for number in range(200):
        model.write(record(number))
    model.between = lambda: None
    found += read(file, everything=True)
    assert naive > 0, "who reads everything would have got bytes that nobody wrote"
    assert records_in(found) == [*range(200)]


def test_empty_sub_buffers_are_consumed_so_that_they_do_not_fill_the_ring() -> None:
    model = RelayModel(100, 4)
    file = RelayFile("chan0", model, more)
    for number in range(20):
        model.flush()
        assert read(file) == b"", "nothing is delivered by passing an empty sub-buffer"
        model.write(record(number))
        model.flush()
        assert records_in(read(file)) == [number]
    assert model.refused == 0
    assert file.lost_bytes == 0


def test_a_read_between_full_and_refusing_counts_a_lost_sub_buffer() -> None:
    model = RelayModel(100, 2)
    file = RelayFile("chan0", model, more)
    found, looked = b"", False

    def look() -> None:
        nonlocal found, looked
        if model.produced == 2 and model.offset == 0:
            found, looked = read(file), True

    model.between = look
    for number in range(9):
        model.write(record(number))
    model.between = lambda: None
    model.flush()
    found += read(file)
    assert looked
    numbers = records_in(found)
    assert 24 * (9 - len(numbers)) == file.take_lost_bytes() == 96
    assert file.take_lost_bytes() == 0, "each loss is told once"
    assert file.lost_bytes == 96


def test_an_unread_current_sub_buffer_is_read_record_by_record() -> None:
    model = RelayModel(100, 4)
    for number in range(10):
        model.write(record(number))
    file = RelayFile("chan0", model, more)
    assert records_in(read(file)) == [*range(8)]
    for number in range(10, 13):
        model.write(record(number))
    assert records_in(read(file)) == [*range(8, 12)]
    assert read(file) == b""
    assert (file.lost_bytes, file.unpromised_bytes) == (0, 8 * 24)


def test_bytes_that_another_reader_took_are_not_expected() -> None:
    model = RelayModel(100, 4)
    for number in range(10):
        model.write(record(number))
    assert model.read(memoryview(bytearray(48))) == 48
    file = RelayFile("chan0", model, more)
    assert records_in(read(file)) == [*range(2, 8)]
    assert read(file) == b""
    assert (file.lost_bytes, file.unpromised_bytes) == (0, 6 * 24)


def test_bytes_that_the_kernel_gives_twice_leave_nothing_unread() -> None:
    model = RelayModel(100, 8)
    file = RelayFile("chan0", model, more)
    model.write(record(0))
    model.flush()
    model.flush()
    model.flush()
    model.write(record(1))
    model.flush()
    model.write(record(2))
    model.flush()
    found = b""
    while some := read(file):
        found += some
    assert records_in(found) == [0, 1, 1, 2], "the kernel's own doing"
    assert read(file) == b""
    assert (file.lost_bytes, file.unpromised_bytes) == (0, 24)
    model.write(record(3))
    model.flush()
    assert records_in(read(file)) == [3]


def test_bytes_that_come_late_are_not_a_surplus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_file, "PATIENCE_NS", 1 << 60)
    model = RelayModel(100, 4)
    file = RelayFile("chan0", model, more)
    found = b""

    def look() -> None:
        nonlocal found
        found += read(file)

    model.between = look
    for number in range(40):
        model.write(record(number))
    model.between = lambda: None
    while some := read(file, everything=True):
        found += some
    assert records_in(found) == [*range(40)]
    assert (file.lost_bytes, file.unpromised_bytes) == (0, 0)


def test_a_read_that_fails_once_does_not_end_the_file() -> None:
    class FailsOnce(RelayModel):
        fails = True

        def read(self, buffer: memoryview) -> int:
            if self.fails:
                self.fails = False
                raise OSError(errno.EIO, "Input/output error")
            return super().read(buffer)

    model = FailsOnce(100, 4)
    file = RelayFile("chan0", model, more)
    for number in range(8):
        model.write(record(number))
    with pytest.raises(SourceError, match="chan0: Input/output error"):
        read(file)
    assert records_in(read(file)) == [*range(4)]
    assert not file.ended
    assert file.lost_bytes == 0


def test_the_unread_bytes_of_a_removed_file_are_lost() -> None:
    model = RelayModel(100, 4)
    file = RelayFile("chan0", model, more)
    for number in range(10):
        model.write(record(number))
    model.removed = True
    assert read(file) == b""
    assert file.ended
    assert file.lost_bytes == 8 * 24


def test_a_closed_channel_is_drained_to_its_end() -> None:
    model = RelayModel(100, 4)
    file = RelayFile("chan0", model, more)
    for number in range(10):
        model.write(record(number))
    model.closed = True
    found = b""
    while not file.ended:
        found += read(file)
    assert records_in(found) == [*range(10)]
    assert file.lost_bytes == 0


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(5, 60)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("read"), st.integers(61, 300)),
    ),
    max_size=80,
)


def played(
    steps: list[tuple[str, int]],
    model: RelayModel,
    file: RelayFile,
    *,
    read_before_empty: bool = False,
) -> tuple[bytes, dict[int, int]]:
    """Do *steps*; return the bytes read, and the length of each stored record by number."""
    found, written = b"", {}
    for number, (what, value) in enumerate(steps):
        if read_before_empty and what == "flush" and not model.offset:
            found += read(file)
        if what == "write":
            if model.write(record(number, value)):
                written[number] = value
        elif what == "flush":
            model.flush()
        else:
            found += read(file, room_bytes=value)
    return found, written


@settings(deadline=None)
@given(STEPS, st.integers(2, 5))
def test_every_byte_is_delivered_refused_or_counted_lost(
    steps: list[tuple[str, int]], subbuffers: int
) -> None:
    model = RelayModel(100, subbuffers)
    file = RelayFile("chan0", model, more)
    # The kernel miscounts two empty sub-buffers between full ones.
    found, written = played(steps, model, file, read_before_empty=True)
    while some := read(file, everything=True):
        found += some
        assert len(found) <= sum(written.values()), "nothing comes twice"
    numbers = records_in(found)
    assert numbers == sorted(set(numbers))
    assert len(found) + file.lost_bytes == sum(written.values())


@settings(deadline=None)
@given(STEPS, st.integers(2, 5))
@example([("write", 6), *[("flush", 0)] * 4], 4)
def test_every_stored_byte_is_delivered_or_lost_even_if_others_come_twice(
    steps: list[tuple[str, int]], subbuffers: int
) -> None:
    model = RelayModel(100, subbuffers)
    file = RelayFile("chan0", model, more)
    found, written = played(steps, model, file)
    while some := read(file, everything=True):
        found += some
        assert len(found) < 1 << 20, "it ends"
    # Of a record that comes many times, the kernel may cut the last copy: only whole ones count.
    missing = sum(value for number, value in written.items() if record(number, value) not in found)
    assert missing <= file.lost_bytes


def test_a_file_that_another_lttd_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chan0").touch()
    first = OpenFile(str(tmp_path / "chan0"))
    with pytest.raises(LockedError, match=r"chan0: .* reads it"):
        OpenFile(str(tmp_path / "chan0"))
    first.close()
    OpenFile(str(tmp_path / "chan0")).close()


def test_eperm_under_lockdown_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lockdown").write_text("none [integrity] confidentiality\n")
    (tmp_path / "uid_map").write_text("0 0 4294967295\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(refused, "LOCKDOWN", tmp_path / "lockdown")
    monkeypatch.setattr(refused, "UID_MAP", tmp_path / "uid_map")
    error = relay_file.explained("chan0", OSError(errno.EPERM, os.strerror(errno.EPERM)))
    assert isinstance(error, NothingToRecordError)
    assert "lockdown=integrity" in str(error)
