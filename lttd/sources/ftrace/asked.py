"""FtraceSettings: the parsed keys of the source ``ftrace``."""

from typing import NamedTuple

from lttd.sources.base import Child


class FtraceSettings(NamedTuple):
    """What to record and how; None keeps the value of an existing instance, or the default."""

    instance: str | None = None
    """None: a new instance of lttd's own; ``/``: the top level; else a name below ``instances``."""
    events: tuple[str, ...] = ()
    preset: tuple[str, ...] = ()
    """Names of groups of events, see lttd.presets."""
    buffer_bytes: int | None = None
    """The size of each CPU's ring."""
    subbuffer_bytes: int | None = None
    clock: str | None = None
    overwrite: bool | None = None
    trace_self: bool | None = None
    """False: the kernel leaves lttd's threads out, which makes each event of all others dearer."""
    kallsyms: bool = False
    exclude: tuple[str, ...] = ()
    """Globs of events that ``events`` names and that are not recorded."""
    filter: tuple[str, ...] = ()
    """``EVENT: EXPRESSION``, see filters.py."""
    stack: bool | None = None
    """Whether the kernel stores its stack with every event."""
    user_stack: bool | None = None
    """The same of the program's stack."""
    event_trigger: tuple[str, ...] = ()
    """``EVENT: ACTION[:N] [if FILTER]``, see triggers.py."""
    option: tuple[str, ...] = ()
    """``NAME[=VALUE]``, see options.py."""
    probe: tuple[str, ...] = ()
    """Dynamic events to make, see probes.py."""
    pid: tuple[int, ...] = ()
    """Processes, or single threads, to which recording is limited; see pids.py."""
    comm: tuple[str, ...] = ()
    """Globs of names of such tasks."""
    follow_fork: bool | None = None
    only_command: bool | None = None
    command: Child | None = None
    markers: bool | None = None
    """Whether to take marks of the top level, see markers.py."""
    tracer: str | None = None
    """The name of a tracer, see tracer.py."""
    function: tuple[str, ...] = ()
    """Globs of functions that it records; none: all."""
    notrace: tuple[str, ...] = ()
    """Globs of functions that it leaves out."""
    graph_depth: int | None = None
    """How deep it follows calls; None: as the machine has it."""
