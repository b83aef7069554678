"""``lttv export``: a trace as other tools want it.  One module a format, loaded when it is used.

Rule: a module has ``export(trace, window, out) -> lines``: it makes a file or directory at *out*,
which is not there yet, and returns what is to be told, line by line; memory does not grow with the
trace.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from lttd.errors import UsageError
    from lttd.files import Disk
    from lttd.view.times import Window
    from lttd.view.trace import Trace


class Target(NamedTuple):
    """What makes a format, and of what."""

    module: str
    takes: str | None
    """The ABI of the sub-buffers that fit; None: all that can be decoded."""


FORMATS: Final[dict[str, Target]] = {
    "trace.dat": Target("lttd.view.export.tracedat", "ftrace"),
    "ctf": Target("lttd.view.export.ctf", "ftrace"),
    "parquet": Target("lttd.view.export.parquet", None),
    "perfetto": Target("lttd.view.export.perfetto", "ftrace"),
    "blktrace": Target("lttd.view.export.blktrace", "blktrace"),
    "ltt": Target("lttd.view.export.ltt", "ltt"),
}
"""What ``--to`` takes, and what does it."""


class Exporter(Protocol):
    """What a module of FORMATS is."""

    def export(self, trace: "Trace", window: "Window", out: Path, disk: "Disk") -> list[str]:
        """Write what *window* holds to *out*, by *disk* alone; return what is to be told.

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
        exporter = cast("Exporter", import_module(FORMATS[to].module))
    except ImportError as error:
        raise UsageError(f"{to} needs {error.name}: pip install 'lttd[{to}]'") from None
    kinds = {stream.info.abi for segment in trace.segments for stream in segment.streams}
    if not kinds & _taken(to):
        raise does_not_fit(str(trace.path), kinds, to)
    if "://" in str(out):
        if not hasattr(exporter, "export_url"):
            raise UsageError(f"{out}: {to} is written to a path, not to a URL")
        return cast("UrlExporter", exporter).export_url(trace, window, str(out))
    disk = Disk()
    with new_output(Path(out), disk, trace) as made:
        return exporter.export(trace, window, made, disk)


def _taken(to: str) -> set[str]:
    """Return the ABIs whose sub-buffers a format can be made of."""
    from lttd.view.families import FAMILIES  # noqa: PLC0415

    takes = FORMATS[to].takes
    return {takes} if takes else set(FAMILIES)


def does_not_fit(where: str, kinds: set[str], to: str) -> "UsageError":
    """Return the error that says what *where* holds, what the format takes, and what fits."""
    from lttd.errors import UsageError  # noqa: PLC0415

    held = " and ".join(sorted(kinds)) or "nothing"
    taken = ", ".join(sorted(_taken(to)))
    fit = ", ".join(name for name in FORMATS if kinds <= _taken(name)) or "none"
    return UsageError(
        f"{where}: holds {held}, and --to {to} takes only {taken}; formats for it: {fit}"
    )
