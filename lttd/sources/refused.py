"""Find out why the kernel refuses an operation, and the remedy; never advise root to become root.

Rule: lttd looks the reason up instead of guessing it: the user, its user namespace, its
capabilities (CapEff), and lockdown.
"""

import enum
import errno
import os
import re
from pathlib import Path
from typing import Final

STATUS: Final = Path("/proc/self/status")
UID_MAP: Final = Path("/proc/self/uid_map")
LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
# The initial user namespace, and no other, maps all 2^32 - 1 ids to themselves.
_INITIAL_UID_MAP: Final = ["0", "0", "4294967295"]


class Capability(enum.IntEnum):
    """Source: Linux include/uapi/linux/capability.h."""

    CAP_DAC_OVERRIDE = 1
    CAP_DAC_READ_SEARCH = 2
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_SYS_NICE = 23
    CAP_SYSLOG = 34


def remedy(number: int, needed: Capability | None = None) -> str:
    """Return the remedy for EACCES or EPERM; *needed* is the capability that avoids EPERM."""
    if number == errno.EACCES:
        needed = Capability.CAP_DAC_OVERRIDE
    if os.geteuid() != 0:
        return f"run lttd as root{_name(needed)}"
    if not is_in_initial_user_namespace():
        return "this root is one of a user namespace only: run lttd as the machine's"
    if needed is not None and not has(needed):
        return (
            f"this root lacks {needed.name}: give it (systemd: CapabilityBoundingSet=;"
            " docker: --cap-add)"
        )
    mode = lockdown()
    if number == errno.EPERM and mode:
        return f"lockdown={mode} keeps it from root, too ({LOCKDOWN}): boot without"
    return "lockdown, a container or a security module keeps it from root, too: see dmesg"


def is_in_initial_user_namespace() -> bool:
    """Tell whether the ids of this process are those of the machine."""
    return UID_MAP.read_text().split() == _INITIAL_UID_MAP


def _name(needed: Capability | None) -> str:
    return "" if needed is None else f" ({needed.name})"


def has(capability: Capability) -> bool:
    """Tell whether *capability* is effective in this process."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", STATUS.read_text(), re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> capability & 1)


def lockdown() -> str:
    """Return the mode of lockdown; empty if there is none, or it is unknown."""
    try:
        mode = re.search(r"\[(\w+)\]", LOCKDOWN.read_text())
    except OSError:
        return ""
    return mode[1] if mode and mode[1] != "none" else ""
