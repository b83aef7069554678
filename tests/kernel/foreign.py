"""Machines of other kinds under QEMU: Debian's kernel for them, busybox, and one recording.

Rule: nothing is installed; lists of packages are private to a fetch, and only the kernel image and
busybox stay in the cache.  The machine has no disk and no network: all it says is on its console.
"""

import base64
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kernel.image import HERE, GuestUnavailableError, cache_dir, cpio, locked, run_tool

# Two cores that were busy otherwise took 90 s.
RUN_S: Final = 400.0
_BEGIN: Final = b"LTTD-BEGIN"
_END: Final = b"LTTD-END"


@dataclass(frozen=True)
class ForeignMachine:
    """A kind of machine, by Debian's name for its architecture."""

    name: str
    package: str
    """The kernel's metapackage."""
    qemu: tuple[str, ...]
    qemu_package: str
    console: str


MACHINES: Final = (
    ForeignMachine(
        "arm64",
        "linux-image-arm64",
        ("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57"),
        "qemu-system-arm",
        "ttyAMA0",
    ),
    ForeignMachine(
        "armhf",
        "linux-image-armmp",
        # Devices above 4 GiB are out of reach of a kernel without LPAE.
        ("qemu-system-arm", "-M", "virt,highmem=off", "-cpu", "cortex-a15"),
        "qemu-system-arm",
        "ttyAMA0",
    ),
    ForeignMachine(
        "i386",
        "linux-image-686",
        # One thread for all CPUs: see docs/TESTING-KERNEL.md.
        ("qemu-system-i386", "-cpu", "max", "-accel", "tcg,thread=single"),
        "qemu-system-x86",
        "ttyS0",
    ),
)


def fetched(machine: ForeignMachine) -> Path:
    """Return a directory with the machine's ``vmlinuz`` and ``busybox``; fetch them once.

    Raises:
        GuestUnavailableError: there is no QEMU for it, or no package.
    """
    if shutil.which(machine.qemu[0]) is None:
        raise GuestUnavailableError(f"no {machine.qemu[0]}: apt-get install {machine.qemu_package}")
    directory = cache_dir() / "foreign" / machine.name
    with locked(cache_dir()):
        if not directory.is_dir():
            directory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=directory.parent) as work:
                _fetch(machine, Path(work))
                (Path(work) / "got").rename(directory)
    return directory


def _fetch(machine: ForeignMachine, work: Path) -> None:
    for name in ("state/lists/partial", "cache/archives/partial", "root", "got"):
        (work / name).mkdir(parents=True)
    (work / "state/status").touch()
    settings = {
        "APT::Architecture": machine.name,
        "APT::Architectures": machine.name,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State": work / "state",
        "Dir::State::status": work / "state/status",
        "Dir::Cache": work / "cache",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    with suppress(GuestUnavailableError):  # a suite without this architecture; others have it
        run_tool("apt-get", *options, "update")
    package = _kernel_package(machine, options)
    run_tool("apt-get", *options, "download", package, "busybox-static", cwd=work)
    for archive_path in work.glob("*.deb"):
        tree = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", archive_path], capture_output=True, check=True
        )
        with tarfile.open(fileobj=io.BytesIO(tree.stdout)) as archive:
            for member in archive:
                path = Path(member.name)
                busybox = path.name == "busybox" and path.parent.name == "bin"
                if member.isreg() and (busybox or path.name.startswith("vmlinuz")):
                    name = "busybox" if busybox else "vmlinuz"
                    file = archive.extractfile(member)
                    assert file is not None
                    (work / "got" / name).write_bytes(file.read())
    if len(list((work / "got").iterdir())) != 2:
        raise GuestUnavailableError(f"{package} has no kernel image, or there is no busybox")


def _kernel_package(machine: ForeignMachine, options: Sequence[str]) -> str:
    """Return the package that holds the machine's kernel: since Debian 14 not the image's own."""

    def needed(package: str, prefix: str) -> list[str]:
        shown = run_tool("apt-cache", *options, "depends", "--important", package)
        return [word for word in shown.split() if word.startswith(prefix)]

    image = needed(machine.package, "linux-image-")[-1]
    return (needed(image, "linux-binary-") or [image])[-1]


def record(machine: ForeignMachine, out: Path) -> Path:
    """Boot the machine, and return what its ``foreign-init`` recorded, laid out as tracefs is.

    Raises:
        GuestUnavailableError: see fetched().
    """
    parts = fetched(machine)
    members = [(name, 0o040755, b"") for name in ("bin", "dev", "proc", "sys", "tmp")]
    members.append(("bin/busybox", 0o100755, (parts / "busybox").read_bytes()))
    members.append(("init", 0o100755, (HERE / "foreign-init").read_bytes()))
    initrd = out / "initrd"
    initrd.write_bytes(cpio(members))
    command: list[str | Path] = [
        *("setpriv", "--pdeathsig", "KILL", *machine.qemu),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"),
        *("-m", "700", "-smp", "2", "-kernel", parts / "vmlinuz", "-initrd", initrd),
        *("-append", f"console={machine.console} quiet panic=-1 oops=panic mitigations=off"),
        *("-serial", "stdio"),
    ]
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=RUN_S, check=False
    )
    _, _, told = run.stdout.rpartition(_BEGIN)
    coded, ended, _ = told.partition(_END)
    assert ended, (run.stdout[-2000:] + run.stderr[-500:]).decode(errors="replace")
    lines = [one for one in coded.split() if not one.startswith((b"begin-base64", b"===="))]
    # "begin-base64 644 out" is three words.
    packed = base64.b64decode(b"".join(lines[2:]))
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(out / "recorded", filter="data")
    return out / "recorded"
