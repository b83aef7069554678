"""Notes report damage in a few lines."""

from lttd.view.notes import MOST_NOTES, Notes, WindowNotes


def test_each_note_is_printed_once_and_only_the_first_of_too_many() -> None:
    notes = Notes(["a", "b", "a"])
    assert notes.told() == ["a", "b"]
    notes.add(*(f"byte {at}" for at in range(1000)))
    assert notes.told()[:3] == ["a", "b", "byte 0"]
    assert notes.told()[MOST_NOTES:] == ["... and 982 more like these"]


def test_a_window_hands_out_each_note_once() -> None:
    notes = WindowNotes()
    notes.add("a", "b", "a")
    assert notes.take() == ["a", "b"]
    assert notes.take() == []
    notes.add("b", "c")
    assert notes.take() == ["c"]


def test_a_window_hands_out_the_first_of_too_many_notes() -> None:
    notes = WindowNotes()
    notes.add(*(f"byte {at}" for at in range(1000)))
    taken = notes.take()
    assert taken[:2] == ["byte 0", "byte 1"]
    assert taken[MOST_NOTES:] == ["... and 980 more like these"]
