"""The settings of an instance that must keep their value while lttd records from it.

Rule: a change is reported, and is a gap where the kernel does not count the loss; see watch.py.
"""

from typing import Final, NamedTuple

from lttd.health import Trouble
from lttd.sources.ftrace.asked import FtraceSettings
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.pids import follows
from lttd.sources.ftrace.task_lists import EVENTS, FUNCTIONS, TASK_LISTS, lists_of
from lttd.subbuffer import Reason

_PAUSES: Final = "; nothing is read until it is, since a segment has one clock and one size"


class Setting(NamedTuple):
    """A file of an instance that must keep the value that it had when recording began."""

    file: str
    trouble: Trouble
    reason: Reason | None
    """The reason of the gap; None: the kernel counts the losses."""
    pauses: bool = False
    """Whether the data written meanwhile does not fit the segment."""


TRACING_ON: Final = Setting("tracing_on", Trouble.TRACING_OFF, Reason.SWITCHED_OFF)
SETTINGS: Final = (
    TRACING_ON,
    Setting("trace_clock", Trouble.SETTING_CHANGED, Reason.EMPTIED, pauses=True),
    Setting("buffer_subbuf_size_kb", Trouble.SETTING_CHANGED, Reason.EMPTIED, pauses=True),
    Setting("current_tracer", Trouble.SETTING_CHANGED, Reason.EMPTIED),
    Setting("options/overwrite", Trouble.SETTING_CHANGED, None),
    # Whoever reads ``trace`` then stops recording meanwhile, and tracing_on still says 1.
    Setting("options/pause-on-trace", Trouble.SETTING_CHANGED, Reason.SWITCHED_OFF),
    # 0 makes poll report readable for ever, 100 only when the ring is full.
    Setting("buffer_percent", Trouble.SETTING_CHANGED, None),
    Setting(EVENTS.file, Trouble.FILTER_SET, Reason.FILTERED),
    Setting("tracing_cpumask", Trouble.FILTER_SET, Reason.FILTERED),
)
OF_FUNCTIONS: Final = Setting(FUNCTIONS.file, Trouble.FILTER_SET, Reason.FILTERED)
"""For a recording of functions."""


def settings_of_tasks(instance: Instance, settings: FtraceSettings) -> tuple[Setting, ...]:
    """Return the settings that must keep their value, beside those of every recording."""
    lists = lists_of(instance)
    followed = lists if follows(settings) else ()
    of_functions = (OF_FUNCTIONS,) if FUNCTIONS in lists else ()
    # Without its option, later children of the recorded tasks are lost.
    forks = (Setting(each.fork, Trouble.FILTER_SET, Reason.FILTERED) for each in followed)
    return (*of_functions, *forks)


def words_of(setting: Setting, value: str, normal: str) -> str:
    """Return words on a setting with another value than before."""
    if setting.trouble is Trouble.TRACING_OFF:
        return "tracing was turned off while lttd records; write 1 to it to go on"
    if setting.file in TASK_LISTS and value and normal:  # of any length
        return (
            f"lists {len(value.split())} ids now, which are not the {len(normal.split())} of before"
        )
    words = f"is {value or 'empty'} now and was {normal or 'empty'} when recording began"
    return words + (_PAUSES if setting.pauses else "")
