"""Record uprobes from this kernel, which takes no kprobes; nothing of them is left afterwards."""

import ctypes
import json
import os
import platform
import re
import signal
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from lttd.doctor.controls import probes
from lttd.doctor.finding import Mark
from lttd.errors import NothingToRecordError, UsageError
from lttd.sources.ftrace.source import FtraceSettings, open_ftrace
from lttd.sources.mounts import find_tracefs
from lttd.subbuffer import BufferPool
from tests.ftrace_sources import content, drain
from tests.instances import mark
from tests.killed_runs import BRIEF, NOW, data_of, records
from tests.running import Launcher, assert_whole, info, lttv, needs_kernel, until

pytestmark = [
    *needs_kernel(),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="names registers of x86"),
]

LIBC = ctypes.CDLL(None)


def place_of(function: str) -> str:
    """Return ``path:offset`` of a function of libc, as a uprobe names it."""
    address = ctypes.cast(getattr(LIBC, function), ctypes.c_void_p).value or 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(None, 5)
        begin, end = (int(part, 16) for part in span.split("-"))
        if begin <= address < end:
            return f"{path[0]}:{address - begin + int(offset, 16):#x}"
    raise AssertionError(f"{function} is not mapped")


@pytest.fixture
def name() -> Iterator[str]:
    """A name for probes of one test; none of them may be left."""
    made = f"test{os.getpid()}"
    yield made
    left = [line for line in listed() if made in line]
    for line in left:
        words = re.match(r"\w+:(\S+)", line)
        assert words is not None
        with suppress(OSError):
            append(f"-:{words[1]}")
    assert not left


def append(line: str) -> None:
    fd = os.open(find_tracefs() / "dynamic_events", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def listed() -> list[str]:
    """Return the probes of this process's tests; other tests may make some at the same time."""
    lines = (find_tracefs() / "dynamic_events").read_text().splitlines()
    return [line for line in lines if f"/test{os.getpid()}" in line]


def names() -> list[str]:
    return [line.split()[0] for line in listed()]


def probe(name: str) -> str:
    return f"p:{name} {place_of('getenv')} who=+0(%di):string"


def opened(*probes: str) -> FtraceSettings:
    return FtraceSettings(probe=probes, buffer_bytes=64 << 10)


@pytest.mark.usefixtures("instances")
def test_a_probe_is_recorded_alone_and_removed_at_the_end(name: str) -> None:
    with closing(open_ftrace(opened(probe(name)), BufferPool())) as source:
        assert f"p:lttd/{name}" in names()
        assert source.info.settings["events"] == [f"lttd:{name}"], "not sched:*, too"
        assert source.info.settings["probe"] == [probe(name)]
        source.start()
        LIBC.getenv(b"a word that was asked for")
        assert b"a word that was asked for" in content(drain(source))
    assert f"p:lttd/{name}" not in names()


@pytest.mark.usefixtures("instances")
def test_two_sources_of_a_run_record_the_same_probe_which_ends_with_the_first(name: str) -> None:
    with closing(open_ftrace(opened(probe(name)), BufferPool())) as first:
        with closing(open_ftrace(opened(probe(name)), BufferPool())) as second:
            for source in (first, second):
                source.start()
            LIBC.getenv(b"for both of them")
            for source in (second, first):
                assert content(drain(source)).count(b"for both of them") == 1
        assert list(second.notes()) == []
        assert names() == [f"p:lttd/{name}"]
    assert list(first.notes()) == []
    assert names() == []


@pytest.mark.usefixtures("instances")
def test_two_sources_of_a_run_cannot_give_two_probes_the_same_name(name: str) -> None:
    with closing(open_ftrace(opened(probe(name)), BufferPool())):
        other = f"p:{name} {place_of('getpid')}"
        with pytest.raises(UsageError, match="another source of this run has a probe of this name"):
            open_ftrace(opened(other), BufferPool())
        assert names() == [f"p:lttd/{name}"]


@pytest.mark.usefixtures("instances")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("p:{}b /bin/sh:0x1 a=+0(%qq):string", r'Invalid register name: "p:lttd/.*", at character'),
        ("p:{}b /no/such/file:0x10", r"Failed to find the given file.*character \d+$"),
        ("p:{}b /root/no/such:0x10 x=%di:u8", r"a service does not see files below /root, see"),
        ("p:{} /bin/sh:0x10", r"two have this name"),
    ],
)
def test_the_probes_before_one_that_is_refused_are_removed(name: str, text: str, says: str) -> None:
    before = listed()
    with pytest.raises(UsageError, match=says) as caught:
        open_ftrace(opened(probe(name), probe(f"{name}a"), text.format(name)), BufferPool())
    assert "\n" not in str(caught.value)
    assert listed() == before


