"""Perfetto's text of lttng's events: the kernel's fields; calls and interrupts as slices."""

import re
from pathlib import Path

import pytest

import lttd
from lttd.errors import UsageError
from lttd.view.export import export
from lttd.view.times import EVERYTHING
from lttd.view.trace import Trace
from tests.data import SHARED_CTF, needs
from tests.lttng_events import CONTEXT, EVENTS, Told, lttng_trace, switch
from tests.test_ctf_view import REAL, kinds
from tests.test_export_systrace import LINE
from tests.test_sources_replay_ctf import record

A, B, IDLE = ("task a", 7), ("kworker/1:1", 8), ("swapper/0", 0)


def exported(directory: Path, made: Path) -> list[str]:
    """Return the lines of an export, without the head."""
    record(made, directory / "t")
    export(Trace(directory / "t"), EVERYTHING, "systrace", directory / "out")
    lines = (directory / "out").read_text().splitlines()
    assert lines[0] == "# tracer: nop"
    assert all(LINE.search(line) for line in lines if not line.startswith("#"))
    return [line for line in lines if not line.startswith("#") or "LOST" in line]


def call(time: int, name: str, **context: int) -> Told:
    fields = {
        "syscall_entry_openat": {"dfd": 3, "filename": b"/a b"}, "syscall_exit_openat": {"ret": 4},
        "syscall_entry_read": {"fd": 3}, "syscall_exit_read": {"ret": 9},
    }[name]  # fmt: skip
    return time, name, {**fields, **({"context": context} if context else {})}


def test_switches_and_wakings_have_the_kernels_names_and_fields(tmp_path: Path) -> None:
    woken = {"comm": "task a", "tid": 7, "prio": -5, "target_cpu": 2}
    events = [
        switch(1000, IDLE, A, state=0), (1010, "sched_waking", woken),
        switch(1020, A, B, state=256), switch(1030, B, IDLE, state=128),
        (1040, "power_cpu_idle", {"state": 1, "cpu_id": 0}),
        (1050, "print", {"text": b"B|1|x"}),
    ]  # fmt: skip
    assert exported(tmp_path, lttng_trace(tmp_path / "ctf", {0: [events]})) == [
        "          <idle>-0       (-------) [000] ....     0.000001000: sched_switch: "
        "prev_comm=swapper/0 prev_pid=0 prev_prio=120 prev_state=R ==> "
        "next_comm=task a next_pid=7 next_prio=119",
        "          task a-7       (-------) [000] ....     0.000001010: sched_waking: "
        "comm=task a pid=7 prio=95 target_cpu=002",
        "          task a-7       (-------) [000] ....     0.000001020: sched_switch: "
        "prev_comm=task a prev_pid=7 prev_prio=120 prev_state=R+ ==> "
        "next_comm=kworker/1:1 next_pid=8 next_prio=119",
        "     kworker/1:1-8       (-------) [000] ....     0.000001030: sched_switch: "
        "prev_comm=kworker/1:1 prev_pid=8 prev_prio=120 prev_state=I ==> "
        "next_comm=swapper/0 next_pid=0 next_prio=119",
        "          <idle>-0       (-------) [000] ....     0.000001040: cpu_idle: state=1 cpu_id=0",
        "          <idle>-0       (-------) [000] ....     0.000001050: channel0:print: text=B|1|x",
    ]


@pytest.mark.parametrize(
    ("stated", "written"),
    [(0, "R"), (1, "S"), (2, "D"), (0x102, "D"), (0x402, "I"), (64, "P"), (0x1000, "R+")],
)
def test_states_of_tasks_have_the_kernels_letters(
    stated: int, written: str, tmp_path: Path
) -> None:
    made = lttng_trace(tmp_path / "ctf", {0: [[switch(1000, A, B, state=stated)]]})
    assert f" prev_state={written} ==> " in exported(tmp_path, made)[0]


