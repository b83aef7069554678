"""Segments that an earlier lttd left: closed, or open after a kill."""

from collections.abc import Sequence
from pathlib import Path

from lttd.abi.formats_file import pack
from lttd.opening import Recovered
from tests.segment_builder import Made, subbuffer


def recorded(trace: Path, *, number: int = 1) -> Made:
    made = Made(trace, number=number)
    made.append([subbuffer(0), subbuffer(1)], trailing_loss=3)
    made.sync()
    return made


def left_open(trace: Path, *, number: int = 1) -> Made:
    """A segment of a killed lttd, with more data than its synced record covers."""
    made = recorded(trace, number=number)
    made.append([subbuffer(2)])
    return made.leave()


def with_tracefs(made: Made) -> Made:
    events = made.paths.directory / "tracefs" / "events" / "sched" / "sched_switch"
    events.mkdir(parents=True)
    (events / "format").write_bytes(b'name: sched_switch\nID: 314\nformat:\n\nprint fmt: ""\n')
    (events.parents[2] / "formats.gz").write_bytes(pack({("irq", "irq_entry"): b"ID: 315\n"}))
    (events.parents[2] / "commands").write_bytes(b"1\t1\t1\tinit\n")
    return made


def lines_of(found: Sequence[Recovered]) -> list[str]:
    return [one.line for one in found]
