"""The catalogue lists the triggers that keep segments."""

from dataclasses import replace

from lttd.catalogue import Catalogue
from lttd.kept import BY_PERSON, Kept
from lttd.retention import Held
from lttd.trigger import Trigger


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
