"""Compare windows of events as columns with the written events."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lttd
from lttd.errors import UsageError
from lttd.view import window
from lttd.view.filters import Where
from lttd.view.opened import OpenedTrace
from tests.ftraced import Traced, opened, pages_of, switch, tick


def numbered(trace: Path, *, pages: int = 40, cpus: int = 2, per_page: int = 9) -> Traced:
    """Write ticks whose count is the time: page k of CPU c begins at 1000 * k + c."""
    made = Traced(trace, cpus=cpus)
    for cpu in range(cpus):
        for number in range(pages):
            begin = 1000 * number + cpu
            events = [tick(begin + 10 * (at + 1)) for at in range(per_page)]
            made.append([pages_of(begin, events)], cpu=cpu)
    return made


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> OpenedTrace:
    path = tmp_path_factory.mktemp("columns") / "t"
    numbered(path).finish()
    return lttd.open(path)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "STREAM_BYTES", 1)
    monkeypatch.setattr(window, "_LOOK_AHEAD", 3)


def counts(opened_trace: OpenedTrace, **chosen: object) -> list[int]:
    found: list[int] = []
    for batch in opened_trace.window(**chosen):  # type: ignore[arg-type]
        assert (np.diff(batch.time.astype(np.int64)) >= 0).all()
        found += batch["tick"]["count"].tolist()
    return found


EVERY = sorted(
    1000 * page + cpu + 10 * at for page in range(40) for cpu in (0, 1) for at in range(1, 10)
)


def test_a_window_returns_every_event_once_in_order_of_time(trace: OpenedTrace) -> None:
    for piece_bytes in (1, 500, 5000, 1 << 20):
        assert counts(trace, piece_bytes=piece_bytes) == EVERY


@given(st.integers(0, 41_000), st.integers(0, 41_000))
def test_a_window_includes_both_of_its_ends(trace: OpenedTrace, begin: int, end: int) -> None:
    expected = [time for time in EVERY if begin <= time <= end]
    assert counts(trace, begin=begin, end=end, piece_bytes=700) == expected


def test_cpus_and_event_names_select_events(trace: OpenedTrace) -> None:
    assert counts(trace, cpus=[1]) == [time for time in EVERY if time % 10]
    assert counts(trace, events=["clock:*"]) == EVERY
    assert counts(trace, events=["t?ck"]) == EVERY
    assert sum(len(batch) for batch in trace.window(events=["sched*"])) == 0


def test_an_expression_selects_events_and_a_missing_field_is_false(trace: OpenedTrace) -> None:
    assert counts(trace, where="count > 100 and count <= 2020") == [
        time for time in EVERY if 100 < time <= 2020
    ]
    assert counts(trace, where="nothing == 1 or count == 10") == [10]
    assert counts(trace, where="not nothing == 1") == EVERY
    assert counts(trace, where="cpu == 1 and count in (11, 20, 21)") == [11, 21]
    assert counts(trace, where="event == 'tick' and common_pid == 7 and time < 12") == [10, 11]
    assert counts(trace, where="count % 1000 == 10 and count // 1000 << 1 == 4") == [2010]


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "count.real", "count ==", "[x for x in (1,)]",
        "lambda: 1", "count if 1 else 2", "1.5 < count", "count ** 9", "f'{count}'", "",
        "None", "(a := 1)", "1" * 50, "x" + " or x" * 400,
    ],
)  # fmt: skip
def test_an_invalid_expression_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Where(text)


@pytest.mark.parametrize("text", ["count == 'a'", "count + 'a' == 1", "count / 0 == 1"])
def test_operands_of_different_types_are_refused(trace: OpenedTrace, text: str) -> None:
    with pytest.raises(UsageError):
        counts(trace, where=text)


def test_fields_of_every_type_are_columns(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    events = [opened("/etc/passwd", -2), switch(("a", 1), ("bb", 2)), opened("", 3), tick(-1)]
    made.append([pages_of(5, events)])
    made.finish()
    (batch,) = lttd.open(tmp_path / "t").window()
    assert batch["opened"]["path"].tolist() == [b"/etc/passwd", b""]
    assert batch["opened"]["ret"].tolist() == [-2, 3]
    assert batch["sched:sched_switch"]["next_comm"].tolist() == [b"bb"]
    assert batch["tick"]["count"].tolist() == [-1]
    assert batch.columns()["event"].tolist() == ["opened", "sched_switch", "opened", "tick"]
    with pytest.raises(KeyError):
        batch["nothing"]
    with pytest.raises(KeyError):
        batch["tick"]["nothing"]


def test_a_single_event_has_its_fields(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(5, [opened("/x", 1), tick(3)])])
    made.finish()
    first, second = lttd.open(tmp_path / "t").events()
    assert (first.time, first.name, first.pid, first["path"]) == (15, "opened", 7, b"/x")
    assert second.fields == {"count": 3, "flags": 0}


def test_a_batch_carries_the_losses_within_its_times(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    page = bytearray(pages_of(2000, [tick(1)]))
    body = page[16:36]
    struct.pack_into("<Q", page, 8, len(body) | 1 << 31 | 1 << 30)
    struct.pack_into("<Q", page, 16 + len(body), 77)
    made.append([pages_of(1000, [tick(0)]), bytes(page)])
    made.append([], trailing_loss=5)
    made.finish()
    trace = lttd.open(tmp_path / "t")
    told = [(loss.time, str(loss)) for batch in trace.window() for loss in batch.losses]
    assert told[0] == (2000, "CPU:0 [LOST 77 EVENTS]")
    assert [text for _, text in told[1:]] == ["CPU:0 [LOST 5 EVENTS]"]
    assert not [loss for batch in trace.window(end=1500) for loss in batch.losses]
    assert not [loss for batch in trace.window(begin=2001, end=2010) for loss in batch.losses]


def test_the_losses_and_notes_of_a_batch_are_fixed_once_it_is_made(trace: OpenedTrace) -> None:
    for batch in trace.window():
        assert isinstance(batch.losses, tuple)
        assert isinstance(batch.notes, tuple)


def test_damage_is_noted_and_all_other_events_are_returned(tmp_path: Path) -> None:
    path = tmp_path / "t"
    made = numbered(path, pages=6, cpus=1).finish()
    data = made.stream().paths.data
    raw = bytearray(data.read_bytes())
    size = len(raw) // 6
    raw[size * 2 + 8 : size * 2 + 16] = b"\xff" * 8  # damage a header
    struct.pack_into(
        "<I", raw, size * 4 + 16 + 7 * 20, 28
    )  # a record that ends beyond its sub-buffer
    data.write_bytes(raw)
    batches = list(lttd.open(path).window())
    found = [count for batch in batches for count in batch["tick"]["count"].tolist()]
    notes = [note for batch in batches for note in batch.notes]
    whole = [time for time in EVERY if not time % 10 and time < 6000]
    lost = [time for time in whole if 2000 <= time < 3000 or 4070 < time < 5000]
    assert [count for count in found if count in whole] == [t for t in whole if t not in lost]
    assert any(f"byte {size * 2}" in note for note in notes)
    assert any(str(data) in note for note in notes)


@pytest.mark.parametrize("begin", [0, 1500, 4100])
def test_a_note_names_the_damaged_byte_of_the_file(tmp_path: Path, begin: int) -> None:
    """The byte is right for the second CPU too, and for windows that begin within a file."""
    path = tmp_path / "t"
    made = numbered(path, pages=6).finish()
    broken = {}
    for cpu in (0, 1):
        data = made.stream(cpu).paths.data
        raw = bytearray(data.read_bytes())
        broken[cpu] = len(raw) // 6 * 4 + 16 + 7 * 20
        struct.pack_into("<I", raw, broken[cpu], 28)  # a record that ends beyond its sub-buffer
        data.write_bytes(raw)
    notes = [note for batch in lttd.open(path).window(begin=begin) for note in batch.notes]
    assert sorted(notes) == [
        f"{made.stream(cpu).paths.data}: byte {broken[cpu]}: record runs past the content;"
        " the rest of it is left out"
        for cpu in (0, 1)
    ]


def test_a_stream_without_an_index_is_read_from_end_to_end(tmp_path: Path) -> None:
    made = numbered(tmp_path / "t", pages=5, cpus=1).finish()
    made.stream().paths.index.unlink()
    opened_trace = lttd.open(tmp_path / "t")
    expected = [time for time in EVERY if time % 10 == 0 and 2000 <= time < 5000]
    assert counts(opened_trace, begin=2000) == expected
    notes = [note for batch in opened_trace.window() for note in batch.notes]
    assert len(notes) == 1
    assert "no index" in notes[0]


def test_an_event_without_a_format_is_returned_as_bytes(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(5, [tick(1), struct.pack("<HBBiI", 99, 0, 0, 5, 6), tick(2)[:8]])])
    made.finish()
    (batch,) = lttd.open(tmp_path / "t").window()
    assert [rows.event_type.name for rows in batch.by_type()] == ["tick", "unknown-99", "tick"]
    assert [event_type.format is None for event_type in batch.types] == [False, True, True]
    assert any("99" in note for note in batch.notes)
    assert batch["unknown-99"].raw() == [struct.pack("<HBBiI", 99, 0, 0, 5, 6)]


def test_flipped_bits_never_raise_in_a_window(tmp_path: Path) -> None:
    made = numbered(tmp_path / "t", pages=8).finish()
    rng = random.Random(3)
    files = [made.stream(cpu).paths.data for cpu in (0, 1)]
    files += [made.stream(cpu).paths.index for cpu in (0, 1)]
    files += list(made.tracefs.rglob("format"))
    whole = {file: file.read_bytes() for file in files}
    for _ in range(150):
        for file in rng.sample(files, 2):
            raw = bytearray(whole[file])
            for _ in range(rng.randint(1, 5)):
                raw[rng.randrange(16, len(raw))] ^= 1 << rng.randrange(8)
            file.write_bytes(raw[: rng.choice((len(raw), rng.randrange(16, len(raw) + 1)))])
        for batch in lttd.open(tmp_path / "t").window():
            for rows in batch.by_type():
                rows.columns()
        for file in files:
            file.write_bytes(whole[file])
