"""Decide by the Host header whether the endpoint answers.

A page in a browser can let its own name resolve to 127.0.0.1 and read the answers there (DNS
rebinding), but it cannot send another name than its own.  So lttd compares names and never looks
them up.  These pass: IP literals, ``localhost``, this machine's name, the bound name, and those of
``--web-allow-host``.  HTTP/1.0 without the header passes, because no browser sends that.
"""

import os
import re
from collections.abc import Iterable
from typing import Final

from lttd.errors import UsageError
from lttd.parsers import shown

_NAME: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?")
_HOST: Final = re.compile(r"(?:\[(?P<ipv6>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::\d{0,5})?", re.ASCII)


def parse_host_names(value: object) -> frozenset[str]:
    """Read the names of ``--web-allow-host``: one or a list.

    Raises:
        UsageError: one of them is not the name of a host.
    """
    names = [plain_name(str(name)) for name in (value if isinstance(value, list) else [value])]
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{shown(name)}: write a host's name, without scheme, port or '*'")
    return frozenset(names)


def allows(host: str, names: Iterable[str]) -> bool:
    """Tell whether the Host header *host* is a name of this machine, or one of *names*."""
    found = _HOST.fullmatch(host.strip())
    if found is None:
        return False
    if found["ipv6"] is not None:
        return _is_address(found["ipv6"].partition("%")[0], 6)
    name = plain_name(found["name"])
    return name in _own_names() or name in names or _is_address(name, 4)


def _own_names() -> set[str]:
    node = plain_name(os.uname().nodename)
    return {"localhost", node, node.partition(".")[0]} - {""}


def plain_name(name: str) -> str:
    """Return *name* in the form in which names are compared."""
    return name.strip().lower().removesuffix(".")


def _is_address(text: str, version: int) -> bool:
    import ipaddress  # noqa: PLC0415  (only for a request; this module is loaded at each start)

    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False
