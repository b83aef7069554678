"""A reload takes over what has changed, or changes nothing; SIGHUP asks for one or ends lttd."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lttd.abi.formats_file import unpack
from lttd.config import Config, parse_command_line
from lttd.disk_policy import OnFailure
from lttd.errors import StorageError
from lttd.recorder import Recorder
from lttd.reload_plan import plan_reload
from lttd.reloading import words_for
from lttd.roll import RollLimits
from lttd.signals import Meaning, Signals
from lttd.sources.ftrace.reload import is_named
from lttd.sources.ftrace.source import FtraceSettings, open_ftrace
from lttd.subbuffer import BufferPool
from lttd.takers import takers_of_writing
from lttd.view.times import utc
from tests import running
from tests.running import (
    LAUNCHER,
    PATIENCE_S,
    Launcher,
    Run,
    assert_whole,
    info,
    lttv,
    needs_kernel,
    until,
)


def config(*words: str) -> Config:
    return parse_command_line(["-t", "/t", *words])


def test_a_plan_names_what_is_taken_over_and_what_needs_a_restart() -> None:
    old = config("--events", "sched:*", "--source", "ftrace:x", "--backlog", "8M")
    new = config("--events", "irq:*", "--source", "ftrace:x,clock=boot", "-v", "--layout", "sparse")
    plan = plan_reload(old, new, {"verbose"})
    assert set(plan.reloaded) == {"verbose", "events"}
    assert set(plan.restart) == {"layout", "backlog", "clock"}
    assert plan.sources == (0,)
    in_force = plan.config
    assert in_force == replace(old, verbose=1, sources=in_force.sources)
    assert dict(in_force.sources[0].options) == {"events": ["irq:*"]}


def test_another_reload_reports_again_what_still_needs_a_restart() -> None:
    old, new = config(), config("--layout", "sparse", "-v")
    first = plan_reload(old, new, {"verbose"})
    second = plan_reload(first.config, new, {"verbose"})
    assert (second.reloaded, second.restart, second.sources) == ((), ("layout",), ())
    assert plan_reload(new, new, set()).restart == ()


def test_a_plan_does_not_name_what_only_follows_from_another_option() -> None:
    old, new = config("--max-size", "1G", "--max-age", "8h"), config("--max-size", "800M")
    plan = plan_reload(old, new, {"max_bytes", "max_age_s", "segment_bytes", "segment_s"})
    assert set(plan.reloaded) == {"max-size", "max-age"}
    assert old.roll_limits == RollLimits(128 << 20, 3_600_000_000_000)
    assert plan.config.roll_limits == RollLimits(100 << 20, None)


@pytest.mark.parametrize("words", [
    ["--source", "ftrace:y"], ["--source", "relay:/x"], ["--source", "ftrace:x"] * 2,
    ["--source", "ftrace"],
])  # fmt: skip
def test_other_sources_need_a_restart(words: list[str]) -> None:
    plan = plan_reload(config("--source", "ftrace:x"), config(*words), set())
    assert (plan.reloaded, plan.restart) == ((), ("source",))


def test_only_sources_whose_row_says_so_change_what_they_record() -> None:
    old = config("--source", "blktrace:/dev/x", "--source", "ftrace,events=sched:*")
    new = config("--source", "blktrace:/dev/x,actions=read", "--source", "ftrace,events=irq:*")
    plan = plan_reload(old, new, set())
    assert (plan.reloaded, plan.restart, plan.sources) == (("events",), ("actions",), (1,))


def test_a_reload_changes_the_ceiling_on_what_is_written_and_what_follows_a_full_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder()
    limits: list[int | None] = []
    monkeypatch.setattr(recorder, "limit_rate", limits.append)
    full = StorageError(Path("/t"), "no space left", "ENOSPC")
    takers = takers_of_writing(recorder)
    new = config("--on-full", "wait", "--max-rate", "64K")
    for name in ("on_full", "max_rate_bytes"):
        takers[name].apply(new)
    assert recorder.policy.after(full) is OnFailure.WAIT
    takers["max_rate_bytes"].apply(config())
    assert limits == [64 << 10, None]


def test_the_line_on_a_reload_says_all_three_results() -> None:
    assert words_for([], []) == "reloaded: nothing has changed"
    assert words_for(["events"], []) == "reloaded: events"
    assert words_for([], ["layout"]) == "reloaded: nothing; needs a restart: layout"


def test_a_name_stands_for_the_event_its_system_or_all() -> None:
    for names in ({"sched:sched_switch"}, {"sched:*"}, {"*:*"}, {"irq:*", "sched:*"}):
        assert is_named("sched:sched_switch", names)
    for names in (set(), {"sched:sched_wakeup"}, {"irq:*"}):
        assert not is_named("sched:sched_switch", names)


def test_a_reload_that_comes_before_the_recording_waits_for_it() -> None:
    with Signals() as signals:
        signals.left_terminal()
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        heard: list[int] = []
        with signals.delivered_to(heard.append):
            assert heard == [signal.SIGHUP]
            assert signals.meaning(signal.SIGHUP) is Meaning.RELOAD


def started(
    lttd: Launcher, *words: str | Path, under: tuple[str, ...] = ()
) -> tuple[Run, Path, Path]:
    file, trace = lttd.cwd / "lttd.toml", lttd.cwd / "t"
    file.write_text('events = ["sched:*"]\n')
    run = lttd.start(
        *("-t", trace, "--config", file, "--summary", "none", "--flush-interval", "50ms", *words),
        under=under,
    )
    return run.recording(), file, trace


def asked(lttd: Launcher, *words: str) -> tuple[int, str]:
    """Run a client of the recorder; return its status and output."""
    run = subprocess.run(
        [sys.executable, "-m", "lttd", *words],
        env={**os.environ, "RUNTIME_DIRECTORY": str(lttd.runtime)},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


def enabled(run: Run) -> set[str]:
    return set((run.instance / "set_event").read_text().splitlines())


def names_in(trace: Path, *options: str) -> set[str]:
    """Return the names of the recorded events."""
    printed = lttv("text", trace, "--json", *options)
    assert printed.returncode == 0, printed.stderr
    return {json.loads(line)["event"] for line in printed.stdout.splitlines()}


class TestOnThisKernel:
    pytestmark = needs_kernel()

    def test_events_that_are_added_and_removed_appear_and_disappear(self, lttd: Launcher) -> None:
        run, file, trace = started(lttd)
        file.write_text('events = ["raw_syscalls:sys_enter", "sched:sched_switch"]\n')
        assert asked(lttd, "reload") == (0, "reloaded: events\n")
        wanted = {"raw_syscalls:sys_enter", "sched:sched_switch"}
        assert enabled(run) == wanted
        # The formats are there before the segment is closed.
        (formats,) = trace.glob("*/tracefs/formats.gz")
        found = unpack(formats.read_bytes(), 1 << 24).formats
        assert ("raw_syscalls", "sys_enter") in found
        assert ("sched", "sched_waking") in found
        (source,) = json.loads(asked(lttd, "status", "--json")[1])["sources"]
        assert set(source["settings"]["events"]) == wanted
        time.sleep(0.3)
        assert run.end() == 0, run.stderr
        assert run.lines[-1].startswith("lttd: reloaded: events")
        assert_whole(trace, "--events")
        (reload,) = info(trace)["source"]["reloads"]
        assert set(reload["events"]) == wanted
        assert info(trace)["source"]["settings"]["events"] == ["sched:*"]
        begin = utc(reload["at_ns"] + 50_000_000)
        assert begin is not None
        assert names_in(trace, "--begin", begin) == {"sys_enter", "sched_switch"}
        assert len(names_in(trace)) > 3

    def test_a_bad_configuration_is_one_line_and_changes_nothing(self, lttd: Launcher) -> None:
        run, file, trace = started(lttd)
        before = enabled(run)
        for text, why in (
            ("events = [", "not TOML"),
            ("evnts = 3", "'evnts' is not an option of lttd; did you mean events?"),
            ('events = ["nosuch:*"]', "no event of this kernel matches 'nosuch:*'"),
            ('layout = "round"', "write packed or sparse"),
            ('buffer-size = "x"', "is not a valid size"),
            ('segment-size = "1"', "write at least 64K"),
        ):
            file.write_text(f"verbose = 1\n{text}\n")
            status, line = asked(lttd, "reload")
            assert (status, line.count("\n")) == (2, 1)
            assert why in line
        assert enabled(run) == before
        assert '"verbose": 0' in asked(lttd, "status", "--json")[1]
        file.write_text('events = ["sched:*"]\n')
        assert asked(lttd, "reload") == (0, "reloaded: nothing has changed\n")
        file.unlink()
        assert asked(lttd, "reload")[0] == 2
        assert run.end() == 0, run.stderr
        assert_whole(trace)

    def test_a_reload_reports_what_needs_a_restart(self, lttd: Launcher) -> None:
        run, file, _ = started(lttd)
        file.write_text('events = ["sched:*"]\nlayout = "sparse"\nsegment-size = "1M"\n')
        line = "reloaded: segment-size; needs a restart: layout\n"
        assert asked(lttd, "reload") == (0, line)
        assert run.end() == 0

    def test_segments_follow_a_limit_of_the_trace_that_alone_is_reloaded(
        self, lttd: Launcher
    ) -> None:
        run, file, trace = started(lttd, "--append", "--max-age", "1h")
        file.write_text('events = ["sched:*"]\nmax-size = "1M"\n')
        assert asked(lttd, "reload") == (0, "reloaded: max-size\n")
        until(lambda: len(list(trace.glob("*-ftrace"))) > 2, "rolls at 128 KiB")
        assert run.end() == 0, run.stderr

    def test_a_recorder_without_a_file_says_that_it_has_none(self, lttd: Launcher) -> None:
        words = ("-t", lttd.cwd / "t", "--summary", "none")
        run = lttd.start(*words, under=("setsid",)).recording()
        says = "lttd: this recorder has no file to read again; start it with --config FILE\n"
        assert asked(lttd, "reload") == (1, says)
        assert asked(lttd, "reload", "--json") == (1, says)
        run.signal(signal.SIGHUP)
        until(lambda: sum("not reloaded: " in line for line in run.lines) == 3, "the line")
        assert run.end() == 0, run.stderr

    def test_reloads_while_segments_are_rolled_lose_nothing(self, lttd: Launcher) -> None:
        run, file, trace = started(lttd, "--segment-duration", "100ms")
        for number in range(8):
            events = ["irq:*"] if number % 2 else ["sched:*", "raw_syscalls:sys_enter"]
            file.write_text(f"events = {events}\n")
            assert asked(lttd, "reload")[0] == 0
        assert run.end() == 0, run.stderr
        assert_whole(trace, "--events")
        assert len(info(trace)["segments"]) > 3

    def test_a_foreign_instance_gets_its_events_back_after_reloads(
        self, lttd: Launcher, foreign: Path
    ) -> None:
        on = {"irq:irq_handler_entry", "sched:sched_process_exec"}
        for name in on:
            (foreign / "events" / name.replace(":", "/") / "enable").write_text("1")
        file, trace = lttd.cwd / "lttd.toml", lttd.cwd / "t"
        file.write_text('events = ["sched:*"]\n')
        words = ("-t", trace, "--config", file, "--summary", "none")
        run = lttd.start(*words, "--source", f"ftrace:{foreign.name}")

        def now() -> set[str]:
            return set((foreign / "set_event").read_text().splitlines())

        until(lambda: len(now()) > 10, "events are on")
        until(lambda: asked(lttd, "status")[0] == 0, "the socket is there")
        file.write_text('events = ["sched:sched_switch", "raw_syscalls:sys_exit"]\n')
        assert asked(lttd, "reload") == (0, "reloaded: events\n")
        assert now() == on | {"sched:sched_switch", "raw_syscalls:sys_exit"}
        file.write_text('events = ["irq:*"]\n')
        assert asked(lttd, "reload")[0] == 0
        assert now() >= on
        assert "sched:sched_switch" not in now()
        run.process.kill()
        run.wait()
        file.write_text('events = ["timer:*"]\n')
        more = ("--append", "--duration", "100ms", "--source", f"ftrace:{foreign.name}")
        again = lttd.run(*words, *more)
        assert again.process.returncode == 0, again.stderr
        assert now() == on

    def test_an_unknown_event_is_refused_before_anything_changes(self, instances: Path) -> None:
        source = open_ftrace(FtraceSettings(events=("sched:sched_switch",)), BufferPool(8 << 20))
        try:
            source.start()
            change = source.changed({"events": ("irq:*", "sched:sched_waking")})
            change.announce()
            change.make()
            assert set(source.info.settings["events"]) == {"irq:*", "sched:sched_waking"}
            with pytest.raises(Exception, match="no event of this kernel"):
                source.changed({"events": ("irq:*", "nosuch:x")})
        finally:
            source.close()

    def test_sighup_without_a_terminal_reloads(self, lttd: Launcher) -> None:
        run, file, _ = started(lttd, under=("setsid",))
        file.write_text('events = ["irq:*"]\n')
        run.signal(signal.SIGHUP)
        until(lambda: all(each.startswith("irq:") for each in enabled(run)), "reloaded")
        assert run.end() == 0

    def test_sighup_under_nohup_is_ignored(
        self, lttd: Launcher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The launcher of the tests restores SIGHUP, because they may run under nohup themselves.
        monkeypatch.setattr(running, "LAUNCHER", LAUNCHER.replace("SIG_DFL", "SIG_IGN"))
        run, file, _ = started(lttd, under=("setsid",))
        file.write_text('events = ["irq:*"]\n')
        run.signal(signal.SIGHUP)
        assert asked(lttd, "status")[0] == 0
        assert "sched:sched_switch" in enabled(run)
        assert run.end() == 0

    def test_the_end_of_the_terminal_ends_lttd_in_order(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        words = lttd.words("-t", tmp_path / "t", "--summary", "none")
        environment = {**os.environ, "RUNTIME_DIRECTORY": str(lttd.runtime)}
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(tmp_path)
            os.execve(words[0], words, environment)
        instance = lttd.instances / f"{lttd.prefix}{pid}" / "tracing_on"
        until(lambda: instance.exists() and instance.read_text() == "1\n", "tracing is on")
        until(lambda: asked(lttd, "status")[0] == 0, "the socket is there")
        os.close(terminal)  # the kernel sends SIGHUP
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert_whole(tmp_path / "t")

    def test_sighup_reloads_a_daemon_that_was_started_from_a_terminal(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        file = tmp_path / "lttd.toml"
        file.write_text('events = ["sched:*"]\n')
        words = lttd.words("-t", tmp_path / "t", "--config", file, "--summary", "none", "-d")
        environment = {**os.environ, "RUNTIME_DIRECTORY": str(lttd.runtime)}
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(tmp_path)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.execve(words[0], words, environment)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(terminal)
        (instance,) = lttd.left()
        file.write_text('events = ["irq:*"]\n')
        daemon = int(instance.removeprefix(lttd.prefix))
        os.kill(daemon, signal.SIGHUP)
        set_event = lttd.instances / instance / "set_event"
        until(lambda: "sched:" not in set_event.read_text(), "reloaded")
        os.kill(daemon, signal.SIGTERM)
        until(lambda: not lttd.left(), "the daemon has ended")
        assert_whole(tmp_path / "t")

    def test_systemd_hears_of_a_reload(self, lttd: Launcher, tmp_path: Path) -> None:
        address = f"lttdtest-{os.getpid()}-notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind("\0" + address)
            manager.settimeout(PATIENCE_S)
            file = lttd.cwd / "lttd.toml"
            file.write_text("")
            run = lttd.start(
                *("-t", tmp_path / "t", "--config", file, "--summary", "none"),
                environment={"NOTIFY_SOCKET": "@" + address},
            )
            heard: list[str] = []

            def hear(message: str) -> str:
                while not any(each.startswith(message) for each in heard):
                    heard.append(manager.recv(4096).decode())
                return heard.pop()

            hear("READY=1")
            file.write_text("verbose = 1\n")
            assert asked(lttd, "reload")[0] == 0
            told = hear("RELOADING=1").split("\n")[1]
            assert (
                abs(int(told.removeprefix("MONOTONIC_USEC=")) * 1000 - time.monotonic_ns()) < 1e10
            )
            hear("READY=1")
            file.write_text("x")
            assert asked(lttd, "reload")[0] == 2
            hear("RELOADING=1")
            hear("READY=1")  # also after a refusal
            assert run.end() == 0
