"""Run every check of the doctor."""

from functools import partial
from pathlib import Path

from lttd.config import Config
from lttd.doctor.controls import of_machine
from lttd.doctor.disk import try_trace
from lttd.doctor.finding import Check, Finding, Findings, Mark, Report, refused
from lttd.doctor.kernel import clock, mounts, namespaces, readers, rights
from lttd.doctor.machine import limits, programs
from lttd.doctor.port import try_port
from lttd.doctor.trial import try_sources
from lttd.errors import LttdError
from lttd.errors import refusal as explained


def examine(config: Config, trace: Path | None) -> Report:
    """Run every check."""
    tracefs = list(_run(mounts))
    groups: dict[str, list[Check]] = {
        "programs": [programs, limits],
        "rights": [rights, namespaces],
        "kernel": [partial(iter, tracefs), clock, of_machine, readers],
        "disk": [partial(try_trace, trace, config.limits) if trace else _no_trace],
    }
    if config.metrics is not None or config.web_enable_trigger:
        groups["network"] = [partial(try_port, config, trace)]
    if all(found.mark is not Mark.BAD for found in tracefs):
        groups["kernel"].append(
            partial(try_sources, config.sources, config.backlog_bytes, command=bool(config.command))
        )
    return Report(
        {
            name: [each for check in checks for each in _run(check)]
            for name, checks in groups.items()
        }
    )


def _run(check: Check) -> Findings:
    """Run a check; where it lacks descriptors or memory, a start would lack them, too."""
    try:
        yield from check()
    except (OSError, MemoryError) as error:
        yield refused("limits", explained(error) or LttdError(str(error)))


def _no_trace() -> Findings:
    remedy = "name it: --trace-dir DIR; that of lttd.service is /var/lib/lttd/trace"
    yield Finding("trace", Mark.NOTE, "not examined", remedy)
