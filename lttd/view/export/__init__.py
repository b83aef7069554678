"""FORMATS: the formats of ``lttv export``; a module per format and ABI, imported when it is used.

Rule: a module has ``export(trace, window, out, disk) -> lines``: it makes a file or directory at
*out*, which does not exist, and returns lines for the user; memory does not grow with the trace.
Rule: a module gets only streams whose ABI its row takes, and does not check their ABI again.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from lttd.view.families import FAMILIES

if TYPE_CHECKING:
    from lttd.errors import UsageError
    from lttd.files import Disk
    from lttd.view.times import Window
    from lttd.view.trace import Segment, Trace


class Format(NamedTuple):
    """One format of ``--to``."""

    takes: Mapping[str, str]
    """The ABIs whose sub-buffers can be exported to it, each with the module that does so."""
    help: str
    leaves_out: bool = False
    """Whether streams of other ABIs are left out with a note; otherwise the export is refused."""
    hides_self: bool = False
    """Whether it can leave out single events; other formats hold whole sub-buffers."""
    divides: bool = False
    """Whether it is a directory, which for a mixed trace has one for each kind."""


class _AllFamilies(Mapping[str, str]):
    """One module for all ABIs that lttv can decode."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getitem__(self, abi: str) -> str:
        if abi not in FAMILIES:
            raise KeyError(abi)
        return self._module

    def __iter__(self) -> Iterator[str]:
        return iter(FAMILIES)

    def __len__(self) -> int:
        return len(FAMILIES)


FORMATS: Final = {
    "trace.dat": Format({"ftrace": "lttd.view.export.tracedat"}, "trace-cmd, KernelShark"),
    "ctf": Format(
        {"ftrace": "lttd.view.export.ctf", "ctf": "lttd.view.export.ctf_packets"},
        "babeltrace2, Trace Compass",
        hides_self=True,
        divides=True,
    ),
    "parquet": Format(
        _AllFamilies("lttd.view.export.parquet"),
        "DuckDB, Spark, Polars",
        leaves_out=True,
        hides_self=True,
    ),
    "perfetto": Format(
        {"ftrace": "lttd.view.export.perfetto"},
        "ui.perfetto.dev",
        leaves_out=True,
        hides_self=True,
    ),
    "systrace": Format(
        {"ftrace": "lttd.view.export.systrace_ftrace", "ctf": "lttd.view.export.systrace_ctf"},
        "text for ui.perfetto.dev and others",
        leaves_out=True,
        hides_self=True,
    ),
    "blktrace": Format({"blktrace": "lttd.view.export.blktrace"}, "blkparse, btt"),
    "ltt": Format({"ltt": "lttd.view.export.ltt"}, "LTTV, and others of LTTng 0.x"),
}


class Exporter(Protocol):
    """The interface of a module of FORMATS."""

    def export(self, trace: "Trace", window: "Window", out: Path, disk: "Disk") -> list[str]:
        """Write the events of *window* to *out*, through *disk* only; return lines for the user.

        Raises:
            UsageError: this trace cannot be exported to that format.
            NotATraceError: nothing was recorded within the window.
            TraceDamagedError: no part of the trace can be read.
            StorageError: *out* could not be written.
        """
        ...


class UrlExporter(Exporter, Protocol):
    """An exporter that can also write to a URL."""

    def export_url(self, trace: "Trace", window: "Window", url: str) -> list[str]:
        """Write to *url*; after a failure nothing stays there, or the error names what does.

        Raises:
            LttdError: as export(), and UsageError if *url* exists, or cannot be written to.
        """
        ...


def export(trace: "Trace", window: "Window", to: str, out: str | Path) -> list[str]:
    """Export to the format *to*; afterwards a path *out* is complete, or it does not exist.

    Raises:
        LttdError: as Exporter.export(), and UsageError if *out* exists already.
    """
    # The command line needs only the names of the formats: that must not load numpy.
    from lttd.errors import UsageError  # noqa: PLC0415
    from lttd.files import Disk  # noqa: PLC0415
    from lttd.view.output import new_output  # noqa: PLC0415

    if trace.hides_self and not FORMATS[to].hides_self:
        others = ", ".join(name for name, each in FORMATS.items() if each.hides_self)
        raise UsageError(f"--to {to} holds whole sub-buffers; formats for --hide-self: {others}")
    fitting, left_out = _fitting(trace, window, to)
    kinds = _kinds(fitting, window, to)
    try:
        exporters = [cast("Exporter", import_module(kind.module)) for kind in kinds]
    except ImportError as error:
        raise UsageError(f"{to} needs {error.name}: pip install 'lttd[{to}]'") from None
    if "://" in str(out):
        if not hasattr(exporters[0], "export_url"):
            raise UsageError(f"{out}: {to} is written to a path, not to a URL")
        return left_out + cast("UrlExporter", exporters[0]).export_url(fitting, window, str(out))
    disk = Disk()
    with new_output(Path(out), disk, trace) as made:
        lines = left_out
        for kind, exporter in zip(kinds, exporters, strict=True):
            place = made / kind.name if len(kinds) > 1 else made
            lines += exporter.export(kind.trace, window, place, disk)
        return lines


