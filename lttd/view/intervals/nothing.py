"""A collector that finds nothing."""

from lttd.view.columns import EventBatch
from lttd.view.intervals.holes import Holes
from lttd.view.intervals.kind import Counts, Table
from lttd.view.library import ClockGroup


class Nothing:
    """Finds no intervals."""

    def __init__(self, _group: ClockGroup) -> None:
        self.counts = Counts()

    def take(self, _batch: EventBatch, _holes: Holes) -> Table | None:
        """See ``Collector``."""
        return None

    def finish(self) -> None:
        """See ``Collector``."""
