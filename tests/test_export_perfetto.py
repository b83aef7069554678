"""Perfetto's own description of its format reads an export: events, tasks, clocks and losses."""

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lttd
from lttd.clock import Snapshot
from lttd.errors import NotATraceError, UsageError
from lttd.view.addresses import Symbols
from lttd.view.columns import EventRows
from lttd.view.export import export, perfetto
from lttd.view.export.perfetto_events import Encoder
from lttd.view.export.perfetto_messages import DRAWN, GENERIC, MESSAGES
from lttd.view.export.protobuf import varint, varints
from lttd.view.strips import Sized
from lttd.view.times import EVERYTHING, window_of
from tests.ftraced import PRINT_FORMAT, Traced, format_text, marker, opened, pages_of, switch, tick
from tests.fuzz_traces import blocks
from tests.print_fmts import FIELDS, event, event_rows
from tests.tools import replayed

proto = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
unknown_fields = pytest.importorskip("google.protobuf.unknown_fields")
descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
descriptor_pool = pytest.importorskip("google.protobuf.descriptor_pool")
message_factory = pytest.importorskip("google.protobuf.message_factory")
FieldDescriptor = pytest.importorskip("google.protobuf.descriptor").FieldDescriptor

Packets = list[Any]
TEXTS = {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}


def exported(trace: Path, begin: str | None = None, end: str | None = None) -> Packets:
    out = trace.parent / "out.pftrace"
    out.unlink(missing_ok=True)
    opened_ = lttd.open(trace)
    export(opened_, window_of(opened_, begin, end), "perfetto", out)
    return list(proto.Trace.FromString(out.read_bytes()).packet)


def bundles(packets: Packets) -> Packets:
    return [one.ftrace_events for one in packets if one.HasField("ftrace_events")]


def encoded(*all_rows: EventRows) -> list[Any]:
    """Return the messages of events, and the generic ones as (name, fields)."""
    found: list[Any] = []
    for rows in all_rows:
        encoder = Encoder(Symbols())
        (block,) = encoder.blocks(rows.batch, [0, len(rows)])
        bundle = bytes(block) + encoder.take_descriptors()
        found += messages(proto.FtraceEventBundle.FromString(bundle))
    return found


def messages(bundle: Any) -> list[Any]:  # noqa: ANN401
    described = {each.field_id: each for each in bundle.generic_event_descriptors}
    return [message_of(each, described) for each in bundle.event]


def message_of(event: Any, described: dict[int, Any]) -> Any:  # noqa: ANN401
    """Return the message of an event; of one that the bundle describes, its name and fields."""
    if event.WhichOneof("event"):
        return getattr(event, event.WhichOneof("event"))
    (field,) = unknown_fields.UnknownFieldSet(event)
    told = descriptor_pb2.DescriptorProto.FromString(described[field.field_number].event_descriptor)
    named, names = told.name, {each.number: each.name for each in told.field}
    told.name = "Event"  # Perfetto takes any name, this library only words
    for each in told.field:
        each.name = f"field_{each.number}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptor_pb2.FileDescriptorProto(name="x.proto", message_type=[told]))
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("Event"))
    made = kind.FromString(field.data)
    values = {number: getattr(made, f"field_{number}") for number in names}
    return named, {
        names[number]: value if isinstance(value, int | str) else list(value)
        for number, value in values.items()
    }


def test_every_number_is_in_perfettos_own_description() -> None:
    known = proto.FtraceEvent.DESCRIPTOR.fields_by_name
    assert known["generic"].number == GENERIC
    assert MESSAGES.keys() >= DRAWN
    for name, message in MESSAGES.items():
        fields = known[name].message_type.fields_by_name
        assert known[name].number == message.number
        for field, member in message.members.items():
            assert fields[field].number == member.number, (name, field)
            assert (fields[field].type in TEXTS) == (member.kind == "s"), (name, field)


