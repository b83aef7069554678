"""The meaning of signals to lttd: some end it in order, some are only reported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lttd.signals import MEANINGS, REPORT_INTERVAL_S, Meaning, Signals, name_of
from tests.data import FIXTURES
from tests.running import PATIENCE_S, QUIET, Launcher, assert_whole, needs_kernel, until

ENDS = [number for number, meaning in MEANINGS.items() if meaning is Meaning.END]
FREE = [number for number, meaning in MEANINGS.items() if meaning is Meaning.NONE]
# For these the default act of the kernel is the expected one.
LEFT_ALONE = {
    *("SIGKILL", "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGCONT", "SIGCHLD", "SIGPIPE"),
    *("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT", "SIGTRAP", "SIGSYS"),
    *("SIGURG", "SIGWINCH", "SIGXFSZ"),
}
# Signals that are pending during exec arrive as soon as they are unblocked.
WITH_SIGNALS_WAITING = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for number in sys.argv.pop(1).split(","):
    os.kill(os.getpid(), int(number))
os.execv(sys.argv[1], sys.argv[1:])
"""

# Ctrl-C comes when a module is about to be loaded, or at exit.
INTERRUPTED = """
import atexit, os, signal, sys
interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, getattr(signal, sys.argv.pop(1)))
door, when = sys.argv.pop(1), sys.argv.pop(1)
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == when:
            interrupt()
sys.meta_path.insert(0, Finder)
if when == "exit":
    atexit.register(interrupt)
import lttd.entry
sys.exit(getattr(lttd.entry, door)())
"""

OWN_GROUP = "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])"


def replay_with_waiting(numbers: list[int], trace: Path) -> subprocess.CompletedProcess[str]:
    waiting = ",".join(map(str, numbers))
    words = [sys.executable, "-c", WITH_SIGNALS_WAITING, waiting, sys.executable, "-m", "lttd"]
    words += [
        "-t",
        str(trace),
        "--source",
        f"replay:{FIXTURES}/ftrace,abi=ftrace",
        "--summary",
        "none",
    ]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_every_signal_is_in_the_table_or_left_to_the_kernel() -> None:
    others = {signal.Signals[name].value for name in LEFT_ALONE}
    assert set(MEANINGS) | others == {int(number) for number in signal.valid_signals()}
    assert not set(MEANINGS) & others


def test_signals_of_one_kind_are_reported_once_a_minute() -> None:
    now = 0.0
    signals = Signals(lambda: now)
    lines = []
    for now in range(3 * int(REPORT_INTERVAL_S)):  # noqa: B007  (the lambda reads it)
        lines += [signals.report(signal.SIGALRM), signals.report(signal.SIGRTMIN + 3)]
    said = [line for line in lines if line]
    assert len(said) == 6
    assert {line.partition(" ")[0] for line in said} == {"SIGALRM", "SIGRTMIN+3"}
    assert [name_of(n) for n in (signal.SIGRTMIN, signal.SIGRTMAX)] == ["SIGRTMIN", "SIGRTMAX"]


def test_the_earlier_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in MEANINGS]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with Signals():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in MEANINGS] == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


@pytest.mark.slow
def test_meaningless_signals_at_the_start_are_reported_and_ignored(
    tmp_path: Path,
) -> None:
    run = replay_with_waiting(FREE, tmp_path / "t")
    assert run.returncode == 0, run.stderr
    said = [line.split()[1] for line in run.stderr.splitlines()]
    assert sorted(said) == sorted(map(name_of, FREE))
    assert_whole(tmp_path / "t")


@pytest.mark.parametrize(
    ("door", "when"),
    [("lttd", "lttd.config"), ("lttv", "lttd.view.cli"), ("lttv", "exit")],
)
def test_ctrl_c_during_import_or_exit_leaves_no_traceback(door: str, when: str) -> None:
    for before, status in (("default_int_handler", -signal.SIGINT), ("SIG_IGN", 0)):
        words = [sys.executable, "-c", INTERRUPTED, before, door, when, "--version"]
        run = subprocess.run(words, capture_output=True, timeout=PATIENCE_S, check=False)
        assert (run.returncode, run.stderr) == (status, b"")


