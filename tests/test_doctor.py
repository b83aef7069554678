"""lttd doctor says of this machine what a start of lttd would say, and leaves nothing behind."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from lttd.config import parse_command_line
from lttd.doctor import command, disk, kernel, machine
from lttd.doctor.command import run
from lttd.doctor.finding import Finding, Mark, Report, refused
from lttd.doctor.port import try_port
from lttd.errors import LttdError, NothingToRecordError, UsageError
from lttd.files import Disk
from lttd.opening import locked_trace
from lttd.retention import Limits
from lttd.sources.mounts import USUAL_TRACEFS
from lttd.tracedir import TRIAL
from lttd.writefile import File
from tests.running import QUIET, Launcher, free_port, needs_kernel

FINDINGS = {"topic", "mark", "words", "remedy"}


def of(report: Report, topic: str) -> list[Finding]:
    return [each for group in report.groups.values() for each in group if each.topic == topic]


def tried(trace: Path) -> dict[str, Finding]:
    return {each.topic: each for each in disk.try_trace(trace, Limits())}


# -- the trace directory


def test_a_directory_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    found = tried(tmp_path)
    assert {each.mark for each in found.values()} <= {Mark.OK, Mark.NOTE}
    assert found.keys() >= {"trace", "free space", "rename", "fallocate", "holes", "sync"}
    assert os.listdir(tmp_path) == ["lost+found"]


def test_a_directory_that_is_missing_is_tried_and_missing_again(tmp_path: Path) -> None:
    assert tried(tmp_path / "a" / "b")["trace"].mark is Mark.OK
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_text(""), "is a file"),
        (lambda path: path.mkdir() or path.chmod(0o777), "other users may write to it"),
        (lambda path: path.mkdir() or (path / "x").write_text(""), "holds 'x', which is not a"),
    ],
)
def test_a_directory_that_a_start_refuses_is_bad(tmp_path: Path, make: object, says: str) -> None:
    assert callable(make)
    make(tmp_path / "t")
    found = tried(tmp_path / "t")
    assert found.keys() == {"trace"}
    assert found["trace"].mark is Mark.BAD
    assert says in found["trace"].words


def test_a_trial_that_was_killed_does_not_stop_a_start(tmp_path: Path) -> None:
    for name in (TRIAL, f".{TRIAL}.new"):
        (tmp_path / name).write_bytes(b"")
    assert tried(tmp_path)["trace"].mark is Mark.OK


def test_a_trace_that_is_being_recorded_is_a_note(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lttd.files import Disk\n"
        "from lttd.opening import locked_trace\n"
        "with locked_trace(Disk(), Path(sys.argv[1]), append=True):\n"
        "    print(flush=True); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = tried(tmp_path)
        holder.communicate()
    assert found["trace"].mark is Mark.NOTE
    assert f"(pid {holder.pid})" in found["trace"].words


class Full(os.PathLike[str]):
    """The answer of statvfs for a file system without free blocks."""

    f_bavail, f_blocks, f_frsize = 0, 1 << 20, 4096


def test_a_file_system_without_features_is_noted_and_a_full_one_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    monkeypatch.setattr(disk, "handle_of", lambda _: "")
    monkeypatch.setattr(disk, "scheduler_of", lambda _: "none")
    monkeypatch.setattr(disk, "idle_io_counts", lambda _: False)
    monkeypatch.setattr(File, "preallocate", lambda *_: False)
    monkeypatch.setattr(File, "can_bypass_cache", lambda _: False)
    found = tried(tmp_path)
    assert found["free space"].mark is Mark.BAD
    missing = ("file handles", "idle I/O", "fallocate", "uncached writes")
    assert [found[topic].mark for topic in missing] == [Mark.NOTE] * len(missing)
    assert "'none' knows no idle class" in found["idle I/O"].words


def test_limits_that_the_file_system_cannot_meet_are_bad(tmp_path: Path) -> None:
    found = {each.topic: each for each in disk.try_trace(tmp_path, Limits(free_bytes=1 << 50))}
    assert found["limits"].mark is Mark.BAD
    assert found["limits"].words.startswith("min-free 1024T: its file system has ")
    assert found["limits"].remedy == "ask for less"
    assert "limits" not in tried(tmp_path)


def test_the_scheduler_of_a_partition_is_that_of_its_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "BLOCK_DEVICES", tmp_path)
    (tmp_path / "disk/queue").mkdir(parents=True)
    (tmp_path / "disk/queue/scheduler").write_text("none [mq-deadline] bfq\n")
    (tmp_path / "disk/part1").mkdir()
    (tmp_path / "8:0").symlink_to("disk")
    (tmp_path / "8:1").symlink_to("disk/part1")
    assert disk.scheduler_of(os.makedev(8, 0)) == "mq-deadline"
    assert disk.scheduler_of(os.makedev(8, 1)) == "mq-deadline"
    assert disk.scheduler_of(os.makedev(0, 30)) == ""


# -- the report


def test_an_error_becomes_words_and_a_remedy() -> None:
    with_remedy = refused("x", NothingToRecordError("tracefs is not mounted", "mount it"))
    assert with_remedy == Finding("x", Mark.BAD, "tracefs is not mounted", "mount it")
    assert refused("x", LttdError("a; b; c"), Mark.NOTE) == Finding("x", Mark.NOTE, "a", "b; c")


@pytest.fixture
def without_tracefs(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none() -> Path:
        raise NothingToRecordError("tracefs is not mounted", "mount \x1b it")

    monkeypatch.setattr(kernel, "find_tracefs", find_none)


@pytest.mark.usefixtures("without_tracefs")
def test_the_status_is_77_and_the_remedy_is_printed_where_a_start_would_fail(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(["-t", str(tmp_path)]) == 77
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("  bad "))
    assert lines[at].split(maxsplit=2) == ["bad", "tracefs", "tracefs is not mounted"]
    assert lines[at + 1].strip() == "-> mount \\x1b it"
    assert lines[-1].startswith("A recording would fail here: 1 bad, ")


@pytest.mark.usefixtures("without_tracefs")
def test_json_has_every_finding_with_the_same_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--json"]) == 77
    report = json.loads(capsys.readouterr().out)
    assert report["works"] is False
    findings = [each for group in report["groups"].values() for each in group]
    assert {frozenset(each) for each in findings} == {frozenset(FINDINGS)}
    assert {each["mark"] for each in findings} <= {"ok", "note", "bad"}
    assert all(each["remedy"] for each in findings if each["mark"] == "bad")


@pytest.mark.usefixtures("without_tracefs")
def test_lines_fold_at_the_width_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "80")
    # A path is a word, which is not folded: it can be copied from the terminal.
    path = f"/{'d' * 90}"
    monkeypatch.setattr(machine, "directory_path", lambda: path)
    run([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if len(line) > 80] == [["ok", "runtime", path]]
    assert any(line.startswith(" " * 24) for line in lines)


@pytest.mark.parametrize(
    "options", [["--bogus"], ["--duration", "x"], ["-t", ""], ["--source", "nothing"]]
)
def test_an_option_that_is_no_recording_s_is_a_usage_error(options: list[str]) -> None:
    with pytest.raises(UsageError):
        run(options)


def test_the_help_shows_the_command_for_the_service_in_a_line_of_its_own(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(["--help"])
    line = "lttd doctor --config /etc/lttd/lttd.toml --trace-dir /var/lib/lttd/trace"
    assert line in capfd.readouterr().out.splitlines()


def test_the_configuration_of_the_service_is_examined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lttd.toml").write_text(f'trace-dir = "{tmp_path}/t"\nbacklog = "1024T"\n')
    monkeypatch.setattr(kernel, "find_tracefs", lambda: Path("/sys/kernel/tracing"))
    assert run(["--config", str(tmp_path / "lttd.toml")]) == 77
    out = capsys.readouterr().out
    assert f"{tmp_path}/t: lttd can write there" in out
    assert "this process may not have the 1024.0 TiB of --backlog" in out


def test_every_library_that_lttd_requires_is_named_with_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def named() -> str:
        return next(each.words for each in machine.programs() if each.topic == "python")

    for name in ("numpy", "trio", "h11", "prometheus-client", "construct", "sortedcontainers"):
        assert f", {name} {version(name)}" in named()
    assert "pytest" not in named()
    other = ["numpy>=1", "no-such-library; python_version < '3'", "pytest; extra == 'dev'"]
    monkeypatch.setattr(machine, "requires", lambda _: other)
    assert named().endswith(f", numpy {version('numpy')}")


# -- the port of the metrics


def port_found(port: int, *words: str, trace: Path | None = None) -> list[Finding]:
    config = parse_command_line(["-t", "/t", "--metrics", f"127.0.0.1:{port}", *words])
    return list(try_port(config, trace))


def test_a_free_port_is_bound_and_let_go() -> None:
    port = free_port()
    for _ in range(2):
        (found,) = port_found(port)
        assert found == Finding("metrics", Mark.OK, f"127.0.0.1:{port}: lttd can listen there")


def test_a_port_that_another_program_has_is_bad_and_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        (found,) = port_found(port)
    own = Path("/proc/self/comm").read_text().strip()
    says = f"--metrics 127.0.0.1:{port}: the port is in use by {own} (pid {os.getpid()})"
    assert found == Finding(
        "metrics", Mark.BAD, says, "choose another, or stop its program (`ss -ltnp`)"
    )


def test_the_port_of_the_recorder_of_the_same_trace_is_a_note(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        locked_trace(Disk(), tmp_path / "t", append=True),
    ):
        port = listening.getsockname()[1]
        (found,) = port_found(port, trace=tmp_path / "t")
        (other,) = port_found(port, trace=tmp_path / "other")
    assert (found.mark, found.remedy) == (Mark.NOTE, "it is the recorder of this trace")
    assert other.mark is Mark.BAD


def test_an_address_that_a_start_refuses_is_bad(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("sekret")
    token.chmod(0o600)
    webhook = ["--web-enable-trigger", "--web-token-file", str(token)]
    for words in (["--metrics", "127.0.0.1"], ["--metrics", "192.0.2.1:80"], webhook):
        (found,) = try_port(parse_command_line(["-t", "/t", *words]), None)
        assert found.mark is Mark.BAD
        assert found.remedy


def test_the_whole_report_has_the_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert run(["--metrics", f"127.0.0.1:{listening.getsockname()[1]}"]) == 77
    assert "the port is in use by " in capsys.readouterr().out


# -- the same verdict as a start, on this kernel

RUN = """
import sys
from lttd.sources.ftrace import instance as ftrace_instance
ftrace_instance.OWN_PREFIX = sys.argv.pop(1)
import lttd.daemon, lttd.recover, lttd.sources.ftrace.source
import lttd.doctor.checks
from lttd.cli import main
sys.exit(main())
"""
UNMOUNT = """
awk '$3 == "tracefs" || $3 == "debugfs" {print $2}' /proc/mounts | sort -r | while read -r point
do umount -l "$point"; done 2> /dev/null
"""


def in_mounts(script: str) -> list[str]:
    return ["unshare", "-m", "sh", "-ec", f'{UNMOUNT}\n{script}\nexec "$@"', "sh"]


READ_ONLY = f"mount -t tracefs none {USUAL_TRACEFS}; mount -o remount,bind,ro {USUAL_TRACEFS}"
# As systemd does it for lttd.service.
OF_UNIT = f"""
mount -t tracefs none {USUAL_TRACEFS}
mount --bind {USUAL_TRACEFS}/instances {USUAL_TRACEFS}/instances
mount -o remount,bind,ro {USUAL_TRACEFS}
"""
HIDDEN_TASKS = "mount -t tracefs none /sys/kernel/tracing; mount -t proc -o hidepid=2 none /proc"
CONFINED = {
    "as it is": [],
    "another user": ["setpriv", "--reuid=64999", "--regid=64999", "--clear-groups"],
    "without capabilities": ["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
    "a user namespace": ["unshare", "-Ur"],
    "a pid namespace": ["unshare", "-p", "-f", "--mount-proc"],
    "a time namespace": ["unshare", "-T", "--monotonic", "1000"],
    "no tracefs": in_mounts(":"),
    "a read-only tracefs": in_mounts(READ_ONLY),
    "the mounts of the unit": in_mounts(OF_UNIT),
    "only debugfs": in_mounts("mount -t debugfs none /sys/kernel/debug"),
    "a runtime directory that others can write": ["env", "RUNTIME_DIRECTORY={cwd}/open"],
    "too few descriptors": ["prlimit", "--nofile=12:12"],
}


class TestOnThisKernel:
    pytestmark = needs_kernel()

    def run(
        self, lttd: Launcher, under: Sequence[str], *words: str | Path
    ) -> subprocess.CompletedProcess[str]:
        under = [word.format(cwd=lttd.cwd) if word.startswith("RUNTIME") else word
                 for word in under]  # fmt: skip
        own = {"RUNTIME_DIRECTORY": str(lttd.runtime)}
        return subprocess.run(
            [*under, sys.executable, "-c", RUN, lttd.prefix, *map(str, words)],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            check=False,
        )

    @pytest.mark.parametrize("under", CONFINED.values(), ids=CONFINED)
    def test_the_verdict_is_that_of_a_start(
        self, lttd: Launcher, tmp_path: Path, under: list[str]
    ) -> None:
        (lttd.cwd / "open").mkdir(mode=0o777, exist_ok=True)
        (lttd.cwd / "open").chmod(0o777)
        before = sorted(os.listdir(lttd.cwd))
        doctor = self.run(lttd, under, "doctor", "--json", *QUIET)
        assert sorted(os.listdir(lttd.cwd)) == before
        assert lttd.left() == []
        # Another user may not enter tmp_path, but may make a directory in /tmp.
        trace = Path(f"/tmp/{lttd.prefix}t") if "--reuid=64999" in under else tmp_path / "t"
        options = (*QUIET, "--duration", "50ms", "--summary", "none")
        start = self.run(lttd, under, "-t", trace, *options)
        assert (doctor.returncode == 0) == (start.returncode == 0), doctor.stdout + start.stderr
        report = json.loads(doctor.stdout)
        assert report["works"] == (start.returncode == 0)
        bad = [
            found
            for group in report["groups"].values()
            for found in group
            if found["mark"] == "bad"
        ]
        if start.returncode == 77:
            assert any(found["words"] in start.stderr for found in bad)
            assert any(found["remedy"] in start.stderr for found in bad)

    def test_what_others_do_is_found_and_stays(self, lttd: Launcher, tmp_path: Path) -> None:
        theirs = lttd.instances / f"{lttd.prefix}theirs"
        theirs.mkdir()
        try:
            reader = subprocess.Popen(["cat", theirs / "trace_pipe"], stdout=subprocess.DEVNULL)
            # It is cat from its exec on; it may still open and close libraries then.
            opened = False
            while not opened:
                with contextlib.suppress(FileNotFoundError):
                    opened = any(
                        os.readlink(f"/proc/{reader.pid}/fd/{fd}").endswith("/trace_pipe")
                        for fd in os.listdir(f"/proc/{reader.pid}/fd")
                    )
            clock = (theirs / "trace_clock").read_text()
            source = ("--source", f"ftrace:{theirs.name},clock=boot")
            done = self.run(lttd, [], "doctor", *source, "-t", tmp_path / "t")
            assert (theirs / "trace_clock").read_text() == clock
        finally:
            reader.kill()
            reader.wait()
            theirs.rmdir()
        assert done.returncode == 0, done.stderr
        assert f"cat (pid {reader.pid}) reads ftrace:{theirs.name}" in done.stdout
        assert "not tried, because that would change what is not lttd's" in done.stdout
        assert not (tmp_path / "t").exists()

    def test_the_kernel_s_features_are_tried_in_an_instance(self, lttd: Launcher) -> None:
        done = self.run(lttd, [], "doctor", "--json", *QUIET, "--buffer-size", "64K")
        kernel_group = json.loads(done.stdout)["groups"]["kernel"]
        found = {each["topic"]: each for each in kernel_group}
        assert found["recording"]["mark"] == "ok"
        assert found["rings"]["mark"] == "note"
        assert " KiB for each of " in found["rings"]["words"]
        assert found.keys() >= {
            *("poll", "sub-buffers", "own threads", "tracers", "snapshot", "over a reboot")
        }
        assert found["processes"]["mark"] == "ok"
        copies = (lttd.instances.parent / "options/copy_trace_marker").exists()
        assert (found["marks"]["mark"] == "ok") == copies
        sizes = (lttd.instances.parent / "buffer_subbuf_size_kb").exists()
        assert (found["sub-buffers"]["mark"] == "ok") == sizes

    def test_what_can_be_asked_of_the_kernel_is_tried(self, lttd: Launcher) -> None:
        found = self.findings(lttd, [])
        topics = ("filters", "event triggers", "stacks", "options")
        assert [found[topic]["mark"] for topic in topics] == ["ok"] * len(topics)
        words = ("--tracer", "function", "--function", "vfs_read", "--duration", "50ms")
        start = self.run(lttd, [], "-t", lttd.cwd / "t", *words, "--summary", "none")
        assert (found["tracers"]["mark"] == "ok") == (start.returncode == 0), start.stderr
        assert found["tracers"]["remedy"] in start.stderr

    @pytest.mark.nightly  # the kernel takes a tenth of a second to free each trigger
    def test_a_recording_keeps_its_filters_and_triggers_while_others_are_tried(
        self, lttd: Launcher
    ) -> None:
        events = ("--events", "sched:*", "--filter", "*:*: common_pid == 1")
        found = self.findings(lttd, [], *events, "--event-trigger", "*:*: traceoff if CPU == 4096")
        assert found["recording"]["mark"] == "ok"
        assert "not tried: every event has" in found["filters"]["words"]

    def test_what_a_read_only_tracefs_forbids_has_the_remedy_of_a_start(
        self, lttd: Launcher
    ) -> None:
        under = in_mounts(OF_UNIT)
        found = self.findings(lttd, under)
        path = f"{USUAL_TRACEFS}/dynamic_events"
        assert found["probes"]["mark"] == "note"
        assert f"{path}: Read-only file system" in found["probes"]["words"]
        assert f"ReadWritePaths={path}" in found["probes"]["remedy"]
        probe = ("--probe", "p:x /bin/true:0x0", "--duration", "50ms")
        start = self.run(lttd, under, "-t", lttd.cwd / "t", *probe)
        assert start.returncode == 77
        assert found["probes"]["remedy"] in start.stderr

    def test_hidden_processes_are_noted(self, lttd: Launcher) -> None:
        # A member of group 0 sees all of them; lttd.service has another group.
        under = [*in_mounts(HIDDEN_TASKS), "setpriv", "--regid=64999", "--clear-groups"]
        under += ["--bounding-set=-all", "--inh-caps=-all"]
        assert "ProtectProc=" in self.findings(lttd, under)["processes"]["remedy"]

    def findings(
        self, lttd: Launcher, under: Sequence[str], *words: str
    ) -> dict[str, dict[str, str]]:
        done = self.run(lttd, under, "doctor", "--json", *(words or QUIET))
        groups = json.loads(done.stdout)["groups"]
        return {each["topic"]: each for group in groups.values() for each in group}

    def test_the_recorder_of_a_ring_is_not_another_reader_of_it(
        self, lttd: Launcher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = lttd.start("-t", lttd.cwd / "t", *QUIET).recording()
        monkeypatch.setattr(kernel, "OWN_PREFIX", lttd.prefix)
        (found,) = kernel.readers()
        assert run.end() == 0
        # Another lttd of this machine may be recording, too.
        assert f"reads ftrace:{run.instance.name}" not in found.words


def test_a_reader_of_a_ring_beside_its_recorder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "instances/lttd-7").mkdir(parents=True)
    readers = {"instances": [], "lttd-7": ["lttd (pid 7)", "cat (pid 8)"]}
    monkeypatch.setattr(kernel, "find_tracefs", lambda: tmp_path)
    monkeypatch.setattr(kernel, "other_readers", lambda path: readers.get(Path(path).name, []))
    (found,) = kernel.readers()
    assert found.mark is Mark.NOTE
    assert found.words.startswith("lttd (pid 7), cat (pid 8) reads ftrace:lttd-7: ")
    readers["lttd-7"].pop()
    (found,) = kernel.readers()
    assert found == Finding("readers", Mark.OK, "nobody but lttd, of lttd-7")
