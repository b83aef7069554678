"""Batches that a stream returns, and their gaps."""

from lttd.sources.base import Nothing, Stream
from lttd.subbuffer import Batch, Reason, Unit


def take_to_end(stream: Stream) -> list[Batch]:
    """Take every batch of a stream that ends."""
    batches = []
    while isinstance(batch := stream.take(flush=False), Batch):
        batches.append(batch)
    assert batch is Nothing.EVER
    assert stream.take(flush=True) is Nothing.EVER
    return batches


def gaps_of(batches: list[Batch]) -> list[tuple[Reason, Unit, int | None]]:
    """Return reason, unit and number of each gap."""
    return [(gap.reason, gap.unit, gap.count) for batch in batches for gap in batch.gaps]
