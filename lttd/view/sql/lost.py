"""Tell how much was lost among the events that a query read."""

from collections import Counter
from collections.abc import Iterable

from lttd.stats import counted
from lttd.subbuffer import Unit
from lttd.view.losses import Loss

_WORDS = {Unit.EVENTS: "event", Unit.SUBBUFFERS: "sub-buffer", Unit.BYTES: "byte"}


def lost_text(losses: Iterable[Loss]) -> str:
    """Return one line on some losses."""
    lost: Counter[Unit] = Counter()
    places = unknown = 0
    cpus = set()
    for loss in losses:
        places += 1
        cpus.add(loss.cpu)
        lost[loss.unit] += loss.lost or 0
        unknown += loss.lost is None
    parts = [counted(lost[unit], word) for unit, word in _WORDS.items() if lost[unit]]
    if unknown:
        parts.append(f"an unknown number {counted(unknown, 'time')}")
    where = f"in {counted(places, 'place')} on CPU {', '.join(map(str, sorted(cpus)))}"
    return f"lost among the events that were read: {' and '.join(parts)}, {where}; see view losses"
