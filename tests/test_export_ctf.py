"""``lttv export --to ctf`` exports every field of every event; babeltrace2 reads them."""

import os
import re
import struct
import sys
from pathlib import Path

import pytest

from lttd.errors import NotATraceError, UsageError
from lttd.view.export import export
from lttd.view.times import EVERYTHING, Moment, Window
from lttd.view.trace import Trace
from tests.every_type import common, every_type, made_of
from tests.fakes import page
from tests.segment_builder import SNAPSHOT, Made, record_at, subbuffer
from tests.tools import CtfEvent, babeltrace, decoded, needs_tool, replayed

pytestmark = needs_tool("babeltrace2")


def test_every_type_of_field_survives_the_ctf_export(tmp_path: Path) -> None:
    events = [
        every_type(b"hello\0", [1, 2, 3], 0b101, b"by\0"),
        every_type(b"\0", [], 1 << 63, b"\0\0\0"),
        every_type("grüße\0 left over".encode(), [1 << 31] * 9, 0, b"no nul"),
        common(301) + struct.pack("<I", 9) + b"to the end\n\0",
        common(301) + struct.pack("<I", 9),
    ]
    export(made_of(tmp_path, events), EVERYTHING, "ctf", tmp_path / "ctf")
    found, warnings = babeltrace(tmp_path / "ctf")
    assert warnings == []
    fixed = (
        "small = -5, large = 9223372036854775808, pointer = 0xFFFF800000001000, "
        'comm = "bash", list = [ [0] = -1, [1] = 0, [2] = 7 ], '
        "thing = [ [0] = 0x1, [1] = 0x2, [2] = 0x3 ], "
    )
    three = "[ [0] = 1, [1] = 2, [2] = 3 ]"
    nine = "[ " + ", ".join(f"[{n}] = 2147483648" for n in range(9)) + " ]"
    told = [
        fixed + f'text = "hello", _numbers_length = 3, numbers = {three}, '
        '_mask_length = 1, mask = [ [0] = 0x5 ], near = "by"',
        fixed + 'text = "", _numbers_length = 0, numbers = [ ], '
        '_mask_length = 1, mask = [ [0] = 0x8000000000000000 ], near = ""',
        fixed + f'text = "grüße", _numbers_length = 9, numbers = {nine}, '
        '_mask_length = 1, mask = [ [0] = 0x0 ], near = "no nul"',
        'event = 9, buf = "to the end\\n"',
        'event = 9, buf = ""',
    ]
    plain = "common_pid = 42, common_flags = 1, common_preempt_count = 2"
    assert found == [
        CtfEvent(5010 + 10 * number, name, 0, plain, fields)
        for number, (name, fields) in enumerate(
            zip(["every_type"] * 3 + ["printed"] * 2, told, strict=True)
        )
    ]


def test_unknown_and_short_events_are_exported_as_bytes(tmp_path: Path) -> None:
    events = [
        common(77) + b"\1\2\3\4",
        common(301),  # without the field of its format
        common(301) + struct.pack("<I", 1) + b"ok\0\0",
        common(77),
        common(300) + bytes(range(200, 220)),
    ]
    lines = export(made_of(tmp_path, events), EVERYTHING, "ctf", tmp_path / "ctf")
    found, warnings = babeltrace(tmp_path / "ctf")
    assert warnings == []
    assert [(one.name, one.fields) for one in found[:4]] == [
        (
            "unknown_77_undecoded",
            "_raw_length = 4, raw = [ [0] = 0x1, [1] = 0x2, [2] = 0x3, [3] = 0x4 ]",
        ),
        ("printed_301_undecoded", "_raw_length = 0, raw = [ ]"),
        ("printed", 'event = 1, buf = "ok"'),
        ("unknown_77_undecoded", "_raw_length = 0, raw = [ ]"),
    ]
    assert found[4].name == "every_type_300_undecoded"
    assert "_raw_length = 20" in found[4].fields
    assert any("no format of event id 77" in line for line in lines)


def test_dynamic_fields_outside_their_event_are_cut(tmp_path: Path) -> None:
    whole = every_type(b"text\0", [1], 1, b"n\0")
    wild = whole[:52] + struct.pack(
        "<4I", *[0xFFFF << 16 | 60, 8 << 16 | 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF]
    )
    export(made_of(tmp_path, [whole, wild, whole]), EVERYTHING, "ctf", tmp_path / "ctf")
    found, warnings = babeltrace(tmp_path / "ctf")
    assert (len(found), warnings) == (3, [])
    assert found[0].fields == found[2].fields
    assert found[1].fields.endswith('numbers = [ ], _mask_length = 0, mask = [ ], near = ""')


