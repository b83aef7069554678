"""Recordings of arm64, 32-bit ARM and i686: lttv prints them as their kernels and trace-cmd do.

Each machine fills a ring with all events; the kernel prints it (``cat trace`` with
``options/hash-ptr`` 0), then its bytes are replayed here.
"""

import re
from collections import Counter, defaultdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.conftest import NIGHTLY
from tests.kernel.foreign import MACHINES, ForeignMachine, fetched, record
from tests.kernel.image import GuestUnavailableError
from tests.running import lttv
from tests.test_kernel_agreement import common, lines_of
from tests.tools import needs_tool, output_of, replayed

pytestmark = [
    pytest.mark.guest,
    pytest.mark.slow,
    pytest.mark.skipif(not NIGHTLY, reason="boots three machines: only with LTTD_NIGHTLY=1"),
]

# What trace-cmd 3.1.6 does not print as the kernel does; the events themselves are compared.
TRACE_CMD_DIFFERS: Final = {
    "*_stack": "cuts stacks at eight frames, fills up with 0",
    "ma_*": "does not parse %px of an enum or a pointer",
    "mm_page_*": "does not parse vmemmap_base; takes it for 0 on 32 bits",
    "read_end": "prints addresses of a return probe as numbers",
    "timer_start": "prints D|P|I for all flags",
    "sys_exit": "takes a negative long of 32 bits for a positive one",
    "tlb_flush": "takes a negative long of 32 bits for a positive one",
}
_OURS = re.compile(r" *(.*)-(\d+) +\[(\d+)\] \S{5} +(\d+\.\d+): (\S+): ?(.*)", re.DOTALL)
_THEIRS = re.compile(r" *(.*)-(\d+) +\[(\d+)\] +(\d+\.\d+): (\S+): +(.*)", re.DOTALL)


class Recorded(NamedTuple):
    """What a machine gave, and the trace made of it."""

    directory: Path
    trace: Path


@pytest.fixture(scope="module", params=MACHINES, ids=lambda machine: machine.name)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    machine: ForeignMachine = request.param
    try:
        fetched(machine)
    except GuestUnavailableError as error:
        pytest.skip(f"no {machine.name}: {error}")
    out = tmp_path_factory.mktemp(machine.name)
    directory = record(machine, out)
    replayed(out / "t", directory=directory)
    return Recorded(directory, out / "t")


def printed(trace: Path, *options: str) -> str:
    run = lttv("text", trace, *options)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    return run.stdout


def test_a_foreign_kernels_own_text_is_printed(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = lines_of((recorded.directory / "kernel.txt").read_text(errors="replace"))
    ours = lines_of(printed(recorded.trace))
    types: Counter[str] = Counter()
    wrong: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for cpu in kernel:
        assert len(ours[cpu]) == len(kernel[cpu])
        for one, other in zip(kernel[cpu], ours[cpu], strict=True):
            assert (one.head, one.event) == (other.head, other.event)
            types[one.event] += 1
            if one.body != other.body and common(one)[0] != common(other)[0]:
                wrong[one.event].append((one.body, other.body))
    with capsys.disabled():
        name = (recorded.directory / "uname").read_text().strip()
        print(f"\n{name}: {len(types)} types, {types.total():,} lines as the kernel prints them")
    assert {event: pairs[:2] for event, pairs in wrong.items()} == {}
    assert {"kernel_stack", "tracing_mark_write", "read_end", "sched_switch"} <= set(types)


Told = dict[str, list[tuple[str, ...]]]


def told_by(text: str, pattern: re.Pattern[str]) -> Told:
    """Return pid, time, event and fields of each CPU's events; stacks go on over lines."""
    whole: list[str] = []
    for line in text.split("\n"):
        if pattern.fullmatch(line):
            whole.append(line)
        elif whole and line.startswith((" =>", "=>")):
            whole[-1] += f"\n{line}"
    found: Told = defaultdict(list)
    for line in whole:
        match = pattern.fullmatch(line)
        assert match
        found[match[3]].append((match[2], match[4], match[5], spelled(match[6])))
    return found


def spelled(fields: str) -> str:
    """Return fields in one spelling: trace-cmd leaves out a symbol's size, and writes (nil)."""
    fields = re.sub(r"(\+0x[0-9a-f]+)/0x[0-9a-f]+", r"\1", fields)
    fields = re.sub(r"\b0{8}(0{8})?\b", "(nil)", fields)
    return re.sub(r"\b0x0*(?=[0-9a-f])", "", re.sub(r"\s+", " ", fields)).strip()


@needs_tool("trace-cmd")
def test_trace_cmd_reads_the_same_events_of_a_foreign_kernel(recorded: Recorded) -> None:
    dat = recorded.trace.with_suffix(".dat")
    exported = lttv("export", recorded.trace, "--to", "trace.dat", "-o", dat)
    assert exported.returncode == 0, exported.stderr
    theirs = told_by(output_of("trace-cmd", "report", "-N", "-t", dat), _THEIRS)
    ours = told_by(printed(recorded.trace, "--ns"), _OURS)
    assert sum(map(len, ours.values())) > 10_000
    differing: dict[str, tuple[str, str]] = {}
    for cpu in ours:
        assert len(ours[cpu]) == len(theirs[cpu])
        for one, other in zip(ours[cpu], theirs[cpu], strict=True):
            assert one[:3] == other[:3]
            if one[3] != other[3] and not any(fnmatchcase(one[2], e) for e in TRACE_CMD_DIFFERS):
                differing[one[2]] = one[3], other[3]
    assert differing == {}
