"""Find tracefs and debugfs: lttd tries every mount, and names the obstacle."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lttd.errors import NothingToRecordError
from lttd.sources import refused
from lttd.sources.mounts import USUAL_TRACEFS, find_debugfs, find_tracefs
from lttd.sources.refused import Capability, has, remedy
from tests.running import QUIET, Launcher, Run, assert_whole, needs_kernel

# Import everything first: an ordinary user may be unable to read the interpreter.
AS_USER = """
import os, sys
import lttd.daemon, lttd.recover, lttd.sources.ftrace.source
from lttd import cli
uid = int(sys.argv.pop(1))
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
sys.exit(cli.main())
"""
USER = 64999


def mounted(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "mounts"
    path.write_text("".join(f"none {line} rw 0 0\n" for line in lines))
    return path


def tree(path: Path, *directories: str) -> Path:
    for name in directories:
        (path / name).mkdir(parents=True)
    return path


def test_the_remedy_for_a_missing_tracefs_is_to_mount_it(tmp_path: Path) -> None:
    mounts = mounted(tmp_path, "/proc proc", f"{tree(tmp_path / 'debug', 'block')} debugfs")
    with pytest.raises(NothingToRecordError, match="mount -t tracefs tracefs /sys/kernel/tracing"):
        find_tracefs(mounts=mounts)


def test_a_mount_point_with_a_blank_is_found(tmp_path: Path) -> None:
    point = tree(tmp_path / "a tree", "instances")
    mounts = mounted(tmp_path, f"{str(point).replace(' ', chr(92) + '040')} tracefs")
    assert find_tracefs(mounts=mounts) == point


def test_a_covered_mount_is_skipped(tmp_path: Path) -> None:
    covered, usable = tree(tmp_path / "a", "x"), tree(tmp_path / "b", "instances")
    mounts = mounted(tmp_path, f"{covered} tracefs", f"{usable} tracefs")
    assert find_tracefs(mounts=mounts) == usable
    with pytest.raises(NothingToRecordError, match=f"{covered} has no instances directory"):
        find_tracefs(mounts=mounted(tmp_path, f"{covered} tracefs", f"{covered} tracefs"))


def test_tracefs_within_debugfs_is_the_last_resort(tmp_path: Path) -> None:
    debug = tree(tmp_path / "debug", "tracing/instances", "tracing/events")
    usable, covered = tree(tmp_path / "b", "instances"), tree(tmp_path / "a", "x")
    mounts = mounted(tmp_path, f"{debug} debugfs", f"{covered} tracefs")
    assert find_tracefs(mounts=mounts) == debug / "tracing"
    mounts = mounted(tmp_path, f"{debug} debugfs", f"{covered} tracefs", f"{usable} tracefs")
    assert find_tracefs(mounts=mounts) == usable


def test_the_first_uncovered_mount_of_debugfs_is_used(tmp_path: Path) -> None:
    with pytest.raises(NothingToRecordError, match="mount -t debugfs"):
        find_debugfs(mounted(tmp_path, "/proc proc"))
    assert find_debugfs(mounted(tmp_path, "/none debugfs")) == "/none"
    covered, usable = tree(tmp_path / "a", "x"), tree(tmp_path / "b c", "block")
    (tmp_path / "mounts").write_bytes(
        b"none /\xff proc rw 0 0\nnone %s debugfs rw 0 0\nnone %s debugfs rw 0 0\n"
        % (os.fsencode(covered), os.fsencode(usable).replace(b" ", rb"\040"))
    )
    assert find_debugfs(tmp_path / "mounts") == str(usable)


# -- obstacles


@pytest.fixture
def as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root of the initial user namespace with all capabilities, and without lockdown."""
    (tmp_path / "status").write_text("Uid:\t0\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n")
    (tmp_path / "uid_map").write_text("         0          0 4294967295\n")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(refused, "STATUS", tmp_path / "status")
    monkeypatch.setattr(refused, "UID_MAP", tmp_path / "uid_map")
    monkeypatch.setattr(refused, "LOCKDOWN", tmp_path / "lockdown")
    return tmp_path


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("needed", [None, Capability.CAP_SYS_ADMIN])
def test_the_remedy_for_root_is_not_to_become_root(
    as_root: Path, number: int, needed: Capability | None
) -> None:
    for capabilities in ("000001ffffffffff", "0000000000000000"):
        for mode in ("[none] integrity confidentiality", "none integrity [confidentiality]"):
            (as_root / "status").write_text(f"CapEff:\t{capabilities}\n")
            (as_root / "lockdown").write_text(mode)
            assert "as root" not in remedy(number, needed)


