"""The output of lttv is readable by the readers of its trace, and by nobody else."""

import os
import stat
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from lttd.files import Disk
from lttd.view.cli import main
from lttd.view.export import FORMATS
from lttd.view.output import new_output
from lttd.view.times import EVERYTHING
from lttd.view.trace import Trace
from tests.ftraced import Traced, pages_of, tick

MAKES = (
    ["cut", "-o", "new"],
    ["plot", "-o", "new.svg"],
    ["plot", "-o", "new.html"],
    *(
        ["export", "--to", name, "-o", "new"]
        for name in ("trace.dat", "ctf", "perfetto", "systrace", "parquet")
    ),
)


@pytest.fixture
def plain_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def trace_of(tmp_path: Path, mode: int, pages: int = 1) -> Path:
    made = Traced(tmp_path / "t")
    made.append([pages_of(1000 * number, [tick(number)] * 90) for number in range(1, pages + 1)])
    made.finish()
    for path in (tmp_path / "t").rglob("*"):
        if path.is_file():
            path.chmod(mode)
    return tmp_path / "t"


def modes_of(path: Path) -> set[tuple[bool, str]]:
    """Return the permissions of a file, or of a directory and all files in it."""
    return {
        (each.is_dir(), oct(stat.S_IMODE(each.stat().st_mode))) for each in (path, *path.rglob("*"))
    }


@pytest.mark.usefixtures("plain_umask")
@pytest.mark.parametrize("words", MAKES, ids=lambda words: " ".join(words[:3]))
@pytest.mark.parametrize(
    ("mode", "of_file", "of_directory"),
    [(0o640, "0o640", "0o750"), (0o600, "0o600", "0o700"), (0o644, "0o644", "0o755"),
     (0o666, "0o644", "0o755"), (0o440, "0o640", "0o750")],
)  # fmt: skip
def test_exports_and_cuts_have_the_permissions_of_their_trace(
    tmp_path: Path, words: list[str], mode: int, of_file: str, of_directory: str
) -> None:
    pytest.importorskip("pyarrow")
    trace = trace_of(tmp_path, mode)
    *options, name = words
    assert main([options[0], str(trace), *options[1:], str(tmp_path / name)]) == 0
    found = modes_of(tmp_path / name)
    assert found <= {(False, of_file), (True, of_directory)}
    assert (False, of_file) in found


def test_one_private_file_makes_every_export_of_a_trace_private(
    tmp_path: Path,
) -> None:
    trace = trace_of(tmp_path, 0o644)
    next(trace.glob("*/streams/*_0")).chmod(0o600)
    assert main(["export", str(trace), "--to", "ctf", "-o", str(tmp_path / "ctf")]) == 0
    assert modes_of(tmp_path / "ctf") == {(False, "0o600"), (True, "0o700")}


def test_replacing_unfinished_output_by_a_directory_gains_an_attacker_nothing(
    tmp_path: Path,
) -> None:
    trace, victim = Trace(trace_of(tmp_path, 0o644)), tmp_path / "victim"
    victim.mkdir()
    (victim / "new").write_bytes(b"secret")
    (victim / "new").chmod(0o600)
    with new_output(tmp_path / "new", Disk(), trace) as made:
        made.write_bytes(b"mine")
        made.parent.rename(tmp_path / "aside")
        made.parent.symlink_to(victim)
    assert stat.S_IMODE((victim / "new").stat().st_mode) == 0o600
    assert (victim / "new").read_bytes() == b"secret"
    assert (tmp_path / "new").read_bytes() == b"mine"


@pytest.mark.parametrize("to", ["trace.dat", "ctf", "perfetto", "systrace", "parquet"])
def test_nothing_is_exported_through_a_link_in_place_of_unfinished_output(
    tmp_path: Path, to: str
) -> None:
    trace, victim, disk = Trace(trace_of(tmp_path, 0o644)), tmp_path / "victim", Disk()
    victim.mkdir()
    with new_output(tmp_path / "new", disk, trace) as made:
        made.parent.rename(tmp_path / "aside")
        made.parent.symlink_to(victim)
        import_module(FORMATS[to].takes["ftrace"]).export(trace, EVERYTHING, made, disk)
    assert list(victim.iterdir()) == []
    assert (tmp_path / "new").exists()


@pytest.mark.usefixtures("plain_umask")
@pytest.mark.parametrize("mode", [0o640, 0o644])
@pytest.mark.parametrize("words", [["index"], ["compress"], ["check", "--repair"]], ids=" ".join)
def test_a_command_with_another_umask_keeps_the_permissions_of_a_trace(
    tmp_path: Path, words: list[str], mode: int
) -> None:
    trace = trace_of(tmp_path, mode, pages=20)
    if "--repair" in words:
        (index,) = trace.rglob("*.idx")
        os.truncate(index, 16)
    os.umask(0o077)
    assert main([*words, str(trace)]) == 0
    made = [path for path in trace.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {oct(path.stat().st_mode & 0o777) for path in made} == {oct(mode)}
    assert ("occurrences" in {path.name for path in made}) == ("--repair" not in words)
