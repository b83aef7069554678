"""Presets name groups of events; the user's file adds to those of lttd."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.clients.presets import lines_of
from lttd.errors import NothingToRecordError, UsageError
from lttd.presets import SHIPPED, Preset, chosen, read_presets
from lttd.sources.ftrace.instance import Instance
from lttd.sources.ftrace.undo import Undo
from lttd.sources.ftrace.wanted import wanted_events
from lttd.sources.table import SOURCES
from tests.running import Launcher, info, needs_kernel

ASKED = ("sched", "syscalls", "block", "irq", "net", "memory", "latency")


def made(path: Path, text: str) -> str:
    file = path / "presets.toml"
    file.write_text(text)
    return str(file)


def refusal(path: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_presets(made(path, text))
    return str(caught.value)


def tracefs_with(root: Path, *events: str) -> Instance:
    for event in events:
        system, _, name = event.partition(":")
        (root / "events" / system / name).mkdir(parents=True)
    return Instance(str(root), str(root), "top", True, {}, Undo(str(root)))


def test_every_preset_of_lttd_says_what_it_is_for_and_what_it_costs() -> None:
    presets = read_presets("/absent")
    assert tuple(presets) == ASKED
    for each in presets.values():
        assert each.what
        assert "events/s" in each.cost
        assert each.cost.endswith(".")


def test_a_preset_of_the_user_replaces_that_of_the_same_name(tmp_path: Path) -> None:
    file = made(tmp_path, '[disk]\nevents = ["block:*"]\n[irq]\nevents = ["irq:irq_*"]\n')
    presets = read_presets(file)
    assert set(presets) == {*ASKED, "disk"}
    assert presets["disk"] == Preset("disk", ("block:*",), "", "", file)
    assert presets["irq"].events == ("irq:irq_*",)
    assert presets["sched"].file == SHIPPED


def test_a_misspelt_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"preset 'syscals' is not known: did you mean syscalls\?"):
        chosen(["sched", "syscals"], "/absent")
    with pytest.raises(UsageError, match=r"preset 'xyz' is not known: there are sched, syscalls"):
        chosen(["xyz"], "/absent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("disk = 1", "preset 'disk': write a table"),
        ("[disk]", "preset 'disk': events must be a list of globs"),
        ("[disk]\nevents = []", "events must be a list of globs"),
        ("[disk]\nevents = 'block:*'", "events must be a list of globs"),
        ("[disk]\nevents = ['block:*', 3]", "events must be a list of globs"),
        ("[disk]\nevents = ['block:*']\nwhat = 3", "what must be a text"),
        ("[disk]\nevents = ['block:*']\nfilter = 'x'", "'filter' is not a key"),
        ("[disk", "not TOML"),
    ],
)
def test_a_file_that_is_not_valid_is_refused_by_its_name(
    tmp_path: Path, text: str, message: str
) -> None:
    line = refusal(tmp_path, text)
    assert line.startswith(str(tmp_path / "presets.toml"))
    assert message in line


@given(st.dictionaries(st.text(max_size=9), st.lists(st.integers() | st.text(), max_size=3)))
def test_no_table_of_a_user_makes_anything_but_presets_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, list[int | str]]
) -> None:
    text = "".join(
        f"[{json.dumps(name)}]\nevents = {json.dumps(events)}\n" for name, events in table.items()
    )
    path = tmp_path_factory.mktemp("presets")
    try:
        tomllib.loads(text)
        found = read_presets(made(path, text))
    except (UsageError, ValueError):
        return
    assert all(each in found for each in table)


def test_events_of_a_preset_that_the_kernel_lacks_are_left_out_and_noted(tmp_path: Path) -> None:
    instance = tracefs_with(tmp_path, "irq:softirq_entry", "block:block_rq_issue")
    found = wanted_events(instance, ("block:*",), ("irq",))
    assert [file.name for file in found] == ["block:*", "irq:*"]
    assert instance.notes == ["preset irq: irq_vectors:* left out, because this kernel lacks them"]


def test_a_preset_of_which_the_kernel_has_no_event_is_nothing_to_record(tmp_path: Path) -> None:
    instance = tracefs_with(tmp_path, "irq:softirq_entry")
    with pytest.raises(NothingToRecordError, match="preset sched: this kernel has no event sched"):
        wanted_events(instance, (), ("sched",))


def test_an_event_that_several_presets_name_is_enabled_once(tmp_path: Path) -> None:
    instance = tracefs_with(tmp_path, "sched:sched_switch", "irq:softirq_entry")
    found = wanted_events(instance, ("irq:*", "sched_switch"), ("latency", "irq"))
    assert sorted(file.name for file in found) == ["irq:*", "sched:sched_switch"]


def test_a_narrow_terminal_gets_the_list_in_short_lines() -> None:
    lines = list(lines_of(read_presets("/absent").values(), 60))
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("sched     who ran where")


def test_the_list_of_presets_needs_neither_a_kernel_nor_a_recorder(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lttd", "presets", "--json"]
    environment = {**os.environ, "LTTD_RUNTIME_DIRECTORY": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert set(ASKED) <= json.loads(done.stdout).keys()


def test_presets_can_be_reloaded_as_events_can() -> None:
    assert {"events", "preset"} <= SOURCES["ftrace"].reloads


class TestOnThisKernel:
    pytestmark = needs_kernel()

    def test_a_preset_records_its_events_and_not_the_default(self, lttd: Launcher) -> None:
        trace = lttd.cwd / "t"
        run = lttd.run("-t", trace, "--preset", "block", "--duration", "0.2s")
        assert run.process.returncode == 0, run.stderr
        settings = info(trace)["source"]["settings"]
        assert settings["preset"] == ["block"]
        assert {name.partition(":")[0] for name in settings["events"]} == {"block"}

    def test_a_misspelt_preset_is_one_line_and_status_2(self, lttd: Launcher) -> None:
        run = lttd.run("-t", lttd.cwd / "t", "--preset", "blok")
        assert run.process.returncode == 2
        assert run.stderr == "lttd: preset 'blok' is not known: did you mean block?\n"
        assert lttd.left() == []