def test_calls_are_slices_of_their_thread_wherever_they_end(tmp_path: Path) -> None:
    state = {"tid": 7, "pid": 5, "name": b"task a"}
    first = [
        switch(1000, IDLE, A), (1001, "lttng_statedump_process_state", state),
        call(1010, "syscall_entry_openat"), switch(1020, A, IDLE),
    ]  # fmt: skip
    second = [switch(1005, IDLE, B), call(1030, "syscall_entry_read"), switch(1040, B, A),
              call(1050, "syscall_exit_openat")]  # fmt: skip
    lines = exported(tmp_path, lttng_trace(tmp_path / "ctf", {0: [first], 1: [second]}))
    told = [re.sub(r" \.\.\.\. .*: t", " t", line) for line in lines if "mark_write" in line]
    assert told == [
        "          task a-7       (      5) [000] tracing_mark_write: B|5|sys_openat",
        "     kworker/1:1-8       (-------) [001] tracing_mark_write: B|8|sys_read",
        "          task a-7       (      5) [001] tracing_mark_write: E|5",
    ]


def test_calls_whose_begin_or_end_is_missing_are_no_slices(tmp_path: Path) -> None:
    events = [
        switch(1000, IDLE, A), call(1010, "syscall_exit_read"), call(1020, "syscall_entry_openat"),
        call(1030, "syscall_entry_read"), call(1040, "syscall_exit_read"),
        call(1050, "syscall_exit_openat"), call(1060, "syscall_entry_read"),
    ]  # fmt: skip
    lines = exported(tmp_path, lttng_trace(tmp_path / "ctf", {0: [events]}))
    assert [line.partition(": ")[2] for line in lines[1:]] == [
        "syscall_exit_read: ret=9",
        "syscall_entry_openat: dfd=3 filename=/a b",
        "tracing_mark_write: B|7|sys_read",
        "tracing_mark_write: E|7",
        "syscall_exit_openat: ret=4",
        "tracing_mark_write: B|7|sys_read",
    ]


