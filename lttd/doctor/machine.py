"""Look at the programs and limits that lttd runs with."""

import os
import platform
import re
import resource
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from lttd.doctor.finding import Finding, Findings, Mark, either, refused
from lttd.errors import LttdError
from lttd.runtime import directory_path, known_notes
from lttd.stats import counted
from lttd.version import VERSION

_NAME: Final = re.compile(r"[\w.-]+")
# Descriptors for each CPU of a ring (the raw file, its counters, three files of the segment), and
# for the rest.
_FILES_PER_CPU: Final = 6
_FILES: Final = 64


def programs() -> Findings:
    """Name the versions of lttd, the kernel, Python and the libraries."""
    kernel = os.uname()
    yield Finding("lttd", Mark.OK, VERSION)
    yield Finding("kernel", Mark.OK, f"{kernel.sysname} {kernel.release}, {kernel.machine}")
    yield Finding("python", Mark.OK, f"{platform.python_version()}, {_libraries()}")


def _libraries() -> str:
    """Return the versions of what lttd's own metadata requires and is installed."""
    try:
        required = requires("lttd") or []
    except PackageNotFoundError:  # a copy without its metadata
        return "libraries of unknown versions"
    found = []
    for line in required:
        name = _NAME.match(line)
        if name and "extra ==" not in line:
            with suppress(PackageNotFoundError):  # not for this version of Python
                found.append(f"{name[0]} {version(name[0])}")
    return ", ".join(found)


def limits() -> Findings:
    """Look at the runtime directory and the limit of open files."""
    try:
        path = directory_path()
        notes = known_notes()
        words = f"{path}, {counted(len(notes), 'note')}" if notes else path
        yield Finding("runtime", Mark.OK, words)
    except LttdError as error:
        yield refused("runtime", error, Mark.NOTE)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    cpus = os.cpu_count() or 1
    yield either(
        "open files",
        most == resource.RLIM_INFINITY or most >= _FILES + _FILES_PER_CPU * cpus,
        "no limit" if most == resource.RLIM_INFINITY else f"{most:,}",
        f"{most:,}: few for {counted(cpus, 'CPU')}",
        "ulimit -n, systemd: LimitNOFILE=",
    )