class _Kind(NamedTuple):
    """The part of a trace that one module exports."""

    name: str
    module: str
    trace: "Trace"

    def has(self, window: "Window") -> bool:
        """Return whether there is anything of it in a window."""
        from lttd.view.part import parts_within  # noqa: PLC0415

        parts = (parts_within(segment, window) for segment in self.trace.segments)
        return any(not part.empty for some in parts for part in some)


def _kinds(trace: "Trace", window: "Window", to: str) -> list[_Kind]:
    """Divide a trace by the modules that export it; leave out what is not in the window.

    Raises:
        UsageError: there are several, and the format is one file.
    """
    from lttd.errors import UsageError  # noqa: PLC0415

    takes = FORMATS[to].takes
    held = {abi for segment in trace.segments for abi in _abis(segment)}
    of_module: dict[str, set[str]] = {}
    for abi in sorted(held):
        of_module.setdefault(takes[abi], set()).add(abi)
    if len(of_module) == 1:
        return [_Kind(to, module, trace) for module in of_module]
    kinds = [_Kind("-".join(abis), module, trace.only(abis)) for module, abis in of_module.items()]
    kinds = [kind for kind in kinds if kind.has(window)] or kinds[:1]
    if len(kinds) > 1 and not FORMATS[to].divides:
        names = " or ".join(kind.name for kind in kinds)
        raise UsageError(f"{trace.path}: --to {to} holds {names}, not both: export one segment")
    return kinds


def _fitting(trace: "Trace", window: "Window", to: str) -> tuple["Trace", list[str]]:
    """Return the part of *trace* that the format takes, and lines about the streams left out.

    Raises:
        UsageError: the format takes none of the streams, or not all of those in the window.
        TraceDamagedError: a manifest states impossible sub-buffers.
    """
    format_ = FORMATS[to]
    held = {abi for segment in trace.segments for abi in _abis(segment)}
    if not held & format_.takes.keys():
        raise _does_not_fit(str(trace.path), held, to)
    if format_.leaves_out:
        others = sorted(held - format_.takes.keys())
        left_out = [f"{abi} does not fit into {to}: left out" for abi in others]
        return (trace.only(format_.takes.keys()) if others else trace), left_out
    for segment in trace.segments:
        _refuse_what_does_not_fit(segment, window, to)
    takes = format_.takes.keys()
    return (trace if held <= takes else trace.only(takes)), []


def _refuse_what_does_not_fit(segment: "Segment", window: "Window", to: str) -> None:
    from lttd.errors import TraceDamagedError  # noqa: PLC0415
    from lttd.view.part import parts_within  # noqa: PLC0415

    misfits = _abis(segment) - FORMATS[to].takes.keys()
    unreadable = [one for one in segment.streams if one.abi is None and one.info.abi not in misfits]
    if not misfits and not unreadable:
        return
    if all(part.empty for part in parts_within(segment, window)):
        return
    if misfits:
        raise _does_not_fit(segment.paths.directory.name, _abis(segment), to)
    what = f"{unreadable[0].name}: states impossible sub-buffers"
    raise TraceDamagedError(segment.paths.manifest, 0, what)


def _abis(segment: "Segment") -> set[str]:
    return {stream.info.abi for stream in segment.streams}


def _does_not_fit(where: str, held: set[str], to: str) -> "UsageError":
    """Return the error: the ABIs in *where*, those that the format takes, formats for them."""
    from lttd.errors import UsageError  # noqa: PLC0415

    taken = ", ".join(sorted(FORMATS[to].takes))
    fit = ", ".join(name for name, each in FORMATS.items() if held <= each.takes.keys()) or "none"
    return UsageError(
        f"{where}: holds {' and '.join(sorted(held)) or 'nothing'}, and --to {to} takes only"
        f" {taken}; formats for it: {fit}"
    )
