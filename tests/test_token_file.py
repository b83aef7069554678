"""A token file that others can read or change, or that holds no token, is refused in one line."""

import os
import socket
from pathlib import Path

import pytest

from lttd.config import parse_command_line
from lttd.errors import UsageError
from lttd.token_file import read_token

TOKEN = b"sekret-token"


def token_file(path: Path, data: bytes = b"sekret-token\n", mode: int = 0o600) -> str:
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_a_token_is_read_without_its_line_break(tmp_path: Path, mode: int) -> None:
    assert read_token(token_file(tmp_path / "t", mode=mode)) == TOKEN


@pytest.mark.parametrize(
    ("data", "mode", "words"),
    [
        (b"sekret-token\n", 0o644, "chmod 600"),
        (b"sekret-token\n", 0o620, "chmod 600"),
        (b"sekret-token\n", 0o602, "chmod 600"),
        (b"", 0o600, "is empty"),
        (b"\n \n", 0o600, "is empty"),
        (b"two tokens\n", 0o600, "does not hold one token"),
        (b"x" * 5000, 0o600, "does not hold one token"),
        (b"\x00\xff", 0o600, "does not hold one token"),
    ],
)
def test_a_token_file_that_is_not_right_is_refused_in_one_line(
    tmp_path: Path, data: bytes, mode: int, words: str
) -> None:
    path = token_file(tmp_path / "t", data, mode)
    with pytest.raises(UsageError, match=words) as raised:
        read_token(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert b"sekret" not in str(raised.value).encode()


def test_a_token_file_that_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for name in ("fifo", "socket", "missing", "."):
        with pytest.raises(UsageError, match=r"^[^\n]*$"):
            read_token(str(tmp_path / name))


def options(tmp_path: Path, *words: str) -> list[str]:
    return ["--trace-dir", str(tmp_path / "t"), *words]


def test_the_options_of_the_webhook_belong_together(tmp_path: Path) -> None:
    path = token_file(tmp_path / "token")
    token, port = ("--web-token-file", path), ("--metrics", "127.0.0.1:0")
    config = parse_command_line(options(tmp_path, "--web-enable-trigger", *token, *port))
    assert config.web_enable_trigger
    assert config.web_token_file == path
    for words, says in (
        (("--web-enable-trigger", *port), "needs a token"),
        ((*token, *port), "add that"),
        (("--web-token-file", str(tmp_path), *port), "web-token-file"),
    ):
        with pytest.raises(UsageError, match=says):
            parse_command_line(options(tmp_path, *words))


def test_the_token_is_not_part_of_the_configuration(tmp_path: Path) -> None:
    token = ("--web-token-file", token_file(tmp_path / "token"))
    port = ("--metrics", "127.0.0.1:0")
    config = parse_command_line(options(tmp_path, "--web-enable-trigger", *token, *port))
    assert "sekret" not in repr(config)