@pytest.mark.usefixtures("instances")
def test_a_kind_of_probes_that_the_kernel_lacks_is_named_with_its_option(name: str) -> None:
    if "<func-name>[%return]" in (find_tracefs() / "README").read_text():
        pytest.skip("this kernel has fprobes")
    with pytest.raises(NothingToRecordError, match=r"no fprobes \(CONFIG_FPROBE_EVENTS\)"):
        open_ftrace(opened(probe(name), f"f:{name}f vfs_read"), BufferPool())


@pytest.mark.usefixtures("instances")
def test_a_place_that_is_not_in_the_file_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot turn it on"):
        open_ftrace(opened(probe(name), f"p:{name}b /bin/sh:0xffffffff"), BufferPool())


@pytest.mark.usefixtures("instances")
def test_a_name_that_exists_is_refused_and_stays(name: str) -> None:
    theirs = f"p:lttd/{name} {place_of('getenv')}"
    append(theirs)
    try:
        with pytest.raises(UsageError, match="would get a second place"):
            open_ftrace(opened(f"p:{name} {place_of('puts')}"), BufferPool())
        assert names().count(f"p:lttd/{name}") == 1
    finally:
        append(f"-:lttd/{name}")


def test_a_name_of_another_recording_is_refused_with_its_pid(
    name: str, lttd: Launcher, tmp_path: Path
) -> None:
    run = lttd.start("-t", tmp_path / "a", "--probe", probe(name), *NOW).recording()
    refused = lttd.run("-t", tmp_path / "b", "--probe", probe(name), *BRIEF)
    assert refused.process.returncode == 2
    assert f"the lttd with pid {run.process.pid} has a probe of this name" in refused.stderr
    assert f"p:lttd/{name}" in names()
    assert run.end() == 0


@pytest.mark.nightly
@pytest.mark.usefixtures("instances")
def test_a_probe_that_somebody_else_has_on_stays_and_the_next_start_removes_it(
    name: str, lttd: Launcher, tmp_path: Path
) -> None:
    enable = find_tracefs() / f"events/lttd/{name}/enable"
    run = lttd.start("-t", tmp_path / "a", "--probe", probe(name), *NOW).recording()
    enable.write_text("1")
    try:
        assert run.end() == 0
        (line,) = [line for line in run.lines if "stays" in line]
        assert f"lttd/{name} stays, because the top level has its event on" in line
        assert f"p:lttd/{name}" in names()
        assert records(lttd)
    finally:
        enable.write_text("0")
    again = lttd.run("-t", tmp_path / "b", *BRIEF)
    assert again.stderr == ""
    assert f"p:lttd/{name}" not in names()
    assert records(lttd) == []


# -- kills


def settings_of_tracefs() -> dict[str, str]:
    """Return everything that a run with probes could leave changed."""
    root = find_tracefs()
    found = {"dynamic_events": "\n".join(listed()), "instances": ""}
    for file in ("set_event", "tracing_on", "trace_clock", "current_tracer", "buffer_percent"):
        found[file] = (root / file).read_text()
    for option in sorted((root / "options").iterdir()):
        found[option.name] = option.read_text()
    return found


