"""The catalogue lists the triggers that keep segments."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lttd.catalogue import Catalogue
from lttd.kept import BY_PERSON, Kept
from lttd.retention import Held
from lttd.tracedir import made_ns
from lttd.trigger import Trigger


def test_the_name_of_a_segment_says_when_it_was_made() -> None:
    assert made_ns("20261127T201535Z-000001-ftrace") == 1_795_810_535 * 1_000_000_000
    for name in ("20261327T201535Z-000001-ftrace", "lost+found", ""):
        assert made_ns(name) is None


def test_the_newest_segments_are_the_last_numbers_at_most_so_many() -> None:
    catalogue = Catalogue(lambda: 0)
    for number in (3, 1, 12, 7):
        catalogue.put(Held(number, f"{number:010}-x", "ftrace", 4096, False, 0, 1), Kept())
    assert [one.number for one in catalogue.newest(3)] == [12, 7, 3]
    assert [one.number for one in catalogue.newest(9)] == [12, 7, 3, 1]


def test_each_trigger_is_listed_once_newest_first_and_complete_if_any_record_is() -> None:
    catalogue = Catalogue(lambda: 0)
    waiting = [Trigger("slow", {}, "http", number, number=number) for number in range(1, 5)]
    complete = replace(waiting[1], begin_ns=1, end_ns=2, complete=True)
    for number, kept in enumerate(
        (Kept(triggers=(waiting[0], complete)), Kept(triggers=(waiting[1], waiting[3])), BY_PERSON),
        1,
    ):
        catalogue.put(Held(number, f"{number:010}-x", "ftrace", 4096, False, 0, 1), kept)
    assert catalogue.latest_triggers(10) == [waiting[3], complete, waiting[0]]
    assert catalogue.latest_triggers(2) == [waiting[3], complete]


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "update", "take", "drop", "hide"]), st.integers(0, 3))
    )
)
def test_the_bytes_are_the_sum_whatever_comes_and_goes(acts: list[tuple[str, int]]) -> None:
    catalogue, sizes, hidden = Catalogue(lambda: 0), dict[int, int](), dict[int, int]()
    for step, (act, number) in enumerate(acts, 1):
        key = number, "x"
        if act == "put":
            sizes[number] = step
            catalogue.put(Held(number, "x", "ftrace", step, False, 0, 1), Kept())
        elif act == "update":
            sizes.update({number: step} if number in sizes else {})
            catalogue.update(key, step)
        elif act == "hide":
            hidden[number] = step
            catalogue.hide(str(number), step)
        else:
            sizes.pop(number, None)
            (catalogue.take if act == "take" else catalogue.drop)(key)
        total = sum(sizes.values()) + sum(hidden.values())
        assert catalogue.allocated_bytes == catalogue.state().allocated_bytes == total
