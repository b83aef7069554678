"""Record with filters and without excluded events, from this kernel."""

import re
from contextlib import closing
from pathlib import Path

import pytest

from lttd.errors import UsageError
from lttd.sources.ftrace.source import FtraceSettings, FtraceSource, open_ftrace
from lttd.subbuffer import BufferPool
from tests.ftrace_sources import instance_of
from tests.running import needs_kernel

pytestmark = [*needs_kernel(), pytest.mark.usefixtures("instances")]

SWITCH, WAKING = "sched:sched_switch", "sched:sched_waking"


def opened(*events: str, **settings: object) -> FtraceSource:
    made = FtraceSettings(events=events, buffer_bytes=64 << 10)._replace(**settings)  # type: ignore[arg-type]
    return open_ftrace(made, BufferPool())


def setting(path: Path, event: str, name: str) -> str:
    return (path / "events" / event.replace(":", "/") / name).read_text().strip()


def test_a_filter_is_set_on_each_event_that_its_glob_names_and_noted() -> None:
    text = "sched_*: common_pid == 4194303"
    with closing(opened(SWITCH, WAKING, "irq:*", filter=(text,))) as source:
        path = instance_of(source)
        for event in (SWITCH, WAKING):
            assert setting(path, event, "filter") == "common_pid == 4194303"
            assert setting(path, event, "enable") == "1"
        assert setting(path, "irq:softirq_entry", "filter") == "none"
        assert source.info.settings["filter"] == [text]


def test_an_excluded_event_is_off_and_the_others_of_its_system_are_on() -> None:
    with closing(opened("sched:*", "irq:*", exclude=("*_wak*", "sched:sched_stat*"))) as source:
        path, events = instance_of(source), source.info.settings["events"]
        assert setting(path, SWITCH, "enable") == "1"
        assert setting(path, WAKING, "enable") == "0"
        assert setting(path, "sched:sched_stat_runtime", "enable") == "0"
        assert "irq:*" in events
        assert SWITCH in events
        assert not [event for event in events if "wak" in event or "_stat" in event]


@pytest.mark.parametrize(
    ("exclude", "says"),
    [("sched_swich", "did you mean sched:sched_switch"), ("sched:*", "exclude leaves no event")],
)
def test_an_exclusion_without_meaning_is_refused(exclude: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        opened("sched:*", exclude=(exclude,))


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("nofield == 3", r'Field not found: "nofield == 3", at character 9'),
        ("prev_comm == 3", r"Expecting string field"),
        ("(prev_pid == 3", r"Too many '\('"),  # the kernel says ENOENT
        ("prev_pid == 3 && && next_pid == 4", r"Error: "),  # and EPERM
    ],
)
def test_a_refused_filter_is_one_line_with_the_words_of_the_kernel(
    expression: str, says: str
) -> None:
    with pytest.raises(UsageError, match=rf"filter {SWITCH}: .*{says}") as caught:
        opened(SWITCH, filter=(f"sched_switch: {expression}",))
    assert "\n" not in str(caught.value)


def test_a_filter_of_a_glob_names_the_events_that_lack_the_field() -> None:
    with pytest.raises(UsageError) as caught:
        opened("sched:*", filter=("sched_*: prev_pid == 3",))
    words = r"filter sched:sched_\w+: Field not found.*; so also sched:\w+, sched:\w+, sched:\w+"
    assert re.match(rf"{words} and \d+ more: name fewer events, or exclude them", str(caught.value))
    assert SWITCH not in str(caught.value)


# -- an instance of somebody else


def test_a_filter_of_a_foreign_event_is_put_back_at_the_end(foreign: Path) -> None:
    for event, name, text in (
        (SWITCH, "filter", "prev_pid == 7"),
        (SWITCH, "enable", "1"),
        (WAKING, "filter", "prio < 100"),
    ):
        (foreign / "events" / event.replace(":", "/") / name).write_text(text)
    settings = FtraceSettings(foreign.name, filter=("sched_switch: next_pid == 8",))
    with closing(open_ftrace(settings, BufferPool())):
        assert setting(foreign, SWITCH, "filter") == "next_pid == 8"
        assert setting(foreign, WAKING, "filter") == "prio < 100", "nobody asked"
    assert setting(foreign, SWITCH, "filter") == "prev_pid == 7"
    settings = FtraceSettings(foreign.name, (SWITCH, WAKING), filter=("sched:*: common_pid == 8",))
    with closing(open_ftrace(settings, BufferPool())):
        assert setting(foreign, WAKING, "filter") == "common_pid == 8"
        (foreign / "events/sched/sched_waking/filter").write_text("prio == 1")
    assert setting(foreign, WAKING, "filter") == "prio == 1", "another process changed it"


def test_a_refused_filter_leaves_the_filters_of_a_foreign_instance_as_they_were(
    foreign: Path,
) -> None:
    events = ("sched:sched_stat_runtime", SWITCH, WAKING)
    for event in events[1:]:
        (foreign / "events" / event.replace(":", "/") / "filter").write_text("common_pid == 7")
    settings = FtraceSettings(foreign.name, events, filter=("sched:*: prev_pid == 3",))
    with pytest.raises(UsageError, match="sched_stat_runtime: Field not found"):
        open_ftrace(settings, BufferPool())
    assert [setting(foreign, event, "filter") for event in events] == [
        "none",
        "common_pid == 7",
        "common_pid == 7",
    ]
    assert [setting(foreign, event, "enable") for event in events] == ["0", "0", "0"]