def is_on(probe: str) -> bool:
    """Tell whether some instance records a probe and is on."""
    event = f"events/lttd/{probe.split(maxsplit=1)[0].removeprefix('p:')}/enable"
    with suppress(OSError):
        for instance in (find_tracefs() / "instances").iterdir():
            is_enabled = (instance / event).read_text() == "1\n"
            if is_enabled and (instance / "tracing_on").read_text() == "1\n":
                return True
    return False


def killed(lttd: Launcher, trace: Path, *options: str) -> None:
    """Kill a run with unread events of its probe in the ring."""
    run = lttd.start("-t", trace, *options, "--flush-interval", "1h", "--summary", "none")
    until(lambda: list(trace.glob("*/trace.json")), "it has a segment")
    until(lambda: is_on(options[-1].rpartition("=p:")[2] or options[-1]), "its probe is on")
    LIBC.getenv(b"unread when it was killed")
    run.signal(signal.SIGKILL).wait()


def test_the_next_start_drains_the_ring_and_then_removes_the_probes(
    name: str, lttd: Launcher, tmp_path: Path
) -> None:
    before, trace = settings_of_tracefs(), tmp_path / "a"
    killed(lttd, trace, "--probe", probe(name))
    assert f"p:lttd/{name}" in names()
    other = lttd.run("-t", tmp_path / "b", *BRIEF)
    assert "it holds" in other.stderr
    assert f"p:lttd/{name}" in names(), "the ring of the other trace holds its events"
    assert lttd.run("-t", trace, "--append", *BRIEF).process.returncode == 0
    assert b"unread when it was killed" in data_of(trace)
    assert settings_of_tracefs() == before
    assert lttd.left() == []
    assert records(lttd) == []
    assert "unread when it was killed" in lttv("text", trace).stdout
    assert_whole(trace, "--events")


def test_the_same_probe_is_taken_over_by_the_next_start(
    name: str, lttd: Launcher, tmp_path: Path
) -> None:
    before, trace = settings_of_tracefs(), tmp_path / "a"
    killed(lttd, trace, "--probe", probe(name))
    again = lttd.start("-t", trace, "--append", "--probe", probe(name), *NOW).recording()
    assert f"p:lttd/{name}" in names()
    LIBC.getenv(b"recorded by the next one")
    assert again.end() == 0
    assert [b"unread when" in data_of(trace), b"by the next" in data_of(trace)] == [True, True]
    assert settings_of_tracefs() == before
    assert records(lttd) == []
    shown = lttv("text", trace).stdout
    assert "unread when it was killed" in shown
    assert "recorded by the next one" in shown


@pytest.mark.nightly
def test_another_probe_of_the_same_name_is_refused_until_the_ring_is_drained(
    name: str, lttd: Launcher, tmp_path: Path
) -> None:
    trace, other = tmp_path / "a", f"p:{name} {place_of('puts')}"
    killed(lttd, trace, "--probe", probe(name))
    refused = lttd.run("-t", trace, "--append", "--probe", other, *NOW)
    assert refused.process.returncode == 2
    assert f"lttd --append -t {trace} without --probe drains" in refused.stderr
    assert lttd.run("-t", trace, "--append", *BRIEF).process.returncode == 0
    assert b"unread when" in data_of(trace)
    assert f"p:lttd/{name}" not in names()


@pytest.mark.nightly
def test_a_probe_of_two_sources_of_a_killed_run_goes_with_the_next_start(
    lttd: Launcher, tmp_path: Path, name: str
) -> None:
    trace, spec = tmp_path / "t", f"ftrace,probe={probe(name)}"
    killed(lttd, trace, "--source", spec, "--source", spec)
    assert len(lttd.left()) == 2
    run = lttd.run("-t", trace, "--append", *BRIEF)
    assert run.process.returncode == 0, run.stderr
    assert "stays" not in run.stderr
    assert names() == []
    assert lttd.left() == []
    assert lttv("text", trace).stdout.count("unread when it was killed") == 2


