"""Prepare the files that a guest boots: the kernel of a Debian package, and an initrd.

Rule: packages are unpacked into the cache, never installed; the cache can be deleted at any time.
"""

import fcntl
import lzma
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
METAPACKAGE = "linux-image-amd64"
# The modules that mount the root: 9p over virtio, and the overlay.
INITRD_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
# Fresh directories of the guest (guest-init); needed paths below them are bound back.
FRESH_DIRECTORIES = (Path("/tmp"), Path("/var/tmp"), Path("/run"), Path("/dev/shm"))
SYSTEMD = Path("/lib/systemd/systemd")
# Where other suites of Debian than this machine's come from.
MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class GuestUnavailableError(Exception):
    """This machine cannot run a guest; the message names the missing part in one line."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package with `root`/lib/modules/`release`, and a static busybox."""

    release: str
    image: Path
    root: Path
    busybox: Path
    suite: str = ""
    """The Debian that it comes from; empty: that of this machine."""


# --- packages -> kernel ---------------------------------------------------------------------------


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LTTD_GUEST_CACHE") or Path(base) / "lttd-guest")


def apt_packages() -> list[str]:
    return (HERE / "packages.txt").read_text().split()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Exclude other processes that prepare in the same directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_tool(*command: str | Path, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise GuestUnavailableError(f"{command[0]} is not installed") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"status {error.returncode}"])[-1]
        raise GuestUnavailableError(f"{shlex.join(map(str, command))}: {last}") from None
    return done.stdout


def apt_options(suite: str) -> list[str]:
    """Return the options by which apt knows only *suite* of Debian; none for this machine's own.

    The lists of packages are private to the cache, and fetched once.
    """
    if not suite:
        return []
    state = cache_dir() / "suites" / suite
    sources = state / "sources.list"
    settings = {
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    if not sources.exists():
        for name in ("lists/partial", "cache/archives/partial"):
            (state / name).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        fresh = state / "sources.list.new"
        fresh.write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
        run_tool("apt-get", *options, "-o", f"Dir::Etc::sourcelist={fresh}", "update")
        fresh.rename(sources)
    return options


def package_facts(package: str, suite: str = "") -> tuple[str, str]:
    """Return version and Depends line of the candidate that apt would install."""
    shown = run_tool("apt-cache", *apt_options(suite), "show", "--no-all-versions", package)
    facts = dict(re.findall(r"^(Version|Depends): (.*)$", shown, re.MULTILINE))
    return facts.get("Version", ""), facts.get("Depends", "")


def unpack(package: str, suite: str = "") -> Path:
    """Download a Debian package with apt-get, unpack it into the cache and return its root."""
    version, _ = package_facts(package, suite)
    root = cache_dir() / "packages" / f"{package}_{version.replace(':', '%3a')}"
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent) as work:
            download = (*apt_options(suite), "download", f"{package}={version}")
            run_tool("apt-get", *download, cwd=Path(work))
            (deb,) = Path(work).glob("*.deb")
            run_tool("dpkg-deb", "-x", deb, Path(work) / "root")
            if not (Path(work) / "root/lib").exists():
                (Path(work) / "root/lib").symlink_to("usr/lib")  # kmod searches below lib/modules
            (Path(work) / "root").rename(root)
    return root


def kernel_package(name: str, suite: str = "") -> str:
    """Return the image package of a metapackage; an image package is its own."""
    _, depends = package_facts(name, suite)
    image = re.search(r"\blinux-image-\d[^\s,]*", depends)
    return image[0] if image else name


def fetch(suite: str = "") -> Kernel:
    """Unpack the kernel that the metapackage names today, and record it for `prepare`.

    *suite*: of Debian, such as ``trixie``; empty: that of this machine.
    """
    name = os.environ.get("LTTD_GUEST_KERNEL", METAPACKAGE)
    with locked(cache_dir()):
        root = unpack(kernel_package(name, suite), suite)
        kernel = kernel_in(root, unpack("busybox-static"), suite)
        if not (root / "lib/modules" / kernel.release / "modules.dep.bin").exists():
            run_tool("depmod", "-b", root, kernel.release)
        links = ((_link(name, suite), root), ("busybox", kernel.busybox.parents[1]))
        for link, target in links:
            fresh = cache_dir() / f"{link}.new"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(target.relative_to(cache_dir()))
            fresh.rename(cache_dir() / link)
    return kernel


def _link(name: str, suite: str) -> str:
    return f"{name}-{suite}" if suite else name


