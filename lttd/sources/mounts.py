"""Find a usable mount of tracefs or debugfs.

Rule: lttd tries every mount, the usual one first.  It skips a mount that is covered, read-only or
closed to this user, if another one works.
"""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lttd.errors import LttdError, NothingToRecordError
from lttd.sources.refused import remedy

MOUNTS: Final = Path("/proc/mounts")
USUAL_TRACEFS: Final = "/sys/kernel/tracing"
USUAL_DEBUGFS: Final = "/sys/kernel/debug"
_MOUNT: Final = f"mount -t tracefs tracefs {USUAL_TRACEFS}"


def read_write(path: str) -> str:
    """Return the remedy for *path* in tracefs, if it is mounted read-only here.

    Of a unit with ProtectKernelTunables=, systemd opens what is below the mount point only.
    """
    setting = "ProtectKernelTunables=no" if path == USUAL_TRACEFS else f"ReadWritePaths={path}"
    return f"mount tracefs read-write (a service: {setting}, see docs/SYSTEMD.md)"


def find_tracefs(instance: str | None = None, mounts: Path = MOUNTS) -> Path:
    """Return a mount of tracefs where *instance* can be recorded; None: a new instance.

    Raises:
        NothingToRecordError: tracefs is not mounted, or this user may use no mount of it.
    """
    refused: list[LttdError] = []
    for root in _places_of_tracefs(mounts):
        error = _why_not(root, instance)
        if error is None:
            return Path(root)
        refused.append(error)
    if refused:
        raise refused[0]
    raise NothingToRecordError("tracefs is not mounted", _MOUNT)


def _places_of_tracefs(mounts: Path) -> Iterator[str]:
    points = dict.fromkeys(mount_points(mounts, "tracefs"))
    yield from sorted(points, key=lambda point: point != USUAL_TRACEFS)
    # debugfs mounts tracefs inside itself on the first access.
    for point in dict.fromkeys(mount_points(mounts, "debugfs")):
        if f"{point}/tracing" not in points and os.path.isdir(f"{point}/tracing/events"):
            yield f"{point}/tracing"


def _why_not(root: str, instance: str | None) -> LttdError | None:
    """Return why lttd cannot record there; it lists no directory, which needs another right."""
    instances = f"{root}/instances"
    path = root if instance == "/" else instances
    try:
        os.stat(instances)
        # A user may be allowed to record this instance, but not to make others.
        allowed = os.access(path, os.X_OK if instance else os.W_OK | os.X_OK)
        read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except FileNotFoundError:
        return NothingToRecordError(
            f"{root} has no instances directory", "use a kernel with CONFIG_EVENT_TRACING"
        )
    except OSError as error:
        number = error.errno or errno.EACCES
        return NothingToRecordError(f"{instances}: {error.strerror}", remedy(number))
    if read_only:
        helps = read_write(path) if root == USUAL_TRACEFS else f"{_MOUNT}, read-write"
        return NothingToRecordError(f"{path}: {os.strerror(errno.EROFS)}", helps)
    if not allowed:
        return NothingToRecordError(f"{path}: {os.strerror(errno.EACCES)}", remedy(errno.EACCES))
    return None


def find_debugfs(mounts: Path = MOUNTS) -> str:
    """Return a mount point of debugfs.

    Raises:
        NothingToRecordError: debugfs is not mounted.
    """
    points = list(dict.fromkeys(mount_points(mounts, "debugfs")))
    if not points:
        raise NothingToRecordError(
            "debugfs is not mounted", f"mount -t debugfs debugfs {USUAL_DEBUGFS}"
        )
    points.sort(key=lambda point: point != USUAL_DEBUGFS)
    # The list also has a mount that another one covers.
    return next((point for point in points if _is_debugfs(point)), points[0])


def _is_debugfs(point: str) -> bool:
    return os.path.isdir(f"{point}/bdi") or os.path.isdir(f"{point}/block")


def mount_points(mounts: Path, file_system: str) -> Iterator[str]:
    """Yield the mount points of a type of file system."""
    for line in mounts.read_bytes().splitlines():
        words = line.split()
        if len(words) > 2 and words[2] == os.fsencode(file_system):
            # Blanks in a mount point are octal escapes: getmntent(3).
            unescaped = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), words[1])
            yield os.fsdecode(unescaped)
