"""A reload changes filters, exclusions and triggers of events; or nothing, if one is refused."""

import json
import time
from pathlib import Path

import pytest

from tests.running import Launcher, Run, assert_whole, info, lttv, needs_kernel, until
from tests.test_reload import asked, enabled, started

pytestmark = needs_kernel()

SWITCH, WAKING, EXEC = "sched:sched_switch", "sched:sched_waking", "sched:sched_process_exec"
FIRST = """
events = ["sched:sched_switch", "sched:sched_waking"]
filter = ["sched:*: common_pid != 4194303"]
event-trigger = ["sched_process_exec: stacktrace:5 if pid == 4194303"]
"""
SECOND = """
events = ["sched:*"]
exclude = ["*_stat*"]
filter = ["sched_waking: prio > 1", "sched_process_exec: pid != 4194302"]
event-trigger = ["sched_switch: traceoff if prev_pid == 4194303"]
"""


def of(instance: Path, event: str, name: str) -> str:
    text = (instance / "events" / event.replace(":", "/") / name).read_text()
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def state(instance: Path) -> dict[str, str]:
    names = ("filter", "trigger", "enable")
    return {f"{event} {name}": of(instance, event, name)
            for event in (SWITCH, WAKING, EXEC) for name in names}  # fmt: skip


AT_FIRST = {
    f"{SWITCH} filter": "common_pid != 4194303", f"{SWITCH} trigger": "", f"{SWITCH} enable": "1",
    f"{WAKING} filter": "common_pid != 4194303", f"{WAKING} trigger": "", f"{WAKING} enable": "1",
    f"{EXEC} filter": "none", f"{EXEC} trigger": "stacktrace:count=5 if pid == 4194303",
    f"{EXEC} enable": "0*",
}  # fmt: skip
THEN = {
    f"{SWITCH} filter": "none", f"{SWITCH} trigger": "traceoff:unlimited if prev_pid == 4194303",
    f"{SWITCH} enable": "1*",
    f"{WAKING} filter": "prio > 1", f"{WAKING} trigger": "", f"{WAKING} enable": "1",
    f"{EXEC} filter": "pid != 4194302", f"{EXEC} trigger": "", f"{EXEC} enable": "1",
}  # fmt: skip


def begun(lttd: Launcher, *words: str) -> tuple[Run, Path, Path]:
    run, file, trace = started(lttd, *words)
    file.write_text(FIRST)
    assert asked(lttd, "reload")[0] == 0
    return run, file, trace


def test_a_reload_changes_filters_exclusions_and_triggers(lttd: Launcher) -> None:
    run, file, trace = begun(lttd)
    assert state(run.instance) == AT_FIRST
    file.write_text(SECOND)
    words = "reloaded: event-trigger, events, exclude, filter\n"
    assert asked(lttd, "reload") == (0, words)
    assert state(run.instance) == THEN
    assert "sched:sched_stat_runtime" not in enabled(run)
    time.sleep(0.5)  # lttd looks at its filters again
    found = json.loads(asked(lttd, "status", "--json")[1])
    assert found["conditions"] == [], "its own changes are no interference"
    (source,) = found["sources"]
    assert ["filter", "sched_waking: prio > 1"] in source["controls"]
    assert run.end() == 0, run.stderr
    assert_whole(trace, "--events")
    reload = info(trace)["source"]["reloads"][-1]
    assert reload["event_trigger"] == ["sched_switch: traceoff if prev_pid == 4194303"]
    assert "; exclude *_stat*; filter sched_waking: prio > 1; " in lttv("info", trace).stdout


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('filter = ["sched_switch: nofield == 1"]', "filter sched:sched_switch: Field not found"),
        ('filter = ["sched_switch: prev_pid == 7", "sched_waking: prev_pid == 7"]', "sched_waking"),
        ('filter = ["irq:*: irq == 1"]', "'irq:*' names no event that is recorded"),
        (
            'event-trigger = ["sched_switch: traceoff if x == 1"]',
            "event-trigger sched:sched_switch",
        ),
        ('event-trigger = ["sched_switch: snapshot"]', "would take the unread events"),
        ('exclude = ["sched_swich"]', "did you mean sched:sched_switch"),
    ],
)
def test_a_reload_that_is_refused_changes_nothing(lttd: Launcher, line: str, says: str) -> None:
    run, file, _ = begun(lttd)
    file.write_text(f'events = ["sched:*"]\n{line}\n')
    status, answer = asked(lttd, "reload")
    assert (status, answer.count("\n")) == (2, 1)
    assert says in answer
    assert state(run.instance) == AT_FIRST
    assert run.end() == 0, run.stderr


def test_a_foreign_instance_gets_its_filters_and_triggers_back_after_reloads(
    lttd: Launcher, foreign: Path
) -> None:
    (foreign / "events/sched/sched_waking/filter").write_text("prio == 7")
    (foreign / "events/sched/sched_waking/trigger").write_text("stacktrace if prio == 4194303")
    before = state(foreign)
    file = lttd.cwd / "lttd.toml"
    file.write_text(FIRST)
    words = ("-t", lttd.cwd / "t", "--config", file, "--summary", "none")
    run = lttd.start(*words, "--source", f"ftrace:{foreign.name}")
    until(lambda: asked(lttd, "status")[0] == 0, "the socket is there")
    assert of(foreign, WAKING, "filter") == "common_pid != 4194303"
    file.write_text(SECOND)
    assert asked(lttd, "reload")[0] == 0
    file.write_text('events = ["sched:sched_switch"]\n')
    assert asked(lttd, "reload")[0] == 0
    assert of(foreign, WAKING, "filter") == "prio == 7"
    assert run.end() == 0, run.stderr
    assert state(foreign) == before
