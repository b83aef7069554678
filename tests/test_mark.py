"""``lttd mark`` writes a line into every ring that is recorded, or says why it is not there."""

import json
import re
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lttd.control_protocol import Peer
from lttd.errors import LttdError, UsageError
from lttd.mark_requests import MarkRequests
from lttd.parsers import parse_mark
from lttd.sources.ftrace import instance, setup
from lttd.sources.ftrace.source import open_ftrace
from lttd.subbuffer import BufferPool
from tests.ftrace_sources import QUIET, content, drain, instance_of
from tests.instances import on_cpu_0
from tests.live_windows import client
from tests.running import QUIET as QUIET_RUN
from tests.running import Launcher, info, lttv, needs_kernel, until

ROOT = Peer(1, 0, 0)


class FakeSource:
    """A source that takes marks, unless it fails."""

    def __init__(self, name: str, error: LttdError | None = None) -> None:
        self.name = name
        self.error = error
        self.marks: list[str] = []

    def mark(self, text: str) -> str:
        if self.error is not None:
            raise self.error
        self.marks.append(text)
        return self.name


class FakeRecording:
    def __init__(self, source: object) -> None:
        self.source = source


def requests(*sources: object) -> MarkRequests:
    recordings: Any = [FakeRecording(each) for each in sources]
    return MarkRequests(recordings)


async def test_every_source_that_takes_marks_gets_it() -> None:
    one, other = FakeSource("lttd-7"), FakeSource("foo")
    answer = await requests(one, object(), other)({"do": "mark", "text": "ä b"}, ROOT)
    assert answer == {"marked": ["lttd-7", "foo"]}
    assert one.marks == other.marks == ["ä b"]


async def test_a_mark_that_one_ring_refuses_is_an_error_that_says_where_it_is() -> None:
    bad, good = FakeSource("a", LttdError("a: tracing is off")), FakeSource("b")
    with pytest.raises(LttdError, match=r"^a: tracing is off \(it is in b\)$"):
        await requests(bad, good)({"do": "mark", "text": "x"}, ROOT)
    assert good.marks == ["x"]


async def test_a_recording_without_a_ring_for_marks_refuses_them() -> None:
    with pytest.raises(LttdError, match="no source of this recording takes marks"):
        await requests(object())({"do": "mark", "text": "x"}, ROOT)


@pytest.mark.parametrize(
    "request_",
    [{}, {"text": 7}, {"text": ""}, {"text": " "}, {"text": "a\nb"}, {"text": "\x1b[2J"},
     {"text": "\udc80"}, {"text": "x", "at": 1}, {"text": ["x"]}],
)  # fmt: skip
async def test_a_request_that_is_not_a_line_of_text_is_refused(request_: dict[str, object]) -> None:
    source = FakeSource("a")
    with pytest.raises(UsageError, match=r"^mark: [^\n]{1,150}$"):
        await requests(source)({"do": "mark", **request_}, ROOT)
    assert source.marks == []


@given(st.text(st.characters(codec=None), max_size=40))
def test_a_text_is_refused_or_taken_as_it_is(text: str) -> None:
    with suppress(UsageError):
        assert parse_mark(text) == text
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", text)
        assert text.encode().decode() == text


