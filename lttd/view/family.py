"""The interface of a family: how the viewer decodes, prints and names the events of one ABI.

Rule: only a family's own modules look into the contexts that it makes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from lttd.manifest import Manifest
from lttd.stored import StoredStream
from lttd.tracedir import SegmentPaths
from lttd.view.columns import EventBatch
from lttd.view.finding import Finding
from lttd.view.formats import EventType, Formats
from lttd.view.notes import TakesNotes, WindowNotes
from lttd.view.pieces import TypeTable
from lttd.view.task_names import Names
from lttd.view.trace import Segment
from lttd.view.window import Piece, WindowStream

Block = bytes | memoryview | Callable[[], bytes]
"""Some whole lines; or a function that makes them when all lines before them are written."""


def made(block: Block) -> bytes | memoryview:
    """Return the lines of a block whose turn it is."""
    return block() if callable(block) else block


class Contexts(Protocol):
    """The formats and counters of one segment that its streams are decoded with."""

    def of(self, stream: StoredStream) -> Any:  # noqa: ANN401  (the family's own)
        """Return the context of one stream; the decoder finds it as ``source.context``."""
        ...


class Decoder(Protocol):
    """Makes batches of pieces; one serves all pieces of a window."""

    @property
    def types(self) -> TypeTable:
        """The types of the events."""
        ...

    def batch(self, piece: Piece, sources: Sequence[WindowStream]) -> EventBatch:
        """Decode one piece; the batch takes the window's new notes."""
        ...


class Lines(Protocol):
    """Makes lines of batches."""

    backwards: bool
    """Whether the last event comes first; set before the first batch."""

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[Block]:
        """Yield blocks of whole lines of *batch*; may stop after *most* events."""
        ...


class Printing(NamedTuple):
    """The events that are printed, and how."""

    segments: Sequence[Segment]
    sources: Sequence[WindowStream]
    names: Names | None
    nanoseconds: bool
    fields: tuple[str, ...] | None
    """Names of the fields to print as ``name=value``; None: the family's own form."""
    style: str = ""
    """One of the family's styles; empty: its own form."""
    enum_names: bool = False
    """Whether to print names of enum constants where the kernel prints numbers."""


class Family(NamedTuple):
    """How the events of one ABI are decoded, printed and named."""

    contexts: Callable[[SegmentPaths, Manifest, TakesNotes], Contexts]
    decoder: Callable[[WindowNotes], Decoder]
    names: Callable[[Sequence[Segment], TakesNotes], Names | None]
    """Returns the names of tasks, and adds notes; None: events do not state their task."""
    lines: Callable[[Printing, TakesNotes], Lines]
    """Returns the maker of lines, and adds notes about missing formats and names."""
    formats_of: Callable[[WindowStream], Formats] | None = None
    """Returns the formats that were saved before the events; None: the family saves none."""
    joins: Callable[[EventType], bool] | None = None
    """Tells whether events of a type are printed together with their neighbours; None: none are."""
    styles: tuple[str, ...] = ()
    """Names of the forms that it can print besides its own, for ``--style``."""
    prepare: Callable[[Sequence[WindowStream]], None] | None = None
    """Makes what each process would make anew that decodes some streams; None: nothing."""
    defects: Callable[[Any], Sequence[Finding]] | None = None
    """Returns the defects that its contexts met while events were counted, instead of notes; None:
    they add notes."""
    states_flags: bool = False
    """Whether events state flags and preempt count, as ftrace's do; else these are 0."""
