"""The control socket on the file system, and the clients that find it."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from lttd import control_socket, subcommands
from lttd.clients.base import ask, client_parser
from lttd.control import Control
from lttd.control_protocol import Peer
from lttd.control_socket import ControlSocket, socket_name
from lttd.errors import LttdError, UsageError
from lttd.subcommand_help import HELP
from tests.running import PATIENCE_S

NAME = socket_name(7, 4711)


@contextmanager
def served(trace: Path, **answer: object) -> Iterator[ControlSocket]:
    """Answer clients of *trace* from a thread, each with *answer* and what it asked."""
    trace.mkdir(exist_ok=True)
    status = trace.stat()
    began = threading.Event()
    stop: list[Callable[[], None]] = []

    async def reply(request: Mapping[str, Any], peer: Peer) -> Mapping[str, Any]:
        return {"trace_dir": str(trace), "asked": request, "uid": peer.uid, **answer}

    async def serve() -> None:
        handlers = dict.fromkeys(("status", "roll", "reload"), reply)
        async with trio.open_nursery() as nursery:
            control = Control(handlers, lambda *_: None)
            await nursery.start(control.serve, opened.listening)
            token = trio.lowlevel.current_trio_token()
            stop.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            began.set()

    with closing(ControlSocket(socket_name(status.st_dev, status.st_ino))) as opened:
        thread = threading.Thread(target=trio.run, args=(serve,))
        thread.start()
        assert began.wait(PATIENCE_S)
        try:
            yield opened
        finally:
            stop[0]()
            thread.join()


def asked(trace: Path | None = None, **request: object) -> dict[str, Any]:
    words = [] if trace is None else ["--trace-dir", str(trace)]
    given = client_parser("roll", "").parse_args(words)
    return ask(given, {"do": "roll", **request})


def client(*words: str | Path) -> tuple[int, str]:
    """Run a client in this process; return its status."""
    run = subprocess.run(
        [sys.executable, "-m", "lttd", *map(str, words)],
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


def test_a_client_finds_the_recorder_however_the_trace_is_written(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    with served(trace):
        (tmp_path / "link").symlink_to(trace)
        for way in (trace, tmp_path / "link", Path(os.path.relpath(trace)), trace / ".." / "t"):
            assert asked(way, why="\x1b[2J\u202e")["asked"]["why"] == "\x1b[2J\u202e"
        trace.rename(tmp_path / "moved")
        assert asked(tmp_path / "moved")["uid"] == os.geteuid()
        assert asked()["trace_dir"] == str(trace)


def test_without_a_recorder_the_status_is_77(tmp_path: Path) -> None:
    for words in ([], ["-t", tmp_path], ["-t", tmp_path / "missing"]):
        status, line = client("status", *words)
        assert status == 77, line
        assert line.count("\n") == 1
        assert "no recorder runs" in line


def test_several_recorders_are_listed_when_none_is_named(tmp_path: Path) -> None:
    traces = tmp_path / "a", tmp_path / "b\x1b"
    with served(traces[0]), served(traces[1]):
        with pytest.raises(UsageError) as caught:
            asked()
        assert str(caught.value) == (
            f"several recorders run; --trace-dir is one of {traces[0]}, {traces[1]}"
        )
        assert asked(traces[1])["trace_dir"] == str(traces[1])
        assert client("status")[0] == 2


@pytest.mark.parametrize(
    "words", [["--x"], ["extra"], ["-t"], ["--trace-dir", "~nosuchuser/x"]], ids=str
)
def test_wrong_usage_of_a_client_is_status_2_and_one_line(words: list[str]) -> None:
    status, line = client("status", *words)
    assert (status, line.count("\n")) == (2, 1)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(runtime_directory: Path) -> None:
    first = ControlSocket(NAME)
    with pytest.raises(LttdError, match="another process listens on it"):
        ControlSocket(NAME)
    first.listening.close()  # as a kill does: the name stays
    second = ControlSocket(NAME)
    first.close()  # it removes only what is its own
    assert [each.name for each in runtime_directory.iterdir()] == [NAME]
    second.close()
    assert list(runtime_directory.iterdir()) == []


def test_a_live_socket_with_a_full_queue_is_not_replaced(
    runtime_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "BACKLOG", 0)
    with ExitStack() as stack:
        opened = stack.enter_context(closing(ControlSocket(NAME)))
        for _ in range(3):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.setblocking(False)
            filled = one.connect_ex(f"{runtime_directory}/{NAME}") == errno.EAGAIN
        assert filled
        with pytest.raises(LttdError, match="another process listens on it"):
            ControlSocket(NAME)
        assert Path(opened.path).is_socket()


@pytest.mark.parametrize("file_type", ["file", "directory", "link", "dangling", "fifo"])
def test_what_exists_and_is_not_a_socket_is_left_alone(
    runtime_directory: Path, tmp_path: Path, file_type: str
) -> None:
    runtime_directory.mkdir(0o750)
    path = runtime_directory / NAME
    match file_type:
        case "file":
            path.write_text("x")
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path)
        case "dangling":
            path.symlink_to(tmp_path / "missing")
        case "fifo":
            os.mkfifo(path)
    with pytest.raises(LttdError) as caught:
        ControlSocket(NAME)
    assert str(caught.value) == f"{path}: exists and is not a socket; remove it"
    assert [each.name for each in runtime_directory.iterdir()] == [NAME]


def test_a_runtime_directory_with_a_path_of_300_bytes_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 150) / ("e" * 150)
    deep.mkdir(parents=True)
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(deep / "r"))
    with served(tmp_path / "t"):
        assert asked(tmp_path / "t")["uid"] == os.geteuid()


def test_a_socket_without_the_group_is_for_its_user_only(
    runtime_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_socket, "GROUP", "nosuchgroup")
    with closing(ControlSocket(NAME)) as opened:
        assert Path(opened.path).stat().st_mode & 0o777 == 0o600
        assert runtime_directory.stat().st_mode & 0o007 == 0


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not root")


@needs_root
def test_the_group_may_use_the_socket_of_root_and_others_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In /tmp itself: other users cannot pass the directories of pytest.
    runtime = Path(f"/tmp/lttdtest-{os.getpid()}-runtime")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(runtime))
    monkeypatch.setattr(control_socket, "GROUP", "daemon")
    try:
        with served(tmp_path / "t") as opened:
            path = Path(opened.path)
            assert (path.stat().st_mode & 0o777, path.group()) == (0o660, "daemon")
            assert (runtime.stat().st_mode & 0o777, runtime.group()) == (0o750, "daemon")
            member = as_user(["--reuid", "65534", "--regid", "65534", "--groups", "1"])
            assert member["answer"]["uid"] == 65534
            assert "only root and the user who records" in member["reload"]["error"]
            stranger = as_user(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            assert stranger == {"errno": errno.EACCES}
    finally:
        shutil.rmtree(runtime, ignore_errors=True)


# Another user cannot read this package or its interpreter here, so this is a client by hand.
BY_HAND = """
import json, os, socket, sys
def ask(do):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(sys.argv[1])
        client.sendall(json.dumps({"do": do}).encode() + b"\\n")
        return json.loads(client.makefile().readline())
