"""``lttd release N``: let retention delete segment N again."""

from collections.abc import Sequence

from lttd.clients.segments import run_for


def run(words: Sequence[str]) -> int:
    """Release segments; return the exit status."""
    return run_for(
        "release", "Let retention delete these segments again, whoever keeps them.", words
    )
