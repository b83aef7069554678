"""Build kernel modules for the guest, against the headers of its kernel.

Rule: like the kernel, the headers are unpacked into the cache and never installed.
"""

import hashlib
import os
import re
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
            headers = headers_of(kernel)
            built.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=built.parent) as work:
                shutil.copytree(source, Path(work) / source.name)
                make = ("make", "-s", "-C", headers, f"M={Path(work) / source.name}")
                # BPF types would need the kernel image with symbols.
                run_tool(*make, "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules")
                (Path(work) / source.name / built.name).rename(built)
    return built


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
        _, depends = package_facts(package)
        needs = re.findall(r"\blinux-(?:headers|kbuild|compiler)-[^\s,]+", depends)
        with tempfile.TemporaryDirectory(dir=cache_dir()) as work:
            root = Path(work) / "root"
            root.mkdir()
            for name in (package, *needs):
                # Hard links, because the packages refer to each other by relative links.
                run_tool("cp", "-al", unpack(name) / "usr", root)
            point_to_itself(root / "usr/src" / package / "Makefile", merged)
            root.rename(merged)
    return merged / "usr/src" / package


def point_to_itself(makefile: Path, root: Path) -> None:
    """Change the paths of Debian's Makefile from /usr/src to the unpacked packages."""
    text = re.sub(r"(?<=\s)/usr/src/", f"{root}/usr/src/", makefile.read_text())
    os.unlink(makefile)  # it is a link into the package
    makefile.write_text(text)
