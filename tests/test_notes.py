"""What could not be shown is told, in few lines."""

from lttd.view.notes import MOST_NOTES, Notes, Once


def test_each_note_is_printed_once_and_only_the_first_of_too_many() -> None:
    notes = Notes(["a", "b", "a"])
    assert notes.told() == ["a", "b"]
    notes.add(*(f"byte {at}" for at in range(1000)))
    assert notes.told()[:3] == ["a", "b", "byte 0"]
    assert notes.told()[MOST_NOTES:] == ["... and 982 more like these"]


def test_a_note_that_was_printed_is_not_printed_again() -> None:
    once = Once()
    taken = ["a", "b"]
    assert once.fresh(taken) == ["a", "b"]
    assert taken == []
    assert once.fresh(["b", "c"]) == ["c"]
