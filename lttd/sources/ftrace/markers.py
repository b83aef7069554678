"""Write marks into an instance, and have it record those that programs write at the top level.

``trace_marker`` exists at the top level, where programs write, and in each instance.  A mark is an
event of the ring in which it was written, so an instance of lttd's own has none of the programs'.

Source: Linux kernel/trace/trace.c, tracing_mark_write(), update_marker_trace() and
update_printk_trace().
"""

import errno
import os
from typing import Final

from lttd.errors import LttdError
from lttd.sources.ftrace.instance import Instance
from lttd.sources.tracefs import explained, read_text

MARKER: Final = "trace_marker"
COPY: Final = "options/copy_trace_marker"
"""Seen on Linux 6.18, and not on 6.12."""
PRINTK: Final = "options/trace_printk_dest"
"""Seen on Linux 6.12, and not on 6.1.  An instance has it, or the top level, which gets it back
when that instance is removed."""


def take_marks(instance: Instance) -> None:
    """Have *instance* record the marks of the top level, too, and trace_printk instead of it.

    Where the kernel cannot do that, a note says how to write into the instance.

    Raises:
        LttdError: the kernel refuses.
    """
    if instance.path == instance.root:
        return
    instance.undo.change("options/markers", "1")
    if os.path.exists(instance.file(COPY)):
        instance.undo.change(COPY, "1")
    else:
        words = "this kernel cannot copy marks of the top level into an instance"
        here = f"lttd mark TEXT, or a program that writes to {instance.file(MARKER)}"
        instance.notes.append(
            f"{words}: it has only those of {here}; --source ftrace:/ records the top level"
        )
    _take_printk(instance)


def _take_printk(instance: Instance) -> None:
    top = f"{instance.root}/{PRINTK}"
    if not os.path.exists(top):
        instance.notes.append("this kernel's trace_printk stays at the top level")
    elif read_text(instance.file(PRINTK)) != "1":
        if read_text(top) != "1":
            instance.notes.append("another instance has trace_printk already, and keeps it")
            return
        instance.undo.change(PRINTK, "1")
        instance.notes.append("trace_printk goes to this instance, not to the top level, meanwhile")


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