class TestOnThisKernel:
    pytestmark = needs_kernel()

    def test_a_mark_is_in_every_ring_of_the_running_recording(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        trace, quiet = tmp_path / "t", "ftrace,events=sched:sched_process_hang"
        run = lttd.start("-t", trace, "--source", quiet, "--source", quiet, "--summary", "none")
        until(lambda: client(run, "status", trace).returncode == 0, "the socket")
        done = client(run, "mark", trace, "deploy 4711 begins: ä")
        assert done.returncode == 0, done.stderr
        names = done.stdout.removeprefix("marked ").strip().split(", ")
        assert sorted(names) == sorted(lttd.left())
        assert json.loads(client(run, "mark", trace, "--json", "b").stdout) == {"marked": names}
        (lttd.instances / names[0] / "tracing_on").write_text("0")
        done = client(run, "mark", trace, "c")
        assert done.returncode == 1
        assert f"{names[0]}/trace_marker: tracing is off, so no mark" in done.stderr
        assert f"(it is in {names[1]})" in done.stderr
        assert run.end() == 0, run.stderr
        assert sorted(marks_in(trace)) == [*["b"] * 2, "c", *["deploy 4711 begins: ä"] * 2]

    @pytest.mark.parametrize("kind", ["own", "foreign"])
    def test_a_mark_is_printed_as_the_kernels_trace_file_does_without_kallsyms(
        self, lttd: Launcher, foreign: Path, kind: str
    ) -> None:
        trace, spec = lttd.cwd / "t", "ftrace" if kind == "own" else f"ftrace:{foreign.name}"
        run = lttd.start("-t", trace, "--source", f"{spec},events=sched:sched_process_hang")
        until(lambda: client(run, "status", trace).returncode == 0, "the socket")
        assert client(run, "mark", trace, "hi").returncode == 0
        assert run.end() == 0, run.stderr
        assert not list(trace.glob("*/tracefs/kallsyms"))
        lines = [line for line in lttv("text", trace).stdout.splitlines() if "hi" in line]
        assert lines
        assert {line.partition(": ")[2] for line in lines} == {"print: tracing_mark_write: hi"}

    @pytest.mark.usefixtures("instances")
    @pytest.mark.parametrize("clock", [None, "local", "boot"])
    def test_nothing_is_in_a_ring_that_has_told_the_name(self, clock: str | None) -> None:
        with closing(open_ftrace(QUIET._replace(clock=clock), BufferPool())) as source:
            assert source._instance.mark_symbols.endswith(b" tracing_mark_write\n")
            source.start()
            assert content(drain(source)) == b""
            assert {stream.counters()["read events"] for stream in source.streams} == {0}

    @pytest.mark.usefixtures("instances")
    def test_an_instance_of_others_gets_the_name_also_where_the_list_of_symbols_is_hidden(
        self, foreign: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(setup, "by_kallsyms", lambda: b"")
        own = f"{instance.OWN_PREFIX}*"
        before = sorted(foreign.parent.glob(own))
        settings = QUIET._replace(instance=foreign.name)
        with closing(open_ftrace(settings, BufferPool())) as source:
            assert source._instance.mark_symbols.endswith(b" tracing_mark_write\n")
            assert sorted(foreign.parent.glob(own)) == before, "the one that told is gone"
            assert source.notes() == []
            source.start()
            assert content(drain(source)) == b""

    def test_a_mark_in_mode_flight_triggers_nothing_and_is_in_the_next_window(
        self, lttd: Launcher
    ) -> None:
        trace = lttd.cwd / "t"
        run = lttd.start("-t", trace, *QUIET_RUN, "--mode", "flight")
        until(lambda: client(run, "status", trace).returncode == 0, "the socket")
        assert client(run, "mark", trace, "before it").returncode == 0
        assert not info(trace)["triggers"]
        wanted = client(
            run, "trigger", trace, "--reason", "test", "--before", "1h", "--after", "0s"
        )
        assert wanted.returncode == 0, wanted.stderr
        until(lambda: marks_in(trace) == ["before it"], "the window", lambda: run.stderr)
        assert run.end() == 0, run.stderr
        assert marks_in(trace) == ["before it"]

    @pytest.mark.usefixtures("instances")
    def test_a_mark_that_the_kernel_refuses_is_an_error_with_the_reason(self) -> None:
        with closing(open_ftrace(QUIET, BufferPool())) as source:
            instance = instance_of(source)
            with pytest.raises(LttdError, match="tracing is off, so no mark is recorded; write 1"):
                source.mark("x")
            source.start()
            (instance / "options/markers").write_text("0")
            with pytest.raises(LttdError, match="no mark is recorded while options/markers is 0"):
                source.mark("x")
            assert content(drain(source)) == b""

    @pytest.mark.usefixtures("instances")
    def test_a_mark_is_refused_while_the_ring_is_full_and_refuses_new_events(self) -> None:
        settings = QUIET._replace(overwrite=False)
        with closing(open_ftrace(settings, BufferPool())) as source, on_cpu_0():
            source.start()
            with suppress(LttdError):
                for _ in range(4000):
                    source.mark("x" * 100)
            with pytest.raises(LttdError, match="the ring is full and refuses new events; try"):
                source.mark("x" * 100)
            drain(source)

    @pytest.mark.usefixtures("instances")
    def test_a_mark_that_the_kernel_cuts_is_an_error_that_says_where(self) -> None:
        with closing(open_ftrace(QUIET, BufferPool())) as source:
            source.start()
            with pytest.raises(LttdError, match=r"cut after [\d,]+ of its 9,000 bytes") as refused:
                source.mark("x" * 9000)
            (number,) = re.findall(r"cut after ([\d,]+)", str(refused.value))
            assert content(drain(source)).count(b"x") == int(number.replace(",", ""))


def marks_in(trace: Path) -> list[str]:
    """Return the texts of the marks in a trace, in their order."""
    text = lttv("text", trace)
    assert text.returncode == 0, text.stderr
    found = re.findall(r"(?:tracing_mark_write|print): (?:\S+: )?(.*)", text.stdout)
    return [str(each) for each in found]