def test_a_capability_that_root_lacks_is_named(
    as_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has(Capability.CAP_SYS_ADMIN)
    assert "security module" in remedy(errno.EPERM, Capability.CAP_SYS_ADMIN)
    (as_root / "lockdown").write_text("none [integrity] confidentiality\n")
    assert "lockdown=integrity keeps it from root, too" in remedy(errno.EPERM)
    (as_root / "status").write_text(f"CapEff:\t{1 << Capability.CAP_SYS_ADMIN:016x}\n")
    assert "this root lacks CAP_DAC_OVERRIDE: give it" in remedy(errno.EACCES)
    (as_root / "status").write_text(f"CapEff:\t{1 << Capability.CAP_DAC_OVERRIDE:016x}\n")
    assert "this root lacks CAP_SYS_ADMIN" in remedy(errno.EPERM, Capability.CAP_SYS_ADMIN)
    (as_root / "uid_map").write_text("0 100000 65536\n")
    assert "run lttd as the machine's" in remedy(errno.EACCES)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert remedy(errno.EACCES) == "run lttd as root (CAP_DAC_OVERRIDE)"


@contextmanager
def owned(instance: Path) -> Iterator[Path]:
    """Give *instance* to USER, who may enter the directories above it but not list them."""
    instance.mkdir()
    above = [instance.parents[1], instance.parents[0]]
    modes = [path.stat().st_mode for path in above]
    try:
        subprocess.run(["chown", "-R", f"{USER}:{USER}", instance], check=True)
        for path in above:
            os.chmod(path, 0o711)
        yield instance
    finally:
        for path, mode in zip(above, modes, strict=True):
            os.chmod(path, mode)
        instance.rmdir()


class TestOnThisKernel:
    """Tests with real mounts, in a mount name space of their own."""

    pytestmark = needs_kernel()

    UNMOUNT = """
    awk '$3 == "tracefs" || $3 == "debugfs" {print $2}' /proc/mounts | sort -r | while read -r point
    do umount -l "$point"; done 2> /dev/null
    """

    def run(self, lttd: Launcher, tmp_path: Path, script: str, *options: str,
            caller: Sequence[str] = ()) -> Run:  # fmt: skip
        script = f"{self.UNMOUNT}\nmkdir -p {tmp_path}/m; cd {tmp_path}/m; {script}\n"
        under = ["unshare", "-m", "sh", "-ec", f'{script} cd "$OLDPWD"; exec "$@"', "sh", *caller]
        options = options or (*QUIET, "--duration", "50ms")
        return lttd.run("-t", tmp_path / "t", *options, "--summary", "none", under=under)

    @pytest.mark.parametrize(
        "script",
        [
            "mount -t debugfs debugfs /sys/kernel/debug",
            "mkdir d; mount -t debugfs debugfs d",
            "mkdir a; mount -t tracefs tracefs a",
            # The first mount is covered, or read-only.
            f"mount -t tracefs none {USUAL_TRACEFS}; mkdir a; mount -t tracefs none a;"
            f" mount -t tmpfs none {USUAL_TRACEFS}",
            f"mount -t tracefs none {USUAL_TRACEFS}; mkdir a; mount -t tracefs none a;"
            f" mount -o remount,bind,ro {USUAL_TRACEFS}",
        ],
    )
    def test_the_first_usable_mount_is_used(
        self, lttd: Launcher, tmp_path: Path, script: str
    ) -> None:
        run = self.run(lttd, tmp_path, script)
        assert (run.process.returncode, run.stderr) == (0, "")
        assert_whole(tmp_path / "t")

    @pytest.mark.parametrize(
        ("script", "says"),
        [
            ("", "tracefs is not mounted; mount -t tracefs tracefs /sys/kernel/tracing"),
            ("mount -t debugfs none d", "tracefs is not mounted; mount -t tracefs tracefs"),
            (
                f"mount -t tracefs none {USUAL_TRACEFS}; mount -o remount,bind,ro {USUAL_TRACEFS}",
                "Read-only file system; mount tracefs read-write (a service: ReadWritePaths=",
            ),
            (
                "mount -t tracefs none d; mount -o remount,bind,ro d",
                f"Read-only file system; mount -t tracefs tracefs {USUAL_TRACEFS}, read-write",
            ),
            ("mount -t tracefs none d; mount -t tmpfs none d", "d has no instances directory"),
        ],
    )
    def test_having_no_usable_mount_is_reported_in_one_line_with_a_remedy(
        self, lttd: Launcher, tmp_path: Path, script: str, says: str
    ) -> None:
        if "debugfs" in script:
            script += "; mount -t tmpfs none d/tracing"
        run = self.run(lttd, tmp_path, f"mkdir d; {script}")
        (line,) = run.lines
        assert says in line
        assert run.process.returncode == 77
        assert not (tmp_path / "t").exists()
        assert lttd.left() == []

    def test_root_without_capabilities_is_refused_with_the_missing_one(
        self, lttd: Launcher, tmp_path: Path
    ) -> None:
        drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        mount = f"mount -t tracefs none {USUAL_TRACEFS}"
        with owned(lttd.instances / f"{lttd.prefix}theirs") as instance:
            source = ("--source", f"ftrace:{instance.name}")
            run = self.run(lttd, tmp_path, mount, *source, caller=drop)
        (line,) = run.lines
        assert "this root lacks CAP_DAC_OVERRIDE: give it (systemd:" in line
        assert run.process.returncode == 77

    def test_the_owner_of_an_instance_may_record_it_without_listing_instances(
        self, lttd: Launcher
    ) -> None:
        instance = lttd.instances / f"{lttd.prefix}mine"
        with owned(instance), tempfile.TemporaryDirectory(dir="/tmp") as directory:
            os.chown(directory, USER, USER)
            words = [sys.executable, "-c", AS_USER, str(USER), "-t", f"{directory}/t"]
            source = ["--source", f"ftrace:{instance.name}", "--duration", "100ms"]
            done = subprocess.run([*words, *source], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert_whole(Path(directory) / "t")
            words[-1] += "2"  # it may not make an own instance
            own = subprocess.run(words, capture_output=True, text=True, check=False)
            assert own.returncode == 77
            (line,) = own.stderr.splitlines()
            assert "instances: Permission denied; run lttd as root" in line
