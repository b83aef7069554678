"""``lttd keep N``: let retention delete no segment N, until somebody releases it."""

from collections.abc import Sequence

from lttd.clients.segments import run_for


def run(words: Sequence[str]) -> int:
    """Keep segments; return the exit status."""
    return run_for(
        "keep", "Let retention delete none of these segments, until somebody releases them.", words
    )
