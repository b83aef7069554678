"""Look at what of the kernel this process may see and use; nothing here changes anything."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lttd.doctor.finding import Finding, Findings, Mark, either, refused
from lttd.errors import LttdError
from lttd.namespaces import kernel_knows_our_pids, offsets_ns
from lttd.sources.ftrace.instance import OWN_PREFIX
from lttd.sources.ftrace.other_readers import other_readers
from lttd.sources.mounts import find_debugfs, find_tracefs
from lttd.sources.refused import (
    LOCKDOWN,
    Capability,
    has,
    is_in_initial_user_namespace,
    lockdown,
    remedy,
)

CLOCK_SOURCE: Final = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
# Reading one of these takes 20 to 50 ns; a timer on a bus takes a microsecond, for each event.
_FAST_CLOCKS: Final = frozenset({"tsc", "kvm-clock", "arch_sys_counter", "timebase", "tod"})
# What lttd uses of root's capabilities, and only for these.
_USES: Final[Mapping[Capability, str]] = {
    Capability.CAP_SYS_ADMIN: "--source blktrace",
    Capability.CAP_SYS_NICE: "--priority",
    Capability.CAP_SYS_PTRACE: "to name other readers",
    Capability.CAP_SYSLOG: "--kallsyms",
    Capability.CAP_DAC_READ_SEARCH: "to know a removed trace from a moved one",
}


def mounts() -> Findings:
    """Find tracefs as a start does, and debugfs for the sources that need it."""
    try:
        yield Finding("tracefs", Mark.OK, str(find_tracefs()))
    except LttdError as error:
        yield refused("tracefs", error)
    try:
        where, failure = find_debugfs(), None
    except LttdError as error:
        where, failure = "", error
    if failure is None and not os.access(where, os.X_OK):
        yield Finding(
            "debugfs",
            Mark.NOTE,
            f"{where}: this user may not enter it (relay channels, block traces)",
            remedy(errno.EACCES),
        )
    elif failure is not None:
        found = refused("debugfs", failure, Mark.NOTE)
        yield found._replace(words=f"{found.words} (relay channels, block traces)")
    else:
        yield Finding("debugfs", Mark.OK, where)


def rights() -> Findings:
    """Look at the user, its capabilities and lockdown."""
    user = os.geteuid()
    yield either(
        "user",
        user == 0,
        "root",
        f"user {user}, and tracefs belongs to root",
        "run lttd as root, or give this user an instance of its own",
    )
    missing = [f"{each.name} ({use})" for each, use in _USES.items() if not has(each)]
    yield either(
        "capabilities",
        not missing,
        "all that lttd can use",
        f"without {', '.join(missing)}; lttd needs none of them for tracepoints",
        "systemd: CapabilityBoundingSet=, docker: --cap-add; docs/SYSTEMD.md has what each costs",
    )
    mode = lockdown()
    if not LOCKDOWN.parent.is_mount():
        words = f"unknown, because {LOCKDOWN.parent} is not mounted"
        mount = f"mount -t securityfs securityfs {LOCKDOWN.parent}"
        yield Finding("lockdown", Mark.NOTE, words, mount)
        return
    yield either(
        "lockdown",
        not mode,
        "off",
        f"{mode}: relay channels and block traces cannot be read"
        + ("" if mode == "integrity" else ", nor tracefs"),
        "boot without lockdown (Secure Boot turns it on)",
    )


def namespaces() -> Findings:
    """Compare the namespaces of this process with those of the kernel's trace."""
    yield either(
        "user namespace",
        is_in_initial_user_namespace(),
        "the machine's",
        "another than the machine's: its root is not the machine's root",
        "run lttd in the initial user namespace",
    )
    yield either(
        "pid namespace",
        kernel_knows_our_pids(),
        "the machine's",
        "another than the kernel's: lttd records its own threads, too, and takes the names of"
        " tasks from saved_cmdlines alone",
        "run lttd in the initial pid namespace (docker: --pid=host)",
    )
    try:
        shifted_ns = offsets_ns()
    except (OSError, ValueError):
        shifted_ns = {}
    shifts = ", ".join(f"{ns / 1e9:+.3f} s" for ns in dict.fromkeys(shifted_ns.values()))
    yield either(
        "time namespace",
        not any(shifted_ns.values()),
        "the machine's clocks",
        f"the clocks here are shifted by {shifts}; lttd stores the kernel's times",
    )
    try:
        same = Path("/proc/self/ns/mnt").samefile("/proc/1/ns/mnt")
    except OSError:
        return  # only root may compare them
    yield either(
        "mount namespace",
        same,
        "that of process 1",
        "another than that of process 1: a mount that is made there is not seen here",
    )


def clock() -> Findings:
    """Look at the clock source behind all trace clocks but ``counter``."""
    try:
        source = CLOCK_SOURCE.read_text().strip()
    except OSError:
        return
    yield either(
        "clock source",
        source in _FAST_CLOCKS or "hyperv" in source,
        source,
        f"{source} may be slow to read, and each event reads it",
        f"dmesg says why the kernel chose it; {CLOCK_SOURCE.parent} lists the others",
    )


def readers() -> Findings:
    """Name the other processes that can consume from a ring."""
    try:
        root = find_tracefs()
        instances = sorted((root / "instances").iterdir())
    except (LttdError, OSError):
        return
    found = {"/": other_readers(str(root))}
    found |= {each.name: other_readers(str(each)) for each in instances}
    # An instance of an lttd has one reader, which made it.
    own = re.compile(rf"{re.escape(OWN_PREFIX)}\d+")
    ours = [name for name, who in found.items() if own.fullmatch(name) and len(who) == 1]
    lines = [
        f"{', '.join(who)} reads ftrace:{name}"
        for name, who in found.items()
        if who and name not in ours
    ]
    yield either(
        "readers",
        not lines,
        f"nobody but lttd, of {', '.join(ours)}" if ours else "nobody reads a ring",
        f"{'; '.join(lines)}: another reader of the same ring would get a part of its events",
        "record with an instance of lttd's own, as without --source",
    )