STRING, PAIR = "string _{};", "integer {{ size = 32; align = 8; }} _{}[2];"
REAL_NUMBER = "floating_point {{ exp_dig = 8; mant_dig = 24; align = 8; }} _{};"
LARGE = "integer {{ size = 64; align = 8; }} _{};"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("declared", "value"),
    [(STRING, b"x"), (PAIR, [1, 2]), (REAL_NUMBER, float("nan")), (LARGE, (1 << 64) - 1)],
    ids=["strings", "pairs", "floats", "large"],
)
def test_events_of_known_names_may_have_fields_of_any_class(
    declared: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ["parent_comm", "parent_tid", "parent_pid", "child_comm", "child_tid", "child_pid"]
    fields = {name: re.findall(r" _(\w+)(?:\[\d+\])?;", text) for name, text in EVENTS.items()}
    fields["sched_process_fork"] = tasks
    for name, some in fields.items():
        monkeypatch.setitem(EVENTS, name, " ".join(map(declared.format, some)))
    context = " ".join(map(declared.format, ("pid", "procname")))
    known = {"context": {"pid": value, "procname": value}}
    events = [(9, name, {**dict.fromkeys(some, value), **known}) for name, some in fields.items()]
    context = f"event.context := struct {{ {context} }};"
    lines = exported(tmp_path, lttng_trace(tmp_path / "ctf", {0: [events]}, context=context))
    assert len(lines) == len(events)


def test_interrupts_are_slices_of_their_cpu(tmp_path: Path) -> None:
    events: list[Told] = [
        (1000, "irq_handler_exit", {"irq": 3, "ret": 1}),
        (1010, "irq_softirq_entry", {"vec": 3}),
        (1020, "irq_handler_entry", {"irq": 27, "name": b"virtio0"}),
        (1030, "irq_handler_exit", {"irq": 27, "ret": 1}),
        (1040, "irq_softirq_exit", {"vec": 3}),
    ]
    lines = exported(tmp_path, lttng_trace(tmp_path / "ctf", {2: [events]}))
    assert [line.partition(": ")[2] for line in lines] == [
        "irq_handler_exit: irq=3 ret=1",
        "tracing_mark_write: G|0|softirq cpu 2|NET_RX|2",
        "tracing_mark_write: G|0|irq cpu 2|virtio0 (27)|2",
        "tracing_mark_write: H|0|irq cpu 2|2",
        "tracing_mark_write: H|0|softirq cpu 2|2",
    ]
    assert all(line.startswith("           <...>-0 ") for line in lines)


def test_after_a_loss_only_the_next_switch_tells_who_ran(tmp_path: Path) -> None:
    before = [switch(1000, IDLE, A), call(1010, "syscall_entry_read")]
    after = [
        call(2000, "syscall_exit_read"), switch(2010, B, IDLE), call(2020, "syscall_entry_read"),
    ]  # fmt: skip
    rest = [call(3000, "syscall_entry_read")]
    made = lttng_trace(tmp_path / "ctf", {0: [before, after, rest]}, lost=(0, 4, 9))
    lines = exported(tmp_path, made)
    assert [line.partition("-")[0].strip() for line in lines if line[0] != "#"] == [
        "<idle>", "task a", "kworker/1:1", "kworker/1:1", "<idle>", "<...>",
    ]  # fmt: skip
    assert sum("LOST" in line for line in lines) == 2


def test_contexts_name_task_process_and_command(tmp_path: Path) -> None:
    events = [
        call(1000, "syscall_entry_read", tid=7, pid=5, procname="ctx"),  # type: ignore[arg-type]
        call(1010, "syscall_exit_read", tid=7, pid=5, procname="ctx"),  # type: ignore[arg-type]
    ]
    lines = exported(tmp_path, lttng_trace(tmp_path / "ctf", {0: [events]}, context=CONTEXT))
    assert [line.strip() for line in lines] == [
        "ctx-7       (      5) [000] ....     0.000001000: tracing_mark_write: B|5|sys_read",
        "ctx-7       (      5) [000] ....     0.000001010: tracing_mark_write: E|5",
    ]


def test_recordings_of_several_boots_are_refused(tmp_path: Path) -> None:
    for name, offset_s in (("a", 1_600_000_000), ("b", 1_700_000_000)):
        lttng_trace(tmp_path / name, {0: [[switch(1000, IDLE, A)]]}, offset_s=offset_s)
        record(tmp_path / name, tmp_path / "t", "--append")
    with pytest.raises(UsageError, match=r"are of different boots.*export one segment"):
        export(Trace(tmp_path / "t"), EVERYTHING, "systrace", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_events_of_other_tracers_keep_their_provider(tmp_path: Path) -> None:
    lines = exported(tmp_path, kinds("le", tmp_path / "ctf"))
    assert [re.findall(r": (\S+): ?(\S*)", line)[0] for line in lines[:1]] == [
        ("my:kinds", "hex=0x0")
    ]
    assert len(lines) == 7


@needs(SHARED_CTF)
@pytest.mark.parametrize("name", REAL, ids=str)
def test_every_event_of_a_real_trace_is_a_line_of_its_cpu_and_time(
    name: Path, tmp_path: Path
) -> None:
    lines = [line for line in exported(tmp_path, SHARED_CTF / name) if line[0] != "#"]
    found = [LINE.search(line) for line in lines]
    events = [(event.cpu, event.time) for event in lttd.open(tmp_path / "t").events()]
    assert [
        (int(one[3]), int(one[4].replace(".", ""))) for one in found if one
    ] == events  # fmt: skip
    begun = sum(": B|" in line for line in lines)
    assert sum(": E|" in line for line in lines) <= begun
    switches = [line for line in lines if " ==> " in line]
    for line in switches:
        who = re.search(r"-(\d+) +\(", line)
        assert who
        assert f" prev_pid={who[1]} " in line
