"""Record with triggers of events, from this kernel."""

import re
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from lttd.controls import control_lines
from lttd.errors import UsageError
from lttd.sources.ftrace.source import FtraceSettings, FtraceSource, open_ftrace
from lttd.subbuffer import BufferPool
from lttd.view.times import seconds
from tests.ftrace_sources import content, drain, instance_of
from tests.running import Launcher, info, lttv, needs_kernel

pytestmark = [*needs_kernel(), pytest.mark.usefixtures("instances")]

EXEC, EXIT = "sched:sched_process_exec", "sched:sched_process_exit"
# No program has this pid.
NEVER = "if pid == 4194303"


def opened(*triggers: str, events: tuple[str, ...] = (EXEC,), **settings: object) -> FtraceSource:
    made = FtraceSettings(events=events, buffer_bytes=256 << 10, event_trigger=triggers)
    return open_ftrace(made._replace(**settings), BufferPool())  # type: ignore[arg-type]


def of(path: Path, event: str, name: str) -> str:
    return (path / "events" / event.replace(":", "/") / name).read_text().strip()


def triggers(path: Path, event: str) -> set[str]:
    lines = of(path, event, "trigger").splitlines()
    return {line for line in lines if not line.startswith("#")}


def run_a_program() -> None:
    subprocess.run(["/bin/true"], check=True)


def test_triggers_are_set_also_on_events_that_are_not_recorded() -> None:
    with closing(opened("sched_process_exec: stacktrace", f"{EXIT}: traceoff:1 {NEVER}")) as source:
        path = instance_of(source)
        assert triggers(path, EXEC) == {"stacktrace:unlimited"}
        assert triggers(path, EXIT) == {f"traceoff:count=1 {NEVER}"}
        assert (of(path, EXEC, "enable"), of(path, EXIT, "enable")) == ("1*", "0*")
        assert source.info.settings["events"] == [EXEC]
        assert "traceoff" in source.info.settings["event_trigger"][1]
    assert not path.exists()


def test_a_count_begins_when_recording_does() -> None:
    texts = (f"{EXEC}: stacktrace:1000", f"{EXEC}: enable_event:{EXIT}:1000")
    with closing(opened(*texts, events=("sched:sched_process_hang",))) as source:
        path = instance_of(source)
        run_a_program()
        assert "stacktrace:count=1000" not in triggers(path, EXEC), "counted while tracing is off"
        assert of(path, EXIT, "enable") == "1*"
        before = set(triggers(path, EXEC))
        source.start()
        counts = {line: int(line.rpartition("=")[2]) for line in triggers(path, EXEC)}
        assert max(int(line.rpartition("=")[2]) for line in before) < 1000
        assert min(counts.values()) > 990, counts


def test_an_event_that_a_trigger_turned_on_is_recorded_with_its_format() -> None:
    with closing(opened(f"{EXEC}: enable_event:{EXIT}")) as source:
        source.start()
        for _ in range(3):
            run_a_program()
        assert b"true\0" in content(drain(source))
        assert "sched" in {name.partition(":")[0] for name in source._instance.switched}


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ((f"{EXEC}: traceoff if nofield == 3",), r"Field not found: .nofield == 3., at character"),
        ((f"{EXEC}: stacktrace if (pid == 3",), r"Too many '\('"),  # the kernel says ENOENT
        ((f"{EXEC}: traceoff if " + "pid == 1 || " * 600 + "pid == 2",), r"are too long; the kern"),
    ],
)
def test_a_refused_trigger_is_one_line_with_the_words_of_the_kernel(
    foreign: Path, texts: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UsageError, match=rf"event-trigger {EXEC}: .*{says}") as caught:
        opened(f"{EXIT}: stacktrace", *texts, instance=foreign.name)
    assert "\n" not in str(caught.value)
    assert triggers(foreign, EXEC) == triggers(foreign, EXIT) == set()
    assert (foreign / "set_event").read_text() == ""


def test_in_a_foreign_instance_triggers_are_removed_and_what_they_turned_on_is_off(
    foreign: Path,
) -> None:
    (foreign / "events/sched/sched_switch/trigger").write_text("stacktrace if prev_pid == 4194303")
    texts = (f"{EXEC}: enable_event:{EXIT}", f"{EXIT}: stacktrace")
    with closing(opened(*texts, instance=foreign.name, events=(EXEC,))) as source:
        source.start()
        run_a_program()
        assert of(foreign, EXIT, "enable") == "1*"
    assert triggers(foreign, EXEC) == triggers(foreign, EXIT) == set()
    assert (of(foreign, EXEC, "enable"), of(foreign, EXIT, "enable")) == ("0", "0")
    assert len(triggers(foreign, "sched:sched_switch")) == 1
    assert source.info.settings["events"] == [EXEC], "sched_switch is on for its trigger only"


def test_a_trigger_of_somebody_else_stays_and_is_named(foreign: Path) -> None:
    (foreign / "events/sched/sched_switch/trigger").write_text("traceon if prev_pid == 4194303")
    says = r"somebody has set 'traceon:unlimited if .*; echo '!traceon' > .*/trigger removes it"
    with pytest.raises(UsageError, match=says):
        opened("sched_switch: traceoff:1", instance=foreign.name)
    assert len(triggers(foreign, "sched:sched_switch")) == 1


def test_a_traceoff_is_named_although_the_recording_ends_at_once(
    lttd: Launcher, tmp_path: Path
) -> None:
    trigger = f'{EXIT}: traceoff if comm == "sleep"'
    options = ("-t", tmp_path / "t", "--events", EXIT, "--event-trigger", trigger)
    run = lttd.run(*options, "--summary", "none", "--", "sleep", "0.01")
    (line,) = run.lines
    assert f"tracing is off, as a traceoff trigger asks for ({EXIT}), since " in line
    assert re.search(r"since (at least at \S+Z, )?at most at \S+Z: write 1 to", line)
    assert ("event-trigger", trigger) in control_lines(info(tmp_path / "t")["source"]["settings"])
    last = lttv("text", tmp_path / "t", "--ns").stdout.splitlines()[-1]
    assert last.startswith("           sleep-")
    (stop,) = info(tmp_path / "t")["traceoffs"]
    assert stop["by"] == EXIT
    assert f" {seconds(stop['last_event'])}: sched_process_exit: " in last
    assert stop["last_event"] < stop["off_by"]
