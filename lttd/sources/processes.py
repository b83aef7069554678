"""Find other processes that have certain files open.

Rule: a child of this process has this process's files until its exec, and reads none of them.
"""

import os
from collections.abc import Collection, Iterator

File = tuple[int, int]
"""Device and inode."""


def openers(files: Collection[File], names: Collection[str]) -> Iterator[tuple[str, set[File]]]:
    """Yield ``command (pid n)`` of each other process, and those of *files* that it has open.

    *names*: the last parts of the paths under which processes may have opened them.
    """
    for pid in _processes():
        found = _opened(pid, files, names)
        if found and not _is_before_exec(pid):
            yield described(pid), found


def holders_below(directory: str) -> list[str]:
    """Return ``command (pid n)`` of each other process with any file below *directory* open."""
    return [
        described(pid)
        for pid in _processes()
        if any(name.startswith(f"{directory}/") for _, name in _links(pid))
    ]


def described(pid: str) -> str:
    """Return ``command (pid n)``."""
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            command = file.read().strip()
    except OSError:
        command = "one that has ended"
    return f"{command} (pid {pid})"


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


def _links(pid: str) -> Iterator[tuple[str, str]]:
    """Yield the path in /proc of each open file, and the path that it leads to."""
    directory = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(directory):
            yield f"{directory}/{name}", os.readlink(f"{directory}/{name}")
    except OSError:
        pass  # it has ended, or this user may not inspect it


def _opened(pid: str, files: Collection[File], names: Collection[str]) -> set[File]:
    found: set[File] = set()
    try:
        for path, leads_to in _links(pid):
            # Look at the name first, which is cheap: most lead elsewhere.  The path before it is no
            # proof, since it may name another mount.
            if leads_to.rpartition("/")[2] in names:
                status = os.stat(path)
                found.add((status.st_dev, status.st_ino))
    except OSError:
        pass  # it has ended, or this user may not inspect it
    return found.intersection(files)


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
