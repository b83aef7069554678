"""``lttv info`` lists the windows that triggers keep, and ``--trigger N`` shows one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lttd.files import Disk
from lttd.kept import Kept, write_kept
from lttd.tracedir import segments
from lttd.trigger import Trigger
from tests.fuzz_traces import small
from tests.segment_builder import SNAPSHOT
from tests.viewer import run

# The trace's clock is 1,700,000,000 s and 0.000001 s less than the wall clock.
OFFSET_NS = SNAPSHOT.realtime_ns - SNAPSHOT.trace
ONE = Trigger(
    "disk \x1b[2J full", {"unit\n": "db\u202e"}, "http", OFFSET_NS + 2000, 1000, 500,
    number=3, begin_ns=OFFSET_NS + 1000, end_ns=OFFSET_NS + 2500, complete=True,
    note="the trace reached back 0.0 s before it",
)  # fmt: skip


def kept(trace: Path, *triggers: Trigger) -> Path:
    """Make a trace of one segment that *triggers* keep."""
    (paths,) = segments(small(trace))
    disk = Disk()
    disk.hold(paths.base)
    write_kept(paths, Kept(triggers=triggers), disk)
    return trace


def times(lines: bytes) -> list[int]:
    return [json.loads(line)["time"] for line in lines.splitlines()]


def test_info_lists_each_window_with_its_reason_escaped(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trace = kept(tmp_path / "t", ONE, replace(ONE, number=4, reason="later", complete=False))
    status, out, _ = run(capfdbinary, "info", trace)
    assert status == 0
    text = out.decode()
    assert "disk \\x1b[2J full (http) unit\\x0a=db\\u202e; the trace reached back" in text
    first, second = text[text.index("window kept") :].splitlines()[1:]
    assert first.startswith("3           2023-11-14T22:13:20.000000000Z  0.000 s  disk")
    assert second.endswith("; not complete")
    status, out, _ = run(capfdbinary, "info", "--json", trace)
    assert json.loads(out)["triggers"][0] == ONE.to_json()


def test_a_trace_without_triggers_lists_none(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert b"window kept" not in run(capfdbinary, "info", small(tmp_path / "t"))[1]


def test_the_events_of_a_window_are_those_between_its_true_bounds(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trace = kept(tmp_path / "t", ONE)
    every = times(run(capfdbinary, "text", trace, "--json")[1])
    status, out, err = run(capfdbinary, "text", trace, "--json", "--trigger", 3)
    assert (status, err.count("Traceback")) == (0, 0)
    within = [each for each in every if 1000 <= each <= 2500]
    assert times(out) == within
    assert 0 < len(within) < len(every)


def test_a_window_that_is_not_complete_is_shown_as_it_was_asked_for(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trace = kept(tmp_path / "t", replace(ONE, begin_ns=None, end_ns=None, complete=False))
    out = run(capfdbinary, "text", trace, "--json", "--trigger", 3)[1]
    assert times(out)
    assert all(1000 <= each <= 2500 for each in times(out))


def test_the_window_of_a_trigger_is_cut_exported_and_drawn(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trace = kept(tmp_path / "t", ONE)
    for words in (("cut",), ("export", "--to", "perfetto"), ("plot",)):
        out = tmp_path / f"{words[0]}.svg"
        assert run(capfdbinary, *words, trace, "--trigger", "3", "-o", out)[0] == 0
        assert out.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--trigger", "4"), "no trigger 4; there are 3"),
        (("--trigger", "3", "--begin", "+1s"), "leave --begin and --end out"),
        (("--trigger", "x"), "--trigger"),
        (("--trigger", "-1"), "--trigger"),
        (("--trigger", "9" * 5000), "--trigger"),
    ],
)
def test_a_trigger_that_is_not_there_is_refused_in_one_line(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], words: tuple[str, ...], says: str
) -> None:
    try:
        status, out, err = run(capfdbinary, "text", kept(tmp_path / "t", ONE), *words)
    except SystemExit as error:
        status, (out, err_bytes) = error.code, capfdbinary.readouterr()
        err = err_bytes.decode()
    assert (status, out) == (2, b"")
    assert says in err
    assert "Traceback" not in err


def test_a_damaged_record_is_a_line_and_costs_no_event(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trace = kept(tmp_path / "t", ONE)
    (paths,) = segments(trace)
    paths.kept.write_bytes(b'{"by_person": false, "triggers": [7]}')
    status, out, _ = run(capfdbinary, "info", trace)
    assert status == 0
    assert b"kept.json: byte 0: trigger: not a mapping" in out
    assert run(capfdbinary, "text", trace)[0] == 0