def test_every_event_of_the_fixture_is_in_a_bundle_of_its_cpu(tmp_path: Path) -> None:
    replayed(tmp_path / "t")
    packets = exported(tmp_path / "t")
    found = [(one.cpu, each.timestamp, each.pid) for one in bundles(packets) for each in one.event]
    events = [(one.cpu, one.time, one.pid) for one in lttd.open(tmp_path / "t").events()]
    assert sorted(found) == sorted(events)
    for cpu in {cpu for cpu, _, _ in found}:
        times = [time for each, time, _ in found if each == cpu]
        assert times == sorted(times)
    names = Counter(one.name for one in lttd.open(tmp_path / "t").events())
    told = Counter(
        one if isinstance(one, str) else one[0]
        for bundle in all_described(packets)
        for one in (
            each if isinstance(each, tuple) else each.DESCRIPTOR.name for each in messages(bundle)
        )
    )
    assert told["SchedSwitchFtraceEvent"] == names["sched_switch"]
    assert sum(told.values()) == sum(names.values())


def all_described(packets: Packets) -> Packets:
    """Return the bundles, each with the descriptions of all."""
    found = bundles(packets)
    every = [each for bundle in found for each in bundle.generic_event_descriptors]
    for bundle in found:
        del bundle.generic_event_descriptors[:]
        bundle.generic_event_descriptors.extend(every)
    return found


def test_fields_of_a_known_event_have_their_values(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [switch(("a b", 7), ("y" * 15, 8)), switch(("", -1), ("x", 0))])])
    made.finish()
    (bundle,) = bundles(exported(tmp_path / "t"))
    first, second = (each.sched_switch for each in bundle.event)
    assert (first.prev_comm, first.prev_pid, first.next_comm, first.next_pid) == (
        "a b", 7, "y" * 15, 8,
    )  # fmt: skip
    assert (second.prev_comm, second.prev_pid, second.next_pid) == ("", -1, 0)


def test_an_event_without_a_message_keeps_all_fields_by_name() -> None:
    values = [event(-1, 1 << 31, -(1 << 63), b"comm", bytes(range(16)), b"text"), event(u=7)]
    first, second = encoded(event_rows(format_text("kinds", 9, FIELDS, '"x"'), values))
    assert first == (
        "kinds",
        {
            "i": -1,
            "u": 1 << 31,
            "q": -(1 << 63),
            "comm": "comm",
            "raw": "{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}",
            "s": "text",
            "list": first[1]["list"],
            "cpus": first[1]["cpus"],
            "rel": "text",
        },
    )
    assert (second[0], second[1]["u"], second[1]["s"]) == ("kinds", 7, "dyn")


@pytest.mark.parametrize(("byteorder", "long_bytes"), [("<", 8), (">", 8), ("<", 4), (">", 4)])
def test_numbers_of_any_machine_have_their_values(byteorder: str, long_bytes: int) -> None:
    size = long_bytes
    text = format_text(
        "sys_enter", 9, [f"long id;8;{size};1", f"unsigned long args[6];16;{6 * size};0"], '"x"'
    )
    word = "q" if size == 8 else "i"
    top = (1 << 8 * size) - 1
    args = (0, 1, 127, 128, top, 1 << 8 * size - 1)
    payload = struct.pack(f"{byteorder}8x{word}", -3).ljust(16, b"\0")
    payload += struct.pack(f"{byteorder}6{word.upper()}", *args)
    rows = event_rows(text, [payload], "raw_syscalls", size, byteorder)
    (found,) = encoded(rows)
    assert (found.id, tuple(found.args)) == (-3, args)


def test_a_known_name_with_fields_of_other_types_is_a_generic_event() -> None:
    text = format_text("sched_switch", 9, ["char prev_pid[8];8;8;0"], '"x"')
    assert encoded(event_rows(text, [bytes(8) + b"seven\0\0\0"])) == [
        ("sched_switch", {"prev_pid": "seven"})
    ]


@pytest.mark.parametrize(
    ("name", "field", "is_generic"),
    [("block_plug", "char comm[4]", True), ("rss_stat", "int curr", False)],
)
def test_a_message_that_lacks_fields_is_for_drawn_events_only(
    name: str, field: str, is_generic: bool
) -> None:
    text = format_text(name, 9, [f"{field};8;4;1", "int more;12;4;1"], '"x"')
    (found,) = encoded(event_rows(text, [struct.pack("<8xii", 0x414141, 7)]))
    assert isinstance(found, tuple) == is_generic


def test_an_event_with_more_fields_than_a_description_holds_names_each() -> None:
    fields = [f"int f{at};{8 + 4 * at};4;1" for at in range(39)] + ["char s[4];164;4;0"]
    text = format_text("many", 9, fields, '"x"')
    payload = bytes(8) + struct.pack("<39i", *range(-1, 38)) + b"abc\0"
    (found,) = encoded(event_rows(text, [payload]))
    assert found.event_name == "many"
    assert [(each.name, each.int_value) for each in found.field][:2] == [("f0", -1), ("f1", 0)]
    assert (len(found.field), found.field[39].str_value) == (40, "abc")


