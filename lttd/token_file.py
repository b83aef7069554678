"""Read the token of ``--web-token-file``: it allows whoever sends it to keep windows."""

import os
import re
import stat
from typing import Final

from lttd.errors import UsageError
from lttd.parsers import parse_path

# RFC 6750, 2.1; a token of 4 KiB fits into a request's head with the other fields.
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~+/-]{1,4096}=*")
_MOST_FILE_BYTES: Final = 8 << 10


def read_token(path: str) -> bytes:
    """Read the token of a file that only its owner can read.

    Raises:
        UsageError: others may read or change the file, or it holds no token.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            _refuse_shared(path, os.fstat(fd))
            data = os.read(fd, _MOST_FILE_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name the file of a token") from None
    token = data.strip()
    if not _TOKEN.fullmatch(token):
        what = "is empty" if not token else "does not hold one token of letters, digits and ._~+/-="
        raise UsageError(f"{path}: {what}; make one: openssl rand -hex 32")
    return token


def _refuse_shared(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path}: not a regular file; name the file of a token")
    if status.st_uid not in (0, os.geteuid()):
        raise UsageError(f"{path}: belongs to another user; chown it to the user of lttd")
    if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise UsageError(f"{path}: others can read or change the token; chmod 600 it")


def token_path(value: object) -> str:
    """Return the path of a file with a token that can be used.

    Raises:
        UsageError: it holds none, or others may read it.
    """
    path = parse_path(value)
    read_token(path)
    return path
