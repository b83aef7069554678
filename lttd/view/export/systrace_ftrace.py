"""Export ftrace as text for Perfetto; see ``systrace`` for the form."""

from pathlib import Path

from lttd.abi.ftrace import OWN_SYSTEM
from lttd.files import Disk
from lttd.terminal import printable_bytes
from lttd.view.addresses import Symbols
from lttd.view.columns import EventRows
from lttd.view.export.systrace import MARKER, SystraceForm, write_text
from lttd.view.formats import EventType
from lttd.view.ftrace.lines import Texter
from lttd.view.ftrace.render import Renderer
from lttd.view.glyphs import per_distinct
from lttd.view.library import ClockGroup
from lttd.view.lines import FieldPrinter
from lttd.view.notes import Notes
from lttd.view.strips import Strip, strings_of, words_of
from lttd.view.task_names import Names
from lttd.view.times import Window
from lttd.view.trace import Trace


def _is_marker(event_type: EventType) -> bool:
    return event_type.format is not None and (event_type.system, event_type.name) == (
        OWN_SYSTEM,
        "print",
    )


class MarkerRenderer(Renderer):
    """Writes markers in the kernel's form, for which the importer looks, even without kallsyms.

    The prefix of a trace_printk() is a function's name.  That of a marker, and of an unknown
    function, is ``tracing_mark_write``.
    """

    def strip(self, rows: EventRows) -> Strip:
        """Return ``tracing_mark_write: text``."""

        def told(address: int) -> bytes:
            found = self.symbols.find(address)
            return (printable_bytes(found.name) if found else MARKER) + b": "

        try:
            where = [words_of(per_distinct(rows.records["ip"], told))]
            text = words_of(strings_of([one.rstrip(b"\n") for one in rows.column("buf").tolist()]))
        except (KeyError, ValueError):  # an event of another kernel, with other fields
            return super().strip(rows)
        return [*where, text]


class SystraceTexter(SystraceForm, Texter):
    """Lines of ftrace, with markers as the importer expects them."""

    def _name_of(self, event_type: EventType) -> bytes:
        """Return the text before an event's fields: none for a marker, see MarkerRenderer."""
        return b"" if _is_marker(event_type) else super()._name_of(event_type)

    def _new_printer(self, event_type: EventType) -> FieldPrinter:
        if _is_marker(event_type):
            return MarkerRenderer(event_type.format, self._symbols)
        return super()._new_printer(event_type)


def export(trace: Trace, window: Window, out: Path, disk: Disk) -> list[str]:
    """See ``lttd.view.export.Exporter``."""
    return write_text(trace, window, out, disk, _texter)


def _texter(group: ClockGroup, notes: Notes) -> SystraceTexter:
    tracefs = [segment.paths.tracefs for segment in group.segments]
    names = Names((path / "commands" for path in tracefs), notes)
    return SystraceTexter(names, Symbols(tracefs[-1], notes), nanoseconds=True)
