"""Build kernel modules for the guest, against the headers of its kernel.

Rule: like the kernel, the headers are unpacked into the cache and never installed.
Rule: the compiler is this machine's, also for the kernel of another Debian.  The programs that come
with its headers need its C library, so they are run by its loader.
"""

import hashlib
import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path

from tests.kernel.image import (
    GuestUnavailableError,
    Kernel,
    cache_dir,
    locked,
    package_facts,
    run_tool,
    unpack,
)

# BPF types would need the kernel image with symbols.
NO_BTF = "CONFIG_DEBUG_INFO_BTF_MODULES="
# The compiler of Debian 13 has -fmin-function-alignment, and that of Debian 12 does not.
THIS_COMPILER = ("CC=gcc", "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=")
# Of linux-kbuild: the programs that a build of modules runs, and the packages of their libraries.
PROGRAMS = ("scripts/mod/modpost.real-lsb-64", "tools/objtool/objtool.real-x86")
LIBRARIES = ("libc6", "libelf1t64", "zlib1g", "libzstd1")
LIBRARY_DIR = "usr/lib/x86_64-linux-gnu"


def build_module(kernel: Kernel, source: Path) -> Path:
    """Build the module of *source* (a directory with a Kbuild) for *kernel*; return its path.

    Raises:
        GuestUnavailableError: the headers or the compiler are missing.
    """
    files = sorted(path for path in source.iterdir() if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    built = cache_dir() / "modules" / f"{kernel.release}-{digest}" / f"{source.name}.ko"
    with locked(cache_dir()):
        if not built.exists():
            need_compiler()
            built.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=built.parent) as work:
                make_modules(kernel, shutil.copytree(source, Path(work) / source.name))
                (Path(work) / source.name / built.name).rename(built)
    return built


def make_modules(kernel: Kernel, source: Path, *options: str) -> None:
    """Build the modules of the directory *source* for *kernel*, in place; *options* are make's."""
    compiler = THIS_COMPILER if kernel.suite else ()
    make = ("make", "-s", "-j2", "-C", headers_of(kernel), f"M={source}")
    run_tool(*make, *compiler, NO_BTF, *options, "modules")


def need_compiler() -> None:
    """Raise GuestUnavailableError if this machine cannot build a kernel module."""
    missing = [tool for tool in ("gcc", "make") if not shutil.which(tool)]
    if missing:
        raise GuestUnavailableError(f"no {', '.join(missing)} to build a kernel module")


def headers_of(kernel: Kernel) -> Path:
    """Return a directory to build modules for *kernel* in."""
    package = f"linux-headers-{kernel.release}"
    merged = cache_dir() / package
    if not merged.is_dir():
        _, depends = package_facts(package, kernel.suite)
        needs = re.findall(r"\blinux-(?:headers|kbuild|compiler)-[^\s,]+", depends)
        with tempfile.TemporaryDirectory(dir=cache_dir()) as work:
            root = Path(work) / "root"
            root.mkdir()
            for name in (package, *needs):
                # Hard links, because the packages refer to each other by relative links.
                run_tool("cp", "-al", unpack(name, kernel.suite) / "usr", root)
            point_to_itself(root / "usr/src" / package / "Makefile", merged)
            if kernel.suite:
                run_by_loader_of(kernel.suite, root, merged)
            root.rename(merged)
    return merged / "usr/src" / package


def point_to_itself(makefile: Path, root: Path) -> None:
    """Change the paths of Debian's Makefile from /usr/src to the unpacked packages."""
    text = re.sub(r"(?<=\s)/usr/src/", f"{root}/usr/src/", makefile.read_text())
    os.unlink(makefile)  # it is a link into the package
    makefile.write_text(text)


def run_by_loader_of(suite: str, root: Path, later: Path) -> None:
    """Replace PROGRAMS below *root*, which moves to *later*, by scripts that run them.

    They run with the loader and the libraries of *suite*.
    """
    libraries = [unpack(name, suite) / LIBRARY_DIR for name in LIBRARIES]
    loader = libraries[0] / "ld-linux-x86-64.so.2"
    path = ":".join(map(str, libraries))
    (kbuild,) = root.glob("usr/lib/linux-kbuild-*")
    for name in PROGRAMS:
        program = kbuild / name
        real = program.with_name(f"{program.name}.elf")
        program.rename(real)
        command = [loader, "--library-path", path, later / real.relative_to(root)]
        program.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
        program.chmod(0o755)
