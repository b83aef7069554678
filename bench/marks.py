"""Write marks of one size into many tracefs instances in turn, from one CPU, at a steady rate.

``bench.wide`` runs one of these on each CPU: marks fill the rings with nothing else, however much
goes on beside the benchmark.
"""

import argparse
import os
import time
from collections.abc import Sequence
from typing import Final

# Two of these, with their headers, fill a page of 4 KiB.
MARK_BYTES: Final = 2000
_PACE_S: Final = 0.02


def write_marks(markers: Sequence[int], marks: int, marks_per_s: float) -> None:
    """Write *marks* marks to each of the files *markers*, at most *marks_per_s* in all."""
    text = b"x" * (MARK_BYTES - 1) + b"\n"
    total, written, began = marks * len(markers), 0, time.monotonic()
    while written < total:
        due = min(total, int((time.monotonic() - began) * marks_per_s))
        for number in range(written, due):
            os.write(markers[number % len(markers)], text)
        written = max(written, due)
        time.sleep(_PACE_S)


def main() -> None:
    """Write marks as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cpu", type=int)
    parser.add_argument("--marks", type=int, required=True, help="into each instance")
    parser.add_argument("--marks-per-s", type=float, required=True, help="into all of them")
    parser.add_argument("instances", nargs="+", metavar="INSTANCE", help="directory below tracefs")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {arguments.cpu})
    markers = [os.open(f"{path}/trace_marker", os.O_WRONLY) for path in arguments.instances]
    write_marks(markers, arguments.marks, arguments.marks_per_s)


if __name__ == "__main__":
    main()
