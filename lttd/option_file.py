"""Read the TOML file of ``--config``; refuse a large file, and values that no option can have.

Rule: opening the file never waits (a FIFO may have no writer yet).  Valid values are text without
NUL, numbers of 64 bits, lists of these, and tables of these for sources.
"""

import os
import stat
from collections.abc import Collection, Mapping
from typing import Any, Final

from lttd.errors import UsageError
from lttd.parsers import nearest, shown

MOST_BYTES: Final = 1 << 20
_MOST_INTEGER: Final = 1 << 63
# How many tables deep the keys of a source may be.
_TABLES_OF_SOURCE: Final = {"channel": 2}


def read_options(path: str, known: Collection[str]) -> dict[str, Any]:
    """Return the keys and values of the file.

    Raises:
        UsageError: it cannot be read, is not TOML, or has a key that is not in *known*.
    """
    values = read_toml(path)
    for key, value in values.items():
        if key not in known:
            near = nearest(key, known)
            advice = f"; did you mean {near}?" if near else ""
            raise UsageError(f"{path}: {shown(key)} is not an option of lttd{advice}")
        if key == "source":
            _check_sources(f"{path}: {key}", value)
        else:
            _check(f"{path}: {key}", value)
    return values


def read_toml(path: str) -> dict[str, Any]:
    """Return the values of a TOML file as they are.

    Raises:
        UsageError: it cannot be read, or is not TOML.
    """
    import tomllib  # noqa: PLC0415  (only with such a file)

    try:
        return tomllib.loads(_read(path).decode())
    except RecursionError:
        raise UsageError(f"{path}: not TOML for lttd: nested too deeply") from None
    except ValueError as error:  # of its syntax, of UTF-8, of an integer with 5,000 digits
        reason = str(error).partition("; use sys.")[0]  # advice to those who write Python
        raise UsageError(f"{path}: not TOML: {reason}") from None


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UsageError(f"{path}: not a regular file; name a TOML file of options")
            data = bytearray()
            while len(data) <= MOST_BYTES and (more := os.read(fd, MOST_BYTES + 1 - len(data))):
                data += more
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(data) > MOST_BYTES:
        raise UsageError(f"{path}: larger than {MOST_BYTES >> 20} MiB; name a TOML file of options")
    return bytes(data)


def _check_sources(what: str, value: object) -> None:
    """Refuse the value of ``source`` if it has what no option can have.

    Raises:
        UsageError: it has.
    """
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, Mapping):
            _check(what, item, lists=False)
            continue
        for key, each in item.items():
            tables = _TABLES_OF_SOURCE.get(key, 0)
            _check(f"{what}.{shown(key)[1:-1]}", each, tables=tables)


def _check(what: str, value: object, *, tables: int = 0, lists: bool = True) -> None:
    """Refuse a value that no option can have.

    *tables*: how many tables deep it may be; *lists*: whether it may be a list.

    Raises:
        UsageError: no option can have it.
    """
    if isinstance(value, Mapping) and tables:
        for key, item in value.items():
            _check(f"{what}.{shown(key)[1:-1]}", item, tables=tables - 1)
    elif isinstance(value, list) and lists:
        for item in value:
            _check(what, item, tables=tables, lists=False)
    elif isinstance(value, Mapping | list):
        raise UsageError(f"{what}: nested too deeply; write a value, or a list of values")
    elif isinstance(value, str) and "\0" in value:
        raise UsageError(f"{what}: {shown(value)} contains a NUL character; remove it")
    elif isinstance(value, int) and not -_MOST_INTEGER <= value < _MOST_INTEGER:
        raise UsageError(f"{what}: a number of more than 64 bits; write a smaller one")
    elif not isinstance(value, str | int | float):
        raise UsageError(f"{what}: {value} is a date or time; no option takes one")
