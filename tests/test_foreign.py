"""lttv names the kind of a foreign path, and the program that reads it."""

import os
from pathlib import Path

import pytest

from lttd.foreign import why_no_trace
from lttd.view.cli import main


@pytest.mark.parametrize("command", ["follow", "check", "formats", "compress", "index"])
def test_a_command_for_traces_of_lttd_alone_names_those_that_open_a_trace_dat(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    path = tmp_path / "trace.dat"
    path.write_bytes(b"\x17\x08\x44tracing6\0")
    assert main([command, str(path)]) == 2
    what = (
        "is a trace.dat of trace-cmd, not a trace of lttd; use lttv text, which opens it, or lttv"
    )
    assert capfd.readouterr().err.startswith(f"lttv: {path}: {what} import")


@pytest.mark.parametrize("command", ["info", "text", "follow", "check", "formats"])
@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"PERFILE2", "is a perf.data, not a trace of lttd; use perf script"),
        (b"\xc1\x1f\xfc\xc1", "is a stream of a CTF trace, not a trace of lttd; use babeltrace2"),
        (b"", "is a file, not a trace of lttd; a trace is the directory that lttd --trace-dir na"),
    ],
)
def test_a_file_of_another_tool_is_named_with_the_program_that_reads_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: str, head: bytes, what: str
) -> None:
    path = tmp_path / "trace.dat"
    path.write_bytes(head)
    assert main([command, str(path)]) == 2
    assert capfd.readouterr().err.startswith(f"lttv: {path}: {what}")


def test_a_fifo_is_named_and_not_opened(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "t")
    assert main(["info", str(tmp_path / "t")]) == 2
    assert ": is a FIFO, not a trace of lttd; " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("metadata", "is a CTF trace, not one of lttd; use babeltrace2, or lttd -t NEW --source"),
        ("metadata_0", "is a trace of LTTng 0.x; lttd -t NEW --source replay:DIR makes one of"),
        ("notes", "holds no trace of lttd; a trace is the directory that lttd --trace-dir named"),
    ],
)
def test_a_directory_of_another_tool_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], file: str, what: str
) -> None:
    (tmp_path / file).write_bytes(b"x")
    assert main(["info", str(tmp_path)]) == 2
    assert capfd.readouterr().err.startswith(f"lttv: {tmp_path}: {what}")


def test_an_impossible_file_name_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "x" * 5000]) == 2
    err = capfd.readouterr().err
    assert err.endswith(": File name too long\n")
    assert len(err) < 800


def test_a_directory_without_read_permission_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "t"
    closed.mkdir(mode=0o700)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # root may read everything, so ask as nobody
        tmp_path.chmod(0o755)
        os.chdir(tmp_path)
        if os.geteuid() == 0:
            os.setuid(65534)
        else:
            closed.chmod(0)
        os.write(writer, why_no_trace(Path("t")).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100).startswith(b"permission denied: look at it as a user who")
    os.close(reader)
    os.close(writer)