def test_an_event_without_a_format_has_its_bytes(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [struct.pack("<HBBi", 99, 0, 0, 7) + b"\x01\x02\xff\x00"])])
    made.finish()
    (bundle,) = bundles(exported(tmp_path / "t"))
    assert messages(bundle) == [("unknown-99", {"bytes": "6300000007000000" + "0102ff00"})]


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_lists_of_any_length_are_repeated_fields(count: int) -> None:
    text = format_text("kernel_stack", 9, ["int size;8;4;1", "unsigned long caller[];16;0;0"], '""')
    stack = [(1 << 64) - 1 - at for at in range(count)]
    payload = struct.pack(f"<8xi4x{count}Q", count, *stack)
    other = struct.pack("<8xi4x2Q", 2, 5, 6)
    found = encoded(event_rows(text, [payload, other], "ftrace"))
    assert [fields for _, fields in found] == [
        {"size": count, "caller": stack},
        {"size": 2, "caller": [5, 6]},
    ]


CALL = format_text(
    "sys_enter_openat", 9, ["int __syscall_nr;8;4;1", "int dfd;16;8;0", "int flags;24;8;0"], '""'
)
RETURN = format_text("sys_exit_openat", 9, ["int __syscall_nr;8;4;1", "long ret;16;8;1"], '""')


def test_events_of_single_system_calls_are_perfettos() -> None:
    entered, left = encoded(
        event_rows(CALL, [struct.pack("<8xi4x2Q", 257, 3, 1 << 63)], "syscalls"),
        event_rows(RETURN, [struct.pack("<8xi4xq", 257, -2)], "syscalls"),
    )
    assert (entered.id, list(entered.args)) == (257, [3, 1 << 63])
    assert (left.id, left.ret) == (257, -2)


def test_single_calls_are_generic_where_raw_syscalls_has_them_too() -> None:
    rows = event_rows(CALL, [struct.pack("<8xi4x2Q", 257, 3, 0)], "syscalls")
    raw = event_rows(CALL, [], "raw_syscalls").event_type
    raw.number = 1
    rows.batch.types.append(raw)
    assert encoded(rows)[0][0] == "sys_enter_openat"


