"""``--comm`` keeps the events of tasks by the names that their lines have."""

import re
from pathlib import Path

import pytest

import lttd
from lttd.view import window
from lttd.view.commands import text as show
from tests.ftraced import Traced, pages_of, tick
from tests.test_relay_text import segment
from tests.tools import replayed
from tests.viewer import run


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("comm") / "t"
    replayed(path)
    return path


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "PIECE_BYTES", 4096)
    monkeypatch.setattr(window, "STREAM_BYTES", 1)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("globs", [["sys*"], ["migration/?", "rcu_preempt"]])
def test_the_events_of_a_task_are_those_whose_lines_have_its_name(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes], globs: list[str]
) -> None:
    _, everything, _ = run(capfdbinary, "text", trace)
    words = [word for glob in globs for word in ("--comm", glob)]
    _, some, _ = run(capfdbinary, "text", trace, *words)
    name = rb" *syscall_load-" if globs == ["sys*"] else rb" *(migration/.|rcu_preempt)-"
    lines = [line for line in everything.splitlines() if re.match(name, line) or b"LOST" in line]
    assert some.splitlines() == lines
    assert len(lines) > 20


def test_a_name_longer_than_the_kernel_keeps_is_cut_as_it_is(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = Traced(tmp_path / "t")
    made.commands((0, 7, "systemd-journal"), (0, 8, "systemd-journa"))
    made.append([pages_of(1000, [tick(1, pid=7), tick(2, pid=8)])])
    made.finish()
    _, out, _ = run(capfdbinary, "text", made.trace, "--comm", "systemd-journald")
    assert re.findall(rb"count=(\d)", out) == [b"1"]


def test_events_that_state_no_task_are_left_out_with_a_note(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made = segment(tmp_path / "t", [b"a record", b"another"])
    status, out, err = run(capfdbinary, "text", made, "--comm", "*")
    assert (status, out) == (0, b"")
    assert "relay events do not state their task, so --comm leaves them out" in err


def test_the_library_chooses_tasks_as_the_lines_do(
    trace: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    _, text, _ = run(capfdbinary, "text", trace, "--comm", "sys*")
    events = sum(map(len, lttd.open(trace).window(comms=["sys*"])))
    assert events == sum(b"LOST" not in line for line in text.splitlines()) > 20
