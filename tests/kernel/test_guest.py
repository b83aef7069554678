"""Test the guest harness, on which every other test in the guest relies."""

import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.kernel.guest import Guest, GuestLostError, Machine, command_line
from tests.kernel.image import (
    CHECKOUT,
    GuestUnavailableError,
    cpio,
    hidden_paths,
    prepare,
    run_tool,
)

in_guest = [pytest.mark.guest, pytest.mark.slow]


class TestTheHost:
    def test_a_missing_tool_is_reported_in_one_line(self) -> None:
        with pytest.raises(GuestUnavailableError, match=r"^no-such-tool is not installed$"):
            run_tool("no-such-tool")

    def test_a_tool_that_fails_is_reported_with_its_last_line(self) -> None:
        with pytest.raises(GuestUnavailableError, match=r"last word$"):
            run_tool("sh", "-c", "echo first >&2; echo last word >&2; exit 1")

    def test_without_qemu_the_packages_to_install_are_named(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(GuestUnavailableError, match=r"apt-get install .*qemu-system-x86"):
            prepare()

    def test_every_member_of_an_initrd_starts_at_a_multiple_of_four(self) -> None:
        archive = cpio([("a", 0o100644, b"xyz"), ("directory", 0o040755, b"")])
        assert [archive.find(b"070701", at) % 4 for at in (0, 1, 120)] == [0, 0, 0]
        assert archive.endswith(b"TRAILER!!!\0\0\0\0")

    def test_a_directory_below_a_fresh_one_is_bound_once(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        library = tmp_path / "venv/lib"
        library.mkdir(parents=True)
        monkeypatch.setattr("tests.kernel.image.FRESH_DIRECTORIES", (tmp_path,))
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
        monkeypatch.setattr(sys, "base_prefix", "/usr")
        # All of these occur on a sys.path: the fresh directory, the checkout, missing paths.
        path = [str(tmp_path), str(CHECKOUT), str(library), str(tmp_path / "absent.zip")]
        monkeypatch.setattr(sys, "path", path)
        assert hidden_paths() == [tmp_path / "venv"]

    def test_the_default_guest_has_a_possible_but_absent_cpu(self) -> None:
        arguments = command_line().parse_args(["run", "--out", "o", "--", "true"])
        assert (arguments.cpus, arguments.maxcpus) == (2, 3)
        assert Machine().max_cpus > Machine().cpus


class TestALostGuest:
    """A shell with the same two pipes replaces QEMU here."""

    @staticmethod
    def guest(share: Path, shell: str) -> Guest:
        pipe = subprocess.PIPE
        command = ["sh", "-c", shell]
        return Guest(share, subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0))

    def test_a_guest_that_ends_is_reported_with_its_console(self, tmp_path: Path) -> None:
        (tmp_path / "console.log").write_text("why\nKernel panic - not syncing: x\nRIP: 0033\n")
        with (
            self.guest(tmp_path, "read line") as guest,
            pytest.raises(GuestLostError, match=r"'0001'\nwhy\nKernel panic - not syncing: x$"),
        ):
            guest.run("true")

    def test_every_script_after_the_end_of_a_guest_is_refused(self, tmp_path: Path) -> None:
        with self.guest(tmp_path, "read line") as guest:
            for _ in range(2):
                with pytest.raises(GuestLostError):
                    guest.run("true")

    def test_a_silent_guest_is_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tests.kernel.guest.ANSWER_SLACK_S", 0.0)
        with (
            self.guest(tmp_path, "exec sleep 600") as guest,
            pytest.raises(GuestLostError, match=r"no answer to '0001' in 0\.01 s"),
        ):
            guest.run("true", timeout_s=0.01)
        assert guest.qemu.returncode is not None

    def test_a_guest_with_a_wrong_answer_is_ended(self, tmp_path: Path) -> None:
        with (
            self.guest(tmp_path, "read line; echo 0007 0; read line") as guest,
            pytest.raises(GuestLostError, match="is no answer to '0001'"),
        ):
            guest.run("true")
        assert guest.qemu.returncode is not None


class TestTheGuest:
    pytestmark = in_guest

    def test_a_guest_command_returns_its_status_output_and_files(self, guest: Guest) -> None:
        result = guest.run('echo to stdout; echo to stderr >&2; echo kept > "$OUT/file"; exit 7')
        assert result.status == 7
        assert result.output == "to stdout\nto stderr\n"
        assert (result.out_dir / "file").read_text() == "kept\n"

    def test_the_guest_is_root_of_a_kernel_without_lockdown(self, guest: Guest) -> None:
        script = """
        uname -n; id -u
        mount -t securityfs securityfs /sys/kernel/security && cat /sys/kernel/security/lockdown
        """
        lines = guest.run(script).expect(0).output.splitlines()
        assert lines[:2] == ["lttd-guest", "0"]
        assert lines[2].startswith("[none]")

    def test_a_script_that_hangs_is_ended_and_the_next_one_runs(self, guest: Guest) -> None:
        assert guest.run("sleep 600", timeout_s=1).status == 124
        guest.run("true").expect(0)

    def test_processes_that_a_script_leaves_end_with_it(self, guest: Guest) -> None:
        guest.run("sleep 4321 &").expect(0)
        assert guest.run("pgrep -f 'sleep 432[1]'").status == 1

    def test_the_guest_has_the_interpreter_and_the_checkout(self, guest: Guest) -> None:
        program = "import sys, numpy, lttd; print(lttd.__file__, sys.prefix)"
        script = f'cd "$CHECKOUT" && "$PYTHON" -c "{program}"'
        told = guest.run(script).expect(0).output.split()
        assert told == [str(CHECKOUT / "lttd/__init__.py"), sys.prefix]

    def test_numpy_sorts_rightly(self, guest: Guest) -> None:
        program = """
            import numpy as np
            numbers = [np.random.default_rng(seed).integers(0, 1 << 62, 3000) for seed in range(30)]
            print(sum((np.diff(each[np.argsort(each)]) < 0).any() for each in numbers))
        """
        result = guest.run(f"$PYTHON -c {shlex.quote(textwrap.dedent(program))}", timeout_s=60)
        assert result.expect(0).output == "0\n"

    def test_the_guest_cannot_change_the_checkout(self, guest: Guest) -> None:
        result = guest.run('touch "$CHECKOUT/x"')
        assert "Read-only file system" in result.output

    def test_changes_in_the_guest_do_not_reach_this_machine(self, guest: Guest) -> None:
        guest.run("echo x > /etc/lttd-guest-was-here; test -s /etc/lttd-guest-was-here").expect(0)
        assert not Path("/etc/lttd-guest-was-here").exists()

    def test_the_guest_has_tracefs_and_debugfs(self, guest: Guest) -> None:
        script = """set -e
        test -f /sys/kernel/tracing/per_cpu/cpu0/trace_pipe_raw
        modprobe null_blk
        test -b /dev/nullb0
        test -d /sys/kernel/debug/block/nullb0
        """
        guest.run(script).expect(0)

    def test_a_guest_cpu_goes_offline_and_online(self, guest: Guest) -> None:
        script = """set -e
        cd /sys/devices/system/cpu
        cat possible present online
        echo 0 > cpu1/online; cat online
        echo 1 > cpu1/online; cat online
        """
        lines = guest.run(script).expect(0).output.split()
        assert lines == ["0-2", "0-1", "0-1", "0", "0-1"]


class TestSystemd:
    pytestmark = in_guest

    def test_systemd_is_pid_1_and_mounts_the_trace_filesystems(self, systemd_guest: Guest) -> None:
        script = """set -e
        test "$(cat /proc/1/comm)" = systemd
        test -d /sys/kernel/tracing/per_cpu/cpu0
        findmnt --noheadings --output FSTYPE /sys/kernel/debug
        """
        assert systemd_guest.run(script).expect(0).output == "debugfs\n"

    def test_a_notifying_unit_starts_and_stops(self, systemd_guest: Guest) -> None:
        script = """
        set -e
        cat > /run/systemd/system/told.service <<'U'
        [Service]
        Type=notify
        NotifyAccess=all
        StateDirectory=told
        ExecStart=/bin/sh -c 'systemd-notify --ready --status="told and ready"; exec sleep 600'
        U
        systemctl daemon-reload
        systemctl start told
        systemctl show --value --property ActiveState,StatusText told | sort
        test -d /var/lib/told
        systemctl stop told
        """
        lines = systemd_guest.run(script).expect(0).output.split("\n")
        assert lines == ["active", "told and ready", ""]
