"""lttd records each change to a foreign instance first, and undoes it; on a made-up tree."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lttd.errors import NothingToRecordError, SourceError
from lttd.runtime import Recorder, boot_id
from lttd.sources.ftrace.additions import ADDITIONS, Added, addition_of, probe_name, take_back
from lttd.sources.ftrace.record import Left, parse_record
from lttd.sources.ftrace.settings import SETTINGS, Change, put_back, read_setting, setting_of
from lttd.sources.ftrace.undo import Undo


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    path = tmp_path / "instance"
    for event in ("sched/sched_switch", "sched/sched_waking", "irq/irq_handler_entry"):
        (path / "events" / event).mkdir(parents=True)
        (path / "events" / event / "enable").write_text("0\n")
    for system in ("sched", "irq"):
        (path / "events" / system / "enable").write_text("0\n")
    (path / "options").mkdir()
    (path / "options/overwrite").write_text("1\n")
    (path / "tracing_on").write_text("0\n")
    (path / "trace_clock").write_text("[local] global mono\n")
    (path / "set_event_notrace_pid").write_text("")
    return path


def setting(path: Path) -> str:
    return path.read_text().strip()


def head(**changed: object) -> dict[str, Any]:
    recorder = Recorder.this()
    value = {
        "instance": "lttd-1",
        "own": True,
        "boot_id": boot_id(),
        "trace": {"device": 1, "inode": 2, "path": "/trace"},
        "recorder": {slot: getattr(recorder, slot) for slot in Recorder._fields},
    }
    return value | changed


def record(*lines: Mapping[str, Any], **changed: object) -> Left:
    text = "".join(json.dumps(line) + "\n" for line in (head(**changed), *lines))
    return parse_record(text.encode())


def test_a_change_is_recorded_before_it_is_made(instance: Path) -> None:
    seen = []

    def write_down(line: Mapping[str, Any]) -> None:
        seen.append((dict(line), setting(instance / "options/overwrite")))

    Undo(str(instance), write_down).change("options/overwrite", "0")
    assert seen == [({"file": "options/overwrite", "before": "1", "after": "0"}, "1")]
    assert setting(instance / "options/overwrite") == "0"


def test_a_change_that_cannot_be_recorded_is_not_made(instance: Path) -> None:
    def refuse(_: Mapping[str, Any]) -> None:
        raise NothingToRecordError("full", "make room")

    undo = Undo(str(instance), refuse)
    with pytest.raises(NothingToRecordError):
        undo.change("tracing_on", "1")
    with pytest.raises(NothingToRecordError):
        undo.leave_out("set_event_notrace_pid", [7])
    assert setting(instance / "tracing_on") == "0"
    assert setting(instance / "set_event_notrace_pid") == ""


def test_a_setting_that_has_the_value_is_neither_written_nor_restored(instance: Path) -> None:
    for name in ("trace_clock", "tracing_on"):
        (instance / name).chmod(0o400)
    written: list[Mapping[str, Any]] = []
    undo = Undo(str(instance), written.append)
    before = (instance / "trace_clock").stat().st_mtime_ns
    undo.change("trace_clock", "local")
    undo.change("tracing_on", "0")
    assert not written
    assert undo.run() == []
    assert (instance / "trace_clock").stat().st_mtime_ns == before


def test_undo_restores_the_values_from_before_the_first_change(instance: Path) -> None:
    undo = Undo(str(instance))
    undo.change("options/overwrite", "0")
    undo.change("tracing_on", "1")
    undo.change("options/overwrite", "1")
    undo.change("options/overwrite", "0")
    assert undo.run() == []
    assert setting(instance / "options/overwrite") == "1"
    assert setting(instance / "tracing_on") == "0"
    assert not undo.changed


def test_a_setting_changed_since_is_left_and_reported(instance: Path) -> None:
    (instance / "buffer_percent").write_text("0\n")
    undo = Undo(str(instance))
    undo.change("buffer_percent", "25")
    (instance / "buffer_percent").write_text("50\n")
    (line,) = undo.run()
    assert "buffer_percent: was set to '50' by another process, and stays so; it was '0'" in line
    assert setting(instance / "buffer_percent") == "50"


def test_a_setting_that_another_process_restored_is_not_reported(instance: Path) -> None:
    undo = Undo(str(instance))
    undo.change("options/overwrite", "0")
    (instance / "options/overwrite").write_text("1")
    assert undo.run() == []


def test_settings_that_make_the_kernel_record_are_restored_first(instance: Path) -> None:
    written: list[Mapping[str, Any]] = []
    undo = Undo(str(instance), written.append)
    undo.change("options/overwrite", "0")
    undo.change("tracing_on", "1")
    undo.change("events/sched/enable", "1")
    undo.stop_producing()
    assert setting(instance / "tracing_on") == "0"
    assert setting(instance / "options/overwrite") == "0"
    left = record(*written)
    assert list(left.changes) == ["options/overwrite"]


def test_undo_restores_the_unchanged_events_of_a_system(instance: Path) -> None:
    change = Change("events/sched/enable", "0", "1")
    (instance / "events/sched/enable").write_text("X\n")
    (instance / "events/sched/sched_switch/enable").write_text("1\n")
    put_back(str(instance), change)
    assert setting(instance / "events/sched/sched_switch/enable") == "0"
    assert setting(instance / "events/sched/enable") == "X", "no system was written"


def test_the_next_start_keeps_the_settings_it_wants_and_restores_the_rest(instance: Path) -> None:
    for name in ("events/sched/enable", "events/sched/sched_switch/enable"):
        (instance / name).write_text("1\n")
    (instance / "events/sched/sched_waking/enable").write_text("1\n")
    (instance / "options/overwrite").write_text("0\n")
    (instance / "trace_clock").write_text("[mono] local\n")
    undo = Undo(str(instance))
    undo.inherit(
        [
            Change("events/sched/enable", "0", "1"),
            Change("options/overwrite", "1", "0"),
            Change("trace_clock", "local", "mono"),
        ]
    )
    undo.keep("events/sched/sched_switch")
    assert undo.drop_inherited() == []
    assert setting(instance / "events/sched/sched_switch/enable") == "1"
    assert setting(instance / "events/sched/sched_waking/enable") == "0"
    assert setting(instance / "options/overwrite") == "1"
    assert setting(instance / "trace_clock") == "[mono] local", "it would empty the ring"
    undo.stop_producing()
    assert setting(instance / "events/sched/sched_switch/enable") == "0"
    undo.run()
    assert setting(instance / "trace_clock").startswith("local")


def test_undo_removes_only_our_own_pids(instance: Path) -> None:
    file = instance / "set_event_notrace_pid"
    file.write_text("5\n71\n72\n99\n")
    added = Added("set_event_notrace_pid", ("71", "72", "100"), alone=True)
    assert take_back(str(file), added, added.items) == {}
    assert file.read_text().split() == ["5", "99"]
    added = Added("set_event_notrace_pid", ("5", "99"), alone=False)
    assert take_back(str(file), added, added.items) == {}
    assert file.read_text() == ""


def test_undo_removes_once_the_pids_that_it_added(instance: Path) -> None:
    file, lines = instance / "set_event_notrace_pid", list[Mapping[str, Any]]()
    undo = Undo(str(instance), lines.append)
    undo.leave_out("set_event_notrace_pid", [9, 8])
    file.write_text("5\n8\n9\n")  # as the kernel lists them, with a pid of another tool
    assert undo.run() == []
    assert file.read_text().split() == ["5"]
    assert lines == [
        {"added": "set_event_notrace_pid", "items": ["8", "9"], "alone": True},
        {"taken_back": "set_event_notrace_pid", "items": ["8", "9"]},
    ]
    file.write_text("5\n8\n")  # the other tool adds a pid that was ours
    assert undo.run() == []
    assert file.read_text().split() == ["5", "8"]


# -- items that are added to lists


def test_an_item_that_the_list_had_is_neither_added_nor_taken_back(instance: Path) -> None:
    file, lines = instance / "set_event_notrace_pid", list[Mapping[str, Any]]()
    file.write_text("8\n")
    undo = Undo(str(instance), lines.append)
    assert undo.add("set_event_notrace_pid", ["8", "9", "9"]) == ["9"]
    assert lines == [{"added": "set_event_notrace_pid", "items": ["9"], "alone": False}]
    file.write_text("8\n9\n")
    assert undo.run() == []
    assert file.read_text().split() == ["8"]


def test_a_pid_list_that_was_empty_is_emptied_with_the_children_that_the_kernel_added(
    instance: Path,
) -> None:
    file = instance / "set_event_pid"
    file.write_text("")
    undo = Undo(str(instance))
    undo.add("set_event_pid", ["70"])
    file.write_text("70\n71\n")  # 71 is a child
    assert undo.run() == []
    assert file.read_text() == ""


def test_additions_are_recorded_before_the_caller_makes_them(instance: Path) -> None:
    def refuse(_: Mapping[str, Any]) -> None:
        raise NothingToRecordError("full", "make room")

    (instance / "dynamic_events").write_text("")
    with pytest.raises(NothingToRecordError):
        Undo(str(instance), refuse).add("/dynamic_events", ["p:lttd/a vfs_read"])


def test_more_items_than_a_record_may_have_are_refused(instance: Path) -> None:
    with pytest.raises(SourceError, match="50,000 items"):
        Undo(str(instance)).leave_out("set_event_notrace_pid", range(50_001))
    assert setting(instance / "set_event_notrace_pid") == ""


def test_an_own_instance_records_only_what_outlives_it(instance: Path, tmp_path: Path) -> None:
    (tmp_path / "max_graph_depth").write_text("0\n")
    (tmp_path / "trace_clock").write_text("[local]\n")
    lines = list[Mapping[str, Any]]()
    undo = Undo(str(instance), lines.append, root=str(tmp_path), own=True)
    undo.change("tracing_on", "1")
    undo.leave_out("set_event_notrace_pid", [7])
    assert lines == []
    assert not undo.changed
    undo.change("/max_graph_depth", "3")
    assert lines == [{"file": "/max_graph_depth", "before": "0", "after": "3"}]
    assert undo.run() == []
    assert setting(tmp_path / "max_graph_depth") == "0"
    assert setting(instance / "tracing_on") == "1"
    assert undo.added("set_event_notrace_pid") == ("7",)


def test_rings_are_kept_while_they_hold_unread_events(instance: Path) -> None:
    (instance / "dynamic_events").write_text("p:lttd/a vfs_read\n")
    undo = Undo(str(instance))
    undo.change("trace_clock", "mono")
    undo.change("tracing_on", "1")
    undo.take_over(
        [Change("trace_clock", "local", "mono"), Change("tracing_on", "0", "1")],
        [Added("/dynamic_events", ("p:lttd/a vfs_read",), alone=True)],
    )
    assert undo.run(keep_rings=True) == []
    assert undo.files == ["trace_clock", "/dynamic_events"]
    assert setting(instance / "tracing_on") == "0"


def test_what_waits_for_a_refused_change_is_undone_though_the_ring_holds_events(
    instance: Path,
) -> None:
    (instance / "current_tracer").write_text("nop\n")
    (instance / "set_ftrace_filter").write_text("vfs_read\n")
    undo = Undo(str(instance))
    refused = Change("current_tracer", "nop", "nop")
    undo.take_over([refused], [Added("set_ftrace_filter", ("vfs_read",), alone=True)])
    assert undo.run(keep_rings=True) == []
    assert undo.files == []
    assert (instance / "set_ftrace_filter").read_text() == ""


@pytest.mark.parametrize(
    ("value", "reads"),
    [
        ("none\n", "none"),
        ('prev_pid == 3 && comm ~ "a b"\n', 'prev_pid == 3 && comm ~ "a b"'),
        ("nofield == 3\n^\nparse_error: Field not found\n", "nofield == 3"),
    ],
)
def test_a_filter_is_read_as_it_was_written(instance: Path, value: str, reads: str) -> None:
    file = instance / "events/sched/sched_switch/filter"
    file.write_text(value)
    assert read_setting(str(file)) == reads


# -- records that are accepted or refused


@pytest.mark.parametrize(
    "file",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "events/../../../etc/enable",
        "options/../trace_clock",
        "events/sched/sched_switch/trigger",
        "events/sched/filter",
        "/tracing_on",
        "/../max_graph_depth",
        "events/a/b/c/enable",
        "trace_marker",
        "set_event",
        "per_cpu/cpu0/trace_pipe_raw",
        "tracing_on\n",
        "",
    ],
)
def test_a_record_that_names_another_file_is_refused(file: str) -> None:
    with pytest.raises(ValueError, match="is not a setting that lttd changes"):
        record({"file": file, "before": "0", "after": "1"})


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("tracing_on", "2"),
        ("trace_clock", "mono\nx"),
        ("options/overwrite", ""),
        ("buffer_percent", "-1"),
        ("per_cpu/cpu0/buffer_size_kb", "9" * 20),
    ],
)
def test_a_record_with_a_value_that_lttd_never_writes_is_refused(file: str, value: str) -> None:
    with pytest.raises(ValueError, match="is not a value of"):
        record({"file": file, "before": value, "after": "1"})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"[]\n",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        json.dumps(head(trace=7)).encode() + b"\n",
        json.dumps(head(recorder={})).encode() + b"\n",
        json.dumps(head()).encode() + b"\n[]\n",
        json.dumps(head()).encode() + b'\n{"undone": 5}\n',
        json.dumps(head()).encode() + b'\n{"left_out": ["x"]}\n',
        json.dumps(head()).encode() + b'\n{"left_out": [Infinity]}\n',
        json.dumps(head()).encode() + b'\n{"added": "set_event_pid"}\n',
        json.dumps(head()).encode() + b'\n{"added": "set_event_pid", "items": 5}\n',
        json.dumps(head()).encode() + b'\n{"added": "set_event_pid", "items": [5]}\n',
        json.dumps(head(instance="a\0b")).encode() + b"\n",
        json.dumps(head(instance="\ud800")).encode() + b"\n",
        json.dumps(head(trace={"device": 1, "inode": 1, "path": "/a\0b"})).encode() + b"\n",
        json.dumps(head()).encode() + b"\n{}" * 200_000 + b"\n",
    ],
)
def test_content_that_is_not_a_record_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_record(content)


def test_a_last_line_that_a_kill_cut_short_is_ignored() -> None:
    text = json.dumps(head()) + '\n{"made": 77}\n{"file": "tracing_on", "bef'
    left = parse_record(text.encode())
    assert left.made == 77
    assert not left.changes


def test_a_change_that_was_undone_is_not_undone_again() -> None:
    left = record(
        {"file": "tracing_on", "before": "0", "after": "1"},
        {"left_out": [4, 5]},
        {"undone": ["tracing_on", "set_event_notrace_pid"]},
        {"left_out": [6]},
    )
    assert not left.changes
    assert left.added["set_event_notrace_pid"].items == ("6",), "main before it wrote left_out"


def test_items_that_were_taken_back_are_not_taken_back_again() -> None:
    left = record(
        {"added": "/dynamic_events", "items": ["p:lttd/a vfs_read"], "alone": True},
        {"added": "/dynamic_events", "items": ["s:lat u64 lat;", "u:no"][:1]},
        {"taken_back": "/dynamic_events", "items": ["p:lttd/a vfs_read"]},
    )
    assert left.added == {"/dynamic_events": Added("/dynamic_events", ("s:lat u64 lat;",), True)}


@pytest.mark.parametrize(
    ("file", "item"),
    [
        ("set_event_notrace_pid", "4 5"),
        ("set_event_pid", "-1"),
        ("set_event_pid", "5\n"),
        ("events/sched/sched_switch/trigger", "snapshot"),
        ("events/sched/sched_switch/trigger", "stacktrace\n!traceoff"),
        ("events/sched/sched_switch/trigger", "!stacktrace"),
        ("set_ftrace_filter", "!vfs_read"),
        ("set_ftrace_filter", "vfs_read vfs_write"),
        ("/dynamic_events", "p:kprobes/a vfs_read"),
        ("/dynamic_events", "-:lttd/a"),
        ("/dynamic_events", "p:lttd/ vfs_read"),
        ("/dynamic_events", "s:other/lat u64 lat"),
        ("/dynamic_events", "p:lttd/a vfs_read\n-:kprobes/"),
    ],
)
def test_a_record_with_an_item_that_lttd_never_adds_is_refused(file: str, item: str) -> None:
    with pytest.raises(ValueError, match="is not an item of"):
        record({"added": file, "items": [item]})


@pytest.mark.parametrize(
    "file",
    ["dynamic_events", "/kprobe_events", "set_event", "/../dynamic_events", "/set_event_pid"],
)
def test_a_record_that_names_another_list_is_refused(file: str) -> None:
    with pytest.raises(ValueError, match="is not a list to which lttd adds"):
        record({"added": file, "items": []})


def test_a_record_with_too_many_items_is_refused() -> None:
    lines = [
        {"added": "set_event_pid", "items": [str(pid) for pid in range(first, first + 10_000)]}
        for first in range(0, 60_000, 10_000)
    ]
    with pytest.raises(ValueError, match="50,000 items"):
        record(*lines)


@pytest.mark.parametrize(
    ("file", "item"),
    [
        ("set_event_pid", "4711"),
        ("events/sched/sched_switch/trigger", 'traceoff:1 if prev_comm == "a b"'),
        ("events/sched/sched_switch/trigger", "enable_event:sched:sched_process_exit:2"),
        ("set_ftrace_filter", "vfs_*"),
        ("set_ftrace_notrace", "*lock*"),
        ("/dynamic_events", "p:lttd/k1 do_sys_openat2 file=+0($arg2):ustring"),
        ("/dynamic_events", "r16:lttd/k1 vfs_read $retval"),
        ("/dynamic_events", "s:lat u64 lat; pid_t pid; char comm[16]"),
    ],
)
def test_every_item_that_lttd_adds_is_in_the_table(file: str, item: str) -> None:
    row = addition_of(file)
    assert row in ADDITIONS
    assert re.fullmatch(row.item, item)


def test_a_probe_is_named_with_its_group() -> None:
    assert probe_name("r16:lttd/k1 vfs_read $retval") == "lttd/k1"
    assert probe_name("s:lat u64 lat") == "synthetic/lat"


@pytest.mark.parametrize(
    "file",
    [
        "buffer_percent",
        "buffer_subbuf_size_kb",
        "events/enable",
        "events/sched/enable",
        "current_tracer",
        "events/sched/sched_switch/enable",
        "events/sched/sched_switch/filter",
        "/max_graph_depth",
        "options/overwrite",
        "per_cpu/cpu12/buffer_size_kb",
        "trace_clock",
        "tracing_on",
    ],
)
def test_every_setting_that_lttd_changes_is_in_the_table(file: str) -> None:
    assert setting_of(file) in SETTINGS
