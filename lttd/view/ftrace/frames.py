"""Read the addresses of stacks: the fields of ``kernel_stack`` and ``user_stack``.

Source: Linux kernel/trace/trace.c, __ftrace_trace_stack(), ftrace_trace_userstack().
A kernel stack has as many addresses as its ``size`` says, in older kernels up to ~0; a user stack
ends at its first 0.

Rule: a stack ends with the event's bytes, whatever number of addresses it states.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from lttd.view.columns import EventRows
from lttd.view.conversions import Buffer

U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

KERNEL, USER = "kernel_stack", "user_stack"
MOST_FRAMES: Final = 1024


def frames_of(rows: EventRows) -> Iterator[tuple[U64, Mask]]:
    """Yield the innermost address of each stack, then the next one, ..., and which stacks have one.

    *rows* are of one of the two types.
    """
    format_: Any = rows.event_type.format
    frames = Buffer.of(rows, "caller", format_.long_bytes, format_.byteorder)
    counts = (frames.end - frames.begin) // format_.long_bytes
    if "size" in format_.by_name:
        stated = rows.records["size"].astype(np.int64)
        counts = np.where(stated > 0, np.minimum(counts, stated), counts)
    last = (1 << 8 * format_.long_bytes) - 1 if format_.name == KERNEL else 0
    going = np.ones(len(counts), np.bool_)
    for number in range(min(int(counts.max(initial=0)), MOST_FRAMES)):
        addresses = frames.element(np.array([number], np.int64)).astype(np.uint64)
        going = going & (number < counts) & (addresses != np.uint64(last))
        if not going.any():
            return
        yield addresses, going
