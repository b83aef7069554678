"""lttv prints the traces of other programs as ``trace-cmd report -N`` prints them."""

import re
import shutil
from pathlib import Path

import pytest

from tests.data import FTRACE, SHARED_FTRACE, needs
from tests.running import lttv
from tests.tools import needs_tool, output_of, replayed
from tests.tracedat import cpu_data

pytestmark = [
    needs_tool("trace-cmd"),
    needs(SHARED_FTRACE),
]
_OURS = re.compile(r" *(.*)-(\d+) +\[(\d+)\] \S{5} +(\d+\.\d+): (\S+): ?(.*)")
_THEIRS = re.compile(r" *(.*)-(\d+) +\[(\d+)\] +(\d+\.\d+): (\S+): +(.*)")
_FORMAT = re.compile(rb"name: (\w+)\nID: (\d+)\nformat:\n.*?\nprint fmt: [^\n]*\n", re.DOTALL)
_COMMANDS = re.compile(rb"(?:\d+ [ -~]+\n){20,}")
_LAST_OWN_ID = 20
"""Lower ids are events of ftrace itself (enum trace_type)."""

Told = list[tuple[str, ...]]


def unpacked(path: Path, into: Path) -> Path:
    """Write the content of an uncompressed trace.dat as a copied tracefs tree."""
    raw = path.read_bytes()
    for cpu, pages in cpu_data(path)[1].items():
        home = into / f"per_cpu/cpu{cpu}"
        home.mkdir(parents=True)
        (home / "trace_pipe_raw").write_bytes(pages)
    for found in _FORMAT.finditer(raw):
        system = "ftrace" if int(found[2]) < _LAST_OWN_ID else "sched"
        home = into / f"events/{system}/{found[1].decode()}"
        home.mkdir(parents=True, exist_ok=True)
        (home / "format").write_bytes(found[0])
    commands = _COMMANDS.search(raw)
    assert commands
    (into / "saved_cmdlines").write_bytes(commands[0])
    return into


def fields_of(text: str) -> str:
    """Return the fields of a line without the 0x that trace-cmd writes before pointers."""
    return re.sub(r"\b0x0*(?=[0-9a-f])", "", re.sub(r"\s+", " ", text)).strip()


def ours(trace: Path) -> Told:
    run = lttv("text", "--ns", trace)
    assert run.returncode == 0, run.stderr
    found = [_OURS.fullmatch(line) for line in run.stdout.splitlines() if "[LOST" not in line]
    assert None not in found
    return [(*one.groups()[1:5], fields_of(one[6])) for one in found if one]


def theirs(path: Path) -> Told:
    lines = output_of("trace-cmd", "report", "-N", "-t", path).splitlines()
    found = [_THEIRS.fullmatch(line) for line in lines if line.startswith(" ")]
    return [(*one.groups()[1:5], fields_of(one[6])) for one in found if one]


def by_cpu(told: Told) -> dict[str, Told]:
    return {cpu: [one for one in told if one[1] == cpu] for cpu in sorted({t[1] for t in told})}


def test_a_trace_dat_reads_as_trace_cmd_prints_it(tmp_path: Path) -> None:
    replayed(tmp_path / "t", directory=unpacked(SHARED_FTRACE / "nocomp.dat", tmp_path / "in"))
    printed = ours(tmp_path / "t")
    assert len(printed) > 1000
    assert by_cpu(printed) == by_cpu(theirs(SHARED_FTRACE / "nocomp.dat"))


@pytest.mark.parametrize("directory", [SHARED_FTRACE / "raw", FTRACE], ids=["raw", "fixture"])
def test_pages_read_as_trace_cmd_prints_their_export(tmp_path: Path, directory: Path) -> None:
    copied = tmp_path / "in"
    shutil.copytree(directory, copied)
    if not (copied / "trace_clock").exists():  # trace-cmd would print counts instead
        (copied / "trace_clock").write_text("[mono]\n")
    replayed(tmp_path / "t", directory=copied)
    run = lttv("export", tmp_path / "t", "--to", "trace.dat", "-o", tmp_path / "t.dat")
    assert run.returncode == 0, run.stderr
    printed = ours(tmp_path / "t")
    assert len(printed) > 100
    assert by_cpu(printed) == by_cpu(theirs(tmp_path / "t.dat"))
