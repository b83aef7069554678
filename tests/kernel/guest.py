"""Boot the Debian kernel under QEMU on top of this machine's root, and run scripts there as root.

Rule: the guest reads this machine's files and cannot change them; only /out in the guest is shared
in both directions.
Invariant: one line down the control port is answered by one line up it, or the guest is lost.

How it works, the knobs and the timings: docs/TESTING-KERNEL.md.
"""

import argparse
import compileall
import os
import select
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.kernel.image import (
    CHECKOUT,
    GuestUnavailableError,
    Kernel,
    apt_packages,
    fetch,
    initrd,
    prepare,
)

# A host with both cores busy took 13 s; the limit ends a guest that hangs.
BOOT_TIMEOUT_S = 180.0
# `timeout -k 5` ends a script inside the guest; past this the guest itself is stuck.
ANSWER_SLACK_S = 30.0
POWER_OFF_S = 30.0
STATUS_NONE = 125
# QEMU 7.2 computes some AVX2 instructions wrongly, so that numpy.argsort gives wrong orders or
# crashes (docs/TESTING-KERNEL.md).
CPU_MODEL = "max,-avx,-avx2,-fma,-f16c"


class GuestLostError(Exception):
    """The guest died or stopped answering; the message ends with the last lines of its console."""


@dataclass(frozen=True)
class Machine:
    """The guest's shape.  CPUs from `cpus` up to `max_cpus` are possible but absent."""

    cpus: int = 2
    max_cpus: int = 3
    memory_mib: int = 2048
    systemd: bool = False
    append: tuple[str, ...] = ()
    reboots: bool = False
    """Whether a reboot boots it again, with the memory as it was; else it ends the guest."""


@dataclass(frozen=True)
class GuestResult:
    """The result of a script; status 124 (137 if it ignored TERM) is a timeout.

    `out_dir` is $OUT of the script, on this machine.
    """

    status: int
    output: str
    out_dir: Path

    def expect(self, status: int = 0) -> Self:
        """Return self, or raise AssertionError with the output if the status differs."""
        assert self.status == status, f"status {self.status}, not {status}:\n{self.output}"
        return self


# --- the machine ----------------------------------------------------------------------------------


def exported(directory: Path, tag: str, *, writable: bool = False) -> tuple[str, str]:
    path = str(directory).replace(",", ",,")
    access = "" if writable else ",readonly=on"
    return (
        "-virtfs",
        f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap{access}",
    )


def qemu_command(kernel: Kernel, machine: Machine, share: Path, initrd_path: Path) -> list[str]:
    """QEMU's own stdin and stdout are the control port.

    setpriv ends QEMU together with the thread that booted it.
    """
    kernel_arguments = ["console=ttyS0", "quiet", "panic=-1", "oops=panic", "mitigations=off"]
    # A busy host lets the kernel's test of the timer interrupt fail, and it panics.
    kernel_arguments += ["no_timer_check"]
    if machine.systemd:
        kernel_arguments += ["systemd.condition_needs_update=no", "fstab=no"]
    return [
        *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *(() if machine.reboots else ("-no-reboot",)),
        # One thread for all CPUs: with several, a CPU that patches code while another runs it can
        # leave both looping in the breakpoint (docs/TESTING-KERNEL.md).
        *("-accel", "tcg,thread=single", "-cpu", CPU_MODEL, "-m", str(machine.memory_mib)),
        *("-smp", f"{machine.cpus},maxcpus={max(machine.cpus, machine.max_cpus)}"),
        *("-kernel", str(kernel.image), "-initrd", str(initrd_path)),
        *("-append", " ".join([*kernel_arguments, *machine.append])),
        *("-serial", f"file:{share / 'console.log'}"),
        *("-chardev", "stdio,id=control,signal=off", "-serial", "chardev:control"),
        *exported(Path("/"), "root"),
        *exported(CHECKOUT, "checkout"),
        *exported(kernel.root / "lib/modules", "modules"),
        *exported(share, "out", writable=True),
    ]


