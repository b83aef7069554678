"""Run lttd and lttv with descriptors that are closed, full, or without a reader."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lttd.errors import LttdError
from lttd.manifest import Manifest
from lttd.summary import write_summary
from lttd.tracedir import segments
from tests.data import FTRACE
from tests.tools import replayed

Ended = subprocess.CompletedProcess[bytes]


def ended(module: str, words: list[str | Path], where: str) -> Ended:
    """Run lttd or lttv in a shell that redirects its descriptors."""
    command = shlex.join([sys.executable, "-m", module, *map(str, words)])
    script = f"set -o pipefail; {command} {where}"
    return subprocess.run(["bash", "-c", script], capture_output=True, check=False)


def recorded(trace: Path, where: str, *arguments: str) -> Ended:
    return ended(
        "lttd", ["-t", trace, "--source", f"replay:{FTRACE},abi=ftrace", *arguments], where
    )


def is_closed(trace: Path) -> bool:
    (segment,) = segments(trace)
    return Manifest.read(segment.manifest).state == "closed"


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "2> >(true)", "<&- >&- 2>&-"])
def test_a_full_stderr_changes_neither_recording_nor_status(tmp_path: Path, where: str) -> None:
    run = recorded(tmp_path / "t", where)
    assert (run.returncode, run.stderr) == (0, b"")
    assert is_closed(tmp_path / "t")


@pytest.mark.parametrize(
    ("where", "line"),
    [
        (">/dev/full", b"standard output: No space left on device; the output is incomplete"),
        (">&-", b"standard output is closed; the output is incomplete"),
        ("| true", b"--summary json: Broken pipe"),
        (">&- 2>&-", None),
    ],
)
def test_a_json_summary_that_stdout_refuses_fails_in_one_line(
    tmp_path: Path, where: str, line: bytes | None
) -> None:
    run = recorded(tmp_path / "t", where, "--summary", "json")
    assert (run.returncode, run.stderr) == (1, b"lttd: %b\n" % line if line else b"")
    assert is_closed(tmp_path / "t")


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replayed(tmp_path_factory.mktemp("redirected") / "t").path


# Every command of lttv that writes to stdout.
SHOWS = (["info"], ["info", "--json"], ["text"], ["text", "--jobs", "2"],
         ["follow", "--from-begin", "--until-closed"], ["formats"], ["check"])  # fmt: skip


@pytest.mark.parametrize("words", SHOWS, ids=" ".join)
@pytest.mark.parametrize(
    ("where", "line"),
    [
        (">/dev/full", b"standard output: No space left on device; the output is incomplete"),
        (">&-", b"standard output is closed; the output is incomplete"),
        (">&- 2>&-", None),
    ],
)
def test_a_stdout_that_refuses_output_fails_in_one_line(
    trace: Path, words: list[str], where: str, line: bytes | None
) -> None:
    run = ended("lttd.view", [words[0], trace, *words[1:]], where)
    assert (run.returncode, run.stderr) == (1, b"lttv: %b\n" % line if line else b"")


@pytest.mark.parametrize("words", SHOWS, ids=" ".join)
def test_lttv_ends_quietly_if_its_reader_goes_away(trace: Path, words: list[str]) -> None:
    run = ended("lttd.view", [words[0], trace, *words[1:]], "| true")
    assert (run.returncode, run.stderr) == (141, b"")


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "2> >(true)", "<&- 2>&-"])
def test_notes_that_stderr_refuses_do_not_change_the_status(trace: Path, where: str) -> None:
    whole = ended("lttd.view", ["text", trace], "")
    words: list[str | Path] = ["text", trace, "--event", "none_such", "--event", "*"]
    run = ended("lttd.view", words, where)
    assert run.returncode == 0
    assert run.stdout == whole.stdout
    assert run.stdout


@pytest.mark.parametrize("module", ["lttd", "lttd.view"])
@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize(("where", "status"), [(">/dev/full", 1), (">&-", 1), ("| true", 0)])
def test_help_that_cannot_be_written_gives_no_traceback(
    module: str, option: str, where: str, status: int
) -> None:
    run = ended(module, [option], where)
    assert run.returncode == status
    assert run.stderr.count(b"\n") == (status == 1)
    assert b"Traceback" not in run.stderr


NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_summary_is_written_through_no_link_and_into_no_file_of_another_user(
    tmp_path: Path,
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(victim)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    file.touch()
    os.chown(file, NOBODY, NOBODY)
    for path, says in ((link, "a symbolic link of another user"), (file, "belongs to user 65534")):
        with pytest.raises(LttdError, match=f"--summary json:{path}: {says}"):
            write_summary(f"json:{path}", [], {})
    assert victim.read_text() == "precious"
    assert file.read_text() == ""


def test_a_summary_goes_through_a_link_of_ones_own_and_replaces_what_is_there(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("older " * 1000)
    (tmp_path / "link").symlink_to("file")
    write_summary(f"json:{tmp_path}/link", [], {})
    assert (tmp_path / "file").read_text().startswith("{")
    assert "older" not in (tmp_path / "file").read_text()


def test_a_fifo_that_nobody_reads_does_not_make_a_summary_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(LttdError, match="nobody reads this FIFO"):
        write_summary(f"json:{tmp_path}/fifo", [], {})
