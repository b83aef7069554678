"""Write marks into an instance, and have it record those that programs write at the top level.

``trace_marker`` exists at the top level, where programs write, and in each instance.  A mark is an
event of the ring in which it was written, so an instance of lttd's own has none of the programs'.

Source: Linux kernel/trace/trace.c, tracing_mark_write() and update_marker_trace().
"""

import errno
import os
from typing import Final

from lttd.errors import LttdError
from lttd.sources.ftrace.instance import Instance
from lttd.sources.tracefs import explained, read_text

MARKER: Final = "trace_marker"


def write_mark(instance: Instance, text: str) -> None:
    """Write a mark into *instance*.

    Raises:
        LttdError: the kernel does not record it, or not all of it.
    """
    path, data = instance.file(MARKER), text.encode()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written_bytes = os.write(fd, data)
        finally:
            os.close(fd)
    except OSError as error:
        why = _why_refused(instance, error.errno)
        raise (LttdError(f"{path}: {why}") if why else explained(path, error)) from error
    if written_bytes < len(data):
        words = f"the mark is cut after {written_bytes:,} of its {len(data):,} bytes"
        raise LttdError(f"{path}: {words}; this kernel takes no more at once")


def _why_refused(instance: Instance, number: int | None) -> str:
    """Return why the kernel refused a mark, where its errno says something else."""
    try:
        if number == errno.EBADF:
            if read_text(instance.file("tracing_on")) == "0":
                return "tracing is off, so no mark is recorded; write 1 to tracing_on to go on"
            return "the ring is full and refuses new events; try again once it is read"
        if number == errno.EINVAL and read_text(instance.file("options/markers")) == "0":
            return "no mark is recorded while options/markers is 0; write 1 to it"
    except LttdError:
        pass  # the file is gone, which the first error says, too
    return ""