def test_functions_have_the_names_of_kallsyms(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    text = format_text("workqueue_execute_start", 9, ["void * function;8;8;0"], '""')
    made.add_format("workqueue/workqueue_execute_start", text)
    (made.tracefs / "kallsyms").write_text("ffffffff81000100 t my_work\nffffffff81000200 t last\n")
    events = [
        struct.pack("<HBBiQ", 9, 0, 0, 7, at)
        for at in (0xFFFF_FFFF_8100_0100, 5 << 40, 0xFFFF_FFFF_8100_0100)
    ]
    made.append([pages_of(1000, events)])
    made.finish()
    packets = exported(tmp_path / "t")
    (named,) = (
        one.interned_data.kernel_symbols for one in packets if one.HasField("interned_data")
    )
    names = {each.iid: each.str for each in named}
    (bundle,) = bundles(packets)
    found = [each.workqueue_execute_start.function for each in bundle.event]
    assert [names.get(each, each) for each in found] == [b"my_work", 5 << 40, b"my_work"]
    assert found[0] == 0xFFFF_FFFF_8100_0100


MARKS = (b"B|7|outer", b"B|7", b"E|7", b"E", b"C|7|depth|-3", b"I|7|now", b"G|7|track|name|9")
TEXTS_OF_PEOPLE = (b"deploy 4711 begins", b"Error|7", b"C|7|depth|x", b"B|x|y", b"", b"I|7|")


def test_a_marker_is_a_print_if_perfetto_can_read_it(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.add_format("ftrace/print", PRINT_FORMAT)
    made.append([pages_of(1000, [marker(text + b"\n") for text in (*MARKS, *TEXTS_OF_PEOPLE)])])
    made.finish()
    (bundle,) = bundles(exported(tmp_path / "t"))
    found = [each.print.buf if each.HasField("print") else "" for each in bundle.event]
    assert found == [f"{text.decode()}\n" for text in MARKS] + [""] * len(TEXTS_OF_PEOPLE)
    told = [each for each in messages(bundle) if isinstance(each, tuple)]
    assert [(name, fields["buf"]) for name, fields in told] == [
        ("print", f"{text.decode()}\n") for text in TEXTS_OF_PEOPLE
    ]


def test_tasks_have_processes_and_names(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    lines = [
        "0\t7\t5\tbash",
        "900\t5\t5\tmake",
        "1025\t7\t5\tcc1",
        "0\t9\t\tnobody",
        "0\t0\t0\tidle",
    ]
    (made.tracefs / "commands").write_text("\n".join([*lines, ""]))
    made.append([pages_of(1000, [tick(1), tick(2), tick(3)])])
    made.finish()
    packets = [one for one in exported(tmp_path / "t") if one.HasField("process_tree")]
    first, later = (one.process_tree for one in packets)
    assert [(one.pid, list(one.cmdline), one.cmdline_is_comm) for one in first.processes] == [
        (5, ["make"], True)
    ]
    threads = [(one.tid, one.tgid, one.name) for one in first.threads]
    assert sorted(threads) == [(5, 5, "make"), (7, 5, "bash")]
    assert [(one.tid, one.name) for one in later.threads] == [(7, "cc1")]
    assert (packets[1].timestamp, packets[1].timestamp_clock_id) == (1025, 64)


SNAPSHOTS = [
    Snapshot(1000, 1000, 5_000_000_000, 7, 1),
    Snapshot(2000, 2000, 5_000_001_000, 1007, 1),
    Snapshot(3000, 3000, 9_000_000_000, 2007, 1),
]


@pytest.mark.parametrize(
    ("clock", "of_bundle", "primary", "stated"),
    [
        ("boot", 0, 0, [{6: 1000}, {6: 2000}, {6: 3000}]),
        ("mono", 2, 3, [{64: 1000, 3: 1000}, {64: 2000, 3: 2000}, {64: 3000, 3: 3000}]),
        ("mono_raw", 4, 5, [{5: 1000}, {5: 2000}, {5: 3000}]),
        ("local", 3, 0, [{64: 1000, 6: 5_000_000_000}, {64: 3000, 6: 9_000_000_000}]),
        ("global", 2, 0, [{64: 1000, 6: 5_000_000_000}, {64: 3000, 6: 9_000_000_000}]),
    ],
)
def test_the_trace_clock_is_stated_in_perfettos_terms(
    tmp_path: Path, clock: str, of_bundle: int, primary: int, stated: list[dict[int, int]]
) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1)])])
    made.append([pages_of(2900, [tick(1)])])
    made.manifest.source["clock"] = clock
    made.manifest.clock_snapshots = SNAPSHOTS
    made.finish()
    packets = exported(tmp_path / "t")
    told = [one.clock_snapshot for one in packets if one.HasField("clock_snapshot")]
    assert {bundle.ftrace_clock for bundle in bundles(packets)} == {of_bundle}
    assert {one.primary_trace_clock for one in told} == {primary}
    found = [{each.clock_id: each.timestamp for each in one.clocks} for one in told]
    for clocks, expected in zip(found, stated, strict=True):
        assert expected.items() <= clocks.items()
        assert 1 in clocks


def test_without_snapshots_times_are_those_of_boottime(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1)])])
    made.manifest.clock_snapshots = []
    made.finish()
    packets = exported(tmp_path / "t")
    assert not any(one.HasField("clock_snapshot") for one in packets)
    assert bundles(packets)[0].ftrace_clock == 0


