"""Find other processes that read an instance: two consumers of a ring each get a part of it.

Rule: the kernel allows a second open of ``trace_pipe_raw``, so lttd only reports readers; its lock
stops only processes that respect it.
Rule: a child of this process has this process's files until its exec, and reads none of them.
"""

import os
from collections.abc import Iterator
from typing import Final

# A process that has one of these files open may consume events.
_CONSUMING: Final = ("trace_pipe", "trace_pipe_raw")


def other_readers(instance_path: str) -> list[str]:
    """Return ``command (pid n)`` of each other process with a consuming file of it open."""
    files = set(_consuming_files(instance_path))
    return [
        f"{_command_of(pid)} (pid {pid})"
        for pid in _processes()
        if _has_open(pid, files) and not _is_before_exec(pid)
    ]


def holders(instance_path: str) -> list[str]:
    """Return ``command (pid n)`` of each other process with any file of the instance open."""
    return [
        f"{_command_of(pid)} (pid {pid})"
        for pid in _processes()
        if any(name.startswith(f"{instance_path}/") for name in _open_files(pid))
    ]


def _open_files(pid: str) -> Iterator[str]:
    directory = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(directory):
            yield os.readlink(f"{directory}/{name}")
    except OSError:
        pass  # it has ended, or this user may not inspect it


def _consuming_files(instance_path: str) -> Iterator[tuple[int, int]]:
    directories = [instance_path]
    try:
        directories += [entry.path for entry in os.scandir(f"{instance_path}/per_cpu")]
    except OSError:
        return  # the instance was removed
    for directory in directories:
        for name in _CONSUMING:
            try:
                status = os.stat(f"{directory}/{name}")
            except OSError:
                continue  # the instance has no trace_pipe_raw for all CPUs
            yield status.st_dev, status.st_ino


def _processes() -> Iterator[str]:
    """Yield the numbers of all other processes."""
    own = str(os.getpid())
    try:
        names = os.listdir("/proc")
    except OSError:
        return  # there is no /proc, or no descriptor left
    for name in names:
        if name.isdigit() and name != own:
            yield name


def _is_before_exec(pid: str) -> bool:
    """Tell whether it is a child of this process that has not become another program yet."""
    own = os.getpid()
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            parent = int(file.read().rpartition(b")")[2].split()[1])
        if parent != own:
            return False
        with open(f"/proc/{pid}/cmdline", "rb") as one, open(f"/proc/{own}/cmdline", "rb") as other:
            return one.read() == other.read()
    except (OSError, ValueError, IndexError):
        return False  # it has ended


def _has_open(pid: str, files: set[tuple[int, int]]) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(directory):
            # Read the link first, which is cheap: most lead elsewhere.  Its path is no proof, since
            # it may name another mount.
            if os.readlink(f"{directory}/{name}").rpartition("/")[2] in _CONSUMING:
                status = os.stat(f"{directory}/{name}")
                if (status.st_dev, status.st_ino) in files:
                    return True
    except OSError:
        pass  # it has ended, or this user may not inspect it
    return False


def _command_of(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "one that has ended"