INTERRUPTED_IN_DEL = """
import os, signal, sys, time
from lttd.view import cli
class File:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
def command(_):
    File()
    time.sleep(60)
cli.COMMANDS["info"] = command
sys.exit(cli.program())
"""


def test_ctrl_c_while_an_object_ends_is_not_dropped() -> None:
    words = [sys.executable, "-c", INTERRUPTED_IN_DEL, "info", "trace"]
    run = subprocess.run(words, capture_output=True, timeout=PATIENCE_S, check=False)
    assert (run.returncode, run.stderr) == (130, b"")


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDS, ids=name_of)
def test_a_signal_at_the_start_ends_lttd_before_anything_is_made(
    tmp_path: Path, number: int
) -> None:
    run = replay_with_waiting([number], tmp_path / "t")
    assert (run.returncode, run.stderr) == (1, "lttd: interrupted before anything was recorded\n")
    assert not (tmp_path / "t").exists()


SIGNALLED_AT_EXIT = """
import atexit, os, sys
from lttd import cli
numbers = [int(number) for number in sys.argv.pop(1).split(",")]
atexit.register(lambda: [os.kill(os.getpid(), number) for number in numbers])
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_a_signal_while_the_process_exits_does_not_change_its_status(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SIGNALLED_AT_EXIT, ",".join(map(str, MEANINGS))]
    words += ["-t", str(tmp_path / "t"), "--source", f"replay:{FIXTURES}/ftrace,abi=ftrace"]
    words += ["--summary", "none"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class TestOnThisKernel:
    pytestmark = needs_kernel()

    def test_no_signal_leaves_a_recording_half_finished(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        run = lttd.start("-t", tmp_path / "t", *QUIET, "--summary", "none").recording()
        for _ in range(3):
            for number in FREE:
                run.signal(number)
        until(lambda: len(run.lines) == len(FREE), "each kind is reported")
        (run.instance / "trace_marker").write_text("the last word")
        assert run.signal(signal.SIGQUIT).wait() == 0
        assert len(run.lines) == len(FREE), "and each once"
        assert_whole(tmp_path / "t", "--events")
        data = b"".join(path.read_bytes() for path in tmp_path.glob("t/*/streams/ftrace_?"))
        assert b"the last word" in data

    def test_a_stop_from_the_terminal_stops_and_continues(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        # The kernel discards SIGTSTP for an orphaned process group.
        group = [sys.executable, "-c", OWN_GROUP]
        run = lttd.start("-t", tmp_path / "t", *QUIET, "--summary", "none", under=group).recording()
        run.signal(signal.SIGTSTP)
        stat = Path(f"/proc/{run.process.pid}/stat")
        until(lambda: stat.read_text().rpartition(") ")[2][0] == "T", "it is stopped")
        run.signal(signal.SIGCONT)
        assert run.end() == 0
        assert run.stderr == ""

    def test_lttd_respects_nohup(self, lttd: Launcher, tmp_path: Path) -> None:
        words = ["nohup", sys.executable, "-m", "lttd", "-t", tmp_path / "t", "--append"]
        name = f"{lttd.prefix}nohup"
        (lttd.instances / name).mkdir()
        process = subprocess.Popen([*words, "--source", f"ftrace:{name}"], stderr=subprocess.PIPE)
        try:
            until(lambda: list(tmp_path.glob("t/*/trace.json")), "it records")
            os.kill(process.pid, signal.SIGHUP)
            os.kill(process.pid, signal.SIGALRM)
            assert process.stderr is not None
            lines = iter(process.stderr.readline, b"")
            assert any(b"SIGALRM" in line for line in lines)
            assert process.poll() is None
        finally:
            process.terminate()
            assert process.communicate(timeout=PATIENCE_S) is not None
            (lttd.instances / name).rmdir()
        assert process.returncode == 0
