"""Who else reads an instance: two who consume from one ring each get a part of it.

Rule: the kernel lets anybody open ``trace_pipe_raw`` a second time, so this only tells; our lock
keeps out those who ask for it.
"""

import os
from collections.abc import Iterator
from typing import Final

# Whatever of these somebody has open, he may consume from.
_CONSUMING: Final = ("trace_pipe", "trace_pipe_raw")


def other_readers(instance_path: str) -> list[str]:
    """Return ``command (pid n)`` of each other process that has a consuming file of it open."""
    files = set(_consuming_files(instance_path))
    return [f"{_command_of(pid)} (pid {pid})" for pid in _processes() if _has_open(pid, files)]


def holders(instance_path: str) -> list[str]:
    """Return ``command (pid n)`` of each other process that has any file of an instance open."""
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
        pass  # it has ended, or is none of ours to look at


def _consuming_files(instance_path: str) -> Iterator[tuple[int, int]]:
    directories = [instance_path]
    try:
        directories += [entry.path for entry in os.scandir(f"{instance_path}/per_cpu")]
    except OSError:
        return  # the instance has gone
    for directory in directories:
        for name in _CONSUMING:
            try:
                status = os.stat(f"{directory}/{name}")
            except OSError:
                continue  # the instance has no trace_pipe_raw for all CPUs
            yield status.st_dev, status.st_ino


def _processes() -> Iterator[str]:
    own = str(os.getpid())
    try:
        return (name for name in os.listdir("/proc") if name.isdigit() and name != own)
    except OSError:
        return iter(())  # no /proc here, or no descriptor left to look into it


def _has_open(pid: str, files: set[tuple[int, int]]) -> bool:
    directory = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(directory):
            # Reading a link is cheap; most go elsewhere, and which mount it names proves nothing.
            if os.readlink(f"{directory}/{name}").rpartition("/")[2] in _CONSUMING:
                status = os.stat(f"{directory}/{name}")
                if (status.st_dev, status.st_ino) in files:
                    return True
    except OSError:
        pass  # it has ended, or is none of ours to look at
    return False


def _command_of(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "one that has ended"
