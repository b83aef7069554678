"""Find other processes that read an instance: two consumers of a ring each get a part of it.

Rule: the kernel allows a second open of ``trace_pipe_raw``, so lttd only reports readers; its lock
stops only processes that respect it.
"""

import os
from collections.abc import Iterator
from typing import Final

from lttd.sources.processes import File, openers

# A process that has one of these files open may consume events.
_CONSUMING: Final = ("trace_pipe", "trace_pipe_raw")


def other_readers(instance_path: str) -> list[str]:
    """Return ``command (pid n)`` of each other process with a consuming file of it open."""
    return [who for who, _ in openers(set(_consuming_files(instance_path)), _CONSUMING)]


def _consuming_files(instance_path: str) -> Iterator[File]:
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
