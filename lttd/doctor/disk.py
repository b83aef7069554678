"""Try in the trace directory what lttd needs of a disk, and remove every trace of it.

Rule: the trial file loses its name as soon as it is open, so that a kill leaves nothing.
"""

import os
from pathlib import Path
from typing import Final

from lttd.beneath import OpenDirectory
from lttd.doctor.finding import Finding, Findings, Mark, either, refused
from lttd.errors import LockedError, LttdError
from lttd.files import Disk
from lttd.handles import handle_of
from lttd.idle import idle_io_counts
from lttd.open_segment import RESERVE_BYTES
from lttd.opening import locked_trace
from lttd.retention import Limits, limits_on
from lttd.stats import human_bytes
from lttd.tracedir import TRIAL
from lttd.writefile import File

# Less than this is soon full: minutes of busy rings, hours of quiet ones.
LEAST_FREE_BYTES: Final = 1 << 30
_TRIED_BYTES: Final = 1 << 20
MOUNTS: Final = Path("/proc/self/mountinfo")
BLOCK_DEVICES: Final = Path("/sys/dev/block")


def try_trace(trace: Path, limits: Limits) -> Findings:
    """Lock the trace directory as a start with ``--append`` does, and try its file system.

    *limits* are those of the trace.
    """
    disk = Disk()
    try:
        with locked_trace(disk, trace, append=True):
            yield Finding("trace", Mark.OK, f"{trace}: lttd can write there")
            yield from _free(disk.hold(trace), limits)
            yield from _features(disk, trace)
    except LockedError as error:
        yield refused("trace", error, Mark.NOTE)
    except LttdError as error:
        yield refused("trace", error)


def _free(directory: OpenDirectory, limits: Limits) -> Findings:
    found = os.statvfs(directory.fd)
    try:
        limits_on(limits, found.f_blocks * found.f_frsize)
    except LttdError as error:
        yield refused("limits", error)
    free_bytes = found.f_bavail * found.f_frsize
    words = f"{human_bytes(free_bytes)} on {file_system_of(directory.fd)}"
    if free_bytes < RESERVE_BYTES:
        yield Finding("free space", Mark.BAD, words, "free some, or record elsewhere")
    else:
        yield either(
            "free space",
            free_bytes >= LEAST_FREE_BYTES,
            words,
            f"{words}: soon full",
            "free some, or limit the trace",
        )


def _features(disk: Disk, trace: Path) -> Findings:
    directory = disk.hold(trace)
    path = trace / TRIAL
    disk.replace(path, b"")
    yield Finding("rename", Mark.OK, "replaces a file as a whole")
    file = disk.open(path)
    disk.remove(path)
    try:
        yield from _tried(file, disk, trace)
    finally:
        file.close()
    yield either(
        "nameless files",
        _has_nameless_files(directory),
        "O_TMPFILE works",
        "O_TMPFILE does not work; lttd does not need it",
    )
    yield either(
        "file handles",
        handle_of(directory.fd),
        "tell a removed trace from a renamed one",
        "a removed trace looks like a renamed one: the ring of a killed lttd stays until you"
        " remove it",
        "use a file system with handles, such as ext4 or xfs",
    )
    device = os.fstat(directory.fd).st_dev
    scheduler = scheduler_of(device)
    if scheduler:
        yield either(
            "idle I/O",
            idle_io_counts(device),
            f"the scheduler {scheduler} serves others first",
            f"the I/O scheduler {scheduler!r} knows no idle class: --compress paces itself",
            "echo mq-deadline > /sys/block/DEVICE/queue/scheduler, where the disk is slow",
        )


def _tried(file: File, disk: Disk, trace: Path) -> Findings:
    """Try an open file without a name."""
    yield either(
        "fallocate",
        file.preallocate(0, _TRIED_BYTES),
        "allocates ahead",
        "not supported: streams that grow side by side lie in small pieces, and a full disk"
        " leaves no reserve to close a segment",
    )
    file.truncate(0)
    yield either(
        "uncached writes",
        file.can_bypass_cache(),
        "RWF_DONTCACHE works",
        "no RWF_DONTCACHE: lttd drops written pages itself, with more system calls",
        "Linux 6.14 with ext4 or xfs",
    )
    file.truncate(_TRIED_BYTES)
    file.write_at([b"x"], _TRIED_BYTES)
    yield either(
        "holes",
        file.status().st_blocks * 512 < _TRIED_BYTES,
        "take no space",
        "take space, so that --layout sparse saves none",
        "--layout packed, the default",
    )
    yield _synced(file, disk, trace)


def _synced(file: File, disk: Disk, trace: Path) -> Finding:
    try:
        file.sync()
        disk.sync_directory(trace)
    except LttdError as error:
        return refused("sync", error, Mark.NOTE)
    return Finding("sync", Mark.OK, "files and names can be made durable")


def _has_nameless_files(directory: OpenDirectory) -> bool:
    try:
        os.close(os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=directory.fd))
    except OSError:
        return False
    return True


def file_system_of(fd: int) -> str:
    """Return the type and the mount point of the file system of an open file."""
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    found = "an unknown file system"
    for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
        words = line.split()
        if words[2] == number:
            file_system = words[words.index("-") + 1]
            found = f"{file_system} ({words[4]})"
    return found


def scheduler_of(device: int) -> str:
    """Return the I/O scheduler of a device; empty if it has none, such as tmpfs or overlayfs."""
    place = BLOCK_DEVICES / f"{os.major(device)}:{os.minor(device)}"
    for queue in (place / "queue", place / ".." / "queue"):  # of the disk, if it is a partition
        try:
            text = (queue / "scheduler").read_text()
        except OSError:
            continue
        return text.partition("[")[2].partition("]")[0] or text.strip()
    return ""