def kernel_in(root: Path, busybox_root: Path, suite: str) -> Kernel:
    images = list(root.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise GuestUnavailableError(f"{root.name} holds {len(images)} kernel images, not one")
    release = images[0].name.removeprefix("vmlinuz-")
    busybox = next(path for path in busybox_root.glob("**/bin/busybox"))
    return Kernel(release, images[0], root, busybox, suite)


def prepare(*, systemd: bool = False, suite: str = "") -> Kernel:
    """Return the kernel to boot: the one fetched before (tests need no network), or fetch one."""
    if platform.machine() != "x86_64":
        raise GuestUnavailableError(f"no guest for a root of {platform.machine()}, only x86_64")
    missing = [tool for tool in ("qemu-system-x86_64", "modprobe") if not shutil.which(tool)]
    missing += ["systemd"] if systemd and not SYSTEMD.exists() else []
    if missing:
        raise GuestUnavailableError(
            f"no {', '.join(missing)}: apt-get install {' '.join(apt_packages())}"
        )
    name = _link(os.environ.get("LTTD_GUEST_KERNEL", METAPACKAGE), suite)
    links = cache_dir() / name, cache_dir() / "busybox"
    if all(link.is_dir() for link in links):
        return kernel_in(links[0].resolve(), links[1].resolve(), suite)
    return fetch(suite)


# --- the initrd -----------------------------------------------------------------------------------


def cpio(members: Iterable[tuple[str, int, bytes]]) -> bytes:
    """Return a newc archive (Linux Documentation/driver-api/early-userspace/buffer-format.rst).

    A member is name, mode and data; after the magic come 13 fields of eight hex digits.
    """
    archive = bytearray()
    for inode, (name, mode, data) in enumerate([*members, ("TRAILER!!!", 0, b"")], start=1):
        encoded = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        archive += b"070701" + b"".join(b"%08X" % value for value in fields) + encoded
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def module_files(kernel: Kernel) -> list[Path]:
    """Return INITRD_MODULES and their dependencies, in the order to load them."""
    shown = run_tool(
        *("modprobe", "-d", kernel.root, "-S", kernel.release, "--show-depends", "-a"),
        *INITRD_MODULES,
    )
    found = re.findall(r"^insmod (.*\.ko(?:\.xz)?)", shown, re.MULTILINE)
    return [Path(name) for name in dict.fromkeys(found)]


def hidden_paths() -> list[Path]:
    """Return the paths of the calling interpreter below fresh or uncached directories."""
    entries = {Path(entry).absolute() for entry in sys.path}
    wanted = {path for path in entries if not path.resolve().is_relative_to(CHECKOUT)}
    wanted |= {Path(sys.prefix), Path(sys.base_prefix)}
    wanted = {path for path in wanted | {path.resolve() for path in wanted} if path.is_dir()}
    covered = {CHECKOUT, *FRESH_DIRECTORIES}
    hidden = {path for path in wanted if covered.intersection(path.parents)}
    return sorted(path for path in hidden if not hidden.intersection(path.parents))


def initrd(kernel: Kernel, *, systemd: bool) -> bytes:
    directories = ("bin", "dev", "guest", "lower", "modules", "new", "proc", "rw", "sys")
    members = [(name, 0o040755, b"") for name in directories]
    modules = module_files(kernel)
    for path in modules:
        data = path.read_bytes()
        data = (
            lzma.decompress(data) if path.suffix == ".xz" else data
        )  # busybox loads only uncompressed modules
        members.append((f"modules/{path.name.removesuffix('.xz')}", 0o100644, data))
    environment = {"CHECKOUT": CHECKOUT, "PYTHON": sys.executable, "PYTHONDONTWRITEBYTECODE": 1}
    texts = {
        "modules": "".join(f"{path.name.removesuffix('.xz')}\n" for path in modules),
        "mode": "systemd\n" if systemd else "plain\n",
        "checkout": f"{CHECKOUT}\n",
        "hidden": "".join(f"{path}\n{path.resolve()}\n" for path in hidden_paths()),
        "environment": "".join(
            f"export {k}={shlex.quote(str(v))}\n" for k, v in environment.items()
        ),
        "serve": (HERE / "guest-serve").read_text(),
    }
    members += [(f"guest/{name}", 0o100644, text.encode()) for name, text in texts.items()]
    members.append(("bin/busybox", 0o100755, kernel.busybox.read_bytes()))
    members.append(("init", 0o100755, (HERE / "guest-init").read_bytes()))
    return cpio(members)