try:
    print(json.dumps({"answer": ask("roll"), "reload": ask("reload")}))
except OSError as error:
    print(json.dumps({"errno": error.errno}))
"""


def as_user(options: list[str]) -> dict[str, Any]:
    """Ask as another user by setpriv; return what the client by hand printed."""
    path = next(Path(os.environ["RUNTIME_DIRECTORY"]).glob("*.socket"))
    words = ["setpriv", *options, "/usr/bin/python3", "-c", BY_HAND, str(path)]
    run = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    value: dict[str, Any] = json.loads(run.stdout)
    return value


@needs_root
def test_a_client_trusts_no_runtime_directory_that_others_can_write_in(tmp_path: Path) -> None:
    with served(tmp_path / "t") as opened:
        Path(opened.path).parent.chmod(0o770)
        with pytest.raises(LttdError, match="others can write in it, so it is not to be trusted"):
            asked(tmp_path / "t")


def test_two_hundred_connections_at_once_do_not_keep_a_request_out(tmp_path: Path) -> None:
    with served(tmp_path / "t") as opened, ExitStack() as stack:
        for _ in range(200):
            idle = stack.enter_context(socket.socket(socket.AF_UNIX))
            idle.setblocking(False)
            idle.connect_ex(opened.path)
        assert asked(tmp_path / "t")["uid"] == os.geteuid()


def test_a_line_of_a_mebibyte_is_refused_over_a_real_socket(tmp_path: Path) -> None:
    with served(tmp_path / "t") as opened, socket.socket(socket.AF_UNIX) as big:
        big.connect(opened.path)
        big.settimeout(PATIENCE_S)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            big.sendall(b" " * (1 << 20))
        assert b"at most 64 KiB" in big.recv(1 << 16)


def test_a_recorder_that_ends_before_its_answer_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    status = (tmp_path / "t").stat()
    with closing(ControlSocket(socket_name(status.st_dev, status.st_ino))) as opened:

        def leave() -> None:
            for _ in range(3):
                opened.listening.accept()[0].close()

        thread = threading.Thread(target=leave)
        thread.start()
        for _ in range(3):
            with pytest.raises(LttdError, match="the recorder ended before it answered"):
                asked(tmp_path / "t")
        thread.join()


def test_every_subcommand_has_help_and_its_module_loads_neither_trio_nor_numpy() -> None:
    modules = ", ".join(subcommands.SUBCOMMANDS.values())
    code = f"import sys, lttd.cli, {modules}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"trio", "numpy"} & set(run.stdout.split())
    assert subcommands.SUBCOMMANDS.keys() == HELP.keys()
    for name in subcommands.SUBCOMMANDS:
        status, text = client(name, "--help")
        assert status == 0
        assert "--json" in text