def test_babeltrace_reads_every_event_and_every_loss(tmp_path: Path) -> None:
    trace = replayed(tmp_path / "t")
    (told,) = export(trace, EVERYTHING, "ctf", tmp_path / "ctf")
    found, warnings = babeltrace(tmp_path / "ctf")
    events = decoded(trace)
    for cpu, ours in events.items():
        assert [(one.time, one.name) for one in found if one.cpu == cpu] == ours
    assert told.startswith(f"{len(found)} events of 44 sub-buffers")
    lost = [gap.count for stream in trace.segments[0].streams for gap in stream.gaps]
    assert [int(re.findall(r"discarded (\d+) events", line)[0]) for line in warnings] == lost


def test_losses_are_exported_before_between_and_after_events(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0, missed=1), subbuffer(1), subbuffer(2, missed=20)], trailing_loss=300)
    made.finish()
    export(Trace(made.trace), EVERYTHING, "ctf", tmp_path / "ctf")
    found, warnings = babeltrace(tmp_path / "ctf")
    assert len(found) == 9
    counts = [int(number) for line in warnings for number in re.findall(r"discarded (\d+)", line)]
    assert counts == [1, 20, 300]


def test_a_window_exports_exactly_its_events(tmp_path: Path) -> None:
    trace = replayed(tmp_path / "t")
    middle = decoded(trace)[0][300:700]
    begin, end = middle[0][0], middle[-1][0]
    window = Window(Moment(begin, wall=False), Moment(end, wall=False))
    export(trace, window, "ctf", tmp_path / "ctf")
    found, _ = babeltrace(tmp_path / "ctf")
    assert [(one.time, one.name) for one in found if one.cpu == 0] == middle
    assert all(begin <= one.time <= end for one in found)
    with pytest.raises(NotATraceError):
        export(trace, Window(Moment(1, wall=False), Moment(2, wall=False)), "ctf", tmp_path / "no")


def test_segments_become_ctf_traces_on_one_time_axis(tmp_path: Path) -> None:
    for number, boot in ((1, "one"), (2, "another")):
        made = Made(tmp_path / "t", number=number, boot_id=boot)
        made.append([subbuffer(number)])
        # The clock of the second boot began at 0, a day later.
        day_ns = 86_400 * 10**9 * number
        made.manifest.clock_snapshots = [
            type(SNAPSHOT)(1000, 1000, 1000, SNAPSHOT.realtime_ns + day_ns, 1)
        ]
        made.finish()
    trace = Trace(tmp_path / "t")
    export(trace, EVERYTHING, "ctf", tmp_path / "ctf")
    assert sorted(os.listdir(tmp_path / "ctf")) == [
        segment.paths.directory.name for segment in trace.segments
    ]
    found, warnings = babeltrace(tmp_path / "ctf")
    assert warnings == []
    assert [one.time for one in found] == [2010, 2020, 2030, 3010, 3020, 3030]


def test_a_trace_without_ftrace_events_is_refused(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0)])
    made.finish()
    object.__setattr__(made.records[0].info, "abi", "lttng")
    made.write_manifest()
    with pytest.raises(
        UsageError, match=r"holds lttng, and --to ctf takes only ctf, ftrace; formats for it: none$"
    ):
        export(Trace(made.trace), EVERYTHING, "ctf", tmp_path / "ctf")
    assert os.listdir(tmp_path) == ["t"]


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path / "t")
    made.append([subbuffer(0)])
    made.finish()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "lttd.view.export.parquet", raising=False)
    with pytest.raises(UsageError, match=r"needs pyarrow: pip install 'lttd\[parquet\]'"):
        export(Trace(made.trace), EVERYTHING, "parquet", tmp_path / "pq")


def test_a_time_that_steps_back_does_not_stop_babeltrace(tmp_path: Path) -> None:
    made = Made(tmp_path / "t")
    payload = common(77)
    made.append([page(9000, record_at(10, payload)), page(5000, record_at(10, payload))])
    made.append([page(9500, record_at(10, payload))])
    made.finish()
    export(Trace(made.trace), EVERYTHING, "ctf", tmp_path / "ctf")
    found, _ = babeltrace(tmp_path / "ctf")
    assert [one.time for one in found] == [9010, 9010, 9510]