def test_probes_of_a_killed_run_whose_instance_is_gone_are_removed(
    name: str, lttd: Launcher, tmp_path: Path
) -> None:
    killed(lttd, tmp_path / "a", "--probe", probe(name))
    lttd.runs[-1].instance.rmdir()
    lttd.run("-t", tmp_path / "b", *BRIEF)
    assert f"p:lttd/{name}" not in names()


@pytest.mark.nightly
def test_a_foreign_instance_keeps_its_unread_events_until_they_were_read(
    name: str, lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    before, trace = settings_of_tracefs(), tmp_path / "a"
    source = ("--source", f"ftrace:{foreign.name}")
    killed(lttd, trace, *source, "--probe", probe(name))
    mark(foreign, "not to be lost")
    other = lttd.run("-t", tmp_path / "b", *BRIEF)
    assert "left /dynamic_events changed: restoring this would lose" in other.stderr
    assert f"p:lttd/{name}" in names()
    refused = lttd.run("-t", trace, "-a", *source, "--probe", f"p:{name} {place_of('puts')}")
    assert "record once without --probe" in refused.stderr
    again = lttd.run("-t", trace, "-a", *source, "--probe", probe(name), *NOW, "--duration", "50ms")
    assert again.process.returncode == 0
    assert b"not to be lost" in data_of(trace)
    assert b"unread when" in data_of(trace)
    assert settings_of_tracefs() == before
    assert (foreign / "set_event").read_text() == ""


def test_info_names_the_probes(name: str, lttd: Launcher, tmp_path: Path) -> None:
    lttd.run("-t", tmp_path / "t", "--probe", probe(name), *NOW, "--duration", "50ms")
    assert probe(name) in json.dumps(info(tmp_path / "t"))
    assert f"probe       {probe(name)}" in lttv("info", tmp_path / "t").stdout


def test_events_of_an_id_that_another_probe_took_are_not_printed_wrongly(
    name: str, lttd: Launcher, tmp_path: Path
) -> None:
    """A probe of another tool is removed and made again with other fields, under a recording."""
    made = f"p:uprobes/{name} {place_of('getenv')}"
    append(f"{made} first=+0(%di):string")
    events = ("--events", f"uprobes:{name}", "--flush-interval", "20ms", "--summary", "none")
    run = lttd.start("-t", tmp_path / "t", *events).recording()
    enable = run.instance / f"events/uprobes/{name}/enable"
    identity = run.instance / f"events/uprobes/{name}/id"
    LIBC.getenv(b"the first incarnation")
    until(lambda: b"the first inc" in data_of(tmp_path / "t"), "it was taken")
    number = identity.read_text()
    enable.write_text("0")
    append(f"-:uprobes/{name}")
    append(f"{made} other=%di:u64 second=+0(%di):string")
    if identity.read_text() != number:
        pytest.skip("this kernel gives the next id")
    enable.write_text("1")
    LIBC.getenv(b"the second incarnation")
    assert run.end() == 0
    append(f"-:uprobes/{name}")
    shown = lttv("text", tmp_path / "t")
    assert f"event id {number.strip()} had several formats, of uprobes:{name}" in shown.stderr
    assert 'first="the second' not in shown.stdout
    assert 'second="the first' not in shown.stdout


def test_doctor_says_which_kinds_of_probes_the_kernel_has() -> None:
    readme = (find_tracefs() / "README").read_text()
    (finding,) = probes()
    there, _, absent = finding.words.partition("; this kernel has no ")
    assert finding.mark is Mark.OK
    assert "uprobes" in there.split(", ")
    assert ("kprobes" in absent.split(", ")) == ("[<module>:]<symbol>" not in readme)
    assert ("fprobes" in absent.split(", ")) == ("<func-name>[%return]" not in readme)
