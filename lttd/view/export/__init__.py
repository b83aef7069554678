"""``lttv export``: a trace as other tools want it.  One module a format, loaded when it is used.

Rule: a module has ``export(trace, window, out) -> lines``: it makes a file or directory at *out*,
which is not there yet, and returns what is to be told, line by line; memory does not grow with the
trace.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

if TYPE_CHECKING:
    from lttd.view.times import Window
    from lttd.view.trace import Trace

FORMATS: Final[dict[str, str]] = {
    "trace.dat": "lttd.view.export.tracedat",
    "ctf": "lttd.view.export.ctf",
    "parquet": "lttd.view.export.parquet",
    "perfetto": "lttd.view.export.perfetto",
    "blktrace": "lttd.view.export.blktrace",
    "ltt": "lttd.view.export.ltt",
}
"""What ``--to`` takes, and the module that does it."""


class Exporter(Protocol):
    """What a module of FORMATS is."""

    def export(self, trace: "Trace", window: "Window", out: Path) -> list[str]:
        """Write what *window* holds to *out*; return what is to be told.

        Raises:
            UsageError: this trace cannot be in that format.
            NotATraceError: nothing was recorded within the window.
            TraceDamagedError: not even parts of it can be read.
            StorageError: *out* could not be written.
        """
        ...


class UrlExporter(Exporter, Protocol):
    """One that can write where there are no paths."""

    def export_url(self, trace: "Trace", window: "Window", url: str) -> list[str]:
        """Write to *url*; what is there of it after a failure is for who owns the place."""
        ...


def export(trace: "Trace", window: "Window", to: str, out: str | Path) -> list[str]:
    """Export to the format *to*; a path *out* is there whole afterwards, or not at all.

    Raises:
        LttdError: as Exporter.export(), and UsageError where *out* is there already.
    """
    # The command line asks for the names of the formats: that must not load numpy.
    from lttd.errors import UsageError  # noqa: PLC0415
    from lttd.files import Disk  # noqa: PLC0415
    from lttd.view.output import new_output  # noqa: PLC0415

    try:
        exporter = cast("Exporter", import_module(FORMATS[to]))
    except ImportError as error:
        raise UsageError(f"{to} needs {error.name}: pip install 'lttd[{to}]'") from None
    if "://" in str(out):
        if not hasattr(exporter, "export_url"):
            raise UsageError(f"{out}: {to} is written to a path, not to a URL")
        return cast("UrlExporter", exporter).export_url(trace, window, str(out))
    with new_output(Path(out), Disk()) as made:
        return exporter.export(trace, window, made)
