"""Build Debian's lttng-modules for the guest's kernel, and give them to a guest.

Rule: like the kernel, the source is unpacked into the cache and never installed.
"""

import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from tests.kernel.guest import Guest
from tests.kernel.image import Kernel, cache_dir, locked, package_facts, run_tool, unpack
from tests.kernel.modules import headers_of, make_modules, need_compiler

PACKAGE: Final = "lttng-modules-dkms"
# What a recorder needs, and the probes of the kernel that the tests record.
LOADED: Final = (
    *("lttng-tracer", "lttng-ring-buffer-metadata-mmap-client"),
    *("lttng-ring-buffer-client-mmap-discard", "lttng-ring-buffer-client-mmap-overwrite"),
    *(f"lttng-probe-{name}" for name in ("sched", "irq", "timer", "module", "net", "signal")),
    "lttng-probe-statedump",
)
LOAD: Final = f"modprobe -d /out/lttng-modules -a {' '.join(LOADED)}"
"""A command of the guest; lttng-sessiond removes modules when it ends."""
# Linux 6.1.192 and 6.12.117 have one argument more in hrtimer_start than Debian's modules expect.
_HRTIMER: Final = (
    re.compile(
        r"(LTTNG_TRACEPOINT_EVENT_MAP\(hrtimer_start,.*?enum hrtimer_mode mode)(\),\s+"
        r"TP_ARGS\(hrtimer, mode)(\),)",
        re.DOTALL,
    ),
    r"\1, bool was_armed\2, was_armed\3",
)


def build_lttng(kernel: Kernel) -> Path:
    """Return a directory with the modules below lib/modules, as ``modprobe -d`` takes it.

    The first build takes some 80 s.

    Raises:
        GuestUnavailableError: the package, the headers or the compiler are missing.
    """
    version, _ = package_facts(PACKAGE, kernel.suite)
    built = cache_dir() / "modules" / f"{kernel.release}-lttng-{version}"
    with locked(cache_dir()):
        if not built.exists():
            need_compiler()
            (packed,) = unpack(PACKAGE, kernel.suite).glob("usr/src/lttng-modules-*")
            built.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=built.parent) as work:
                source = shutil.copytree(packed, Path(work) / "source")
                timer = source / "include/instrumentation/events/timer.h"
                timer.write_text(_patched(timer.read_text(), headers_of(kernel)))
                make_modules(kernel, source, "CONFIG_LTTNG=m")
                tree = Path(work) / "root"
                _install(source, tree, kernel.release)
                tree.rename(built)
    return built


def _patched(text: str, headers: Path) -> str:
    (common,) = headers.parent.glob("linux-headers-*-common")
    if "bool was_armed" not in (common / "include/trace/events/timer.h").read_text():
        return text
    return text if "was_armed" in text else _HRTIMER[0].sub(_HRTIMER[1], text, count=1)


def _install(source: Path, tree: Path, release: str) -> None:
    directory = tree / "lib/modules" / release / "extra"
    directory.mkdir(parents=True)
    for module in source.rglob("*.ko"):
        run_tool("strip", "-g", "-o", directory / module.name, module)
    run_tool("depmod", "-b", tree, release)


def put_lttng(guest: Guest) -> None:
    """Put the modules into the share of *guest*, which may not see changes of the cache.

    Raises:
        GuestUnavailableError: see build_lttng().
    """
    assert guest.kernel is not None
    shutil.copytree(build_lttng(guest.kernel), guest.share / "lttng-modules", dirs_exist_ok=True)
