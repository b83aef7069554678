"""The order of events over CPUs, channels and segments: by time, and as given where that is equal.

Rule: streams come in order already, so that a merge sort has runs to merge, not events to sort; a
stream whose clock stepped back keeps its own order.
"""

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def order_by_time(keys: U64) -> I64 | None:
    """Return the order that merges adjoining streams; None where it is that already."""
    if len(keys) < 2 or bool((keys[1:] >= keys[:-1]).all()):
        return None
    order: I64 = np.argsort(keys, kind="stable")
    return order