@dataclass
class Guest:
    """A running guest. Use it as a context manager: leaving it powers the guest off."""

    share: Path
    qemu: subprocess.Popen[bytes]
    boot_s: float = 0.0
    unread: bytearray = field(default_factory=bytearray)
    scripts: int = 0
    kernel: Kernel | None = None

    @classmethod
    def boot(cls, kernel: Kernel, share: Path, machine: Machine | None = None) -> Self:
        """Boot and wait until the guest accepts scripts; raise GuestLostError if it does not."""
        machine = machine or Machine()
        share = share.resolve()
        share.mkdir(parents=True, exist_ok=True)
        # The guest cannot write bytecode here, and would compile lttd at each start.
        compileall.compile_dir(CHECKOUT / "lttd", quiet=2)
        begin_s = time.monotonic()
        with (
            tempfile.NamedTemporaryFile(suffix=".cpio") as file,
            (share / "qemu.log").open("wb") as log,
        ):
            file.write(initrd(kernel, systemd=machine.systemd))
            file.flush()
            command = qemu_command(kernel, machine, share, Path(file.name))
            pipe = subprocess.PIPE
            qemu = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=log, bufsize=0, start_new_session=True
            )
            guest = cls(share, qemu, kernel=kernel)
            try:
                guest.answer("up", float(os.environ.get("LTTD_GUEST_BOOT_S", BOOT_TIMEOUT_S)))
            except BaseException:
                guest.kill()
                raise
        guest.boot_s = time.monotonic() - begin_s
        return guest

    def run(self, script: str, timeout_s: float = 60.0, *, name: str = "") -> GuestResult:
        """Run a bash script (dedented first) as root in /tmp of the guest.

        $OUT is the shared directory, $CHECKOUT this checkout and $PYTHON the calling interpreter.
        The guest kills processes that the script leaves. GuestLostError ends the guest.
        """
        self.scripts += 1
        name = name or f"{self.scripts:04}"
        out_dir = self.share / name
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "script").write_text(textwrap.dedent(script))
        try:
            self.send(f"{name} {timeout_s:g}")
            status = int(self.answer(name, timeout_s + ANSWER_SLACK_S))
        except BaseException:
            self.kill()  # a late answer would be mistaken for that of the next script
            raise
        return GuestResult(status, (out_dir / "output").read_text(errors="replace"), out_dir)

    def reboot(self, how: str) -> None:
        """Run *how* in the guest, which ends this boot, and wait until the next one is up."""
        self.scripts += 1
        name = f"{self.scripts:04}"
        (self.share / name).mkdir()
        (self.share / name / "script").write_text(textwrap.dedent(how))
        self.send(f"{name} 60")
        self.answer("up", float(os.environ.get("LTTD_GUEST_BOOT_S", BOOT_TIMEOUT_S)))

    def send(self, line: str) -> None:
        assert self.qemu.stdin is not None
        try:
            self.qemu.stdin.write(f"{line}\n".encode())
        except (BrokenPipeError, ValueError):
            raise GuestLostError(f"the guest is gone\n{self.console_tail()}") from None

    def answer(self, name: str, timeout_s: float) -> str:
        """Return the value after `name` in the guest's answer."""
        assert self.qemu.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self.unread:
            left_s = max(0.0, deadline_s - time.monotonic())
            if not select.select([self.qemu.stdout], [], [], left_s)[0]:
                raise GuestLostError(
                    f"no answer to {name!r} in {timeout_s:g} s\n{self.console_tail()}"
                )
            got = self.qemu.stdout.read(4096)
            if not got:
                raise GuestLostError(
                    f"the guest ended before it answered {name!r}\n{self.console_tail()}"
                )
            self.unread += got
        line, _, self.unread = self.unread.partition(b"\n")
        word, _, value = line.decode(errors="replace").partition(" ")
        if word != name:
            raise GuestLostError(f"{line!r} is no answer to {name!r}")
        return value

    def console_tail(self) -> str:
        logs = (self.share / name for name in ("qemu.log", "console.log"))
        texts = [path.read_text(errors="replace") for path in logs if path.exists()]
        said, panic, rest = "".join(texts).partition("Kernel panic - ")  # the stack follows it
        return "\n".join((said + panic + rest.partition("\n")[0]).splitlines()[-20:])

    def power_off(self) -> None:
        """Ask the guest to write /out/dmesg.txt and power off; kill it if it does not."""
        if self.qemu.poll() is None:
            try:
                self.send("quit")
                self.qemu.wait(POWER_OFF_S)
            except (GuestLostError, subprocess.TimeoutExpired):
                pass
        self.kill()

    def kill(self) -> None:
        self.qemu.kill()
        self.qemu.wait()
        for pipe in (self.qemu.stdin, self.qemu.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.power_off()


# --- the command ----------------------------------------------------------------------------------


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.kernel.guest", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("packages", help="print the apt packages a guest needs")
    verbs.add_parser(
        "fetch", help="download and unpack the kernel that the metapackage names today"
    )
    run = verbs.add_parser("run", help="boot, run one command or a script from stdin, power off")
    run.add_argument("--out", type=Path, required=True, help="comes back; $OUT in the guest")
    run.add_argument("--systemd", action="store_true", help="systemd as pid 1")
    run.add_argument("--cpus", type=int, default=Machine.cpus)
    run.add_argument("--maxcpus", type=int, default=Machine.max_cpus, help="possible CPUs")
    run.add_argument("--memory", type=int, default=Machine.memory_mib, metavar="MIB")
    run.add_argument("--append", action="append", default=[], metavar="KERNEL_ARGUMENT")
    run.add_argument("--timeout", type=float, default=300.0, metavar="S", help="for the command")
    run.add_argument("command", nargs="*", help="after --; one word is taken as a shell script")
    return parser


def run_once(arguments: argparse.Namespace) -> int:
    words = arguments.command
    script = (words[0] if len(words) == 1 else shlex.join(words)) if words else sys.stdin.read()
    machine = Machine(
        arguments.cpus,
        arguments.maxcpus,
        arguments.memory,
        arguments.systemd,
        tuple(arguments.append),
    )
    kernel = prepare(systemd=machine.systemd)
    begin_s = time.monotonic()
    with Guest.boot(kernel, arguments.out, machine) as guest:
        result = guest.run(script, arguments.timeout, name=".")
        run_s = time.monotonic() - begin_s - guest.boot_s
    sys.stdout.write(result.output)
    total_s = time.monotonic() - begin_s
    times = f"boot {guest.boot_s:.1f} s, command {run_s:.1f} s, in all {total_s:.1f} s"
    print(f"guest: {kernel.release}, status {result.status}, {times}", file=sys.stderr)
    return result.status


def main() -> int:
    arguments = command_line().parse_args()
    try:
        if arguments.verb == "packages":
            print("\n".join(apt_packages()))
        elif arguments.verb == "fetch":
            begin_s = time.monotonic()
            print(f"{fetch().release}, fetched in {time.monotonic() - begin_s:.1f} s")
        else:
            return run_once(arguments)
    except (GuestUnavailableError, GuestLostError) as error:
        print(f"guest: {error}", file=sys.stderr)
        return STATUS_NONE
    return 0


if __name__ == "__main__":
    sys.exit(main())
