"""COMMAND starts with the process state that lttd was started with."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from lttd.command import Command
from lttd.priority import FIRST_NICE
from lttd.signals import Signals
from tests.running import PATIENCE_S, Launcher, needs_kernel

# Print the inherited state of a process; its descriptors come last.
PROBE = r"""
grep -E '^(SigBlk|SigIgn|SigCgt|Umask|Cap...|NoNewPrivs|Seccomp|CoreDumping)' /proc/self/status
cat /proc/self/limits /proc/self/oom_score_adj /proc/self/personality
cut -d' ' -f5,6,18,19,40,41 /proc/self/stat
cat /proc/self/timerslack_ns
env | grep -v '^_=' | sort
pwd
ls -l /proc/self/fd | sed 's/.*:.. //; s/pipe:.*/pipe/' | grep -v '/proc/'
"""
# A parent with unusual settings.
ODD_PARENT = """
ulimit -Sn 300; ulimit -Sc 0; ulimit -Su 4000; umask 057; trap '' USR1 QUIT HUP RTMIN+4
echo 300 > /proc/self/oom_score_adj
exec 7< /dev/zero
export ODD=parent OMP_NUM_THREADS=3
exec "$@"
"""
BLOCKING = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
# Python ignores these two signals itself, so lttd cannot know their earlier state.
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def instance(lttd: Launcher) -> Iterator[str]:
    """An instance for an lttd without the launcher, which would change the inherited state."""
    name = f"{lttd.prefix}command"
    (lttd.instances / name).mkdir()
    yield name
    (lttd.instances / name).rmdir()


class TestOnThisKernel:
    pytestmark = needs_kernel()

    @pytest.mark.parametrize("options", [[], ["--priority", "1"]], ids=["", "priority"])
    def test_command_inherits_the_state_in_which_lttd_was_started(
        self, instance: str, tmp_path: Path, options: list[str]
    ) -> None:
        odd = ["nice", "-n3", "sh", "-c", ODD_PARENT, "sh", sys.executable, "-c", BLOCKING]
        # Without a shell, which would clear the mask.
        mask = ["/bin/grep", "-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]
        probe = ["/bin/sh", "-c", PROBE]
        words = [sys.executable, "-m", "lttd", "-t", str(tmp_path / "t"), *options]
        words += ["--source", f"ftrace:{instance}", "--summary", f"json:{tmp_path}/summary"]
        found = []
        for command in (mask, [*words, "--", *mask], probe, [*words, "-a", "--", *probe]):
            with (tmp_path / "out").open("w+") as out:
                null = subprocess.DEVNULL
                done = subprocess.run(
                    [*odd, *command],
                    stdin=null,
                    stdout=out,
                    stderr=null,
                    timeout=PATIENCE_S,
                    check=False,
                )
                assert done.returncode == 0
            found.append((tmp_path / "out").read_text().splitlines())
        assert found[1] == found[0]
        assert f"SigBlk:\t{1 << 13 | 1 << 14:016x}" in found[0]
        assert found[3] == found[2]
        assert {"ODD=parent", "7 -> /dev/zero", "300"} <= set(found[2])
        assert json.loads((tmp_path / "summary").read_text())["command_status"] == 0

    @pytest.mark.parametrize(("before", "ours"), [(0, FIRST_NICE), (3, 3)])
    def test_lttd_runs_before_ordinary_programs_and_command_does_not(
        self, lttd: Launcher, tmp_path: Path, before: int, ours: int
    ) -> None:
        # COMMAND prints its own nice value, and those of lttd's threads: field 19 of their stat.
        probe = "nice; for task in /proc/$PPID/task/*; do cut -d' ' -f19 $task/stat; done"
        words = ["-t", str(tmp_path / "t"), "--", "sh", "-c", f"({probe}) >{tmp_path}/nice"]
        ordinary = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, before)
        try:
            assert lttd.run(*words).process.returncode == 0
        finally:
            os.setpriority(os.PRIO_PROCESS, 0, ordinary)
        command, *threads = map(int, (tmp_path / "nice").read_text().split())
        assert command == before
        assert len(threads) > 3
        assert set(threads) == {ours}

    def test_a_killed_command_is_reported_with_its_signal(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        run = lttd.run("-t", tmp_path / "t", "--", "sh", "-c", "kill -9 $$")
        assert run.process.returncode == 0
        assert "lttd: sh: ended with status 137" in run.lines


async def test_command_is_forked_before_it_runs_and_keeps_its_id(tmp_path: Path) -> None:
    command = Command(["sh", "-c", f"echo $$ > {tmp_path}/pid; exit 3"])
    command.spawn()
    assert command.pid is not None
    assert not (tmp_path / "pid").exists()
    await command.run()
    assert int((tmp_path / "pid").read_text()) == command.pid
    assert command.status == 3


async def test_a_program_that_cannot_be_executed_raises_and_has_no_status(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/nonexistent\n")
    (tmp_path / "script").chmod(0o755)
    command = Command([str(tmp_path / "script")])
    command.spawn()
    with pytest.raises(FileNotFoundError):
        await command.run()
    assert command.status is None


async def test_ending_a_command_that_never_ran_leaves_no_process() -> None:
    command = Command(["touch", "/nonexistent/x"])
    command.spawn()
    await command.end()
    assert command.status is None
    assert command.pid is not None
    with pytest.raises(ChildProcessError):
        os.waitpid(command.pid, 0)  # noqa: ASYNC222  (it has none)


async def test_a_command_killed_before_it_ran_has_the_status_of_its_signal() -> None:
    command = Command(["true"])
    command.spawn()
    assert command.pid is not None
    os.kill(command.pid, signal.SIGKILL)
    os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222  (at once)
    await command.run()
    assert command.status == 128 + signal.SIGKILL


async def test_the_end_of_command_is_noticed_without_pidfds(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    def refuse(_: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    command = Command(["sh", "-c", "exit 4"])
    command.spawn()
    await command.run()
    assert command.status == 4


async def test_command_is_killed_and_reaped_if_recording_ends_first() -> None:
    command = Command(["sleep", "60"])
    command.spawn()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(command.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert command.status == 128 + signal.SIGKILL


def test_a_waiting_child_ends_with_its_parent() -> None:
    code = "from lttd.command import Command; c = Command(['true']); c.spawn(); print(c.pid)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    # The child held a copy of stdout until its end, so run() has waited for it.
    assert not Path(f"/proc/{int(run.stdout)}/exe").exists()


def test_signals_that_python_ignores_are_reset_before_exec() -> None:
    # Whoever runs the tests may ignore others: nohup ignores SIGHUP.
    ignored_before = _ignored() - {signal.SIGPIPE, signal.SIGXFSZ}
    with Signals() as signals:
        pid = os.fork()
        if pid == 0:
            signals.restore_for_exec()
            os._exit(_ignored() != ignored_before)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _ignored() -> set[int]:
    return {n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN}
