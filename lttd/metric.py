"""A metric by its declaration, and its samples."""

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """One metric: its name in a scrape, its help, and the names of its labels."""

    name: str
    type: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()


Sample = tuple[tuple[str, ...], float]
Table = tuple[Metric, list[Sample]]
