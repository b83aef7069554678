"""lttd writes a setting of an instance only if its inherited or earlier value differs."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lttd.sources.ftrace.setup import OWN_OPTIONS
from lttd.sources.ftrace.source import FtraceSettings, open_ftrace
from lttd.sources.inotify import Inotify
from lttd.sources.mounts import find_tracefs
from lttd.subbuffer import BufferPool
from tests.instances import mark, unread_events
from tests.running import Launcher, lttv, needs_kernel

pytestmark = needs_kernel()

IN_MODIFY = 0x2
QUIET = ("sched:sched_process_hang",)


@pytest.fixture
def foreign(foreign: Path) -> Path:
    """The foreign instance with an event in its ring."""
    mark(foreign, "in the ring")
    return foreign


@pytest.fixture
def contrary() -> Iterator[None]:
    """Invert every option of the top level, and restore them afterwards."""
    options = find_tracefs() / "options"
    before = {name: (options / name).read_text() for name, _ in OWN_OPTIONS}
    try:
        for name, text in OWN_OPTIONS:
            (options / name).write_text("0" if text == "1" else "1")
        yield
    finally:
        for name, text in before.items():
            (options / name).write_text(text)


@pytest.mark.alone
@pytest.mark.usefixtures("contrary")
@pytest.mark.parametrize("overwrite", [None, True, False])
def test_an_own_instance_has_its_options_whatever_the_top_level_sets(
    instances: Path, overwrite: bool | None
) -> None:
    settings = FtraceSettings(events=QUIET, overwrite=overwrite)
    with closing(open_ftrace(settings, BufferPool())) as source:
        path = instances / str(source.info.settings["instance"])
        found = {name: (path / "options" / name).read_text().strip() for name, _ in OWN_OPTIONS}
        assert found == dict(OWN_OPTIONS) | {"overwrite": str(int(overwrite is not False))}


def test_an_equal_setting_of_a_foreign_instance_is_not_written(
    foreign: Path,
) -> None:
    size_kb = (foreign / "buffer_size_kb").read_text().split()[0]
    written = Inotify()
    names = ["trace_clock", "options/overwrite", "per_cpu/cpu0/buffer_size_kb", "tracing_on"]
    subbuffer_kb = foreign / "buffer_subbuf_size_kb"
    if subbuffer_kb.exists():
        names.append(subbuffer_kb.name)
    for name in names:
        assert written.watch(str(foreign / name), IN_MODIFY) >= 0
    settings = FtraceSettings(
        foreign.name,
        clock="mono",
        overwrite=True,
        buffer_bytes=int(size_kb) << 10,
        subbuffer_bytes=int(subbuffer_kb.read_text()) << 10 if subbuffer_kb.exists() else None,
    )
    with closing(open_ftrace(settings, BufferPool())) as source:
        source.start()
        assert unread_events(foreign) == 1
        source.stop()
    assert not written.heard()


def test_changing_the_clock_reports_how_many_events_it_erased(foreign: Path) -> None:
    settings = FtraceSettings(foreign.name, clock="boot")
    with closing(open_ftrace(settings, BufferPool())) as source:
        expected = "setting trace_clock emptied the ring: its 1 events are lost"
        assert expected in list(source.notes())


@pytest.mark.parametrize("options", [[], ["--no-trace-self"]])
def test_command_is_recorded_although_its_parent_is_excluded(
    lttd: Launcher, tmp_path: Path, foreign: Path, options: list[str]
) -> None:
    (foreign / "options/event-fork").write_text("1")
    source = ("--source", f"ftrace:{foreign.name}", "--events", "sched:sched_process_exec")
    command = ("--", "sh", "-c", "/bin/true; exec /bin/echo hello")
    run = lttd.run("-t", tmp_path / "t", *source, *options, "--summary", "none", *command)
    assert run.process.returncode == 0, run.stderr
    assert len(run.lines) == len(options)
    for line in run.lines:
        assert "event-fork is set" in line
        assert "write 0 to options/event-fork" in line
    text = lttv("text", tmp_path / "t", "--event", "sched_process_exec").stdout
    for name in ("/bin/true", "/bin/echo"):
        assert f"filename={name}" in text
    assert (foreign / "set_event_notrace_pid").read_text() == ""


def test_a_list_of_pids_that_hides_command_is_reported(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    dead = 4194303  # the last pid of all
    (foreign / "set_event_pid").write_text(f"{dead}")
    source = ("--source", f"ftrace:{foreign.name}", "--events", "sched:sched_process_exec")
    command = ("--summary", "none", "--", "/bin/true")
    run = lttd.run("-t", tmp_path / "t", *source, *command)
    assert run.process.returncode == 0
    (line,) = run.lines
    assert f"{foreign}/set_event_pid lists pids such as {dead} (1 in all, none of which " in line
    assert "only their events are recorded, and not those of COMMAND" in line
    (foreign / "set_event_pid").write_text(f"{os.getpid()}")
    (line,) = lttd.run("-t", tmp_path / "u", *source, *command).lines
    assert "(1 in all): only their events" in line


def test_a_list_of_pids_that_are_left_out_is_reported(
    lttd: Launcher, tmp_path: Path, foreign: Path
) -> None:
    (foreign / "set_event_notrace_pid").write_text("4194302 4194303")
    source = ("--source", f"ftrace:{foreign.name}", "--events", "sched:sched_process_exec")
    run = lttd.run("-t", tmp_path / "t", *source, "--summary", "none", "--", "/bin/true")
    (line,) = run.lines
    assert "lists pids such as 4194302 (2 in all): their events are not recorded" in line
