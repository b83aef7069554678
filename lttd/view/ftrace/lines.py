"""Make lines of ftrace batches, in the form that the kernel prints and importers read.

See ``lttd.view.lines`` for the form; the fields are printed by the event's print fmt.

Rule: event types with the same print fmt (sys_exit_*, sched_wak*) are printed together.
Invariant: there is a line per event and per loss, and a further one per function of a stack; a leaf
of the function_graph tracer has one line for both of its events.
"""

from collections.abc import Iterator, Sequence

from lttd.abi.ftrace import OWN_SYSTEM
from lttd.abi.ftrace_format import Format
from lttd.view.addresses import Symbols
from lttd.view.columns import EventBatch
from lttd.view.enums import NO_ENUMS, Enums
from lttd.view.family import Block
from lttd.view.formats import EventType
from lttd.view.ftrace.graph import LEAFS_EXIT
from lttd.view.ftrace.render import Renderer
from lttd.view.lines import FieldPrinter, FieldTexter
from lttd.view.task_names import Names


class Texter(FieldTexter):
    """Makes the lines of one clock group's batches."""

    machine: str = ""
    """The architecture of the recording machine."""

    def __init__(
        self,
        names: Names,
        symbols: Symbols,
        *,
        nanoseconds: bool = False,
        counting: bool = False,
        fields: Sequence[str] | None = None,
        enums: Enums = NO_ENUMS,
    ) -> None:
        super().__init__(names, nanoseconds=nanoseconds, counting=counting, fields=fields)
        self._symbols = symbols
        self._enums = enums

    def lines(self, batch: EventBatch, most: int | None = None) -> Iterator[Block]:
        """See ``BlockTexter``."""
        if batch.graph is not None and self._fields is None:
            batch = batch.select(batch.graph["part"] != LEAFS_EXIT)
        return super().lines(batch, most)

    def _alike_key(self, format_: Format) -> object:
        # The kernel prints some of its own events by code: see own_events.
        own = format_.name if format_.system == OWN_SYSTEM else None
        return own, format_.print_fmt, super()._alike_key(format_)

    def _new_printer(self, event_type: EventType) -> FieldPrinter:
        return Renderer(event_type.format, self._symbols, self._fields, self._enums)