def test_a_bundle_begins_after_each_loss_and_the_stats_count(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t", cpus=2)
    made.append([pages_of(1000, [tick(1)])], trailing_loss=5)
    made.append([pages_of(2000, [tick(2)])])
    made.append([pages_of(1000, [tick(3)])], cpu=1)
    made.append([], cpu=1, trailing_loss=2)
    made.finish()
    packets = exported(tmp_path / "t")
    assert [(one.cpu, len(one.event), one.lost_events) for one in bundles(packets)] == [
        (0, 1, False), (0, 1, True), (1, 1, False), (1, 0, True),
    ]  # fmt: skip
    begin, end = (one.ftrace_stats for one in packets if one.HasField("ftrace_stats"))
    assert (begin.phase, end.phase) == (1, 2)
    assert [(one.cpu, one.dropped_events, one.read_events) for one in begin.cpu_stats] == [
        (0, 0, 0), (1, 0, 0),
    ]  # fmt: skip
    assert [
        (one.cpu, one.overrun, one.dropped_events, one.read_events) for one in end.cpu_stats
    ] == [(0, 0, 5, 2), (1, 0, 2, 1)]


def test_cpus_that_perfetto_refuses_are_left_out_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Traced(tmp_path / "t", cpus=2)
    for cpu in (0, 1):
        made.append([pages_of(1000, [tick(cpu)])], cpu=cpu)
    made.finish()
    monkeypatch.setattr(perfetto, "MOST_CPUS", 1)
    lines = export(lttd.open(tmp_path / "t"), EVERYTHING, "perfetto", tmp_path / "out")
    assert lines == ["CPU 1 is left out: Perfetto shows CPUs 0 to 0 only", "1 events"]


def test_the_machine_names_kernel_and_architecture(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000, [tick(1)])])
    made.finish()
    told = exported(tmp_path / "t")[0].system_info
    assert (told.utsname.sysname, told.utsname.release, told.utsname.machine) == (
        "Linux", "6.18.0", "x86_64",
    )  # fmt: skip


def test_a_window_exports_exactly_its_events(tmp_path: Path) -> None:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000 * at, [tick(at), opened("/x" * at, at)]) for at in range(1, 9)])
    made.finish()
    (bundle,) = bundles(exported(tmp_path / "t", "+1020ns", "+3us"))
    assert [each.timestamp for each in bundle.event] == [2020, 3010, 3020]
    with pytest.raises(NotATraceError):
        exported(tmp_path / "t", "+1s", "+2s")


def test_a_trace_of_several_clocks_or_of_another_family_is_refused(tmp_path: Path) -> None:
    for number, boot in enumerate(("a", "b"), 1):
        made = Traced(tmp_path / "t", number=number, boot_id=boot)
        made.append([pages_of(1000, [tick(1)])])
        made.finish()
    with pytest.raises(UsageError, match="one clock"):
        export(lttd.open(tmp_path / "t"), EVERYTHING, "perfetto", tmp_path / "out")
    blocks(tmp_path / "blocks")
    with pytest.raises(UsageError, match="holds blktrace, and --to perfetto takes only ftrace"):
        export(lttd.open(tmp_path / "blocks"), EVERYTHING, "perfetto", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_long_strings_are_whole_and_short_ones_take_little_room() -> None:
    text = format_text("files", 9, ["__data_loc char[] path;8;4;0"], '"x"')
    told = [b"a" * size for size in (0, 1, 127, 128, 300, 20_000)] * 3
    payloads = [struct.pack("<8xI", (len(one) + 1) << 16 | 12) + one + b"\0" for one in told]
    found = encoded(event_rows(text, payloads))
    assert [fields["path"] for _, fields in found] == [one.decode() for one in told]
    rows = event_rows(text, payloads[:2])
    (block,) = Encoder(Symbols()).blocks(rows.batch, [0, 2])
    assert len(block) < 32


def test_an_export_of_no_events_has_no_bundle() -> None:
    rows = event_rows(CALL, [], "syscalls")
    assert Encoder(Symbols()).blocks(rows.batch.select(np.empty(0, np.int64)), [0]) == []


@pytest.mark.parametrize("tag", [b"", b"\x08", b"\x82\x10"])
def test_varints_are_those_of_single_numbers(tag: bytes) -> None:
    edges = sorted({max(0, (1 << bit) + off) for bit in range(65) for off in (-1, 0, 1)})
    every = np.array([edge for edge in edges if edge < 1 << 64], np.uint64)
    for high in (1 << 7, 1 << 14, 1 << 32, 1 << 56, (1 << 64) - 1):
        some = every[every <= np.uint64(high)]
        assert joined_rows(varints(some, tag)) == [tag + varint(int(one)) for one in some]
    signed = np.array([0, -1, 1, -(1 << 31)], np.int32)
    assert joined_rows(varints(signed, tag)) == [tag + varint(int(one)) for one in signed]


def joined_rows(column: Sized) -> list[bytes]:
    lengths = np.broadcast_to(column.length, (len(column.words),)).tolist()
    return [word.tobytes()[:length] for word, length in zip(column.words, lengths, strict=True)]
